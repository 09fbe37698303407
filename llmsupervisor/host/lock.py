"""The daemon's lock: one daemon per state. The file is never unlinked; its owner's pid is written inside."""

from __future__ import annotations

import fcntl
import os
import time

from llmsupervisor.base.errors import Owned

PID_WAIT = 0.5
"""Seconds that a loser gives the winner to write its pid."""


class DaemonLock:
    def __init__(self, path: os.PathLike[str] | str) -> None:
        self._path = os.fspath(path)
        self._fd: int | None = None

    def acquire(self) -> None:
        """Owned, with the owner's pid, where another process holds it. The descriptor does not survive an exec."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(fd)
            os.close(fd)
            who = f"pid {owner}" if owner else "pid unknown"
            raise Owned(
                f"another llmsupervisor ({who}) owns {os.path.dirname(self._path)}; "
                "end it with `llmsupervisor down` or `llmsupervisor leave`, or use another --state-dir"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None


def _owner(fd: int) -> int | None:
    """The pid in the file, as soon as it is that of a living process: an old one may stand there for a moment."""
    deadline = time.monotonic() + PID_WAIT
    while True:
        text = os.pread(fd, 32, 0).strip()
        if text.isdigit() and os.path.exists(f"/proc/{int(text)}"):
            return int(text)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.01)
