"""One daemon with its gateway and one service, `chat`, on a real engine, shared by the cases of the engine suite."""

from __future__ import annotations

import http.client
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

from gateway.box import BODY, Box, Json

from support import process
from support.daemon import Daemon
from support.http import request
from support.kinds import Kind
from support.wait import wait_until

SETTINGS: Json = {"aliases": ["other"], "drain_timeout": "2m", "probe": {"timeout": "60s", "stall_timeout": "10s"}}


class EngineBox(Box):
    """`context` is what the spec says now. A case begins with `fit()`, and may leave the service in any state."""

    def __init__(self, daemon: Daemon, kind: Kind) -> None:
        super().__init__(daemon)
        self.kind = kind
        self.context = kind.context
        self.phases: list[str] = []
        """Of the first start, each once."""

    def service(self, **settings: Any) -> Json:
        return self.kind.service(context_length=self.context, parallel=2, **SETTINGS, **settings)

    def write(self, services: dict[str, Json] | None = None, gateway: Json | None = None, **knobs: Any) -> None:
        """Requests wait as long as a start takes on a busy machine."""
        super().write(services, {"queue_deadline": "5m", **(gateway or {})}, **knobs)

    def later(self) -> tuple[threading.Thread, list[int]]:
        """A request in a thread of its own, begun: its status, 0 where no answer came."""
        found: list[int] = []

        def ask() -> None:
            try:
                found.append(request(self.chat_url, BODY, timeout=320)[0])
            except (OSError, http.client.HTTPException):
                found.append(0)

        thread = threading.Thread(target=ask)
        thread.start()
        return thread, found

    def first_start(self) -> None:
        self.write()
        self.daemon.up(timeout=300)

        def ready(status: Json) -> bool:
            if status["phase"] and status["phase"] not in self.phases:
                self.phases.append(status["phase"])
            return bool(status["state"] == "READY")

        self.daemon.wait_service("chat", ready, self.kind.start, "READY")

    def fit(self) -> Json:
        """READY, as asked, and the gateway open; started where a case before stopped it."""
        status = self.daemon.service("chat")
        if status["goal"] == "down" or status["state"] == "FAILED":
            self.daemon.cli("start", "chat", timeout=self.kind.start)
        return self.ready()

    def ready(self, timeout: float | None = None) -> Json:
        self.daemon.wait_state("chat", "READY", timeout or self.kind.start)
        self.gateway()
        wait_until(lambda: request(f"{self.url}/readyz")[0] == 200, 20, "the gateway to be open")
        return self.daemon.wait_service("chat", lambda s: s["got"], 30, "what the engine has")

    def restarted(self, before: Json) -> Json:
        """READY again, one start later."""
        self.daemon.wait_service(
            "chat",
            lambda s: s["state"] == "READY" and s["restarts"] == before["restarts"] + 1,
            self.kind.start,
            "a restart",
        )
        return self.ready()

    @property
    def key(self) -> str:
        return self.daemon.key("chat")

    def loads(self) -> int:
        return self.daemon.log("chat").count(self.kind.loaded)

    def long(self, **changes: Any) -> Json:
        """Of a request: an answer that takes a while."""
        return {"tokens": self.kind.tokens, **self.kind.lasting, **changes}

    def asked(self) -> Json:
        """Some of it."""
        tag = self.kind.tag.format(self.context)
        return {"context_length": {tag: self.context} if tag else self.context, "parallel": 2}

    def tree(self) -> dict[int, str]:
        """Processes of the service without its shim."""
        folder = self.daemon.run_folder("chat")
        return {pid: command for pid, command in process.inside(folder).items() if "shim.py" not in command}

    def core(self) -> int:
        """The process that computes."""
        if not self.kind.core:
            return int(self.daemon.service("chat")["pid"])
        found = self.cores()
        assert len(found) == 1, self.tree()
        return found[0]

    def cores(self) -> list[int]:
        return [pid for pid in self.tree() if _text(pid, "comm").strip() == self.kind.core]

    def segments(self) -> set[str]:
        """Shared memory that the service maps and that has a name; a semaphore is mapped under another."""
        inodes: set[int] = set()
        for pid in self.tree():
            maps = _text(pid, "maps")
            inodes |= {int(n) for n in re.findall(r"^\S+ \S+ \S+ \S+ (\d+) +/dev/shm/", maps, re.MULTILINE)}
        return {entry.path for entry in os.scandir("/dev/shm") if entry.inode() in inodes}

    def temporary(self) -> set[str]:
        """Files and sockets of the run under names of their own; folders are caches."""
        folder = self.daemon.run_folder("chat") / "tmp"
        return {entry.name for entry in os.scandir(folder) if not entry.is_dir()} if folder.exists() else set()

    def last_record(self, **match: Any) -> Json:
        """The newest record with these figures."""

        def found() -> Json | None:
            rows = [r for r in self.records() if all(r[name] == value for name, value in match.items())]
            return rows[-1] if rows else None

        record = wait_until(found, 15, lambda: f"a record with {match}: {json.dumps(self.records()[-3:], indent=1)}")
        assert record
        return record


def _text(pid: int, name: str) -> str:
    """Of a file in /proc; nothing where the process ends meanwhile."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
