"""What lies in `requests.db`, as its writer (the gateway) and its reader (the daemon) both know it; the summary of it
that crosses the control socket.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from llmsupervisor.link.requests import RequestRecord

VERSION = 1
"""`user_version`. A new column needs no new one: the writer adds it, older readers and writers do not mind."""
COLUMNS = {
    "id": "TEXT",
    "time": "REAL",
    "service": "TEXT",
    "model": "TEXT",
    "client": "TEXT",
    "api": "TEXT",
    "stream": "INTEGER",
    "status": "INTEGER",
    "finish_reason": "TEXT",
    "prompt_tokens": "INTEGER",
    "cached_tokens": "INTEGER",
    "completion_tokens": "INTEGER",
    "queue_ms": "REAL",
    "load_ms": "REAL",
    "engine_queue_ms": "REAL",
    "prefill_ms": "REAL",
    "decode_ms": "REAL",
    "other_ms": "REAL",
    "ttft_ms": "REAL",
    "itl_p50_ms": "REAL",
    "itl_p95_ms": "REAL",
    "decode_tokens_per_s": "REAL",
    "total_ms": "REAL",
    "truncated": "INTEGER",
    "max_tokens": "INTEGER",
    "session_id": "TEXT",
    "hash_ids": "TEXT",
    "sources": "TEXT",
}
"""Those of `RequestRecord`, in its order. Table `requests`, `rowid` in the order of their ends."""
UNFINISHED = ("client_gone", "queue_timeout", "rejected", "engine_exit", "timeout", "error", "incomplete")
"""`finish_reason` of requests without a regular end."""
FLAGS = frozenset({"stream", "truncated"})
JSON = frozenset({"hash_ids", "sources"})
TEXT_LIMIT = 256
"""Characters of a text that a client chose."""
_MOST = 2**63 - 1


def to_row(record: RequestRecord) -> tuple[Any, ...]:
    said = cast(Mapping[str, Any], record)
    return tuple(_storable(said.get(name)) for name in COLUMNS)


def _storable(value: Any) -> Any:
    """What SQLite takes: a lone surrogate, a number of a hundred digits and a name of a megabyte are no reason to lose
    a record.
    """
    if isinstance(value, str):
        text = value[:TEXT_LIMIT]
        return text if text.isascii() else text.encode("utf-8", "replace").decode()
    if isinstance(value, int):
        return max(-_MOST, min(value, _MOST))
    if isinstance(value, list | dict):
        return json.dumps(value, separators=(",", ":"))
    return value


def to_record(names: Sequence[str], row: Sequence[Any]) -> RequestRecord:
    """A file of another version of ours may have more columns or fewer: those are left out, or unknown."""
    stored = dict(zip(names, row, strict=True))
    record: dict[str, Any] = {name: stored.get(name) for name in COLUMNS}
    for name in FLAGS:
        record[name] = bool(record[name])
    for name in JSON:
        record[name] = None if record[name] is None else json.loads(record[name])
    return cast(RequestRecord, record)


class Spread(TypedDict):
    """Of tokens. `max` is the longest."""

    p50: int
    p95: int
    p99: int
    max: int


class Times(TypedDict):
    p50: float
    p95: float


class TargetSummary(TypedDict):
    service: str
    model: str | None
    """None: the service has one model."""
    requests: int
    sized: int
    """Ended by themselves with prompt and output known: what the spreads are of."""
    refused: int
    """Did not fit."""
    truncated: int
    """Ended by a full context: they are longer than they are."""
    unfinished: int
    """Failed, or left by their client."""
    prompt: Spread | None
    output: Spread | None
    total: Spread | None
    """Prompt + output."""
    context_length: int | None
    """Of what runs."""
    over: float | None
    """Share of the sized, refused and truncated that the limit is too small for."""
    needed: int
    """Sized, refused and truncated requests from which on the next two are said."""
    context_length_p95: int | None
    """From the 95th percentile of prompt + output, where a `max_tokens` up to the 95th percentile of the output counts
    as used. None: too few, or over 5 % are longer than is known."""
    context_length_p95_reserved: int | None
    """The same where every `max_tokens` counts whole: the gateway refuses what does not fit with it."""
    at_least: bool
    """Over 5 % were refused or truncated: the two are lower bounds."""
    ttft_ms: Times | None
    queue_ms: Times | None
    prefill_ms: Times | None
    decode_ms: Times | None


class RequestsSummary(TypedDict):
    window_s: float
    reason: str | None
    """Why there is nothing to read."""
    targets: list[TargetSummary]
