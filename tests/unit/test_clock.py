from __future__ import annotations

from llmsupervisor.base.clock import Clock
from llmsupervisor.host.clock import SystemClock


def test_the_clock_of_the_box() -> None:
    clock: Clock = SystemClock()
    before = clock.monotonic()
    assert clock.monotonic() >= before
    assert clock.wall() > 1_700_000_000, "Unix seconds"
