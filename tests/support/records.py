"""Request records as the gateway builds them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from llmsupervisor.gateway.history import History
from llmsupervisor.link.history import COLUMNS, to_row
from llmsupervisor.link.requests import RequestRecord


def record(id: str, **changes: Any) -> RequestRecord:
    said = {
        "id": id,
        "time": 1_790_000_000.0,
        "service": "chat",
        "model": "chat",
        "client": None,
        "api": "chat.completions",
        "stream": True,
        "status": 200,
        "finish_reason": "stop",
        "prompt_tokens": 31,
        "cached_tokens": 0,
        "completion_tokens": 12,
        "queue_ms": 0.0,
        "load_ms": 0.0,
        "engine_queue_ms": None,
        "prefill_ms": 41.0,
        "decode_ms": 120.0,
        "other_ms": 1.0,
        "ttft_ms": 45.0,
        "itl_p50_ms": 10.0,
        "itl_p95_ms": 12.0,
        "decode_tokens_per_s": 91.0,
        "total_ms": 165.0,
        "truncated": False,
        "max_tokens": 64,
        "session_id": None,
        "hash_ids": None,
        "sources": {"prefill_ms": "engine", "ttft_ms": "gateway"},
    }
    assert not set(changes) - set(said), changes
    return cast(RequestRecord, {**said, **changes})


def write(path: Path, said: Iterable[RequestRecord]) -> None:
    """Through the gateway's own writer for the file, past its queue for the rows."""
    History(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.executemany(
            f"INSERT INTO requests ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})", map(to_row, said)
        )
        db.commit()
