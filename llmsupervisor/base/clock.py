"""Time as the pure layers see it: a number handed in."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds; for every timeout, delay and deadline."""

    def wall(self) -> float:
        """Unix seconds; for display and records only."""
