"""GPUs, as the status tells of them (`docs/contracts.md` §3). Unknown is None, never 0.

Times are Unix seconds, durations seconds, unless a name ends in `_ms`.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from llmsupervisor.link.services import Condition


class GpuProcess(TypedDict):
    pid: int
    service: str | None
    """None: not ours."""
    name: str | None
    memory_used_bytes: int | None
    user: str | None
    command: str | None
    kind: Literal["compute", "graphics"]


class MemoryBandwidth(TypedDict):
    """`source`: `gpm` is measured by the card; `estimate` is what the tokens of the last seconds must have read, and is shown with a `~`."""

    source: Literal["gpm", "estimate"]
    usage: float | None
    """0..1 of what the memory can do."""
    bytes_per_s: float | None
    peak_bytes_per_s: float | None


class Clocks(TypedDict):
    sm_mhz: int | None
    sm_max_mhz: int | None
    memory_mhz: int | None
    memory_max_mhz: int | None


class Ecc(TypedDict):
    """Errors since the driver was loaded."""

    corrected: int | None
    uncorrected: int | None


class RemappedRows(TypedDict):
    corrected: int
    uncorrected: int
    pending: bool
    """Takes effect when the GPU is reset."""
    failed: bool


class Xid(TypedDict):
    code: int
    kind: Literal["application", "gpu", "unknown"]
    """`application`: the process that caused it; `gpu`: the card is quarantined; `unknown`: told, nothing more."""
    text: str
    count: int
    time: float
    """Of the last one."""


class MigInstance(TypedDict):
    uuid: str
    index: int
    memory_total_bytes: int | None
    memory_used_bytes: int | None


class Mig(TypedDict):
    enabled: bool
    instances: list[MigInstance] | None


class Quarantine(TypedDict):
    """Nothing is started on this GPU."""

    reason: str
    since: float


class Lent(TypedDict):
    """To a job that is not ours: nothing is started on this GPU."""

    by: str
    since: float
    until: float | None
    """None: until it is taken back."""


class Gpu(TypedDict):
    """Each figure is None where the card, its driver or a virtualisation does not tell it."""

    uuid: str
    index: int
    name: str | None
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    """Without `memory_reserved_bytes`, where the driver tells the two apart."""
    processes: list[GpuProcess] | None
    memory_reserved_bytes: int | None
    """What the driver keeps for itself."""
    busy: float | None
    """0..1: share of the time in which any kernel ran; says nothing about load."""
    memory_bandwidth: MemoryBandwidth | None
    power_w: float | None
    power_limit_w: float | None
    clocks: Clocks
    clock_limits: list[str] | None
    """What holds the clocks down now: `idle` `power_cap` `thermal` `hw_thermal` `hw_slowdown` `power_brake` …"""
    temperature_c: int | None
    temperature_slowdown_c: int | None
    """Where it begins to slow down."""
    ecc: Ecc | None
    """None: none, or switched off."""
    remapped_rows: RemappedRows | None
    xids: list[Xid] | None
    """Since the daemon began. None: they cannot be heard here."""
    mig: Mig | None
    error: str | None
    """It fell off the bus, or answers nothing any more."""
    quarantine: Quarantine | None
    lent: Lent | None
    conditions: list[Condition]
