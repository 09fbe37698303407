"""The last 15 minutes of every figure, second by second, and what a minute of them comes to. In memory; no clock, no I/O."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

SECONDS = 900
MINUTE = 60

Value = tuple[float, float]
"""Mean and maximum."""
Point = tuple[float, float, float]
"""Unix seconds, mean and maximum."""


@dataclass(frozen=True, slots=True)
class Minute:
    """`start` is Unix seconds."""

    start: int
    values: Mapping[str, Value]


class Rings:
    """One time for all series: what is not known at a tick is a gap. A clock that is set is no harm: a tick is where it says it is."""

    def __init__(self) -> None:
        self._times = array("d", [math.nan]) * SECONDS
        self._series: dict[str, array[float]] = {}
        self._silent: dict[str, int] = {}
        """Ticks since it was known last."""
        self._head = -1

    @property
    def latest(self) -> float | None:
        """Unix seconds of the last tick."""
        return self._times[self._head] if self._head >= 0 else None

    def names(self) -> list[str]:
        return list(self._series)

    def tick(self, now: float, values: Mapping[str, float]) -> Minute | None:
        """The minute before, where this is the first tick of another one."""
        before = self._times[self._head] if self._head >= 0 else math.nan
        ended = None if math.isnan(before) or before // MINUTE == now // MINUTE else self.minute(before)
        self._head = (self._head + 1) % SECONDS
        self._times[self._head] = now
        for name in values.keys() - self._series.keys():
            self._series[name] = array("d", [math.nan]) * SECONDS
        for name, ring in self._series.items():
            value = values.get(name, math.nan)
            known = math.isfinite(value)
            ring[self._head] = value if known else math.nan
            self._silent[name] = 0 if known else self._silent.get(name, 0) + 1
        for name in [name for name, ticks in self._silent.items() if ticks >= SECONDS]:
            del self._series[name], self._silent[name]
        return ended

    def minute(self, time: float) -> Minute:
        """That of `time`, as far as it is known."""
        start = int(time // MINUTE) * MINUTE
        at = [i for i, each in enumerate(self._times) if start <= each < start + MINUTE]
        found: dict[str, Value] = {}
        for name, ring in self._series.items():
            known = [value for i in at if not math.isnan(value := ring[i])]
            if known:
                found[name] = (sum(known) / len(known), max(known))
        return Minute(start, found)

    def points(self, name: str, start: float, end: float) -> Iterator[Point]:
        """In no order."""
        ring = self._series.get(name)
        if ring is not None:
            for time, value in zip(self._times, ring, strict=True):
                if start <= time < end and not math.isnan(value):
                    yield time, value, value


def buckets(
    points: Iterable[Point], start: float, step: float, count: int
) -> tuple[list[float | None], list[float | None]]:
    """Means and maxima of `count` buckets from `start` on; None: nothing is known of that time."""
    sums, numbers = [0.0] * count, [0] * count
    highest: list[float | None] = [None] * count
    for time, mean, most in points:
        i = math.floor((time - start) / step)
        if 0 <= i < count:
            sums[i] += mean
            numbers[i] += 1
            high = highest[i]
            highest[i] = most if high is None or most > high else high
    means = [_short(total / n) if n else None for total, n in zip(sums, numbers, strict=True)]
    return means, [None if high is None else _short(high) for high in highest]


def _short(value: float) -> float:
    """Six digits are what a drawing needs; whole numbers stay whole."""
    return int(value) if value == int(value) else float(f"{value:.6g}")
