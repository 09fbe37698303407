"""Speeds and shares out of counters."""

from __future__ import annotations

import pytest

from llmsupervisor.runtime.engine import Figures, Work
from llmsupervisor.runtime.rates import WINDOW, Rates, Reading, kept, rates


def reading(at: float, **figures: object) -> Reading:
    return Reading(at, Figures(**figures))  # type: ignore[arg-type]


def test_speeds_are_of_the_time_that_was_worked() -> None:
    found = rates(
        [
            reading(0, prefill=Work(1000, 2.0), decode=Work(100, 4.0)),
            reading(30, prefill=Work(3000, 2.5), decode=Work(150, 5.0)),
        ]
    )
    assert (found.prefill_tokens_per_s, found.decode_tokens_per_s) == (4000, 50)


def test_what_all_write_is_since_the_reading_before() -> None:
    found = rates([reading(0, written={1: 0}), reading(8, written={1: 10}), reading(10, written={1: 30, 2: 20})])
    assert found.tokens_per_s == 20
    assert rates([reading(0, written={1: 10}), reading(2, written={1: 10})]).tokens_per_s is None
    assert rates([reading(0, written={"all": 50}), reading(0, written={"all": 60})]).tokens_per_s is None
    assert rates([reading(0, written={"all": 50}), reading(2, written={"all": 0})]).tokens_per_s is None


def test_shares_are_of_the_window() -> None:
    one = reading(0, prefix_hits_total=900, prefix_queries_total=1000, draft_accepted_total=0, draft_tokens_total=0)
    two = reading(5, prefix_hits_total=910, prefix_queries_total=1100, draft_accepted_total=6, draft_tokens_total=8)
    found = rates([one, two])
    assert (found.prefix_hit_ratio, found.draft_acceptance) == (0.1, 0.75)


@pytest.mark.parametrize(
    "readings",
    [
        [],
        [reading(0, decode=Work(1, 1.0))],
        [reading(0), reading(2)],
        [reading(0, decode=Work(5, 1.0), prefill=Work(5, 1.0)), reading(2, decode=Work(5, 1.0), prefill=Work(9, 1.0))],
        [
            reading(0, prefix_hits_total=5, prefix_queries_total=9),
            reading(2, prefix_hits_total=5, prefix_queries_total=9),
        ],
        [
            reading(0, prefix_hits_total=5, prefix_queries_total=9),
            reading(2, prefix_hits_total=0, prefix_queries_total=2),
        ],
    ],
)
def test_nothing_happened_is_no_figure(readings: list[Reading]) -> None:
    assert rates(readings) == Rates()


def test_the_window_begins_with_the_last_reading_before_it() -> None:
    readings: tuple[Reading, ...] = ()
    for at in range(0, 200, 10):
        readings = kept(readings, reading(at))
    times = [each.time for each in readings]
    assert times[-1] == 190 and times[0] < 190 - WINDOW <= times[1]
