"""The processes of one service, as /proc shows them now."""

from __future__ import annotations

import contextlib
from typing import Any

import psutil  # type: ignore[import-untyped]


def listed(main: int) -> list[dict[str, Any]]:
    """The runtime's main process, then what it started, parents before children. Empty: it is gone."""
    found = []
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(main)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                found.append(_one(process))
    return found


def _one(process: psutil.Process) -> dict[str, Any]:
    with process.oneshot():
        times, memory = process.cpu_times(), process.memory_info()
        return {
            "pid": process.pid,
            "parent": process.ppid(),
            "name": process.name(),
            "command": " ".join(process.cmdline()) or None,
            "state": process.status(),
            "threads": process.num_threads(),
            "cpu_s": times.user + times.system,
            "rss_bytes": memory.rss,
            "started": process.create_time(),
        }
