"""Records of one run of a service, as its shim reads and writes them (`docs/contracts.md` §1). Unknown is None, never 0.

Times are Unix seconds, durations seconds, unless a name ends in `_ms`.
"""

from __future__ import annotations

from typing import Any, TypedDict


class LogPolicy(TypedDict):
    path: str
    size: int
    keep: int
    burst: int
    rate: int


class Rendered(TypedDict):
    argv: list[str]
    env: dict[str, str]
    cwd: str
    inputs: list[list[str]]


class Launch(TypedDict):
    v: int
    run: str
    service: str
    argv: list[str]
    env: dict[str, str]
    cwd: str
    cgroup: str | None
    log: LogPolicy
    secrets: str | None
    oom_score_adj: int | None
    cpus: list[int] | None
    nofile: int | None
    respawn: bool
    attempt: int
    wanted: dict[str, Any]
    rendered: Rendered
    artefacts: list[list[str]]
    port: int
    gpus: list[str]
    time: float


class Process(TypedDict):
    pid: int
    start: int
    """Clock ticks since boot."""


class RunRecord(TypedDict):
    v: int
    run: str
    boot: str
    shim: Process
    main: Process
    time: float


class ExitRecord(TypedDict):
    """Exactly one of `code`, `signal`, `errno` is set."""

    v: int
    run: str
    pid: int
    code: int | None
    signal: int | None
    errno: str | None
    error: str | None
    core: bool
    time: float
    dropped_bytes: int
