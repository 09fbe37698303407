"""An engine as a source of facts: the calls that ask it, and what its answers are worth."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmsupervisor.base.ids import Json


@dataclass(frozen=True, slots=True)
class Call:
    """A request to the engine, described and never made here."""

    method: str
    path: str
    body: dict[str, Any] | None = None
    file: str = ""
    """Its bytes are the body."""


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens, and the seconds that they took, summed over requests that ran side by side; both only grow."""

    tokens: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """Bytes that an engine says it allocated. None = it does not say."""

    weights: int | None = None
    kv: int | None = None
    compute: int | None = None


@dataclass(frozen=True, slots=True)
class Allocated:
    gpu: Parts | None = None
    """None: nothing there."""
    host: Parts | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """One reading. None = the engine does not say."""

    requests_running: int | None = None
    requests_waiting: int | None = None
    kv_cache_usage: float | None = None
    """0 to 1, held by requests that run; evictable prefix caches do not count."""
    kv_tokens_used: int | None = None
    kv_tokens_cached: int | None = None
    """Tokens of finished requests that stay until somebody needs the room."""
    kv_tokens_capacity: int | None = None
    prompt_tokens_total: int | None = None
    completion_tokens_total: int | None = None
    preemptions_total: int | None = None
    prefill: Work = Work()
    decode: Work = Work()
    prefix_hits_total: int | None = None
    prefix_queries_total: int | None = None
    """Prompt tokens that were looked for in a cache, and those that were found."""
    draft_tokens_total: int | None = None
    draft_accepted_total: int | None = None
    written: Mapping[Hashable, int] = field(default_factory=dict)
    """Tokens of answers as they come, by request or in one sum. Empty: known only when a request ends."""
    progress: Hashable = None
    """Differs between two readings where a token moved. None = cannot be told."""


def compare(asked: Mapping[str, Json], got: Mapping[str, Json]) -> list[str]:
    """Keys of `asked` of which the engine says something else. What it does not say is not a difference."""
    return [key for key, value in asked.items() if not _same(key, value, got.get(key))]


def _same(key: str, asked: Json, got: Json) -> bool:
    if asked is None or got is None:
        return True
    if isinstance(asked, dict) and isinstance(got, dict):
        return not any(name in got and not _same(key, value, got[name]) for name, value in asked.items())
    if key == "gpu_layers" and got == "all":
        return asked != 0
    if key == "kv_tokens" and isinstance(asked, int) and isinstance(got, int):
        return got >= asked
    return asked == got
