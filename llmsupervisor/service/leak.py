"""Whether memory grows from request to request and never comes back. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

PARTS = 6
"""Memory that leaks is higher at its lowest in each of so many parts, in order: what is given back, or is full, is not."""
LEAST = 100
"""Requests below which nothing is said."""
POINTS = 240
"""Kept, as far apart as the first two; of more, every second one goes."""
COMPARED = 24


@dataclass(frozen=True, slots=True)
class Point:
    requests: int
    """Answered so far."""
    bytes: int


@dataclass(frozen=True, slots=True)
class Leak:
    rise: int
    requests: int


def kept(points: Sequence[Point], new: Point) -> tuple[Point, ...]:
    step = points[1].requests - points[0].requests if len(points) > 1 else 1
    if points and new.requests - points[-1].requests < step:
        return tuple(points)
    every = (*points, new)
    return every if len(every) <= POINTS else every[::2]


def slope(points: Sequence[Point]) -> float | None:
    """Bytes per request: the median over pairs, so that no single peak decides."""
    if _span(points) < LEAST:
        return None
    some = points[:: max(1, len(points) // COMPARED)]
    pairs = [(a, b) for i, a in enumerate(some) for b in some[i + 1 :]]
    slopes = sorted((b.bytes - a.bytes) / (b.requests - a.requests) for a, b in pairs)
    return slopes[len(slopes) // 2]


def leak(points: Sequence[Point], rise: int) -> Leak | None:
    """Over all of it, or over a later part whose end is above everything before: a leak may begin late."""
    first, before = 0, 0
    while len(points) - first >= 2 * PARTS and _span(points[first:]) >= LEAST:
        lowest = [min(point.bytes for point in part) for part in _parts(points[first:])]
        grown = lowest[-1] - lowest[0]
        steady = all(b - a >= grown / (4 * PARTS) for a, b in itertools.pairwise(lowest))
        if steady and grown >= rise and lowest[-1] > before:
            return Leak(grown, _span(points[first:]))
        first += (len(points) - first) // 2
        before = max(point.bytes for point in points[:first])
    return None


def _span(points: Sequence[Point]) -> int:
    return points[-1].requests - points[0].requests if points else 0


def _parts(points: Sequence[Point]) -> list[Sequence[Point]]:
    size = len(points) / PARTS
    return [points[round(i * size) : round((i + 1) * size)] for i in range(PARTS)]
