"""Memory of a service, as the plan tells of it (`docs/contracts.md` §7). Unknown is None, never 0.

Times are Unix seconds, durations seconds, unless a name ends in `_ms`.
"""

from __future__ import annotations

from typing import Literal, TypedDict


class MemoryBeside(TypedDict):
    service: str
    total: int | None


class MemoryPlace(TypedDict):
    gpu: str | None
    label: str
    weights: int | None
    kv_cache: int | None
    compute: int | None
    overhead: int | None
    known: int
    total: int | None
    cache_ram: int
    budget: int | None
    free: int | None
    beside: list[MemoryBeside]


class MemoryPart(TypedDict):
    gpu: str | None
    kind: Literal["weights", "kv_cache", "compute", "overhead"]
    name: str
    bytes: int
    why: str
    exact: bool


class MemoryMost(TypedDict):
    context_length: int | None
    parallel: int | None
    models: dict[str, int | None]
    """Of an Ollama: each model's `context_length`, with the others as they are."""


class Memory(TypedDict):
    """Of one service, in bytes."""

    fits: bool | None
    places: list[MemoryPlace]
    parts: list[MemoryPart]
    unknown: list[str]
    kv_bytes_per_token: int | None
    kv_tokens: int | None
    learned: str | None
    most: MemoryMost | None
    refused: str | None
