"""What the linter has to say of what runs, as it crosses the control socket (`docs/contracts.md` §2)."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from llmsupervisor.link.calls import Change

Json = Any


class Turn(TypedDict):
    """One key of a service."""

    key: str
    """`env.NAME` inside a table."""
    old: Json
    """What it is worth now; None: nothing."""
    new: Json
    """None: the key goes."""
    restarts: bool


class Finding(TypedDict):
    id: str
    """`RULE:SERVICE`, or `RULE:SERVICE:2`: the same as long as the spec is."""
    rule: str
    name: str
    severity: Literal["error", "warning", "info"]
    service: str
    """Empty: of the spec as a whole."""
    key: str
    """The knob."""
    says: str
    change: str
    effect: str
    evidence: dict[str, Json]
    source: str
    requests: int | None
    """Recorded requests that it rests on; None: the plan alone."""
    changes: list[Turn]
    """Empty: no edit of the spec can be staged for it."""
    fixable: bool
    """The change needs no judgement."""
    file: str
    line: int
    """0: unknown."""
    ignored: str | None
    """The reason, written in the spec, why it is to stay."""


class Advice(TypedDict):
    path: str
    """Of the spec."""
    sha256: str | None
    """Of the text that it is about: what `fix` is to be told. None: no spec was applied yet."""
    window_s: float
    reason: str | None
    """Why nothing could be read of requests."""
    findings: list[Finding]


class Refused(TypedDict):
    service: str
    text: str


class Fixed(TypedDict):
    path: str
    base: str
    """SHA-256 of the text that is changed."""
    sha256: str
    """Of the changed text."""
    diff: str
    """Unified, of the spec."""
    changes: list[Change]
    """What that does to services."""
    refusals: list[Refused]
    """Why a service could not start with it here; empty: nothing is in the way."""
    findings: list[Finding]
    """What the linter has to say of the changed spec and not of the old one."""
    generation: int
    applied: bool
