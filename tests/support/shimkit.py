"""A run folder, a log and real shims in a temporary folder."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from llmsupervisor.base.layout import ServiceFolder
from llmsupervisor.host import spawn
from llmsupervisor.host.spawn import Run, RunFolder
from support.wait import wait_until

PYTHON = sys.executable


class Box:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = RunFolder(ServiceFolder(PurePosixPath(root / "run" / "svc")))
        self.log = root / "state" / "svc" / "log"
        self.runs: list[Run] = []

    def launch(self, *argv: str, **changes: Any) -> dict[str, Any]:
        limits = {"path": str(self.log), "size": 20 << 20, "keep": 5, "burst": 64 << 20, "rate": 4 << 20}
        return {
            "run": secrets.token_hex(8),
            "service": "svc",
            "argv": list(argv),
            "env": {"PATH": "/usr/bin:/bin"},
            "cwd": str(self.folder.path),
            "cgroup": None,
            "oom_score_adj": 100,
            "nofile": 4096,
            "respawn": False,
            **changes,
            "log": limits | changes.pop("log", {}),
        }

    def begin(self, *argv: str, hidden: dict[str, str] | None = None, listen: Any = (), **changes: Any) -> Run:
        """Starts a shim; does not wait for its runtime."""
        run = self.folder.start(self.launch(*argv, **changes), hidden or {}, listen)
        self.runs.append(run)
        return run

    def start(self, *argv: str, **changes: Any) -> Run:
        run = self.begin(*argv, **changes)
        asyncio.run(spawn.wait_run(run))
        return run

    def python(self, code: str, *words: str, **changes: Any) -> Run:
        return self.start(PYTHON, "-c", code, *words, **changes)

    def over(self, run: Run, timeout: float = 10) -> dict[str, Any]:
        """The exit record, once the shim itself is gone."""
        wait_until(lambda: run.shim_dead, timeout, "the end of the shim")
        assert wait_until(lambda: run.reap() is not None, 1, "the shim's exit code")
        record = spawn.read_exit(run)
        assert record, "no exit.json"
        return record

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def file(self, name: str, timeout: float = 10) -> str:
        """Content of a file that a runtime writes into the temporary folder, as soon as it is complete."""
        path = self.root / name
        return wait_until(lambda: path.exists() and path.read_text().endswith("\n") and path.read_text(), timeout, name)

    def json(self, name: str, timeout: float = 10) -> Any:
        return json.loads(self.file(name, timeout))

    def close(self) -> None:
        for run in self.runs:
            spawn.kill_tree(run)
            wait_until(lambda run=run: run.shim_dead, 10, "the end of the shim in the clean-up")
            run.close()


def status(pid: int, key: str) -> str:
    with open(f"/proc/{pid}/status") as file:
        return next(line.split(":", 1)[1].strip() for line in file if line.startswith(f"{key}:"))


def memory_kib(pid: int, key: str) -> int:
    return int(status(pid, key).split()[0])


def exists(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")
