"""What the formulas of a runtime say of one service, before anything that was learned."""

from __future__ import annotations

from dataclasses import dataclass

from llmsupervisor.plan.sums import Kind, Part


@dataclass(frozen=True, slots=True)
class Estimate:
    """`missing`: kinds of which not all is known, and `unknown` why. `budgeted`: it takes its budget, whatever it needs."""

    parts: tuple[Part, ...] = ()
    missing: frozenset[Kind] = frozenset()
    unknown: tuple[str, ...] = ()
    kv_bytes_per_token: int | None = None
    kv_tokens: int | None = None
    budgeted: bool = False
    cache_ram: int = 0
    """Bytes of the host at most for prompts that it keeps."""
    mapped: bool = False
    """Its weights on the host are pages of the file."""
    processes: int = 1
    doubts: tuple[str, ...] = ()
    """What the engine will do that nobody asked for."""
    refused: str = ""
    """Why the engine would not start with these settings, wherever."""


ALL: frozenset[Kind] = frozenset(("weights", "kv_cache", "compute"))
