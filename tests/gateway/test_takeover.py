"""The gateway hands over to its successor: who is connected is answered, who comes later finds the next one."""

from __future__ import annotations

import collections
import contextlib
import errno
import http.client
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from gateway.box import Box
from gateway.standalone import Answer, Standalone, drain, post, whole
from support import process
from support.http import request
from support.wait import wait_until

from llmsupervisor.gateway.listen import deafen

LONGEST = 60.0
"""Seconds after which a connection counts as one that nobody answers."""


class Callers:
    """Several threads that ask `/healthz` on one connection each, about 20 times a second together."""

    def __init__(self, listen: str, successor: str, n: int = 4) -> None:
        host, _, port = listen.rpartition(":")
        self.address, self.successor = (host, int(port)), successor
        self.outcomes: collections.Counter[str] = collections.Counter()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(n)]

    def _call(self) -> None:
        while not self._over.is_set():
            self.outcomes[self._outcome()] += 1
            self._over.wait(0.2)

    def _outcome(self) -> str:
        """A refusal is good only where the next one listens already."""
        try:
            sock = socket.create_connection(self.address, timeout=LONGEST)
        except ConnectionRefusedError:
            host, _, port = self.successor.rpartition(":")
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=LONGEST):
                return "refused"
            return "refused by both"
        with sock:
            try:
                sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return "answered" if sock.recv(65536).startswith(b"HTTP/1.1 200 ") else "closed"
            except TimeoutError:
                return "not answered"
            except OSError:
                return "reset"

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self.outcomes["answered"] >= 20, 30, lambda: f"{self.outcomes}")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def test_a_changed_address_takes_over_under_load(box: Box) -> None:
    """A long stream keeps the old gateway for as long as its service gives it: the new address listens all the time."""
    chat = {"chat": box.service(token_ms=60) | {"drain_timeout": "7s"}}
    box.write(chat)
    box.daemon.up()
    box.ready()
    old, new = box.listen, f"127.0.0.1:{process.free_ports(1)[0]}"
    with Callers(old, new) as callers, box.stream(20_000) as stream:
        box.listen = new
        box.write(chat)
        told = wait_until(lambda: box.conditions().get("gateway-moves"), 30, "why the new address does not answer yet")
        assert f"from {old} to {new}" in told and "in 10 s at most" in told
        wait_until(lambda: callers.outcomes["refused"] >= 20, 60, lambda: f"{callers.outcomes}")
        status, _ = request(f"{box.url}/healthz", timeout=LONGEST)
        assert status == 200, "who connected before the new gateway ran is answered by it"
        with pytest.raises(http.client.IncompleteRead) as cut:
            stream.rest()
    assert b"event: error" in cut.value.partial and b"the gateway, which is ending" in cut.value.partial
    assert set(callers.outcomes) == {"answered", "refused"}, callers.outcomes
    assert "gateway-moves" not in box.conditions()
    box.ready()
    assert box.post()[0] == 200 and box.daemon.service("chat")["restarts"] == 0


def test_a_stream_ends_by_itself_when_the_address_changes(box: Box) -> None:
    """It has the time that its service gives, 30 s."""
    box.up(token_ms=20)
    old = box.listen
    with box.stream(500) as stream:
        box.listen = f"127.0.0.1:{process.free_ports(1)[0]}"
        box.write(token_ms=20)
        wait_until(lambda: refused(old), 60, "the old address to be closed")
        assert stream.rest().endswith(b"data: [DONE]\n\n")
    wait_until(lambda: box.daemon.status()["gateway"]["listen"] == box.listen, 60, "the other address")
    box.ready()
    assert box.post()[0] == 200


def refused(listen: str) -> bool:
    host, _, port = listen.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=LONGEST).close()
    except ConnectionRefusedError:
        return True
    return False


def test_who_connects_after_the_last_accept_comes_to_the_next_one() -> None:
    """And who connected before is there, and stays."""
    with socket.socket() as last, socket.socket() as following, socket.socket() as late:
        for each in (last, following):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        last.bind(("127.0.0.1", 0))
        last.listen()
        last.settimeout(LONGEST)
        with socket.create_connection(last.getsockname(), timeout=LONGEST) as early:
            deafen(last)
            late.setblocking(False)
            assert late.connect_ex(last.getsockname()) == errno.EINPROGRESS
            accepted, _ = last.accept()
            following.bind(last.getsockname())
            following.listen()
            last.close()
            with accepted:
                early.sendall(b"early")
                assert accepted.recv(5) == b"early"
        following.settimeout(LONGEST)
        found, address = following.accept()
        with found:
            assert address == late.getsockname()


def test_another_address_of_the_same_port_takes_over_under_load(box: Box) -> None:
    """From everywhere to this machine alone, and back: who asks here notices nothing."""
    box.up()
    key = box.daemon.folder / "alice"
    key.write_text("the-key-of-alice-0\n")
    key.chmod(0o600)
    keys = {"keys": {"alice": {"file": str(key)}}}
    narrow, wide = box.listen, f"0.0.0.0:{box.listen.rpartition(':')[2]}"
    with Callers(narrow, narrow) as callers:
        for box.listen in (wide, narrow):
            box.write(gateway=keys)
            wait_until(lambda: box.daemon.status()["gateway"]["listen"] == box.listen, 60, "the other address")
            before = callers.outcomes["answered"]
            wait_until(lambda before=before: callers.outcomes["answered"] >= before + 20, 60, "callers to be answered")
    assert set(callers.outcomes) == {"answered"}, callers.outcomes
    assert "gateway-listen" not in box.conditions()


def test_a_gateway_that_is_terminated_by_hand_leaves_its_address_to_the_next_one(box: Box) -> None:
    """Its shim has the listener all the while: who connects is heard."""
    box.up()
    pid = box.gateway()["pid"]
    with Callers(box.listen, box.listen) as callers:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: box.gateway()["pid"] != pid, 60, "the next one")
        before = callers.outcomes["answered"]
        wait_until(lambda: callers.outcomes["answered"] >= before + 20, 60, "callers to be answered")
    assert set(callers.outcomes) == {"answered"}, callers.outcomes


def test_who_is_connected_when_the_gateway_ends_is_answered(gateway: Standalone) -> None:
    """Connected and not yet accepted, accepted and not yet read: it stood still all the time."""
    os.kill(gateway.process.pid, signal.SIGSTOP)
    waiting = [gateway.client() for _ in range(50)]
    for sock in waiting:
        sock.sendall(post({"model": "chat"}))
    os.kill(gateway.process.pid, signal.SIGTERM)
    os.kill(gateway.process.pid, signal.SIGCONT)
    for sock in waiting:
        with sock:
            sock.settimeout(LONGEST)
            assert Answer(drain(sock)).status == 200
    assert gateway.process.wait(LONGEST) == 0


def test_what_runs_has_the_time_of_its_service_and_nobody_waits_any_more(gateway: Standalone) -> None:
    """Not even who comes to wait when those before have been told."""
    hang = threading.Event()
    gateway.engine.act = lambda sock, request: whole(b"{}") if hang.wait(LONGEST) else None
    gateway.apply(parallel=1, drain_timeout_s=LONGEST, limits={"body_s": LONGEST})
    body = post({"model": "chat"})
    with ThreadPoolExecutor() as pool, gateway.client() as half:
        running = pool.submit(gateway.say, body)
        wait_until(lambda: gateway.running() == 1, 10, "one runs")
        waiting = pool.submit(gateway.ask)
        wait_until(lambda: gateway.queued() == 1, 10, "one waits")
        half.sendall(body[:-5])
        gateway.process.terminate()
        assert waiting.result(LONGEST).status == 503
        half.sendall(body[-5:])
        assert Answer(drain(half)).status == 503
        assert not running.done()
        hang.set()
        assert Answer(running.result(LONGEST)).json == {}
    assert gateway.process.wait(LONGEST) == 0


def test_a_request_of_which_a_half_has_come_is_answered_at_the_end(gateway: Standalone) -> None:
    whole = post({"model": "chat", "messages": []})
    with gateway.client() as idle, gateway.client() as half:
        half.sendall(whole[:-5])
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200 ")
        gateway.process.terminate()
        assert idle.recv(65536) == b"", "an idle connection is closed at once"
        half.sendall(whole[-5:])
        assert Answer(drain(half)).status == 200
    assert gateway.process.wait(LONGEST) == 0
