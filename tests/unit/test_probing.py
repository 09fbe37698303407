from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from llmsupervisor.service.probing import (
    Busy,
    Limits,
    NotReady,
    Observation,
    Ok,
    ProbeState,
    Suspect,
    Verdict,
    cleared,
    start_progress,
    verdict,
)

LIMITS = Limits()


def watch(seen: Iterable[Observation], limits: Limits = LIMITS) -> list[Verdict]:
    state, verdicts = ProbeState(), []
    for observation in seen:
        state, found = verdict(state, observation, limits)
        verdicts.append(found)
    return verdicts


def every(seconds: float, until: float, answered: bool, **fields: Any) -> list[Observation]:
    times = [i * seconds for i in range(int(until / seconds) + 1)]
    return [Observation(t, answered, **{k: v(t) if callable(v) else v for k, v in fields.items()}) for t in times]


def first(verdicts: list[Verdict], kind: type[Verdict], step: float) -> float | None:
    return next((i * step for i, found in enumerate(verdicts) if isinstance(found, kind)), None)


def test_an_idle_service_that_answers_is_never_suspected() -> None:
    for running in (0, None):
        verdicts = watch(every(5, 36_000, True, running=running, waiting=running, progress=1, cpu_s=3.0))
        assert set(verdicts) == {Ok()}


def test_work_that_moves_is_well_however_long_it_takes() -> None:
    assert set(watch(every(2, 3600, True, running=2, waiting=9, progress=lambda t: t // 100))) == {Ok()}


@pytest.mark.parametrize("progress", [7, (3, 12)])
def test_P4_work_that_does_not_move_is_suspected(progress: Hashable) -> None:
    verdicts = watch(every(2, 200, True, running=1, waiting=1, progress=progress, cpu_s=lambda t: t))
    assert first(verdicts, Suspect, 2) == 120
    assert verdicts[60].reason == "2 requests outstanding and no progress for 2m00s"
    assert watch(every(2, 200, True, running=1, progress=progress))[60].reason.startswith("1 request outstanding")


def test_where_the_engine_tells_no_progress_nothing_is_suspected() -> None:
    assert set(watch(every(2, 3600, True, running=1, progress=None))) == {Ok()}


def test_the_budget_begins_with_the_work() -> None:
    idle = every(2, 1000, True, running=0, progress=5)
    busy = [replace(o, time=o.time + 1002) for o in every(2, 118, True, running=1, progress=5)]
    assert set(watch([*idle, *busy])) == {Ok()}


def test_P6_a_long_prompt_in_flight_gets_a_longer_budget() -> None:
    slow = Limits(prefill_rate=100.0)
    seen = every(2, 2000, True, running=1, progress=1, prompt_tokens=30_000)
    assert first(watch(seen, slow), Suspect, 2) == 120 + 300
    assert first(watch(seen), Suspect, 2) == 120 + 600
    assert first(watch(every(2, 200, True, running=1, progress=1, prompt_tokens=None)), Suspect, 2) == 120
    mute = every(5, 2000, False, cpu_s=lambda t: t, prompt_tokens=30_000)
    assert first(watch(mute), Suspect, 5) == 600 + 600


def test_P6_the_end_of_a_prefill_takes_no_budget_back() -> None:
    """The gateway tells it up to a look before the engine's own figures do."""
    assert (
        first(
            watch(every(2, 2000, True, running=1, progress=1, prompt_tokens=lambda t: 30_000 * (t < 500))), Suspect, 2
        )
        == 720
    )
    moves = every(2, 2000, True, running=1, progress=lambda t: t >= 500, prompt_tokens=lambda t: 30_000 * (t < 500))
    assert first(watch(moves), Suspect, 2) == 500 + 120


def test_P6_clients_that_try_again_and_again_do_not_hide_a_hang() -> None:
    again = every(2, 4000, True, running=1, progress=1, prompt_tokens=lambda t: 0 if t % 60 == 0 else 3000)
    assert first(watch(again), Suspect, 2) == 120 + 60


def test_one_missed_answer_is_nothing() -> None:
    assert (
        watch([Observation(0, False), Observation(1, False), Observation(2, True), Observation(3, False)]) == [Ok()] * 4
    )


def test_three_missed_answers_are_not_ready() -> None:
    verdicts = watch(every(1, 2, False))
    assert verdicts == [Ok(), Ok(), NotReady("no answer for 2s")]


def test_P5_silence_without_cpu_time_is_suspected_soon() -> None:
    verdicts = watch(every(5, 100, False, cpu_s=42.0))
    assert first(verdicts, Suspect, 5) == 30
    assert verdicts[6].reason == "no answer for 30s, and no CPU time used for 30s"
    idle_before = every(5, 1000, True, cpu_s=42.0)
    after = [replace(o, time=o.time + 1005) for o in every(5, 25, False, cpu_s=42.0)]
    assert first(watch([*idle_before, *after]), Suspect, 5) is None


def test_P6_silence_with_cpu_time_is_work() -> None:
    verdicts = watch(every(5, 590, False, cpu_s=lambda t: t * 0.9))
    assert set(map(type, verdicts[2:])) == {Busy}
    assert verdicts[-1].reason == "no answer for 9m50s; it works"
    verdicts = watch(every(5, 700, False, cpu_s=lambda t: t * 0.9))
    assert first(verdicts, Suspect, 5) == 600 and verdicts[120].reason.endswith("though it uses CPU time")


def test_work_that_stops_is_suspected_from_there() -> None:
    assert first(watch(every(5, 300, False, cpu_s=lambda t: min(t, 100.0))), Suspect, 5) == 130


def test_unknown_cpu_time_is_not_standing_still() -> None:
    verdicts = watch(every(5, 700, False))
    assert first(verdicts, Suspect, 5) == 600 and verdicts[120].reason == "no answer for 10m00s"


def test_a_trickle_of_cpu_time_is_standing_still() -> None:
    assert first(watch(every(5, 100, False, cpu_s=lambda t: t * 0.005)), Suspect, 5) == 30


def test_a_clock_that_stands_does_not_divide_by_zero() -> None:
    assert set(watch([Observation(1, True, cpu_s=1.0), Observation(1, True, cpu_s=2.0)])) == {Ok()}


def test_a_cleared_suspicion_starts_every_budget_anew() -> None:
    state = ProbeState()
    for seen in every(2, 120, True, running=1, progress=1):
        state, found = verdict(state, seen, LIMITS)
    assert isinstance(found, Suspect)
    state = cleared(state, 121.0)
    for t in range(122, 240, 2):
        state, found = verdict(state, Observation(float(t), True, running=1, progress=1), LIMITS)
        assert found == Ok()
    assert isinstance(verdict(state, Observation(241.0, True, running=1, progress=1), LIMITS)[1], Suspect)
    assert cleared(ProbeState(misses=9, silent_since=1.0), 5.0) == ProbeState()


@pytest.mark.parametrize(
    ("before", "after", "moved"),
    [
        (None, (1, 1, 1), False),
        ((1, 1, 1), (1, 1, 1), False),
        ((1, 1, 1), (1, 1, 2), True),
        ((5, 1, 1), (4, 1, 1), False),
        ((None, 1), (5, 1), False),
        ((5, 1), (None, 2), True),
    ],
)
def test_start_progress(before: tuple[int | None, ...] | None, after: tuple[int | None, ...], moved: bool) -> None:
    assert start_progress(before, after) is moved
