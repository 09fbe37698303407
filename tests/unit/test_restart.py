from __future__ import annotations

from dataclasses import replace

import pytest

from llmsupervisor.service.restart import GiveUp, Wait, decide, delay, settle_books
from llmsupervisor.service.states import ExitInfo, Policy, Status

POLICY = Policy()
CRASH = ExitInfo("exited", "exited with code 1", code=1)


@pytest.mark.parametrize(("streak", "seconds"), [(0, 0), (1, 1), (2, 2), (5, 16), (7, 60), (10_000, 60)])
def test_delay(streak: int, seconds: float) -> None:
    assert delay(streak, 0.0, POLICY) == seconds
    assert delay(streak, 1.0, POLICY) == pytest.approx(seconds * 1.2)
    assert delay(streak, -1.0, POLICY) == pytest.approx(seconds * 0.8)


def test_only_failures_inside_the_window_count() -> None:
    status = Status(fault=CRASH, failures=(0.0, 100.0, 500.0), streak=3)
    booked = settle_books(status, POLICY, 650.0)
    assert booked.failures == (100.0, 500.0, 650.0) and booked.streak == 4
    assert settle_books(status, POLICY, 1200.0).failures == (1200.0,)


def test_no_more_failures_are_kept_than_the_burst() -> None:
    status = Status(fault=CRASH, failures=(0.0,) * 9)
    assert len(settle_books(status, POLICY, 1.0).failures) == POLICY.burst


def test_an_end_that_was_asked_for_is_not_counted() -> None:
    status = Status(failures=(1.0,), streak=2)
    assert settle_books(status, POLICY, 2.0) == status
    assert settle_books(replace(status, healthy=True), POLICY, 2.0) == Status()


def test_after_a_healthy_run_the_first_restart_is_immediate_and_the_second_is_not() -> None:
    booked = settle_books(Status(fault=CRASH, healthy=True, failures=(0.0,) * 4, streak=4), POLICY, 9.0)
    assert booked.failures == (9.0,) and decide(booked, CRASH, POLICY, 9.0) == Wait(0.0)
    again = settle_books(replace(booked, fault=CRASH), POLICY, 10.0)
    assert decide(again, CRASH, POLICY, 10.0) == Wait(1.0)


def test_the_order_of_reasons_to_give_up() -> None:
    used_up = Status(failures=(0.0,) * 5, streak=5)
    never = decide(used_up, CRASH, replace(POLICY, restart="never"), 1.0)
    assert never == GiveUp(None, 'exited with code 1; stays down: restart policy is "never"')
    port = decide(used_up, replace(CRASH, retry="when-port-free"), POLICY, 1.0)
    assert port == GiveUp(None, "exited with code 1; waits until the port is free")
    burst = decide(used_up, CRASH, POLICY, 1.0)
    assert isinstance(burst, GiveUp) and burst.retry_at == 301.0
