"""The last requests, as they come into `requests.db`."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

from llmsupervisor.daemon import recent
from llmsupervisor.daemon.recent import Recent
from llmsupervisor.link.history import COLUMNS, VERSION


def write(path: Path, *records: dict[str, Any]) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(
            "CREATE TABLE IF NOT EXISTS requests (rowid INTEGER PRIMARY KEY AUTOINCREMENT, "
            + ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
            + ")"
        )
        db.execute(f"PRAGMA user_version={VERSION}")
        for record in records:
            row = {
                "service": "chat",
                "time": 100.0,
                "total_ms": 2000.0,
                "status": 200,
                "stream": 1,
                "api": "completions",
            }
            row |= record
            db.execute(f"INSERT INTO requests ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", [*row.values()])
    db.close()


def test_what_comes_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "requests.db"
    found = Recent(path)
    asyncio.run(found.look())
    assert list(found.of("chat")) == [] and found.answered("chat") == 0
    write(path, {"ttft_ms": 500.0, "decode_ms": 900.0, "prompt_tokens": 30, "completion_tokens": 10})
    for _ in range(2):
        asyncio.run(found.look())
    (one,) = found.of("chat")
    assert (one.end, one.ttft_s, one.tpot_s, one.tokens, one.failed) == (102.0, 0.5, 0.1, 40, False)
    write(
        path, {"completion_tokens": 1, "prompt_tokens": 5, "decode_ms": 0.0}, {"api": "embeddings", "prompt_tokens": 7}
    )
    asyncio.run(found.look())
    assert [(e.tpot_s, e.tokens) for e in found.of("chat")][1:] == [(None, 6), (None, 7)] and found.answered(
        "chat"
    ) == 3


def test_whose_fault_it_was(tmp_path: Path) -> None:
    path = tmp_path / "requests.db"
    write(
        path,
        {"status": 503, "finish_reason": "queue_timeout"},
        {"status": 400, "finish_reason": "rejected"},
        {"finish_reason": "client_gone", "prompt_tokens": 5},
        {"status": 502, "finish_reason": "engine_exit", "stream": 0},
        {"service": "", "status": 404},
    )
    found = Recent(path)
    asyncio.run(found.look())
    assert [(e.failed, e.stream) for e in found.of("chat")] == [(True, True), (False, True), (True, False)]
    assert found.answered("chat") == 0, "of an earlier daemon's time"


def test_a_new_file_begins_anew_and_a_newer_one_is_left(tmp_path: Path) -> None:
    path = tmp_path / "requests.db"
    write(path, *[{}] * 5)
    found = Recent(path)
    asyncio.run(found.look())
    for each in tmp_path.iterdir():
        each.unlink()
    write(path, {})
    asyncio.run(found.look())
    assert len(found.of("chat")) == 6
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version={VERSION + 1}")
    db.close()
    asyncio.run(found.look())
    assert len(found.of("chat")) == 6 and recent.KEPT >= 1000
