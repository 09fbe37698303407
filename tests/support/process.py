"""What /proc says, without a library between."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
from pathlib import Path

LISTEN = "0A"


def alive(pid: int) -> bool:
    """False for a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def start_time(pid: int) -> int:
    """Clock ticks since boot: with the pid, the identity of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def inside(folder: Path) -> dict[int, str]:
    """Processes whose working directory is in `folder` → their command line."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if Path(os.readlink(entry / "cwd").removesuffix(" (deleted)")).is_relative_to(folder):
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if alive(int(entry.name)):
                    found[int(entry.name)] = words
    return found


def below(root: int) -> list[int]:
    """Everything below `root`, zombies too."""
    found, level = [], [root]
    while level:
        level = [child for pid in level for child in _children(pid)]
        found += level
    return found


def _children(pid: int) -> list[int]:
    """Of all its threads; one that ends meanwhile has none."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def kill(pids: dict[int, str]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def listening(ports: range) -> set[int]:
    found: set[int] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                port = int(fields[1].rpartition(":")[2], 16)
                if fields[3] == LISTEN and port in ports:
                    found.add(port)
    return found


_GIVEN: set[int] = set()


def free_ports(n: int) -> range:
    """`n` ports in a row, below the ephemeral range, that nobody holds now, each given once in this process."""
    for _ in range(1000):
        first = random.randrange(20000, 32000 - n)
        ports = range(first, first + n)
        if not _GIVEN.isdisjoint(ports):
            continue
        with contextlib.ExitStack() as held:
            try:
                for port in ports:
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
        remember(ports)
        return ports
    raise AssertionError(f"no {n} free ports in a row between 20000 and 32000")


def remember(ports: range) -> None:
    """Remembers what was given; not for ever, or a long run would use them up."""
    if len(_GIVEN) > 4000:
        _GIVEN.clear()
    _GIVEN.update(ports)
