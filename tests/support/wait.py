"""Waiting for something to happen, with a deadline; and how long it took, on a machine that may have stood still."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 40.0
"""Seconds. A deadline tells a hang from a slow machine, no more: who wants to know how long something takes measures it."""
NAP = 0.02


def wait_until(predicate: Callable[[], T], timeout: float, what: str | Callable[[], str]) -> T:
    """The first truthy value of `predicate`. `what` is told where `timeout` seconds, or 40, were not enough."""
    timeout = max(timeout, PATIENCE)
    deadline = time.monotonic() + timeout
    pause = 0.005
    while True:
        if value := predicate():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


def undisturbed(measure: Callable[[], None], times: int = 3) -> None:
    """What holds on a machine that disturbs nobody: measured again where it did not, so many times at most. What is wrong is
    wrong each time. A machine that is slow for a while gets a while."""
    for left in reversed(range(times)):
        try:
            return measure()
        except AssertionError as error:
            if not left:
                raise
            print(f"measured again: {str(error)[:2000]}")
            time.sleep(10 / left)


class _Stalls(threading.Thread):
    """Seconds in which a thread that only naps was given no turn, since the start of the tests."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="stalls")
        self.lost = 0.0

    def run(self) -> None:
        while True:
            due = time.monotonic() + NAP
            time.sleep(NAP)
            late = time.monotonic() - due
            if late > NAP:
                self.lost += late


_stalls = _Stalls()
_stalls.start()


class Spent:
    """Seconds since it was made, less those in which the machine gave nobody a turn."""

    def __init__(self) -> None:
        self._began, self._lost = time.monotonic(), _stalls.lost

    def __call__(self) -> float:
        lost = self.lost()
        return time.monotonic() - self._began - lost - NAP * 2

    def lost(self) -> float:
        """Seconds since it was made in which the machine gave nobody a turn."""
        time.sleep(NAP * 2)  # a stall that is just over is counted first
        return _stalls.lost - self._lost
