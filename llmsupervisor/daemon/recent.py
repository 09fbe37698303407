"""The last requests of each service, from `requests.db`, read as they come: what objectives and sizes are measured on."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmsupervisor.base.errors import LlmsupervisorError
from llmsupervisor.daemon.requests import opened
from llmsupervisor.service.slo import Ended

KEPT = 1000
"""Requests of one service."""
FIRST = 20_000
"""Records that a new daemon looks back at most."""
FAILED = frozenset({"queue_timeout", "engine_exit", "timeout", "error"})

_QUERY = """SELECT rowid, service, time, total_ms, ttft_ms, decode_ms, prompt_tokens, completion_tokens, stream, status,
 finish_reason, api FROM requests WHERE rowid > ? ORDER BY rowid"""


class Recent:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: object = None
        self._last: int | None = None
        self._ended: dict[str, deque[Ended]] = {}
        self._count: dict[str, int] = {}

    def of(self, service: str) -> deque[Ended]:
        return self._ended.get(service) or deque()

    def answered(self, service: str) -> int:
        """Since this daemon began."""
        return self._count.get(service, 0)

    def forget(self, service: str) -> None:
        self._ended.pop(service, None)
        self._count.pop(service, None)

    async def look(self) -> None:
        """Reads only where something was written since."""
        if (now := self._stamp()) == self._seen:
            return
        first = self._last is None
        with suppress(LlmsupervisorError):
            rows = await asyncio.to_thread(self._read)
            for row in rows:
                self._take(row, counts=not first)
            self._seen = now

    def _stamp(self) -> object:
        """Changes with each write: of the file, or of what is not in it yet."""
        found = []
        for path in (self._path, f"{self._path}-wal"):
            with suppress(OSError):
                stat = os.stat(path)
                found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        return found

    def _read(self) -> list[tuple[Any, ...]]:
        with opened(self._path) as db:
            if db is None:
                self._last = self._last or 0
                return []
            last = _last(db)
            if self._last is None or last < self._last:
                self._last = max(0, last - FIRST)
            rows = db.execute(_QUERY, (self._last,)).fetchall()
            self._last = rows[-1][0] if rows else last
            return rows

    def _take(self, row: tuple[Any, ...], counts: bool) -> None:
        _, service, time, total, ttft, decode, prompt, output, stream, status, reason, api = row
        failed = reason in FAILED
        if not service or None in (time, total, status) or (status >= 400 and not failed):
            return
        several = output is not None and output > 1 and decode is not None
        sized = prompt is not None and (output is not None or api in ("embeddings", "rerank")) and not failed
        self._ended.setdefault(service, deque(maxlen=KEPT)).append(
            Ended(
                end=time + total / 1000,
                ttft_s=None if ttft is None else ttft / 1000,
                tpot_s=decode / 1000 / (output - 1) if several else None,
                tokens=prompt + (output or 0) if sized else None,
                stream=bool(stream),
                failed=failed,
            )
        )
        self._count[service] = self._count.get(service, 0) + counts


def _last(db: sqlite3.Connection) -> int:
    found: int = db.execute("SELECT max(rowid) FROM requests").fetchone()[0] or 0
    return found
