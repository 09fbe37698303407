"""The sockets that the shim, or a systemd socket unit, passes (`LISTEN_FDS`): taken once, and inherited by nobody."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

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
