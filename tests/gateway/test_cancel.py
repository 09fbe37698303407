"""How soon one side hears that the other is gone: within 100 ms both ways.

A single wake-up on two busy cores may take longer than that, so it is the median of many, and of a second series where
something else held the cores during the first.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import statistics
import time
from collections.abc import Callable

import pytest
from gateway.standalone import CHUNKED, Standalone, chunk, post, reset
from support.wait import wait_until

STREAM = {"model": "chat", "messages": [], "stream": True}
TIMES = 15
SOON = 0.1
EVENT = CHUNKED + chunk(b"data: 1\n\n")


def within(one: Callable[[], float]) -> None:
    """`one` returns seconds."""
    tried = []
    for _ in range(2):
        tried.append(statistics.median(one() for _ in range(TIMES)))
        if tried[-1] < SOON:
            print(f"median of {TIMES}: {tried[-1] * 1000:.1f} ms")
            return
    raise AssertionError(f"medians of {TIMES}: {', '.join(f'{each * 1000:.0f} ms' for each in tried)}")


@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["close", "reset"])
@pytest.mark.parametrize("begun", [True, False], ids=["mid stream", "before the first byte"])
def test_a_client_that_leaves_is_gone_at_its_engine(
    gateway: Standalone, leave: Callable[[socket.socket], None], begun: bool
) -> None:
    gone: queue.Queue[float] = queue.Queue()
    came: queue.Queue[None] = queue.Queue()

    def act(sock: socket.socket, request: bytes) -> None:
        if begun:
            sock.sendall(EVENT)
        came.put(None)
        with contextlib.suppress(ConnectionError):
            assert sock.recv(1) == b""
        gone.put(time.monotonic())

    def one() -> float:
        sock = gateway.client()
        sock.sendall(post(STREAM))
        came.get(timeout=60)
        if begun:
            assert sock.recv(65536)
        left = time.monotonic()
        leave(sock)
        return gone.get(timeout=60) - left

    gateway.engine.act = act
    within(one)
    wait_until(lambda: gateway.running() == 0, 5, "the leases to be given back")


@pytest.mark.parametrize("die", [socket.socket.close, reset], ids=["close", "reset"])
@pytest.mark.parametrize("begun", [True, False], ids=["mid stream", "before the first byte"])
def test_an_engine_that_dies_is_told_to_its_client(
    gateway: Standalone, die: Callable[[socket.socket], None], begun: bool
) -> None:
    turn: queue.Queue[None] = queue.Queue()
    died: queue.Queue[float] = queue.Queue()

    def act(sock: socket.socket, request: bytes) -> None:
        if begun:
            sock.sendall(EVENT)
        turn.get(timeout=60)
        died.put(time.monotonic())
        die(sock)

    def one() -> float:
        asked = len(gateway.engine.requests)
        with gateway.client() as sock:
            sock.sendall(post(STREAM, headers="Connection: close\r\n"))
            wait_until(lambda: len(gateway.engine.requests) > asked, 10, "the request")
            if begun:
                assert sock.recv(65536)
            turn.put(None)
            told = sock.recv(65536)
            heard = time.monotonic()
            assert (b"event: error" if begun else b"HTTP/1.1 502 ") in told
        return heard - died.get(timeout=60)

    gateway.engine.act = act
    within(one)
    wait_until(lambda: gateway.running() == 0, 5, "the leases to be given back")
