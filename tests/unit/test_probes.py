"""What a request that fails says of the process behind it."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any, cast

from llmsupervisor.daemon import probes
from llmsupervisor.daemon.process import Process
from llmsupervisor.daemon.runner import Runner


def told(dies: bool) -> list[Any]:
    """`pidfd`: a pipe, readable once its other end is closed."""
    pidfd, lives = os.pipe()
    found: list[Any] = []
    runner = SimpleNamespace(post=lambda event, process: found.append(event))
    process = SimpleNamespace(run=SimpleNamespace(main_pidfd=pidfd))
    if dies:
        os.close(lives)
    try:
        asyncio.run(probes._broken(cast(Runner, runner), cast(Process, process), "no answer"))
    finally:
        os.close(pidfd)
        if not dies:
            os.close(lives)
    return found


def test_who_lives_and_does_not_answer_hangs() -> None:
    assert [event.reason for event in told(dies=False)] == ["no answer"]


def test_who_dies_of_a_request_does_not_hang() -> None:
    """Its end has a cause of its own, which a hang would hide."""
    assert told(dies=True) == []
