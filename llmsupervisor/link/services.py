"""A service and its targets, as the status tells of them (`docs/contracts.md` §3). Unknown is None, never 0.

Times are Unix seconds, durations seconds, unless a name ends in `_ms`.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

StateName = Literal[
    "STOPPED",
    "IDLE",
    "PENDING",
    "STARTING",
    "READY",
    "UNREADY",
    "DRAINING",
    "STOPPING",
    "KILLING",
    "BACKOFF",
    "FAILED",
]
TargetStateName = Literal["absent", "creating", "unloaded", "loading", "loaded", "unloading", "failed"]


class Condition(TypedDict):
    id: str
    text: str
    since: float | None


class Exit(TypedDict):
    cause: str
    text: str
    code: int | None
    signal: str | None
    advice: str
    time: float | None


class Target(TypedDict):
    model: str
    names: list[str]
    state: StateName | TargetStateName
    """That of the service, or of one model among those that it loads by itself."""
    kv_cache_usage: float | None
    """0..1."""
    requests_running: int | None
    requests_waiting: int | None
    """In the engine."""
    requests_queued: int | None
    """In the gateway."""
    kv_tokens_used: int | None
    """Held by requests that run."""
    kv_tokens_cached: int | None
    """Of finished requests, until somebody needs the room."""
    kv_tokens_capacity: int | None
    kv_bytes_used: int | None
    kv_bytes_capacity: int | None
    prefix_hit_ratio: float | None
    """Share of the prompt tokens of the last minutes that a cache had. None: no prompt came."""
    draft_acceptance: float | None
    """Share of the drafted tokens of the last minutes that were right. None: none was drafted."""
    preemptions: int | None
    """Requests that had to give up their KV since the start."""
    prefill_tokens_per_s: float | None
    """While it works on prompts: of the last minute in which it did."""
    decode_tokens_per_s: float | None
    """Of one request, while it is answered: of the last minute in which one was."""
    tokens_per_s: float | None
    """Of all answers together, now. None: none is written."""
    context: ContextUse
    figures_time: float | None
    """When the engine told its own figures last."""
    reason: NotRequired[str]
    """This and what follows only of a model that its service loads by itself."""
    tag: NotRequired[str]
    """The name under which the engine has it."""
    context_length: NotRequired[int]
    keep_alive_s: NotRequired[float | None]
    """None: forever."""
    retry_at: NotRequired[float | None]
    progress: NotRequired[TargetProgress | None]
    """Of a create, an upload or a pull."""
    runner: NotRequired[TargetRunner | None]
    """The process that has it in memory."""


class ContextUse(TypedDict):
    """Prompt + output of the last requests, against what fits."""

    p95: int | None
    """None: too few requests."""
    limit: int | None
    requests: int


class MemoryParts(TypedDict):
    """What an engine says that it allocated; `overhead_bytes` is what it holds beside (contexts, libraries, workspaces)."""

    weights_bytes: int | None
    kv_bytes: int | None
    compute_bytes: int | None
    overhead_bytes: int | None


class ServiceMemory(TypedDict):
    gpu: MemoryParts | None
    host: MemoryParts | None
    source: Literal["log", "plan"]


class Objective(TypedDict):
    """One of `slo`, over its window."""

    name: Literal["ttft_p95", "tpot_p95"]
    limit_s: float
    measured_s: float | None
    """None: too few requests, or the percentile is among those that failed."""
    requests: int
    window_s: float
    breached: bool


class Growth(TypedDict):
    """Of memory over requests, since the service is warm. None: too few requests to say."""

    host_bytes_per_request: float | None
    vram_bytes_per_request: float | None
    requests: int


class Probe(TypedDict):
    """The last look at whether its engine answers."""

    path: str
    """Of readiness; of figures where those did not come."""
    status: int | None
    """Of HTTP. None: no answer came."""
    error: str | None
    """Why none came."""
    time: float
    failures: int
    """Looks in a row that did not find it ready."""


class LoadStep(TypedDict):
    phase: str
    """As `phase` of the service, without how far it was."""
    seconds: float


class TargetProgress(TypedDict):
    status: str
    completed: int | None
    """Bytes."""
    total: int | None
    bytes_per_s: float | None
    """Over the last 10 s. None: it was not seen for long enough."""


class TargetRunner(TypedDict):
    pid: int
    endpoint: str
    context_length: int | None
    parallel: int | None


class Service(TypedDict):
    name: str
    runtime: str
    state: StateName
    phase: str | None
    """Of a load: `loading model`."""
    reason: str
    conditions: list[Condition]
    drift: list[str]
    """Sentences: what runs otherwise than it would be started now."""
    goal: Literal["up", "down"]
    stopped_by: str | None
    retry_at: float | None
    last_exit: Exit | None
    pid: int | None
    """The runtime's main process."""
    endpoint: str | None
    restarts: int
    generation: int
    since: float
    targets: list[Target]
    asked: dict[str, Any]
    got: dict[str, Any] | None
    """None until the engine was asked."""
    vram_bytes: int | None
    vram_source: Literal["nvml", "delta"] | None
    """`delta`: NVML lists none of its processes (a container), so it is by how much the use of its GPUs rose while it loaded."""
    rss_bytes: int | None
    """Memory of the whole tree that is no file's: anonymous and shared."""
    swap_bytes: int | None
    memory: ServiceMemory | None
    """None: the engine has not said."""
    slo: list[Objective]
    growth: Growth | None
    probe: Probe | None
    """None: no process, or none that was asked yet."""
