"""Requests, ended and under way (`docs/contracts.md` §6). Unknown is None, never 0.

Times are Unix seconds, durations seconds, unless a name ends in `_ms`.
"""

from __future__ import annotations

from typing import Literal, TypedDict


class RequestRecord(TypedDict):
    id: str
    time: float
    service: str
    model: str
    client: str | None
    api: str
    stream: bool
    status: int
    finish_reason: str | None
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    queue_ms: float | None
    load_ms: float | None
    engine_queue_ms: float | None
    prefill_ms: float | None
    decode_ms: float | None
    other_ms: float | None
    ttft_ms: float | None
    itl_p50_ms: float | None
    itl_p95_ms: float | None
    decode_tokens_per_s: float | None
    total_ms: float
    truncated: bool
    max_tokens: int | None
    session_id: str | None
    hash_ids: list[str] | None
    sources: dict[str, str]


class Live(TypedDict):
    """A request that has not ended, while someone watches."""

    id: str
    service: str | None
    """None: not sent to one yet."""
    model: str
    client: str | None
    api: str
    stream: bool
    phase: Literal["count", "queue", "load", "send", "prefill", "decode"]
    since: float
    """Unix seconds: when it came."""
    phase_since: float
    prompt_tokens: int | None
    prompt_done: int | None
    """Tokens of the prompt that the engine has behind it."""
    tokens: int
