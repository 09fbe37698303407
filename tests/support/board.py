"""A board without a gateway: its time is the test's, and it keeps what it tells."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest

from llmsupervisor.gateway.board import Board, Lease, Refused
from llmsupervisor.gateway.queue import Ticket
from llmsupervisor.gateway.route import Refusal

NOW, UNIX = 1000.0, 1_790_000_000.0


class Known(Board):
    """A board whose time is the test's, and which keeps what it tells."""

    def __init__(self, folder: Path) -> None:
        self.now = NOW
        super().__init__(folder / "view.json", lambda: self.now, lambda: UNIX + self.now - NOW)
        self.told: list[Mapping[str, Any]] = []
        self.tell = self.told.append
        self.generation = 0

    def see(self, *targets: dict[str, Any], **more: Any) -> None:
        self.generation += 1
        self.apply({"generation": self.generation, "targets": targets, **more})

    def heard(self, kind: str) -> list[Mapping[str, Any]]:
        return [message for message in self.told if message["type"] == kind]


def target(name: str = "chat", state: str = "open", attempt: int = 1, **more: Any) -> dict[str, Any]:
    place = {"target": name, "service": name, "endpoint": f"{name}@{attempt}", "address": "http://127.0.0.1:18400"}
    return {**place, "state": state, "reason": "", "names": [name], "inject": {}, "parallel": 1, **more}


def ticket(*services: str, since: float = NOW, client: str = "", deadline: float = NOW + 60) -> Ticket:
    return Ticket(client, 1.0, 100, 100, services or ("chat",), since, deadline)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


async def waiting(board: Board, ticket: Ticket) -> asyncio.Task[Lease]:
    task = asyncio.ensure_future(board.admitted(ticket))
    await asyncio.sleep(0)
    return task


async def refused(task: asyncio.Task[Lease]) -> Refusal:
    with pytest.raises(Refused) as caught:
        await task
    return caught.value.refusal


def after(refusal: Refusal) -> int:
    assert refusal.status == 503
    return int(dict(refusal.headers)["Retry-After"])
