"""What crosses the control socket and the daemon–gateway link (`docs/contracts.md`). Unknown is None, never 0.

Times are Unix seconds, durations seconds, unless a name ends in `_ms`.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

Json = Any
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

# --- control socket (§2) ------------------------------------------------------------------------------------------


class Request(TypedDict):
    v: int
    id: int
    call: str
    args: dict[str, Json]


class Error(TypedDict):
    code: int
    """An exit code of the command line."""
    text: str


class Answer(TypedDict):
    id: int | None
    """None: the request could not be read."""
    ok: bool
    result: NotRequired[Json]
    error: NotRequired[Error]


class Item(TypedDict):
    """A line of a streaming call, before its answer."""

    id: int
    item: Json


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
    findings: list[dict[str, Json]]
    """`link/advice.py`: of the spec that was read, before it is applied."""


class ServiceState(TypedDict):
    service: str
    state: StateName
    reason: str


# --- status (§3) --------------------------------------------------------------------------------------------------


class Condition(TypedDict):
    id: str
    text: str
    since: float | None


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
    asked: dict[str, Json]
    got: dict[str, Json] | None
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


# --- events and records on disk (§1, §4) --------------------------------------------------------------------------


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


class SeriesPoints(TypedDict):
    mean: list[float | None]
    max: list[float | None] | None


class Series(TypedDict):
    """Bucket i: from `start` + i × `step_s`, Unix seconds."""

    v: int
    start: float
    step_s: float
    count: int
    series: dict[str, SeriesPoints]
    events: list[Event]
    reason: str | None


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
    wanted: dict[str, Json]
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


# --- requests and the daemon–gateway link (§6) --------------------------------------------------------------------

GATEWAY_SOCKET = "gateway.sock"
"""In the gateway's run folder."""
GATEWAY_VIEW = "view.json"
"""The last view, with keys of engines in it: 0600."""


class RequestRecord(TypedDict):
    id: str
    time: float
    service: str
    model: str
    client: str | None
    api: str
    stream: bool
    status: int
    finish_reason: str | None
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    queue_ms: float | None
    load_ms: float | None
    engine_queue_ms: float | None
    prefill_ms: float | None
    decode_ms: float | None
    other_ms: float | None
    ttft_ms: float | None
    itl_p50_ms: float | None
    itl_p95_ms: float | None
    decode_tokens_per_s: float | None
    total_ms: float
    truncated: bool
    max_tokens: int | None
    session_id: str | None
    hash_ids: list[str] | None
    sources: dict[str, str]


class Hello(TypedDict):
    type: Literal["hello"]
    v: int
    pid: int
    version: str
    """Of llmsupervisor."""
    epoch: str
    generation: int
    leases: dict[str, int]


class Inject(TypedDict):
    headers: dict[str, str]
    """Set on every request to the engine, whatever the client sent: its per-start key."""


class NamePolicy(TypedDict):
    """What a request under this name is changed to before the engine sees it."""

    set: dict[str, Json]
    strip: list[str]
    listed: bool


class Count(TypedDict):
    """How the engine is asked for the number of tokens of a prompt."""

    path: str
    body: dict[str, str] | None
    """Key of its request → key of the user's; None: the user's own body."""
    set: NotRequired[dict[str, Json]]
    """Further keys of its request, and their values."""
    answer: str
    """Dotted path to a number, or to a list that is counted."""
    runner: NotRequired[bool]
    """The target's `runner` is asked."""
    template: NotRequired[str | None]
    """Path of its that makes a prompt of the conversation first; what it says is then asked about, as `content`."""


class Pin(TypedDict):
    """What is changed in requests of these apis before the engine sees them."""

    apis: list[str]
    remove: list[str]
    """Keys, or `KEY.KEY`."""
    set: dict[str, Json]
    force: bool
    """`set` also stands where the client said something else."""


class Usage(TypedDict):
    apis: list[str]
    set: dict[str, Json]


class Traits(TypedDict):
    """What its definition says of an engine."""

    routes: dict[str, str]
    """Path of a POST route → `api` of the record."""
    timing: dict[str, str]
    """Our figure → dotted path in the answer."""
    remove: list[str]
    """Top-level keys of an answer that it has because we asked for them."""
    usage_forced: bool
    """Its streams end with a usage event that the client may not have asked for."""
    count: dict[str, Count]
    """By `api`."""
    progress: dict[str, Json] | None
    """Added to a request so that its stream tells how far its prompt is."""
    slots: str | None
    """Path that lists slots with `is_processing`, where an aborted request may go on for a while."""
    pin: NotRequired[Pin]
    usage: NotRequired[Usage]
    """Added to streams so that they end with a usage event, which is taken out again where it was not asked for."""
    enrich: NotRequired[bool]
    """Of each request that ends there the daemon is told (`finished`), and may know more (`enrich`)."""


class ViewTarget(TypedDict):
    target: str
    service: str
    endpoint: str
    """`SERVICE@ATTEMPT`, of one model of several `SERVICE@ATTEMPT/MODEL`: what is said of one start cannot hit its successor."""
    address: str | None
    """None: no process."""
    state: Literal["open", "hold", "drain", "gone"]
    reason: str
    """Why it is not open, for the client; empty where it is."""
    retry_at: NotRequired[int | None]
    """Unix seconds of the next try to bring it up, where it is known that there is none before."""
    load_s: NotRequired[int | None]
    """Seconds that its last start took until it was READY, while it is not open and has to be started; None: not known."""
    loading_since: NotRequired[int | None]
    """Unix seconds since when its present start loads; None: it does not."""
    drain_timeout_s: NotRequired[float]
    """What its running requests get where the gateway has to end."""
    parallel: int | None
    """None: the engine decides."""
    kv_tokens: int | None
    names: list[str]
    inject: Inject
    runtime: NotRequired[str]
    """The name of its definition."""
    model: NotRequired[str]
    """The name under which the engine was started; the first of `names` where it is missing."""
    context_length: NotRequired[int | None]
    overflow: NotRequired[str | None]
    """Service that takes what does not fit `context_length`."""
    policies: NotRequired[dict[str, NamePolicy]]
    """Of those among `names` that have one."""
    listed: NotRequired[bool]
    traits: NotRequired[Traits]
    runner: NotRequired[str | None]
    """Address of the process that has the model, where that is another one than `address`."""


class Key(TypedDict):
    name: str
    sha256: str
    models: list[str] | None
    """None: all."""
    share: NotRequired[float]
    """Weight in the queue; 1 where it is missing."""


class Limits(TypedDict, total=False):
    """Of `[gateway]`; what is missing has the gateway's own default (`gateway/view.py`)."""

    queue_deadline_s: float
    queue_size: int
    body_bytes: int
    hosts: list[str] | None
    origins: list[str]
    trusted_proxies: list[str]
    scrape: Literal["loopback", "keys", "all"]
    prefix_hashes: bool
    history_age_s: float | None
    history_bytes: int | None
    header_s: float
    body_s: float
    idle_s: float
    write_stall_s: float
    silence_s: float
    comment_s: float


class View(TypedDict):
    type: Literal["view"]
    generation: int
    targets: list[ViewTarget]
    keys: list[Key]
    limits: Limits


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


class Live(TypedDict):
    """A request that has not ended, while someone watches."""

    id: str
    service: str | None
    """None: not sent to one yet."""
    model: str
    client: str | None
    api: str
    stream: bool
    phase: Literal["count", "queue", "load", "send", "prefill", "decode"]
    since: float
    """Unix seconds: when it came."""
    phase_since: float
    prompt_tokens: int | None
    prompt_done: int | None
    """Tokens of the prompt that the engine has behind it."""
    tokens: int


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
    fields: dict[str, Json]


class Watch(TypedDict):
    type: Literal["watch"]
    on: bool


class Metrics(TypedDict):
    type: Literal["metrics"]
    text: str
    time: float


# --- the plan (§7) ------------------------------------------------------------------------------------------------


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
