"""What the machine itself says: CPU, memory, swap, the disks of the models, and how much of the models is in memory already."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmsupervisor.host.active import active_bytes
from llmsupervisor.host.headers import Headers, open_regular

EVERY = 2.0
SLOWLY = 30.0
"""Seconds between two looks at disks and caches: a network file system may take its time, and the kernel counts pages."""
CACHESTAT = 451
"""The system call's number, the same everywhere; Linux 6.5 and later."""
ENTRIES = 1000
"""Files of a model folder at most."""

Paths = Mapping[str, Sequence[str]]
"""Service → its model, then what is loaded with it; files and folders."""


class MachineReader:
    """Keeps the last look. Disks are asked in a thread: one that hangs costs their figures, and nothing else."""

    def __init__(self, wanted: Callable[[], Paths]) -> None:
        self._wanted = wanted
        self._cpu: tuple[int, int] | None = None
        self._slow: asyncio.Task[None] | None = None
        self._slow_at = 0.0
        self._looked_at: Paths | None = None
        self._disks: list[dict[str, Any]] = []
        self._weights: list[dict[str, Any]] = []
        self._headers = Headers()
        self.active: dict[str, int | None] = {}
        """Service → bytes of its model's weights that one token reads."""
        self.latest: dict[str, Any] | None = None
        """As `host` of the status."""

    async def watch_machine(self) -> None:
        """Until it is cancelled."""
        while True:
            now, wanted = time.monotonic(), self._wanted()
            due = wanted != self._looked_at or now - self._slow_at >= SLOWLY
            if due and (self._slow is None or self._slow.done()):
                self._slow_at, self._looked_at = now, wanted
                self._slow = asyncio.create_task(self._look_slowly(wanted))
            self.latest = self.look()
            await asyncio.sleep(EVERY)

    def look(self) -> dict[str, Any]:
        memory = meminfo()
        swap, free = memory.get("SwapTotal"), memory.get("SwapFree")
        return {
            "time": time.time(),
            "cpu_count": os.cpu_count() or 1,
            "cpu_busy": self._busy(),
            "memory_total_bytes": memory.get("MemTotal"),
            "memory_available_bytes": memory.get("MemAvailable"),
            "swap_total_bytes": swap,
            "swap_used_bytes": None if swap is None or free is None else swap - free,
            "disks": self._disks,
            "weights": self._weights,
        }

    def _busy(self) -> float | None:
        """Since the last look."""
        before, self._cpu = self._cpu, cpu_ticks()
        if before is None or self._cpu is None or self._cpu[1] <= before[1]:
            return None
        return round((self._cpu[0] - before[0]) / (self._cpu[1] - before[1]), 4)

    async def _look_slowly(self, paths: Paths) -> None:
        """In a thread of its own, that no end of the daemon waits for: it may stand in a dead network file system."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def look() -> None:
            found: object = self._disks, self._weights, self.active
            try:
                active = {name: active_bytes(places, self._headers) for name, places in paths.items()}
                found = disks(paths), weights(paths), active
            except Exception:  # a file that nobody foresaw: what was known before stays
                traceback.print_exc(file=sys.stderr)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_give, done, found)

        threading.Thread(target=look, name="disks", daemon=True).start()
        self._disks, self._weights, self.active = await done


def _give(done: asyncio.Future[Any], found: object) -> None:
    if not done.done():
        done.set_result(found)


def cpu_ticks() -> tuple[int, int] | None:
    """(busy, all) of all CPUs since boot."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [int(word) for word in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def meminfo() -> dict[str, int]:
    """Bytes."""
    found = {}
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                name, _, rest = line.partition(":")
                if (words := rest.split()) and words[-1] == "kB":
                    found[name] = int(words[0]) * 1024
    except (OSError, ValueError):
        return {}
    return found


def memory_limit(read: Callable[[str], str] = _read) -> int | None:
    """Bytes that our cgroup and those above it allow (cgroup v2): what we start has no more. None: no limit."""
    limits = []
    try:
        ours = next(line[3:] for line in read("/proc/self/cgroup").splitlines() if line.startswith("0::"))
    except (OSError, ValueError, StopIteration):
        return None
    while ours.strip("/"):
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(read(f"/sys/fs/cgroup{ours}/memory.max")))
        ours = ours.rpartition("/")[0]
    return min(limits, default=None)


def disks(paths: Paths) -> list[dict[str, Any]]:
    """Of each folder with a model, once."""
    services: dict[str, list[str]] = {}
    for service, files in paths.items():
        for path in files:
            known = services.setdefault(path if os.path.isdir(path) else os.path.dirname(path), [])
            if service not in known:
                known.append(service)
    return [{"path": folder, "services": names, **_space(folder)} for folder, names in sorted(services.items())]


def _space(folder: str) -> dict[str, int | None]:
    try:
        said = os.statvfs(folder)
    except OSError:
        return {"total_bytes": None, "free_bytes": None}
    return {"total_bytes": said.f_blocks * said.f_frsize, "free_bytes": said.f_bavail * said.f_frsize}


def weights(paths: Paths) -> list[dict[str, Any]]:
    """Files that several services share count for each of them."""
    seen: dict[str, tuple[int | None, int | None]] = {}
    found = []
    for service, places in paths.items():
        files = [file for place in places for file in _files(place)]
        for file in files:
            if file not in seen:
                seen[file] = size_and_cached(file)
        sizes = [seen[file] for file in files]
        found.append(
            {"service": service, "bytes": _sum(s for s, _ in sizes), "cached_bytes": _sum(c for _, c in sizes)}
        )
    return found


def _sum(values: Any) -> int | None:
    """None where one is unknown, or there is none."""
    known = list(values)
    return sum(known) if known and None not in known else None


def _files(place: str) -> list[str]:
    if not os.path.isdir(place):
        return [place]
    try:
        names = sorted(os.listdir(place))[:ENTRIES]
    except OSError:
        return []
    return [f"{place}/{name}" for name in names if name.endswith((".safetensors", ".bin", ".gguf", ".pt"))]


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Stat(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


def size_and_cached(path: str) -> tuple[int | None, int | None]:
    """Bytes of the file, and of those in the page cache. None: the kernel has no such call, or does not tell us."""
    try:
        fd, st = open_regular(path)
    except (OSError, ValueError):
        return None, None
    try:
        size, said, whole = st.st_size, _Stat(), _Range(0, 0)
        if ctypes.CDLL(None).syscall(CACHESTAT, fd, ctypes.byref(whole), ctypes.byref(said), 0) != 0:
            return size, None
        return size, min(size, said.cached * os.sysconf("SC_PAGESIZE"))
    finally:
        os.close(fd)
