"""Once a second: slow and idle clients, silent engines, requests that waited too long; and how late the loop is."""

from __future__ import annotations

import asyncio
import sys
import traceback
from typing import TYPE_CHECKING

from llmsupervisor.gateway.board import Board
from llmsupervisor.gateway.metrics import Moment

if TYPE_CHECKING:
    from llmsupervisor.gateway.client import Connection
    from llmsupervisor.gateway.hub import Hub

EACH = 0.25
"""Seconds between two looks at the queue; clients are looked at each fourth time."""


class Sweep:
    def __init__(self, clients: set[Connection], board: Board) -> None:
        self._clients, self._board = clients, board
        self.lag = 0.0
        """Seconds that the loop came late, the worst of the last rounds."""

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        turn, lags = 0, [0.0] * 20
        while True:
            due = loop.time() + EACH
            await asyncio.sleep(EACH)
            now = loop.time()
            lags[turn % len(lags)] = now - due
            self.lag = max(lags)
            turn += 1
            try:
                self._look(now, clients=turn % 4 == 0)
            except Exception:
                traceback.print_exc(file=sys.stderr)

    def _look(self, now: float, clients: bool) -> None:
        self._board.look()
        if clients:
            self._board.demand()
            for client in list(self._clients):
                client.check(now)


def gauges(hub: Hub, clients: set[Connection], sweep: Sweep) -> Moment:
    board = hub.board
    running: dict[str, int] = {}
    queued: dict[str, int] = {}
    for endpoint, service in {target.endpoint: target.service for target in board.table.targets}.items():
        running[service] = running.get(service, 0) + board.running(endpoint)
    for target in board.table.targets:
        queued[target.service] = queued.get(target.service, 0) + board.queue.waiting(target.name)
    return Moment(
        running=running,
        queued=queued,
        connections=len(clients),
        loop_lag=sweep.lag,
        records_dropped=hub.history.dropped,
        generation=board.table.generation or None,
    )
