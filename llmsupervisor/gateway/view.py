"""What the daemon last said: targets by name, keys and limits. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

ROUTES = {
    "/v1/chat/completions": "chat.completions",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
    "/v1/rerank": "rerank",
    "/infill": "infill",
}
"""Path of a POST route → api, for a target whose definition says none."""
GRACE = 5.0
"""Seconds that requests get when the gateway ends, where nothing else is said."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Of one name: keys of the request body that are set, and that are taken out."""

    set: Mapping[str, Any] = field(default_factory=dict)
    strip: tuple[str, ...] = ()
    """Keys, or `KEY.KEY`."""
    listed: bool = True
    unsaid: Mapping[str, Any] = field(default_factory=dict)
    """Set where the client says nothing of it."""


@dataclass(frozen=True, slots=True)
class Count:
    path: str
    body: Mapping[str, str] | None
    answer: str
    set: Mapping[str, Any] = field(default_factory=dict)
    runner: bool = False
    """The target's runner is asked."""
    template: str | None = None
    """Path that makes a prompt of the conversation first."""


@dataclass(frozen=True, slots=True)
class Pin:
    """What requests of these apis lose and get, so that none changes the model under the others."""

    apis: frozenset[str]
    remove: tuple[str, ...]
    set: Mapping[str, Any]
    force: bool
    """Whatever the client says."""

    def over(self, policy: Policy | None) -> Policy:
        policy = policy or Policy()
        strip = (*policy.strip, *self.remove)
        if self.force:
            return Policy({**self.set, **policy.set}, strip, policy.listed)
        return Policy(policy.set, strip, policy.listed, self.set)


@dataclass(frozen=True, slots=True)
class Traits:
    routes: Mapping[str, str] = field(default_factory=lambda: ROUTES)
    timing: Mapping[str, str] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    usage_forced: bool = False
    count: Mapping[str, Count] = field(default_factory=dict)
    progress: Mapping[str, Any] | None = None
    """Added to a request so that its stream tells how far its prompt is; None: it cannot."""
    slots: str | None = None
    pin: Pin | None = None
    usage: Mapping[str, Any] | None = None
    """Added to a stream of `usage_apis`, so that it ends with a usage event."""
    usage_apis: frozenset[str] = frozenset()
    enrich: bool = False
    """The daemon may know more of its requests: they are told to it when they end."""
    native: bool = False
    """It speaks Ollama's own api."""


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    """What requests wait for: a service, or one model of it (`SERVICE/MODEL`)."""
    service: str
    endpoint: str
    host: str
    port: int
    """0: no process."""
    state: str
    reason: str
    names: tuple[str, ...]
    retry_at: float | None = None
    """Unix seconds before which it does not come back; None: not known."""
    headers: tuple[tuple[str, str], ...] = ()
    runtime: str = ""
    """The name of its definition; empty: not told."""
    model: str = ""
    """The name that the engine knows."""
    parallel: int | None = None
    kv_tokens: int | None = None
    context_length: int | None = None
    load: float | None = None
    """Seconds that its start takes, by the last one …"""
    loading_since: float | None = None
    """… and since when it is under way, Unix seconds."""
    drain: float = GRACE
    """Seconds that its running requests get when the gateway ends."""
    overflow: str | None = None
    policies: Mapping[str, Policy] = field(default_factory=dict)
    listed: bool = True
    traits: Traits = Traits()
    runner: tuple[str, int] | None = None
    """Host and port of the process that has the model, where that is not the service."""

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    @property
    def open(self) -> bool:
        return self.state == "open" and self.port > 0

    @property
    def gone(self) -> bool:
        """It does not come back by itself: nothing waits for it."""
        return self.state not in ("open", "hold", "drain")

    def opens(self, now: float) -> float:
        """Unix seconds, not earlier than what is known: its next try, and a start that takes as long as the last one did."""
        if self.open:
            return now
        begins = self.loading_since if self.loading_since is not None else max(now, self.retry_at or now)
        return begins + (self.load or 0.0)


@dataclass(frozen=True, slots=True)
class Key:
    name: str
    sha256: str
    models: frozenset[str] | None
    share: float


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds and bytes."""

    queue_deadline: float = 60.0
    queue_size: int = 1000
    """Requests that may wait for one target."""
    body: int = 32 * 1024**2
    hosts: tuple[str, ...] | None = None
    """Host names that a request may have in its Host header; None: any."""
    origins: tuple[str, ...] = ()
    """Origins of web pages that may call."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks (CIDR) whose X-Forwarded-For is believed."""
    scrape: str = "loopback"
    """Who may read /metrics: `loopback` (or a key), `keys`, `all`."""
    prefix_hashes: bool = True
    history_age: float | None = 90 * 86400.0
    history_bytes: int | None = 1024**3
    header: float = 10.0
    """From the first byte of a request to the end of its headers."""
    body_grace: float = 10.0
    """After this a body must have come at 1 KiB/s at least."""
    idle: float = 75.0
    """Between two requests on a connection."""
    write_stall: float = 60.0
    """A client that takes nothing for so long is dropped."""
    silence: float = 120.0
    """An engine that has begun to answer and says nothing for so long is taken for dead."""
    comment: float = 5.0
    """A stream that waits gets an SSE comment each time."""


@dataclass(frozen=True)
class Table:
    """One view. Generation 0: none came yet."""

    generation: int = 0
    targets: tuple[Target, ...] = ()
    keys: tuple[Key, ...] = ()
    limits: Limits = Limits()

    def named(self, name: str) -> list[Target]:
        return [target for target in self.targets if name in target.names]

    def target(self, name: str) -> Target | None:
        return next((target for target in self.targets if target.name == name), None)

    def service(self, name: str) -> Target | None:
        return next((target for target in self.targets if target.service == name), None)

    def names(self) -> list[str]:
        return list(dict.fromkeys(name for target in self.targets for name in target.names))

    @cached_property
    def routes(self) -> dict[str, str]:
        """Path → api, of all targets."""
        found = dict(ROUTES)
        for target in self.targets:
            found |= target.traits.routes
        return found

    def ready(self) -> bool:
        return any(target.open for target in self.targets)

    def closed(self) -> set[str]:
        """Endpoints that take no new request."""
        return {target.endpoint for target in self.targets if not target.open}


def table(view: Mapping[str, Any]) -> Table:
    """Keys that are not known are ignored. ValueError where one that is needed is missing or of another kind."""
    try:
        return Table(
            int(view["generation"]),
            tuple(_target(each) for each in view["targets"]),
            tuple(_key(each) for each in view.get("keys") or ()),
            _limits(view.get("limits") or {}),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a view: {type(error).__name__}: {error}") from None


def _target(said: Mapping[str, Any]) -> Target:
    parts = urlsplit(said["address"] or "")
    headers = tuple((str(k), str(v)) for k, v in (said["inject"].get("headers") or {}).items())
    if any(c in text for pair in headers for text in pair for c in "\r\n"):
        raise ValueError("a header to inject has a line break in it")
    names = tuple(str(name) for name in said["names"])
    return Target(
        name=str(said["target"]),
        service=str(said["service"]),
        endpoint=str(said["endpoint"]),
        host=parts.hostname or "",
        port=parts.port or 0,
        state=str(said["state"]),
        reason=str(said.get("reason") or ""),
        names=names,
        retry_at=said.get("retry_at"),
        load=said.get("load_s"),
        loading_since=said.get("loading_since"),
        drain=float(said.get("drain_timeout_s", GRACE)),
        headers=headers,
        runtime=str(said.get("runtime") or ""),
        model=str(said.get("model") or (names[0] if names else "")),
        parallel=said.get("parallel"),
        kv_tokens=said.get("kv_tokens"),
        context_length=said.get("context_length"),
        overflow=said.get("overflow"),
        policies={
            str(name): Policy(dict(p.get("set") or {}), tuple(p.get("strip") or ()), bool(p.get("listed", True)))
            for name, p in (said.get("policies") or {}).items()
        },
        listed=bool(said.get("listed", True)),
        traits=_traits(said.get("traits")),
        runner=_runner(said.get("runner")),
    )


def at_runner(target: Target) -> Target:
    """To ask the process that has the model; without a port where there is none."""
    host, port = target.runner or ("", 0)
    return replace(target, host=host, port=port, headers=())


def _runner(address: str | None) -> tuple[str, int] | None:
    parts = urlsplit(address or "")
    return (parts.hostname, parts.port) if parts.hostname and parts.port else None


def _traits(said: Mapping[str, Any] | None) -> Traits:
    if said is None:
        return Traits()
    pin, usage, routes = said.get("pin"), said.get("usage") or {}, dict(said.get("routes") or ROUTES)
    return Traits(
        routes=routes,
        timing=dict(said.get("timing") or {}),
        remove=tuple(said.get("remove") or ()),
        usage_forced=bool(said.get("usage_forced")),
        count={
            str(api): Count(
                str(c["path"]),
                c.get("body"),
                str(c["answer"]),
                dict(c.get("set") or {}),
                bool(c.get("runner")),
                c.get("template"),
            )
            for api, c in (said.get("count") or {}).items()
        },
        progress=said.get("progress"),
        slots=said.get("slots"),
        pin=None
        if pin is None
        else Pin(frozenset(pin["apis"]), tuple(pin["remove"]), dict(pin["set"]), bool(pin["force"])),
        usage=usage.get("set"),
        usage_apis=frozenset(usage.get("apis") or ()),
        enrich=bool(said.get("enrich")),
        native="/api/chat" in routes,
    )


def _key(said: Mapping[str, Any]) -> Key:
    models = said.get("models")
    share = float(said.get("share") or 1.0)
    return Key(str(said["name"]), str(said["sha256"]), None if models is None else frozenset(models), share)


def _limits(said: Mapping[str, Any]) -> Limits:
    default = Limits()
    hosts = said.get("hosts")
    return Limits(
        queue_deadline=float(said.get("queue_deadline_s", default.queue_deadline)),
        queue_size=int(said.get("queue_size", default.queue_size)),
        body=int(said.get("body_bytes", default.body)),
        hosts=None if hosts is None else tuple(hosts),
        origins=tuple(said.get("origins") or ()),
        trusted_proxies=tuple(said.get("trusted_proxies") or ()),
        scrape=str(said.get("scrape", default.scrape)),
        prefix_hashes=bool(said.get("prefix_hashes", True)),
        history_age=said.get("history_age_s", default.history_age),
        history_bytes=said.get("history_bytes", default.history_bytes),
        header=float(said.get("header_s", default.header)),
        body_grace=float(said.get("body_s", default.body_grace)),
        idle=float(said.get("idle_s", default.idle)),
        write_stall=float(said.get("write_stall_s", default.write_stall)),
        silence=float(said.get("silence_s", default.silence)),
        comment=float(said.get("comment_s", default.comment)),
    )
