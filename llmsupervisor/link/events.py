"""What happened (`docs/contracts.md` §4). Unknown is None, never 0.

Times are Unix seconds, durations seconds, unless a name ends in `_ms`.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from llmsupervisor.link.calls import Change
from llmsupervisor.link.services import Exit, LoadStep, StateName, TargetStateName

Event = TypedDict(
    "Event",
    {
        "v": int,
        "time": float,
        "service": str | None,
        "kind": Literal["state", "exit", "condition", "reload", "refused", "operator", "gpu", "daemon", "target"],
        "from": NotRequired[StateName],
        "to": NotRequired[StateName],
        "reason": NotRequired[str],
        "attempt": NotRequired[int],
        "phases": NotRequired[list[LoadStep]],
        "exit": NotRequired[Exit],
        "id": NotRequired[str],
        "text": NotRequired[str],
        "on": NotRequired[bool],
        "generation": NotRequired[int],
        "changes": NotRequired[list[Change]],
        "error": NotRequired[str],
        "call": NotRequired[str],
        "by": NotRequired[str],
        "gpu": NotRequired[str],
        "until": NotRequired[float | None],
        "code": NotRequired[int],
        "what": NotRequired[Literal["started", "adopted", "leaving", "down", "resumed"]],
        "target": NotRequired[str],
        "was": NotRequired[TargetStateName],
        "state": NotRequired[TargetStateName],
        "slept_s": NotRequired[float],
    },
)
"""`service` None: the daemon's own. Which keys a kind has: §4. (`from` is no Python name.)"""
