"""A start that is followed to its end."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmsupervisor.daemon import process
from llmsupervisor.daemon.process import Process
from llmsupervisor.host import spawn
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.service.states import ExitInfo

DEFINITION = Definition.model_validate(
    {
        "name": "engine",
        "doc": "an engine",
        "command": ["engine"],
        "exit": {"oom": {"pattern": "out of memory", "retry": "when-vram-changes", "advice": "Lower the context."}},
    }
)


class Ended:
    """Its exit is on disk. `log` is what of its output is, until the shim ends."""

    def __init__(self) -> None:
        main, self.main = os.pipe()
        shim, self.shim = os.pipe()
        self.log = ""
        self.told: list[ExitInfo] = []
        run = SimpleNamespace(main=object(), main_pidfd=main, shim_pidfd=shim)
        self.process = SimpleNamespace(run=run, plan=SimpleNamespace(definition=DEFINITION), log_tail=lambda: self.log)
        self.fds = [main, shim]
        os.close(self.main)

    def shim_ends(self, log: str) -> None:
        self.log = log
        os.close(self.shim)

    async def follow(self) -> None:
        await Process.follow(cast(Process, self.process), self.told.append, lambda: True)


class _Told(list[ExitInfo]):
    def __init__(self, event: asyncio.Event) -> None:
        super().__init__()
        self._event = event

    def append(self, exit: ExitInfo) -> None:
        super().append(exit)
        self._event.set()


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Any:
    async def wait_exit(run: Any) -> dict[str, Any]:
        return {"time": 7.0, "code": 1}

    monkeypatch.setattr(spawn, "wait_exit", wait_exit)
    ended = Ended()
    yield ended
    for fd in ended.fds:
        os.close(fd)


def test_the_cause_is_sought_in_the_last_words(ended: Ended) -> None:
    """They may reach the log after the record of the exit."""

    async def run() -> None:
        following = asyncio.create_task(ended.follow())
        asyncio.get_running_loop().call_later(0.1, ended.shim_ends, "cudaMalloc failed: out of memory\n")
        await following

    asyncio.run(run())
    assert [(exit.cause, exit.retry) for exit in ended.told] == [("oom", "when-vram-changes")]


def test_a_tree_that_does_not_end_holds_up_no_news(ended: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LAST_WORDS", 0.05)

    async def run() -> None:
        told = asyncio.Event()
        monkeypatch.setattr(ended, "told", _Told(told))
        following = asyncio.create_task(ended.follow())
        async with asyncio.timeout(40):
            await told.wait()
        assert not following.done()
        ended.shim_ends("")
        await following

    asyncio.run(run())
    assert [exit.code for exit in ended.told] == [1]
