"""The status: daemon, gateway, services, GPUs and box (`docs/contracts.md` §3). Unknown is None, never 0.

Times are Unix seconds, durations seconds, unless a name ends in `_ms`.
"""

from __future__ import annotations

from typing import TypedDict

from llmsupervisor.link.gpus import Gpu
from llmsupervisor.link.services import Condition, Service, StateName


class SpecInfo(TypedDict):
    path: str
    generation: int
    sha256: str | None
    """None: no spec was applied yet."""
    error: str | None
    """`file:line: …`, one problem a line."""


class DaemonInfo(TypedDict):
    pid: int
    version: str
    uptime_s: float
    state_dir: str
    spec: SpecInfo
    conditions: list[Condition]
    """What is wrong with the daemon itself."""


class GatewayInfo(TypedDict):
    listen: str
    pid: int | None
    state: StateName


class Nvml(TypedDict):
    error: str | None
    """Why the GPUs cannot be read now."""
    time: float | None
    """When they last were."""
    driver: str | None


class Disk(TypedDict):
    """Of a folder with models."""

    path: str
    services: list[str]
    total_bytes: int | None
    free_bytes: int | None


class Weights(TypedDict):
    """The model files of a service, and how much of them is in the page cache; None: the kernel does not tell."""

    service: str
    bytes: int | None
    cached_bytes: int | None


class Host(TypedDict):
    time: float
    cpu_count: int
    cpu_busy: float | None
    """0..1 of all of them, over the last look."""
    memory_total_bytes: int | None
    memory_available_bytes: int | None
    swap_total_bytes: int | None
    swap_used_bytes: int | None
    disks: list[Disk]
    weights: list[Weights]


class Status(TypedDict):
    v: int
    daemon: DaemonInfo
    gateway: GatewayInfo | None
    services: list[Service]
    gpus: list[Gpu] | None
    """[] = this box has none; None = NVML could not be read."""
    nvml: Nvml
    host: Host | None
    """None: not looked at yet."""
