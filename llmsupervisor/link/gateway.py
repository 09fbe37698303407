"""What daemon and gateway tell each other beside the view (`docs/contracts.md` §6). Unknown is None, never 0.

Times are Unix seconds, durations seconds, unless a name ends in `_ms`.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from llmsupervisor.link.requests import Live

GATEWAY_SOCKET = "gateway.sock"
"""In the gateway's run folder."""


class Hello(TypedDict):
    type: Literal["hello"]
    v: int
    pid: int
    version: str
    """Of llmsupervisor."""
    epoch: str
    generation: int
    leases: dict[str, int]


class Applied(TypedDict):
    type: Literal["applied"]
    generation: int


class Lease(TypedDict):
    type: Literal["lease"]
    endpoint: str
    n: int


class EndpointStats(TypedDict):
    running: int
    queued: int
    prefill_tokens: int | None
    tokens: int | None
    last_activity: float | None


class Stats(TypedDict):
    type: Literal["stats"]
    endpoints: dict[str, EndpointStats]
    live: list[Live]


class Demand(TypedDict):
    type: Literal["demand"]
    target: str
    queued: int
    oldest_ms: float


class Bad(TypedDict):
    type: Literal["bad"]
    endpoint: str
    kind: str


class Finished(TypedDict):
    type: Literal["finished"]
    id: str
    endpoint: str
    end: float
    prompt_tokens: int | None
    completion_tokens: int | None


class Enrich(TypedDict):
    type: Literal["enrich"]
    id: str
    fields: dict[str, Any]


class Watch(TypedDict):
    type: Literal["watch"]
    on: bool


class Metrics(TypedDict):
    type: Literal["metrics"]
    text: str
    time: float
