"""How fast a transfer goes on, by looks at it. Pure."""

from __future__ import annotations

from llmsupervisor.runtime.models import Progress

WINDOW = 10.0
"""Seconds that the looks go back."""
LEAST = 1.0
"""Seconds between two looks that say something."""


class Pace:
    def __init__(self) -> None:
        self._step = ""
        self._looks: list[tuple[float, int]] = []

    def look(self, now: float, progress: Progress | None) -> None:
        """`now`: monotonic seconds. Each step (`uploading`) counts by itself."""
        if progress is None or progress.completed is None:
            self._looks = []
            return
        if progress.status != self._step or (self._looks and progress.completed < self._looks[-1][1]):
            self._step, self._looks = progress.status, []
        self._looks = [*(look for look in self._looks if look[0] >= now - WINDOW), (now, progress.completed)]

    def bytes_per_s(self, step: str) -> float | None:
        """None: it was not seen for long enough."""
        if step != self._step or not self._looks:
            return None
        (began, before), (now, done) = self._looks[0], self._looks[-1]
        return (done - before) / (now - began) if now - began >= LEAST else None
