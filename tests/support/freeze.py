"""Stops one thread of a process, and leaves the others running: a program of its own, because a traced thread ends when its
tracer has seen it. `python freeze.py PID`: the main thread, until PID or this program ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator

SEIZE, INTERRUPT = 0x4206, 0x4207
ALL = 0x40000000
"""Of waitpid: threads too."""


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Its main thread."""
    child = subprocess.Popen([sys.executable, __file__, str(pid)], stdout=subprocess.PIPE)
    try:
        assert child.stdout and child.stdout.readline() == b"frozen\n"
        yield
    finally:
        child.kill()
        child.wait(20)
        assert child.stdout
        child.stdout.close()


def _trace(request: int, pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(request, pid, 0, 0) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def main() -> int:
    pid = int(sys.argv[1])
    _trace(SEIZE, pid)
    _trace(INTERRUPT, pid)
    os.waitpid(pid, ALL)
    print("frozen", flush=True)
    while os.WIFSTOPPED(os.waitpid(pid, ALL)[1]):
        pass
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
