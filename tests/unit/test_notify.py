"""systemd's protocol against a real datagram socket."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.wait import Spent

from llmsupervisor.daemon.notify import Notify


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, short_folder: Path) -> Iterator[tuple[socket.socket, str]]:
    path = str(short_folder / "notify")
    address = path if request.param == "path" else "@" + path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address.replace("@", "\0", 1))
        listening.settimeout(2)
        yield listening, address


def received(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().split("\n")


def test_every_state_is_one_datagram(manager: tuple[socket.socket, str]) -> None:
    listening, address = manager
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "PATH": "/bin"}
    notify = Notify(environ)
    assert environ == {"PATH": "/bin"}
    assert notify.watchdog_interval == 15.0
    notify.ready("2/3 services ready")
    assert received(listening) == ["READY=1", "STATUS=2/3 services ready"]
    before = time.monotonic_ns() // 1000
    notify.reloading()
    word, moment = received(listening)
    assert word == "RELOADING=1"
    assert before <= int(moment.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    notify.status("spec.toml:3: wrong\nspec.toml:4: wrong")
    assert received(listening) == ["STATUS=spec.toml:3: wrong; spec.toml:4: wrong"]
    notify.watchdog()
    assert received(listening) == ["WATCHDOG=1"]
    notify.extend(1.5)
    assert received(listening) == ["EXTEND_TIMEOUT_USEC=1500000"]
    notify.stopping()
    assert received(listening) == ["STOPPING=1"]


@pytest.mark.parametrize(
    "environ",
    [
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "many"},
        {"WATCHDOG_PID": str(os.getpid())},
    ],
)
def test_no_watchdog_that_is_not_ours(manager: tuple[socket.socket, str], environ: dict[str, str]) -> None:
    listening, address = manager
    notify = Notify({"NOTIFY_SOCKET": address, **environ})
    assert notify.watchdog_interval is None
    notify.watchdog()
    notify.stopping()
    assert received(listening) == ["STOPPING=1"]


def test_a_full_queue_blocks_nothing_and_loses_no_state(manager: tuple[socket.socket, str]) -> None:
    listening, address = manager
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                other.sendto(b"X=1", address.replace("@", "\0", 1))
    notify = Notify({"NOTIFY_SOCKET": address})
    spent = Spent()
    notify.ready("up")
    assert spent() < 0.5
    while received(listening) == ["X=1"]:
        listening.setblocking(False)
        try:
            listening.recv(4096, socket.MSG_PEEK)
        except BlockingIOError:
            break
    listening.settimeout(2)
    notify.stopping()
    assert [received(listening), received(listening)] == [["READY=1", "STATUS=up"], ["STOPPING=1"]]


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "vsock:2:1234", "@nobody-listens-here"])
def test_without_a_manager_nothing_happens(address: str) -> None:
    notify = Notify({"NOTIFY_SOCKET": address} if address else {})
    notify.ready("up")
    notify.reloading()
    notify.stopping()
