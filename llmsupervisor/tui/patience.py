"""A limit on what may take for ever and cannot be asked to stop: an expression that is matched against a line."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class TooLong(Exception):
    """The time was over."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Of processor time, so that a busy machine is not taken for a slow expression. Main thread only: matching looks at
    signals there, and at nothing else.
    """

    def over(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGVTALRM, over)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
