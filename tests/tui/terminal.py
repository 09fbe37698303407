"""A program under a real pseudo terminal, and what a terminal emulator shows of it."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence

import psutil
import pyte

FILLED = 200
"""Cells with something in them: the first picture is there."""
_FOREIGN = re.compile(rb"\x1b\[[<>=][0-9;]*[a-zA-Z]|\x1b\[\?[0-9;]*\$p")
"""Keyboard protocol and questions, which the emulator would print."""


class Terminal:
    def __init__(self, command: Sequence[str], size: tuple[int, int], environ: Mapping[str, str] | None = None) -> None:
        """`size`: columns and lines."""
        self.screen = pyte.Screen(*size)
        self._stream = pyte.ByteStream(self.screen)
        self.chunks: list[tuple[float, bytes]] = []
        """Seconds since the start, and what came."""
        self.painted: float | None = None
        self.leader, follower = pty.openpty()
        self._resize(follower, size)
        self.modes = termios.tcgetattr(follower)
        """As they were before the program."""
        self._began = time.monotonic()
        kept = {"TERM": "xterm-256color", "LANG": "C.UTF-8", **(environ or {})}
        dropped = ("COLUMNS", "LINES", "COLORTERM", "LC_ALL", "NO_COLOR", "PYTHONUNBUFFERED")
        base = {k: v for k, v in os.environ.items() if k not in dropped}
        self.child = subprocess.Popen(
            command, stdin=follower, stdout=follower, stderr=follower, env={**base, **kept}, start_new_session=True
        )
        os.close(follower)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self.leader)

    def press(self, keys: str) -> None:
        os.write(self.leader, keys.encode())

    def resize(self, size: tuple[int, int]) -> None:
        self.screen.resize(size[1], size[0])
        self._resize(self.leader, size)
        self.child.send_signal(signal.SIGWINCH)

    @staticmethod
    def _resize(fd: int, size: tuple[int, int]) -> None:
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))

    @property
    def text(self) -> str:
        return "\n".join(self.screen.display)

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        times = psutil.Process(self.child.pid).cpu_times()
        return times.user + times.system

    def read(self, seconds: float, until: Callable[[], bool] = lambda: False) -> int:
        """Bytes that came meanwhile; ends early where the terminal does."""
        deadline, count = time.monotonic() + seconds, 0
        while not until() and (left := deadline - time.monotonic()) > 0:
            if not select.select([self.leader], [], [], min(left, 0.05))[0]:
                continue
            try:
                data = os.read(self.leader, 65536)
            except OSError as error:
                assert error.errno == errno.EIO
                break
            count += len(data)
            self.feed(data)
        return count

    def feed(self, data: bytes) -> None:
        now = time.monotonic() - self._began
        self.chunks.append((now, data))
        self._stream.feed(_FOREIGN.sub(b"", data))
        if self.painted is None and sum(len(line.replace(" ", "")) for line in self.screen.display) >= FILLED:
            self.painted = now

    def wait(self, wanted: str, seconds: float = 60.0) -> None:
        self.read(seconds, lambda: wanted in self.text)
        assert wanted in self.text, f"no {wanted!r} within {seconds:g} s:\n{self.text}"
