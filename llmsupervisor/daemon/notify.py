"""Tells systemd where the daemon stands (sd_notify). Without `NOTIFY_SOCKET` every method does nothing."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import MutableMapping


class Notify:
    """Takes its variables out of `environ`, so that no child believes they are meant for it.

    Never blocks and never raises. A state that the full queue of the manager did not take is sent before the next one.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        self._address = ("\0" + address[1:]) if address.startswith("@") else address
        ours = bool(self._address) and pid in ("", str(os.getpid()))
        self.watchdog_interval: float | None = int(usec) / 2e6 if ours and usec.isdigit() and int(usec) else None
        self._unsent: deque[bytes] = deque(maxlen=8)
        self._socket: socket.socket | None = None
        if self._address.startswith(("/", "\0")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    def ready(self, status: str) -> None:
        """After the start, and at the end of every reload, also a refused one."""
        self._send(f"READY=1\n{_status(status)}")

    def reloading(self) -> None:
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        self._send(_status(text))

    def watchdog(self) -> None:
        if self.watchdog_interval is not None:
            self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """The start or stop goes on for at most `seconds` from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def _send(self, text: str) -> None:
        if self._socket is None:
            return
        self._unsent.append(text.encode())
        while self._unsent:
            try:
                self._socket.sendto(self._unsent[0], self._address)
            except BlockingIOError:
                return
            except OSError:
                self._unsent.clear()
                return
            self._unsent.popleft()


def _status(text: str) -> str:
    return "STATUS=" + "; ".join(text.splitlines())
