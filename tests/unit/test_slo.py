"""Objectives: what is measured, over what, and when it says nothing."""

from __future__ import annotations

from llmsupervisor.service.slo import LEAST, Ended, Objective, context_p95, objectives
from llmsupervisor.spec.model import Slo

NOW = 10_000.0
SLO = Slo.model_validate({"ttft_p95": "2s", "tpot_p95": "50ms"})


def some(count: int, **figures: object) -> list[Ended]:
    return [Ended(end=NOW - 10, **figures) for _ in range(count)]  # type: ignore[arg-type]


def one(slo: Slo, ended: list[Ended]) -> Objective:
    (found,) = objectives(slo, ended, NOW)
    return found


TTFT = Slo.model_validate({"ttft_p95": "2s"})


def test_both_are_measured() -> None:
    ttft, tpot = objectives(SLO, some(95, ttft_s=1.0, tpot_s=0.01) + some(5, ttft_s=9.0, tpot_s=0.9), NOW)
    assert (ttft.name, ttft.measured_s, ttft.breached) == ("ttft_p95", 1.0, False)
    ttft, tpot = objectives(SLO, some(94, ttft_s=1.0, tpot_s=0.01) + some(6, ttft_s=9.0, tpot_s=0.9), NOW)
    assert (ttft.measured_s, ttft.breached) == (9.0, True) and (tpot.measured_s, tpot.breached) == (0.9, True)
    assert ttft.text == "ttft_p95 of the last 5m00s is above its objective of 2 s"
    assert tpot.text == "tpot_p95 of the last 5m00s is above its objective of 50 ms"


def test_few_requests_say_nothing() -> None:
    found = one(TTFT, some(LEAST - 1, ttft_s=9.0))
    assert (found.measured_s, found.requests, found.breached) == (None, LEAST - 1, False)


def test_what_is_older_than_the_window_does_not_count() -> None:
    old = [Ended(end=NOW - 301, ttft_s=9.0)] * 100
    assert one(TTFT, old + some(LEAST, ttft_s=1.0)).requests == LEAST


def test_a_failed_stream_is_slower_than_any() -> None:
    found = one(TTFT, some(90, ttft_s=1.0) + some(10, failed=True))
    assert found.breached and found.measured_s is None
    assert not one(TTFT, some(90, ttft_s=1.0) + some(10, failed=True, stream=False)).breached
    assert not one(TTFT, some(90, ttft_s=1.0) + some(10, failed=True, ttft_s=1.5)).breached, "it had begun to answer"
    (tpot,) = objectives(Slo.model_validate({"tpot_p95": "50ms"}), some(90, tpot_s=0.01) + some(10, failed=True), NOW)
    assert not tpot.breached


def test_no_objective_no_measure() -> None:
    assert objectives(Slo(), some(50, ttft_s=1.0), NOW) == ()


def test_the_context_that_requests_take() -> None:
    assert context_p95(some(95, tokens=100) + some(5, tokens=900)) == 100
    assert context_p95(some(LEAST - 1, tokens=100) + some(50)) is None
