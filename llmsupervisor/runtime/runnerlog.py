"""What llama-server's log tells of single requests: true times, cached tokens, what was cut. The lines of several runners
may stand mixed, without saying whose they are: what cannot be told apart is left out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_SLOT = r"id +(\d+) \| task (\d+) \|"
_NEW = re.compile(rf"{_SLOT} new prompt, .*task\.n_tokens = (\d+)")
_CACHED = re.compile(rf"{_SLOT} cached n_tokens = (\d+)")
_SHIFT = re.compile(rf"{_SLOT} slot context shift")
_TIMING = re.compile(rf"(?:{_SLOT}|^) *(prompt eval|eval) time = +([\d.]+) ms / +(\d+) tokens")
_BARE = re.compile(rf"print_timing: {_SLOT} *$")
"""In older releases the times stand on lines of their own after it."""
_RELEASE = re.compile(rf"release: {_SLOT} stop processing: n_tokens = \d+, truncated = (\d)")
_CUT = re.compile(r'msg="truncating input prompt" limit=\d+ prompt=(\d+) .*new=(\d+)')

Slot = tuple[str, str]


@dataclass(slots=True)
class Timing:
    """Of one request, at its end. Tokens of the prompt with those that were cached."""

    prompt_tokens: int
    cached_tokens: int | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None
    completion_tokens: int | None = None
    truncated: bool = False
    """The prompt was cut, or the beginning of the context thrown away while it ran."""


class RunnerLog:
    def __init__(self) -> None:
        self._open: dict[Slot, Timing | None] = {}
        """None: two runners have a task of this number at once."""
        self._bare: Slot | None = None
        self._cut: set[int] = set()
        """Lengths that prompts were cut to, until the runner has them."""

    def feed(self, lines: Iterable[str]) -> list[Timing]:
        """Requests that ended."""
        found = []
        for line in lines:
            if (line.startswith(("slot", " ", "prompt eval")) or "truncating input" in line) and (
                done := self._line(line)
            ) is not None:
                found.append(done)
        return found

    def _line(self, line: str) -> Timing | None:
        if match := _TIMING.search(line):
            self._time(match)
        elif match := _NEW.search(line):
            self._begin((match[1], match[2]), int(match[3]))
        elif match := _CACHED.search(line):
            timing = self._open.get((match[1], match[2]))
            if timing is not None and timing.cached_tokens is None:  # the later ones count what is computed already
                timing.cached_tokens = int(match[3])
        elif match := _RELEASE.search(line):
            timing = self._open.pop((match[1], match[2]), None)
            if timing is not None:
                timing.truncated |= match[3] != "0"
            return timing
        elif match := _SHIFT.search(line):
            if (timing := self._open.get((match[1], match[2]))) is not None:
                timing.truncated = True
        elif match := _CUT.search(line):
            self._cut.add(int(match[2]))
        elif match := _BARE.search(line):
            self._bare = match[1], match[2]
        return None

    def _begin(self, slot: Slot, tokens: int) -> None:
        cut = tokens in self._cut
        self._cut.discard(tokens)
        self._open[slot] = None if slot in self._open else Timing(tokens, truncated=cut)
        if len(self._open) > 1024:  # those of runners that died with requests
            del self._open[next(iter(self._open))]

    def _time(self, match: re.Match[str]) -> None:
        slot = (match[1], match[2]) if match[1] is not None else self._bare
        timing = self._open.get(slot) if slot is not None else None
        if timing is None:
            return
        if match[3] == "eval":
            timing.decode_ms, timing.completion_tokens = float(match[4]), int(match[5])
        else:
            timing.prefill_ms = float(match[4])
            if timing.cached_tokens is None:
                timing.cached_tokens = max(0, timing.prompt_tokens - int(match[5]))
