"""What only shows over many requests: objectives that are missed, and memory that leaks. Looked at each few seconds."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from llmsupervisor.base.units import format_size
from llmsupervisor.daemon.recent import Recent
from llmsupervisor.host import resident
from llmsupervisor.runtime.values import default_of
from llmsupervisor.service import leak
from llmsupervisor.service.leak import Point
from llmsupervisor.service.slo import Objective, context_p95, objectives
from llmsupervisor.service.states import Restart, State

if TYPE_CHECKING:
    from llmsupervisor.daemon.daemon import Daemon
    from llmsupervisor.daemon.runner import Runner

LOOK = 5.0
"""Seconds between two looks at requests."""
MEMORY = 3
"""Of so many looks one is at the memory of all processes too."""
AGAIN = 3600.0
"""Seconds between two planned restarts of a service at least: memory that does not leak must not stop a service for long."""
KINDS = ("memory", "GPU memory")


@dataclass
class Trend:
    """Of one start."""

    attempt: int
    rss: int | None = None
    swap: int | None = None
    points: dict[str, Sequence[Point]] = field(default_factory=dict)

    def slope(self, kind: str) -> float | None:
        return leak.slope(self.points.get(kind, ()))

    @property
    def requests(self) -> int:
        return max((points[-1].requests - points[0].requests for points in self.points.values() if points), default=0)


class Trends:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._recycled: dict[str, float] = {}
        self.recent = Recent(Path(daemon.layout.requests))
        self.of: dict[str, Trend] = {}
        self.objectives: dict[str, tuple[Objective, ...]] = {}
        self.context: dict[str, int | None] = {}

    async def run(self) -> None:
        for number in itertools.count():
            await self.recent.look()
            if number % MEMORY == 0:
                self._memory()
            for name, runner in list(self._daemon.box.runners.items()):
                self._objectives(runner)
                self._leaks(name, runner)
            self._forget()
            await asyncio.sleep(LOOK)

    def _forget(self) -> None:
        """What left the spec; a service that is not there yet keeps its requests of before."""
        for name in self.objectives.keys() - self._daemon.box.runners.keys():
            for known in (self.objectives, self.context, self._recycled):
                known.pop(name, None)
            self.recent.forget(name)

    # --- objectives ----------------------------------------------------------------------------------------------

    def _objectives(self, runner: Runner) -> None:
        slo, ended = runner.plan.service.slo, self.recent.of(runner.name)
        found = objectives(slo, ended, self._daemon.clock.wall()) if slo else ()
        self.objectives[runner.name] = found
        self.context[runner.name] = context_p95(ended)
        runner.conditions.set("slo", "; ".join(each.text for each in found if each.breached))

    # --- memory --------------------------------------------------------------------------------------------------

    def _memory(self) -> None:
        running = {name: runner for name, runner in self._daemon.box.runners.items() if runner.process is not None}
        shims = {name: runner.process.run.shim.pid for name, runner in running.items() if runner.process}
        trees = resident.trees(shims.values())
        for name, runner in running.items():
            assert runner.process is not None
            trend = self.of.get(name)
            if trend is None or trend.attempt != runner.process.attempt:
                trend = self.of[name] = Trend(runner.process.attempt)
                runner.conditions.clear("leak")
            trend.rss, trend.swap = resident.memory(trees[shims[name]]) or (None, None)
            held = self._daemon.box.memory.held(name)
            if self._daemon.loop.statuses[name].state is State.READY:
                host = None if trend.rss is None or trend.swap is None else trend.rss + trend.swap
                for kind, size in zip(KINDS, (host, sum(held.values()) if held else None), strict=True):
                    if size is not None:
                        point = Point(self.recent.answered(name), size)
                        trend.points[kind] = leak.kept(trend.points.get(kind, ()), point)
        for name in self.of.keys() - running.keys():
            del self.of[name]
            with contextlib.suppress(KeyError):
                self._daemon.box.runners[name].conditions.clear("leak")

    def _leaks(self, name: str, runner: Runner) -> None:
        trend = self.of.get(name)
        if trend is None or runner.process is None:
            return
        policy = runner.plan.service.leak
        allowed = {kind: policy.rise + (_caches(runner) if kind == KINDS[0] else 0) for kind in KINDS}
        found = [kind for kind, points in trend.points.items() if leak.leak(points, allowed[kind])]
        text = "; ".join(
            f"{kind} rose by more than {format_size(allowed[kind])} with its requests and never came back"
            for kind in found
        )
        runner.conditions.set("leak", text)
        if text and policy.recycle and self._may_recycle(name, policy.idle):
            self._recycled[name] = self._daemon.clock.monotonic()
            self._daemon.loop.post(name, Restart(f"recycled while idle: {text}"))

    def _may_recycle(self, name: str, idle: float) -> bool:
        """Planned, so only while nobody waits for it."""
        now, status = self._daemon.clock.monotonic(), self._daemon.loop.statuses[name]
        load, used = self._daemon.box.traffic.of(name), self._daemon.box.traffic.used(name)
        rested = used is not None and now - used >= idle
        lately = name in self._recycled and now - self._recycled[name] < AGAIN
        return status.state is State.READY and load is not None and load.idle and rested and not lately


def _caches(runner: Runner) -> int:
    """What an engine may keep of prompts of finished requests, by the plan: that fills, and is no leak."""
    assert runner.process is not None
    service, definition = runner.process.plan.service, runner.process.plan.definition
    size = service.cache_ram if service.cache_ram is not None else default_of("cache_ram", definition)
    return (size or 0) * max(1, len(service.models or ()))
