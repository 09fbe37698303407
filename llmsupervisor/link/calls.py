"""Calls of the control socket and their answers (`docs/contracts.md` §2). Unknown is None, never 0.

Times are Unix seconds, durations seconds, unless a name ends in `_ms`.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from llmsupervisor.link.services import StateName


class Request(TypedDict):
    v: int
    id: int
    call: str
    args: dict[str, Any]


class Error(TypedDict):
    code: int
    """An exit code of the command line."""
    text: str


class Answer(TypedDict):
    id: int | None
    """None: the request could not be read."""
    ok: bool
    result: NotRequired[Any]
    error: NotRequired[Error]


class Item(TypedDict):
    """A line of a streaming call, before its answer."""

    id: int
    item: Any


class Pong(TypedDict):
    pid: int
    version: str


class LogLine(TypedDict):
    service: str
    text: str


class Change(TypedDict):
    service: str
    action: str
    why: str


class Reloaded(TypedDict):
    generation: int
    changes: list[Change]
    error: str | None
    findings: list[dict[str, Any]]
    """`link/advice.py`: of the spec that was read, before it is applied."""


class ServiceState(TypedDict):
    service: str
    state: StateName
    reason: str


class Hit(TypedDict):
    file: int
    """Inode number."""
    offset: int
    text: str


class Found(TypedDict):
    """What a search in a log tells as it goes on, the newest hits first."""

    hits: list[Hit]
    count: int
    read: int
    of: int
    complete: bool | None
    """None: it goes on; False: its time was over."""
