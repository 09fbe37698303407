"""Every figure over time: each second for 15 minutes, coarser for a week on disk, with the events of the same time."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsupervisor.base.errors import UsageError
from llmsupervisor.daemon import bandwidth, rings
from llmsupervisor.daemon.rings import Minute, Rings
from llmsupervisor.host import seriesfile
from llmsupervisor.host.seriesfile import SeriesFile
from llmsupervisor.service.states import HAS_PROCESS

if TYPE_CHECKING:
    from llmsupervisor.daemon.daemon import Daemon
    from llmsupervisor.daemon.runner import Runner

LATE = 0.05
"""Into each second, so that none has two looks and the next none."""
EVENTS = 1000
"""Events that are remembered for the time line."""
POINTS = 300
"""Of one series, where the caller names no step."""
ANSWER = 30_000
"""Points of one answer at most: a line has 1 MiB."""
LAST = 2.0
"""Seconds that the end may wait for the disk."""

Values = dict[str, float]


@dataclass(frozen=True, slots=True)
class Wanted:
    names: tuple[str, ...]
    """Names or patterns: `services.*.tokens_per_s`."""
    window: float = float(rings.SECONDS)
    step: float | None = None
    until: float | None = None
    events: bool = True

    @classmethod
    def read(cls, args: dict[str, Any]) -> Wanted:
        names = args.get("names", ["*"])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UsageError(f'names is {names!r}: a list is expected, for example ["services.*.tokens_per_s"]')
        window = _seconds(args, "window_s", float(rings.SECONDS))
        most = max(seriesfile.KEPT.values())
        if window is None or not 1 <= window <= most:
            raise UsageError(f"window_s is {window!r}: seconds from 1 to {most} are expected")
        step = _seconds(args, "step_s", None)
        if step is not None and step < 1:
            raise UsageError(f"step_s is {step:g}: seconds from 1 are expected, or null")
        return cls(tuple(names), window, step, _seconds(args, "until", None), bool(args.get("events", True)))


def _seconds(args: dict[str, Any], name: str, default: float | None) -> float | None:
    value = args.get(name, default)
    if value is None or (type(value) in (int, float) and math.isfinite(value) and value >= 0):
        return None if value is None else float(value)
    raise UsageError(f"{name} is {value!r}: seconds from 0 are expected, for example 900")


class Store:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._rings = Rings()
        self.file = SeriesFile(Path(daemon.layout.series))
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self._writing: asyncio.Task[Any] | None = None
        self._waiting: Minute | None = None
        """Until the disk has it, or the next one."""

    def event(self, event: dict[str, Any]) -> None:
        self._events.append(event)

    async def run(self) -> None:
        every = await asyncio.to_thread(self._daemon.journal.tail, EVENTS)
        told = [event for event in every if isinstance(event.get("time"), float | int)]
        last = told[-1]["time"] if told else 0.0
        self._events = deque([*told, *(event for event in self._events if event["time"] > last)], EVENTS)
        while True:
            self._tick()
            await asyncio.sleep(LATE + 1.0 - self._daemon.clock.wall() % 1.0)

    def _tick(self) -> None:
        minute = self._rings.tick(self._daemon.clock.wall(), collect(self._daemon))
        if minute is not None:
            self._waiting = minute
        idle = self._writing is None or self._writing.done()
        if self._waiting is not None and idle and self.file.due:
            self._writing = asyncio.get_running_loop().create_task(self._write(self._waiting))

    async def _write(self, minute: Minute) -> None:
        written = await asyncio.to_thread(self.file.write, minute.start, minute.values)
        if written and self._waiting is minute:
            self._waiting = None

    async def close(self) -> None:
        """The minute that has begun is written too; the next daemon replaces it where it goes on with it."""
        minute = self._rings.minute(self._daemon.clock.wall())
        try:
            async with asyncio.timeout(LAST):
                if self._writing is not None:
                    await asyncio.wait([self._writing])
                if minute.values:
                    await self._write(minute)
        except TimeoutError:
            return
        self.file.close()

    # --- asking --------------------------------------------------------------------------------------------------

    async def read(self, wanted: Wanted) -> dict[str, Any]:
        now = self._daemon.clock.wall()
        latest = now if self._rings.latest is None else self._rings.latest
        end = latest if wanted.until is None else min(now, wanted.until)
        stored = () if end - wanted.window >= now - rings.SECONDS else await asyncio.to_thread(self.file.names)
        every = dict.fromkeys([*self._rings.names(), *stored])
        names = [name for name in every if any(fnmatchcase(name, pattern) for pattern in wanted.names)]
        base = self._base(now - (end - wanted.window))
        step = self._step(wanted, base, len(names))
        count = max(1, math.ceil(wanted.window / step))
        start = (math.floor(end / step) + 1) * step - count * step
        points = await self._points(names, start, end + step, base)
        series = {}
        for name in names:
            means, most = rings.buckets(points[name], start, step, count)
            series[name] = {"mean": means, "max": most if base > 1 or step > 1 else None}
        events = [event for event in self._events if start <= event["time"] <= end] if wanted.events else []
        return {
            "v": 1,
            "start": start,
            "step_s": step,
            "count": count,
            "series": series,
            "events": events[-POINTS:],
            "reason": self.file.degraded,
        }

    def _base(self, age: float) -> int:
        """Seconds of the finest points that go so far back."""
        if age <= rings.SECONDS + 1:
            return 1
        return next((step for step, kept in seriesfile.KEPT.items() if age <= kept), seriesfile.COARSE)

    def _step(self, wanted: Wanted, base: int, names: int) -> int:
        least = max(wanted.window / POINTS if wanted.step is None else wanted.step, wanted.window * names / ANSWER)
        return max(1, math.ceil(least / base)) * base

    async def _points(self, names: list[str], start: float, end: float, base: int) -> dict[str, Iterable[rings.Point]]:
        if base == 1:
            return {name: self._rings.points(name, start, end) for name in names}
        rows = await asyncio.to_thread(self.file.read, names, start, end, base)
        return {name: [*rows[name], *self._unwritten(name, rows[name], start, end)] for name in names}

    def _unwritten(self, name: str, rows: list[seriesfile.Row], start: float, end: float) -> Iterator[rings.Point]:
        """What is in memory and not on disk yet, where the disk is at most a minute behind; all of it where it has nothing."""
        after = max(rows[-1][0] + seriesfile.FINE, start) if rows else start
        return self._rings.points(name, after, end)


GPU = ("busy", "power_w", "temperature_c")
HOST = ("cpu_busy", "memory_available_bytes", "swap_used_bytes")


def collect(daemon: Daemon) -> Values:
    """What is known now, by name: `services.NAME.FIGURE`, `gpus.UUID.FIGURE`, `host.FIGURE`, as `status` names them."""
    found: dict[str, float | None] = {}
    for name, runner in daemon.box.runners.items():
        if daemon.loop.statuses[name].state in HAS_PROCESS:
            trend = daemon.trends.of.get(name)
            figures = _of(runner) | ({"rss_bytes": trend.rss, "swap_bytes": trend.swap} if trend else {})
            figures |= {f"{each.name}_s": each.measured_s for each in daemon.trends.objectives.get(name, ())}
            found.update({f"services.{name}.{figure}": value for figure, value in figures.items()})
    for gpu in daemon.gpu.latest.gpus or ():
        found[f"gpus.{gpu.uuid}.memory_used_bytes"] = gpu.memory_used_bytes
        found |= {f"gpus.{gpu.uuid}.{figure}": gpu.figures.get(figure) for figure in GPU}
        found[f"gpus.{gpu.uuid}.memory_bandwidth"] = (bandwidth.of(gpu, daemon.box.cards) or {}).get("usage")
    host = daemon.box.machine.latest or {}
    found |= {f"host.{figure}": host.get(figure) for figure in HOST}
    return {name: float(value) for name, value in found.items() if value is not None}


def _of(runner: Runner) -> dict[str, float | None]:
    figures, rates = runner.scraper.figures, runner.scraper.rates
    load, held = runner.box.traffic.of(runner.name), runner.box.memory.held(runner.name)
    found: dict[str, float | None] = {
        "tokens_per_s": rates.tokens_per_s,
        "prefill_tokens_per_s": rates.prefill_tokens_per_s,
        "decode_tokens_per_s": rates.decode_tokens_per_s,
        "prefix_hit_ratio": rates.prefix_hit_ratio,
        "vram_bytes": sum(held.values()) if held else None,
    }
    if figures is not None:
        found |= {
            "requests_running": figures.requests_running,
            "requests_waiting": figures.requests_waiting,
            "kv_cache_usage": figures.kv_cache_usage,
            "kv_tokens_used": figures.kv_tokens_used,
        }
    if load is not None:
        found |= {"requests_running": load.running, "requests_queued": load.queued}
    return found
