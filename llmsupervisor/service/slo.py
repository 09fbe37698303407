"""Whether the requests of a service keep to its objectives. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from llmsupervisor.base.units import format_duration
from llmsupervisor.plan.size import quantile
from llmsupervisor.spec.model import Slo

LEAST = 20
"""Requests below which a 95th percentile says nothing."""
Name = Literal["ttft_p95", "tpot_p95"]


@dataclass(frozen=True, slots=True)
class Ended:
    """One request that was taken. `end` is Unix seconds; None: has no such time."""

    end: float
    ttft_s: float | None = None
    tpot_s: float | None = None
    tokens: int | None = None
    """Prompt + output."""
    stream: bool = True
    failed: bool = False
    """Through no fault of its client."""


@dataclass(frozen=True, slots=True)
class Objective:
    name: Name
    limit_s: float
    measured_s: float | None
    """None: too few requests, or it is among those that failed."""
    requests: int
    window_s: float
    breached: bool

    @property
    def text(self) -> str:
        """The same as long as it is missed: figures are beside it."""
        return (
            f"{self.name} of the last {format_duration(self.window_s)} is above its objective of {_said(self.limit_s)}"
        )


def objectives(slo: Slo, ended: Iterable[Ended], now: float) -> tuple[Objective, ...]:
    recent = [request for request in ended if request.end >= now - slo.window]
    return tuple(_objectives(slo, recent))


def _objectives(slo: Slo, recent: list[Ended]) -> Iterator[Objective]:
    """A stream that failed before its first token is slower than any."""
    if slo.ttft_p95 is not None:
        never = sum(request.failed and request.stream and request.ttft_s is None for request in recent)
        yield _one("ttft_p95", slo.ttft_p95, slo.window, [r.ttft_s for r in recent], never)
    if slo.tpot_p95 is not None:
        yield _one("tpot_p95", slo.tpot_p95, slo.window, [r.tpot_s for r in recent], 0)


def _one(name: Name, limit: float, window: float, times: list[float | None], never: int) -> Objective:
    tally = Counter(time for time in times if time is not None)
    count = tally.total() + never
    if count < LEAST:
        return Objective(name, limit, None, count, window, breached=False)
    measured = quantile(tally, 0.95, never)
    return Objective(name, limit, measured, count, window, breached=measured is None or measured > limit)


def context_p95(ended: Iterable[Ended]) -> int | None:
    tally = Counter(request.tokens for request in ended if request.tokens is not None)
    return quantile(tally, 0.95) if tally.total() >= LEAST else None


def _said(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
