"""What a start was at, and for how long."""

from __future__ import annotations

from llmsupervisor.service.steps import MOST, Mark, Step, steps


def test_their_times_are_all_of_the_start() -> None:
    marks = [Mark(1.0, "not listening yet"), Mark(3.0, "answers 503"), Mark(9.0, "first request")]
    assert steps(0.0, marks, 10.0) == [
        Step("not listening yet", 3.0),
        Step("answers 503", 6.0),
        Step("first request", 1.0),
    ]
    assert steps(0.0, [], 10.0) == []


def test_one_that_comes_again_goes_on() -> None:
    marks = [Mark(0.0, "a, 10 %"), Mark(2.0, "b"), Mark(3.0, "a, 90 %")]
    assert steps(0.0, marks, 5.0) == [Step("a", 4.0), Step("b", 1.0)]


def test_of_very_many_the_rest_counts_as_the_last() -> None:
    found = steps(0.0, [Mark(float(n), f"step {n}") for n in range(100)], 100.0)
    assert len(found) == MOST and sum(step.seconds for step in found) == 100.0
