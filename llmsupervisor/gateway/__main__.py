"""`python -m llmsupervisor.gateway FOLDER`: the data plane, under its own shim, which holds the listening sockets."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Collection
from pathlib import Path

import uvloop

from llmsupervisor.gateway.board import Board
from llmsupervisor.gateway.client import Connection
from llmsupervisor.gateway.fetch import Fetch
from llmsupervisor.gateway.history import History
from llmsupervisor.gateway.hub import Hub
from llmsupervisor.gateway.link import Link
from llmsupervisor.gateway.listen import inherited, take_last
from llmsupervisor.gateway.metrics import Metrics
from llmsupervisor.gateway.reaper import Reaper
from llmsupervisor.gateway.sweep import Sweep, gauges
from llmsupervisor.gateway.view import GRACE
from llmsupervisor.link.gateway import GATEWAY_SOCKET
from llmsupervisor.link.view import GATEWAY_VIEW

LOOK = 0.02
"""Seconds between two looks at what still runs."""
FLUSH = 0.05
"""Seconds in which those who still wait are told why they do so in vain."""
BACKLOG = 4096
SWITCH = 0.0002
"""Seconds for which the thread that writes records keeps the interpreter while an event waits; Python's own are 0.005."""


async def serve(sockets: list[socket.socket], records: Path) -> None:
    loop = asyncio.get_running_loop()
    board, fetch, history = Board(Path(GATEWAY_VIEW)), Fetch(), History(records)
    clients: set[Connection] = set()
    sweep = Sweep(clients, board)
    hub: Hub = Hub(board, fetch, Reaper(board, fetch), history, Metrics(lambda: gauges(hub, clients, sweep)))
    board.load()
    link = Link(Path(GATEWAY_SOCKET), hub)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await link.start()
    make = lambda: Connection(hub, clients)  # noqa: E731
    servers = [await loop.create_server(make, sock=each, backlog=BACKLOG) for each in sockets]
    sys.setswitchinterval(SWITCH)
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    tasks = [loop.create_task(link.report()), loop.create_task(sweep.run())]
    await stopping.wait()
    for server, each in zip(servers, sockets, strict=True):
        await take_last(each, make)
        server.close()
    await asyncio.sleep(0)  # whom uvloop has accepted is made known now
    for client in list(clients):
        client.end()
    await finish(hub, clients)
    for task in tasks:
        task.cancel()
    hub.close()
    link.close()
    hub.parser.end()
    await asyncio.to_thread(history.close)


async def finish(hub: Hub, clients: Collection[Connection]) -> None:
    """Requests get what their service gives them when it drains; at most what others wait for their turn: who comes to the
    next gateway meanwhile waits for the end of this one."""
    loop, board = asyncio.get_running_loop(), hub.board
    since = loop.time()
    while True:
        if loop.time() >= since + GRACE or not any(client.busy for client in clients):
            break
        await asyncio.sleep(LOOK)
    board.end()
    await asyncio.sleep(FLUSH)
    while rest := list(hub.exchanges):
        board.end()
        for exchange in rest:
            drain = GRACE if exchange.target is None else exchange.target.drain
            if loop.time() >= since + min(drain, board.table.limits.queue_deadline):
                exchange.stop()
        await asyncio.sleep(LOOK)


def main(argv: list[str]) -> int:
    sockets = inherited(os.environ)
    if len(argv) not in (2, 3) or not sockets:
        usage = "usage: python -m llmsupervisor.gateway FOLDER [REQUESTS.DB], with listening sockets as LISTEN_FDS"
        print(usage, file=sys.stderr)
        return 2
    os.chdir(argv[1])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sockets, Path(argv[2] if len(argv) == 3 else "requests.db")))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
