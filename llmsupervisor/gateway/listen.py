"""The sockets that the shim, or a systemd socket unit, passes (`LISTEN_FDS`): taken once, inherited by nobody, and closed
so that nobody who is connected is cut off."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Callable, MutableMapping

FIRST = 3
SO_ATTACH_FILTER = 26
"""Of Linux; Python has no name for it."""
DROP = struct.pack("=HBBI", 6, 0, 0, 0)
"""A classic BPF program of one instruction: return 0 bytes of whatever comes."""


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
    """Accepts whoever is connected already: when the listener is closed next, they would be cut off unheard. Who connects
    from here on is not heard: its system asks again after a second, and finds the next listener, or none. Unless our
    shim has the listener too, for our successor."""
    with contextlib.suppress(OSError):  # without, who comes between the last accept and the close is reset
        if not _open_in(os.getppid(), listener):
            deafen(listener)
    loop = asyncio.get_running_loop()
    with contextlib.suppress(BlockingIOError):
        while True:
            connection, _ = listener.accept()
            await loop.connect_accepted_socket(make, connection)


def deafen(listener: socket.socket) -> None:
    """No packet reaches it any more; connections that it has made go on."""
    program = ctypes.create_string_buffer(DROP, len(DROP))
    listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(program)))


def _open_in(pid: int, listener: socket.socket) -> bool:
    inode = os.fstat(listener.fileno()).st_ino
    return any(os.stat(f"/proc/{pid}/fd/{fd}").st_ino == inode for fd in os.listdir(f"/proc/{pid}/fd"))
