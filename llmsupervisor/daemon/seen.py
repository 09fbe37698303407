"""What is seen of one run of a service: what it is at, how long it was at what, and whether it answers."""

from __future__ import annotations

from typing import NamedTuple

from llmsupervisor.base.clock import Clock
from llmsupervisor.base.progress import name_of
from llmsupervisor.host.http import Answer
from llmsupervisor.service.steps import Mark, Step, steps


class Probe(NamedTuple):
    """The last look at whether it answers."""

    path: str
    status: int | None
    """None: no answer came."""
    error: str | None
    """Why none came."""
    time: float
    """Unix seconds."""
    failures: int
    """Looks in a row that did not find it ready."""


class Seen:
    def __init__(self, clock: Clock) -> None:
        self.probe: Probe | None = None
        """None: it was not asked yet."""
        self.starts = True
        """Not READY yet: what it is at is a step of its start."""
        self._clock = clock
        self._phase: str | None = None
        self._marks: list[Mark] = []

    @property
    def phase(self) -> str | None:
        """What a load, a drain or a silence is at."""
        return self._phase

    @phase.setter
    def phase(self, text: str | None) -> None:
        self._phase = text
        last = name_of(self._marks[-1].text) if self._marks else None
        if text and self.starts and name_of(text) != last:
            self._marks.append(Mark(self._clock.monotonic(), text))

    def steps(self, began: float) -> list[Step]:
        """Of the start that ends now. `began`: monotonic seconds."""
        return steps(began, self._marks, self._clock.monotonic())

    def probed(self, path: str, answer: Answer, ready: bool) -> None:
        failures = 0 if ready else (self.probe.failures if self.probe else 0) + 1
        self.probe = Probe(path, answer.status, answer.error, self._clock.wall(), failures)
