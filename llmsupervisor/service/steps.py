"""What a start was at, and for how long. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llmsupervisor.base.progress import name_of

MOST = 12
"""Steps that are told apart; whatever comes after them counts as the last."""


class Mark(NamedTuple):
    time: float
    """Monotonic seconds when the step was first seen."""
    text: str


class Step(NamedTuple):
    phase: str
    seconds: float


def steps(began: float, marks: Sequence[Mark], ended: float) -> list[Step]:
    """In the order in which they began, each once. What was before the first mark belongs to it."""
    found: dict[str, float] = {}
    for n, mark in enumerate(marks):
        since = mark.time if n else began
        until = marks[n + 1].time if n + 1 < len(marks) else ended
        name = name_of(mark.text)
        if name not in found and len(found) == MOST:
            name = list(found)[-1]
        found[name] = found.get(name, 0.0) + max(until - since, 0.0)
    return [Step(name, seconds) for name, seconds in found.items()]
