"""The gateway's listening socket, what it is started with, and how a gateway process ended."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from llmsupervisor import __version__
from llmsupervisor.daemon.start import BURST, RATE
from llmsupervisor.host import spawn, tree
from llmsupervisor.spec.model import Logs

BACKLOG = 4096
STOP = 8.0
"""Seconds from SIGTERM to the kill, where no service gives its requests more …"""
AFTER = 3.0
"""… else so many after the gateway had to end them itself."""
KEPT = ("PATH", "HOME", "LANG", "PYTHONPATH")
"""Of our environment, for the gateway."""


def bind(listen: str, beside: str | None = None) -> socket.socket:
    """The first address of `HOST:PORT` that can be bound. OSError of the last one where none can. `beside`: where a gateway
    of ours listens until this one takes over: a port may be that of both."""
    host, _, port = listen.rpartition(":")
    found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    failed: OSError | None = None
    for family, kind, protocol, _, address in found:
        try:
            listener = socket.socket(family, kind, protocol)
        except OSError as error:
            failed = error
            continue
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if beside is not None and _port(beside) == port:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
            # Only now, so that a port of somebody else's is an error; whoever binds later needs the option too.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except OSError as error:
            listener.close()
            failed = error
        else:
            return listener
    raise failed or OSError(f"no address for {listen}")


def _port(listen: str) -> str:
    return listen.rpartition(":")[2]


def other_version(pid: int, version: object) -> str:
    """What is to be told of a gateway that an earlier daemon started; empty where it is of our own version."""
    if version == __version__:
        return ""
    return (
        f"the gateway (pid {pid}) is {version or 'of an unknown version'}, this daemon is {__version__}: `kill {pid}` lets "
        "its shim start the installed one as soon as what runs there has ended, or its drain_timeout is over"
    )


def stop_within(drain_timeouts: Sequence[float], queue_deadline: float) -> float:
    """Seconds: the gateway gives a request the `drain_timeout` of its service, and `queue_deadline` at most."""
    return max(STOP, min(max(drain_timeouts, default=0.0), queue_deadline) + AFTER)


def moving(old: str | None, new: str | None, within: float) -> str:
    return (
        f"the gateway moves from {old} to {new}: who connects there is answered when the requests that run on the old address "
        f"have ended, in {within:g} s at most"
    )


def cannot_listen(listen: str, error: OSError) -> str:
    owner = tree.port_owner(int(_port(listen)))
    who = f": pid {owner[0]} ({owner[1]}) has it" if owner else ""
    return (
        f"the gateway cannot listen on {listen}: {(error.strerror or str(error)).lower()}{who}; tried again each second"
    )


def launch_of(
    path: os.PathLike[str], log: os.PathLike[str], requests: os.PathLike[str], listen: str, logs: Logs
) -> dict[str, Any]:
    folder = os.fspath(path)
    return {
        "v": 1,
        "run": secrets.token_hex(8),
        "service": "gateway",
        "argv": [sys.executable, "-P", "-m", "llmsupervisor.gateway", folder, os.fspath(requests)],
        "env": {name: os.environ[name] for name in KEPT if name in os.environ},
        "cwd": folder,
        "cgroup": None,
        "log": {"path": os.fspath(log), "size": logs.size, "keep": logs.keep, "burst": BURST, "rate": RATE},
        "secrets": None,
        "oom_score_adj": 0,
        "nofile": 65536,
        "respawn": True,
        "listen": listen,
        "time": time.time(),
    }


async def death(run: spawn.Run, pid: int) -> str:
    """How this process ended, as its shim recorded it; empty where it did not."""
    for _ in range(10):
        for record in reversed(spawn.read_exits(run)):
            if record.get("pid") == pid:
                number, code = record.get("signal"), record.get("code")
                how = f"was killed by {signal.Signals(number).name}" if number else f"ended with code {code}"
                return f"{how}; its shim starts another"
        await asyncio.sleep(0.02)
    return ""
