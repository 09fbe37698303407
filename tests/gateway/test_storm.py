"""Reloads, and the death of the gateway, under load."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from gateway.box import BODY, Answer, Box, Json, no_connection_refused
from gateway.standalone import post
from support.daemon import Daemon
from support.wait import wait_until

SECONDS = float(os.environ.get("LLMSUPERVISOR_STORM", "60"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240 + 2 * SECONDS)]
EACH = 5.0
CLIENTS = 8


@pytest.fixture
def box(daemon: Daemon) -> Iterator[Box]:
    yield Box(daemon)
    if daemon.process and daemon.process.poll() is None:
        daemon.down()


def load(box: Box, n: int, until: threading.Event) -> tuple[int, list[str]]:
    """One client, one request after the other: how many, and which of them failed."""
    count, failed = 0, []
    while not until.is_set():
        stream = (n + count) % 2 == 0
        count += 1
        try:
            with Answer(box.listen, BODY | {"max_tokens": 20, "stream": stream, "model": "chat"}) as answer:
                data = answer.rest()
            done = data.rstrip().endswith(b"data: [DONE]") if stream else b'"usage"' in data
            if answer.response.status != 200 or not done or b'"error"' in data:
                failed.append(f"{answer.response.status} {data[-300:]!r}")
        except OSError as error:
            failed.append(repr(error))
    return count, failed


def test_a_reload_storm_loses_no_request(box: Box) -> None:
    """An edit every five seconds, each one a restart: what had not started waits, what had is finished."""
    restarts = 0

    def write(context: int) -> None:
        box.write({"chat": box.service(token_ms=10, ready_after=0.3) | {"context_length": context}})

    write(1024)
    box.daemon.up()
    box.ready()
    until = threading.Event()
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients: list[Future[tuple[int, list[str]]]] = [pool.submit(load, box, n, until) for n in range(CLIENTS)]
        try:
            began = time.monotonic()
            while time.monotonic() - began < SECONDS or restarts < SECONDS / (2 * EACH):
                edited = time.monotonic()
                restarts += 1
                write(context := 1024 * (1 + restarts % 2))

                def there(status: Json, context: int = context) -> bool:
                    return status["state"] == "READY" and (status["got"] or {}).get("context_length") == context

                box.daemon.wait_service("chat", there, 100, f"{restarts} restarts")
                time.sleep(max(0.0, EACH - (time.monotonic() - edited)))
        finally:
            until.set()
        results = [client.result() for client in clients]
    failed = [text for _, each in results for text in each]
    assert failed == []
    assert sum(count for count, _ in results) > 5 * restarts
    records = box.records(sum(count for count, _ in results))
    assert {record["status"] for record in records} == {200}
    assert any(record["load_ms"] > 100 for record in records), "some have waited for a load"
    assert wait_until(lambda: not box.leases(), 10, "leases zero")


def test_kill_9_of_the_gateway_under_streams(box: Box) -> None:
    """Three times: nobody is refused, each next one knows its targets at once, and of the streams nothing is left."""
    box.write({"chat": box.service(token_ms=500) | {"parallel": 200}})
    box.daemon.up()
    box.ready()
    host, _, port = box.listen.rpartition(":")
    streams = [socket.create_connection((host, int(port)), timeout=100) for _ in range(200)]
    body = post(BODY | {"max_tokens": 900, "stream": True, "ignore_eos": True})
    for sock in streams:
        sock.sendall(body)
    for sock in streams:
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
    assert box.running() == 200
    with no_connection_refused(box.listen):
        for _ in range(3):
            pid = box.gateway()["pid"]
            os.kill(pid, signal.SIGKILL)
            with socket.create_connection((host, int(port)), timeout=100) as sock:
                sock.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert sock.recv(65536).startswith(b"HTTP/1.1 200"), "it knows its targets at once"
            wait_until(lambda pid=pid: box.gateway()["pid"] != pid, 15, "the next gateway in the status")
    for sock in streams:
        with sock:
            data = b"x"
            try:
                while data:
                    data = sock.recv(65536)
            except ConnectionError:
                pass
    wait_until(lambda: box.running() == 0, 20, "the engine to be idle")
    assert box.post()[0] == 200 and box.daemon.service("chat")["restarts"] == 0
