"""The sockets that the shim, or a systemd socket unit, passes (`LISTEN_FDS`): taken once, and inherited by nobody."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, MutableMapping

FIRST = 3


def inherited(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """Takes the variables out of the environment."""
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    sockets = []
    for fd in range(FIRST, FIRST + int(count)):
        os.set_inheritable(fd, False)
        sockets.append(socket.socket(fileno=fd))
    return sockets


async def take_last(listener: socket.socket, make: Callable[[], asyncio.BaseProtocol]) -> None:
    """Accepts whoever is connected already: when the listener is closed next, they would be cut off unheard."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(BlockingIOError):
        while True:
            connection, _ = listener.accept()
            await loop.connect_accepted_socket(make, connection)
