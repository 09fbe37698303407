"""The view: all that the gateway knows of the spec and its targets (`docs/contracts.md` §6). Unknown is None, never 0.

Times are Unix seconds, durations seconds, unless a name ends in `_ms`.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

GATEWAY_VIEW = "view.json"
"""The last view, with keys of engines in it: 0600."""


class Inject(TypedDict):
    headers: dict[str, str]
    """Set on every request to the engine, whatever the client sent: its per-start key."""


class NamePolicy(TypedDict):
    """What a request under this name is changed to before the engine sees it."""

    set: dict[str, Any]
    strip: list[str]
    listed: bool


class Count(TypedDict):
    """How the engine is asked for the number of tokens of a prompt."""

    path: str
    body: dict[str, str] | None
    """Key of its request → key of the user's; None: the user's own body."""
    set: NotRequired[dict[str, Any]]
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
    set: dict[str, Any]
    force: bool
    """`set` also stands where the client said something else."""


class Usage(TypedDict):
    apis: list[str]
    set: dict[str, Any]


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
    progress: dict[str, Any] | None
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
