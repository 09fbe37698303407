"""Figures over time, and what happened beside them (`docs/contracts.md` §2). Unknown is None, never 0.

Times are Unix seconds, durations seconds, unless a name ends in `_ms`.
"""

from __future__ import annotations

from typing import TypedDict

from llmsupervisor.link.events import Event


class SeriesPoints(TypedDict):
    mean: list[float | None]
    max: list[float | None] | None


class Series(TypedDict):
    """Bucket i: from `start` + i × `step_s`, Unix seconds."""

    v: int
    start: float
    step_s: float
    count: int
    series: dict[str, SeriesPoints]
    events: list[Event]
    reason: str | None
