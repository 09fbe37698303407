"""An engine's log while it grows: what it says of its processes, and which line belongs to which request of the gateway.
The log knows no request: tokens and time tell."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmsupervisor.base.ids import Json
from llmsupervisor.host.logtail import CHUNK, Follower
from llmsupervisor.link.gateway import Finished
from llmsupervisor.runtime.models import ended_by_engine
from llmsupervisor.runtime.runnerlog import RunnerLog, Timing

WAIT = 2.5
"""Seconds that a line is waited for after the end of its request."""
BEHIND = 4 * 1024**2
"""Bytes that are read at one look at most; older ones are passed over."""
AGAIN = 0.05
KEPT = 5.0
"""Seconds that a line without a request is kept: its end may be told late."""


@dataclass(slots=True)
class _Wanted:
    said: Finished
    until: float


class Join:
    """Both sides come in the order of their ends; the first that fits is taken. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._timings: deque[tuple[float, Timing]] = deque(maxlen=1024)
        self._wanted: list[_Wanted] = []

    @property
    def waits(self) -> bool:
        return bool(self._wanted)

    def ended(self, said: Finished, now: float) -> None:
        self._wanted.append(_Wanted(said, now + WAIT))

    def seen(self, timings: list[Timing], now: float) -> None:
        self._timings.extend((now, timing) for timing in timings)

    def pairs(self, now: float) -> list[tuple[str, dict[str, Json]]]:
        """(id, fields) of those that found each other since."""
        while self._timings and now - self._timings[0][0] > KEPT:
            self._timings.popleft()
        found = []
        for wanted in list(self._wanted):
            timing = next((each for each in self._timings if _same(wanted.said, each[1])), None)
            if timing is not None:
                self._timings.remove(timing)
                found.append((wanted.said["id"], fields(timing[1])))
            if timing is not None or now > wanted.until:
                self._wanted.remove(wanted)
        return found


def _same(said: Finished, timing: Timing) -> bool:
    """Both counts, where the gateway knows them; neither known: nothing to tell by."""
    prompt, completion = said["prompt_tokens"], said["completion_tokens"]
    if prompt is None:
        return False
    return prompt == timing.prompt_tokens and completion in (None, timing.completion_tokens)


def fields(timing: Timing) -> dict[str, Json]:
    known: dict[str, Json] = {
        "prefill_ms": timing.prefill_ms,
        "decode_ms": timing.decode_ms,
        "cached_tokens": timing.cached_tokens,
        "truncated": True if timing.truncated else None,
    }
    return {key: value for key, value in known.items() if value is not None}


class EngineLog:
    """Of one start, from now on. `tell`: to the gateway."""

    def __init__(
        self, path: os.PathLike[str], now: Callable[[], float], tell: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self._path, self._now, self._tell = path, now, tell
        self._follower, self._lines, self._join = Follower(path), RunnerLog(), Join()
        self._ended_at = float("-inf")
        self._joining: asyncio.Task[None] | None = None

    def read(self) -> float:
        """A bounded piece of what is new. When the engine last said that it ended one of its processes."""
        if self._follower.behind() > BEHIND:
            self._follower, self._lines = Follower(self._path), RunnerLog()
        for _ in range(BEHIND // CHUNK):
            if not (lines := list(self._follower.read())):
                break
            if any(map(ended_by_engine, lines)):
                self._ended_at = self._now()
            self._join.seen(self._lines.feed(lines), self._now())
        return self._ended_at

    def finished(self, said: Finished) -> None:
        self._join.ended(said, self._now())
        if self._joining is None or self._joining.done():
            self._joining = asyncio.get_running_loop().create_task(self._enrich())

    async def _enrich(self) -> None:
        while self._join.waits:
            self.read()
            for id, fields in self._join.pairs(self._now()):
                self._tell({"type": "enrich", "id": id, "fields": fields})
            await asyncio.sleep(AGAIN)

    def close(self) -> None:
        if self._joining is not None:
            self._joining.cancel()
