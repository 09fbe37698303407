"""Faults around the port, each against a real daemon: P12 to P14. Numbers: README.md beside this file."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.faults import Box, Stopwatch, conditions
from support.http import get_json
from support.process import free_ports
from support.spec import FAKE
from support.wait import wait_until

LATE = 3.0
"""Seconds from a start to its bind: enough for a thief, even where the machine stands still for a moment."""


@contextmanager
def stranger(port: int) -> Iterator[socket.socket]:
    """A listener of this very process that never answers."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", port))
        held.listen()
        yield held


@contextmanager
def foreign(port: int, *args: str) -> Iterator[str]:
    """A server by hand that answers everything as ours would; its address, where it listens soon."""
    words = [str(FAKE), "-m", "m.gguf", "-a", "foreign", "--port", str(port), "--metrics", *args]
    environ = {"PATH": os.environ["PATH"]}
    with subprocess.Popen(words, env=environ, stderr=subprocess.DEVNULL, cwd="/") as child:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            child.kill()


def completions(url: str) -> int:
    """Requests that the foreign server got and that were ours to send to our own."""
    calls: dict[str, int] = get_json(f"{url}/fault")["calls"]
    return sum(n for path, n in calls.items() if path != "/fault" and path != "/health")


@pytest.mark.slow
def test_P12_port_taken_before_the_start(faults: Box) -> None:
    (port,) = free_ports(1)
    with stranger(port):
        faults.up(port=port)
        status = faults.daemon.wait_service("chat", lambda s: s["state"] == "PENDING" and s["reason"], 20, "PENDING")
        assert f"127.0.0.1:{port}" in status["reason"], status["reason"]
        assert f"pid {os.getpid()}" in status["reason"] and "pytest" in status["reason"], "who holds it"
        faults.once(0)
    watch = Stopwatch()
    assert faults.ready()["endpoint"].endswith(f":{port}")
    watch.lap("from the port's freedom to READY")
    faults.once(1)


@pytest.mark.slow
def test_P12_port_stolen_between_plan_and_bind(faults: Box) -> None:
    """One start, however long the thief stays; the next when he is gone."""
    (port,) = free_ports(1)
    faults.up({"bind_after": LATE, "times": 1}, port=port)
    faults.wait_starts(1)
    with stranger(port):
        status = faults.daemon.wait_service("chat", lambda s: s["last_exit"] is not None, 20, "the end")
        assert status["last_exit"]["cause"] == "port-in-use", status["last_exit"]
        assert "couldn't bind" in status["last_exit"]["text"] and status["last_exit"]["advice"]
        status = faults.daemon.wait_service(
            "chat", lambda s: s["state"] == "PENDING" and str(port) in s["reason"], 20, "PENDING for the port"
        )
        assert status["retry_at"] is None
        faults.once(1)
    faults.again(1)
    faults.once(2)


@pytest.mark.slow
def test_P12_port_that_is_free_again_before_the_next_plan(faults: Box) -> None:
    """Taken when the start failed: given up, and taken up again without a plan that ever saw it taken."""
    (port,) = free_ports(1)
    faults.up({"bind_after": LATE, "times": 1}, port=port)
    faults.wait_starts(1)
    with stranger(port):
        wait_until(lambda: "FAILED" in faults.states(), 20, "FAILED")
    faults.again(1)
    faults.once(2)


def test_P12_port_that_is_free_again_before_anybody_looks(faults: Box) -> None:
    faults.up({"bind_fail": 1, "times": 1})
    watch = Stopwatch()
    faults.again(1)
    watch.lap("READY")
    assert [exit["cause"] for exit in faults.wait_exits(1)] == ["port-in-use"]
    assert "BACKOFF" in faults.states() and "FAILED" not in faults.states()
    faults.once(2)


def test_P13_a_foreign_server_on_our_port_is_not_ours(faults: Box) -> None:
    """It answers the readiness path, and ours then cannot bind: never READY, and never asked for anything."""
    (port,) = free_ports(1)
    faults.up({"bind_after": 6}, port=port)
    faults.wait_starts(1)
    with foreign(port) as url:
        status = faults.daemon.wait_service("chat", conditions, 20, "a condition")
        assert "port-not-ours" in conditions(status) and "fake_runtime.py" in conditions(status)["port-not-ours"]
        assert status["state"] == "STARTING"
        status = faults.daemon.wait_service("chat", lambda s: s["state"] in ("FAILED", "PENDING"), 20, "the end")
        assert status["last_exit"]["cause"] == "port-in-use"
        assert conditions(status) == {}
        assert completions(url) == 0
        assert "READY" not in faults.states()
        faults.once(1)


def test_P14_a_twin_that_shares_the_port_is_refused(faults: Box) -> None:
    (port,) = free_ports(1)
    faults.up({"ready_after": 6, "reuse_port": 1}, port=port)
    faults.wait_starts(1)
    with foreign(port, "--fake-reuse-port", "1"):
        status = faults.daemon.wait_service("chat", lambda s: "port-not-ours" in conditions(s), 20, "the condition")
        assert status["state"] == "STARTING" and str(port) in conditions(status)["port-not-ours"]
        wait_until(lambda: "model loaded" in faults.daemon.log("chat"), 20, "the end of our own load")
        assert "READY" not in faults.states()
    status = faults.ready()
    assert conditions(status) == {}
    faults.once(1)
