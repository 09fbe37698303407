"""One process that a service started for a model: found below its shim, watched by pidfd, read, and ended where it hangs.
The service goes on listing it when it is dead, and answers for itself when it hangs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llmsupervisor.base.clock import Clock
from llmsupervisor.base.ids import Json
from llmsupervisor.daemon.scrape import Scraper
from llmsupervisor.daemon.traffic import Load
from llmsupervisor.host import tree
from llmsupervisor.host.http import Engine
from llmsupervisor.host.pidfd import readable
from llmsupervisor.runtime.adapter import Adapter
from llmsupervisor.runtime.engine import Figures
from llmsupervisor.runtime.models import RunnerArgs, runner_of
from llmsupervisor.service.probing import Limits, Observation, ProbeState, Suspect, cleared, verdict

SUSPICION = 15.0
"""Seconds for the tiny request that decides whether one that answers, and moves no token, hangs."""
BUSY_EVERY, IDLE_EVERY = 2.0, 5.0
REREAD = 10.0
TINY: Json = {"prompt": "Hi", "n_predict": 1, "cache_prompt": False}


def find(shim: int, wanted: Callable[[RunnerArgs], bool]) -> tuple[tree.Identity, RunnerArgs] | None:
    """The youngest: an older one of the same kind is about to go."""
    found = None
    for identity in tree.descendants(shim):
        args = runner_of(_argv(identity.pid))
        if args is not None and wanted(args) and (found is None or identity.start >= found[0].start):
            found = identity, args
    return found


def together(known: Sequence[Figures]) -> Figures | None:
    """Sums, and the fullest cache. None: of none."""
    if not known:
        return None
    usage = [each.kv_cache_usage for each in known if each.kv_cache_usage is not None]
    return Figures(
        requests_running=_sum(each.requests_running for each in known),
        requests_waiting=_sum(each.requests_waiting for each in known),
        kv_cache_usage=max(usage) if usage else None,
        kv_tokens_used=_sum(each.kv_tokens_used for each in known),
        kv_tokens_cached=_sum(each.kv_tokens_cached for each in known),
        prompt_tokens_total=_sum(each.prompt_tokens_total for each in known),
        completion_tokens_total=_sum(each.completion_tokens_total for each in known),
    )


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _argv(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode("utf-8", "replace").split("\0")
    except OSError:
        return []


class RunnerProcess:
    """`died` is called once, with why it was ended where that was us."""

    def __init__(
        self, identity: tree.Identity, pidfd: int, args: RunnerArgs, adapter: Adapter, hang: float, stall: float,
        died: Callable[[RunnerProcess, str], None], clock: Clock, load: Callable[[], Load | None],
    ) -> None:  # fmt: skip
        self.identity, self.args = identity, args
        self.scraper = Scraper(clock)
        self.dead = asyncio.Event()
        self._pidfd = pidfd
        self._adapter = adapter
        self._hang, self._stall = hang, stall
        self._died = died
        self._load = load
        """What the gateway has it do."""
        self._killed = ""
        self._read_at = -REREAD
        self._mute = False
        """It answers, and tells no figures."""
        self._engine = Engine(args.address)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._until_dead()), loop.create_task(self._watch())]

    @classmethod
    def open(
        cls, found: tuple[tree.Identity, RunnerArgs], adapter: Adapter, hang: float, stall: float,
        died: Callable[[RunnerProcess, str], None], clock: Clock, load: Callable[[], Load | None],
    ) -> RunnerProcess | None:  # fmt: skip
        """None: it is gone already."""
        pidfd = tree.open_pidfd(found[0])
        return None if pidfd is None else cls(found[0], pidfd, found[1], adapter, hang, stall, died, clock, load)

    def kill(self, why: str) -> None:
        """The service starts another one when it is needed."""
        self._killed = why
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    async def close(self) -> None:
        """It goes on; nobody watches any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._engine.aclose()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    @property
    def figures(self) -> Figures | None:
        return self.scraper.figures

    async def _until_dead(self) -> None:
        await readable(self._pidfd)
        self._tasks[1].cancel()
        self.scraper.figures = None
        self.dead.set()
        self._died(self, self._killed)

    # --- reading -------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """One that answers nothing is found within `hang`: a sixth until the next look, one for its answer, half without
        CPU time. One that answers and moves no token may only be slow: it is suspected after `stall` and what its prompts
        may take, seen up to two looks later (each a wait and an answer, a third of `hang`), and the tiny request decides."""
        ask = min(5.0, self._hang / 6)
        limits = Limits(stall_timeout=self._stall, cpu_stall=self._hang / 2, busy_timeout=5 * self._stall)
        state = ProbeState()
        while True:
            seen = await self._observe(ask)
            state, found = verdict(state, seen, limits)
            if isinstance(found, Suspect):
                if not seen.answered or not await self._works():
                    self.kill(f"hung: {found.reason}")
                    return
                state = cleared(state, asyncio.get_running_loop().time())
            busy = seen.running or seen.waiting or not seen.answered
            await asyncio.sleep(min(BUSY_EVERY if busy else IDLE_EVERY, ask))

    async def _observe(self, ask: float) -> Observation:
        answered = (await self._engine.get_text("/health", ask)).status is not None
        now = asyncio.get_running_loop().time()
        load = self._load()
        busy = (load is not None and load.running) or (self.figures and self.figures.requests_running)
        if answered and (busy or now - self._read_at >= REREAD):
            self._read_at = now
            await self._read(ask)
        found = self.figures if answered else None
        running = found.requests_running if found else None
        progress = found.progress if found else None
        if answered and self._mute and load is not None and load.running:
            # its last figures may be of the time before: what the gateway sent is there, and nothing is seen to move
            running, progress = load.running, progress if progress is not None else ()
        return Observation(
            time=asyncio.get_running_loop().time(),
            answered=answered,
            running=running,
            waiting=found.requests_waiting if found else None,
            progress=progress,
            cpu_s=None if answered else _cpu(self.identity.pid),
            prompt_tokens=load.prefill_tokens if load is not None else None,
        )

    async def _read(self, ask: float) -> None:
        """Between two batches only: where they do not come in time the last figures stand. Each question is a line of its
        log, so an idle one is asked seldom."""
        metrics, slots = await asyncio.gather(
            self._engine.get_text("/metrics", ask), self._engine.get_json("/slots", ask)
        )
        self._mute = not (slots.ok or metrics.ok)
        if not self._mute:
            said = slots.json if slots.ok else None
            self.scraper.take(self._adapter.figures(metrics.text if metrics.ok else None, said))

    async def _works(self) -> bool:
        return (await self._engine.call("POST", "/completion", TINY, SUSPICION)).ok

    async def props(self) -> Any:
        return (await self._engine.get_json("/props", 5.0)).json


def _cpu(pid: int) -> float | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
