"""The routes, every refusal, and the bytes of our own answers and of requests to engines. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llmsupervisor.gateway.view import Table, Target

LOCAL = {"/v1/models": "models", "/healthz": "healthz", "/readyz": "readyz", "/metrics": "metrics"}
"""GET, answered here."""
RUNNING = b"Ollama is running"
"""To GET and HEAD of `/`, where one is behind it: its clients ask that first."""
FORWARDED = frozenset(
    {"accept", "content-type", "user-agent", "traceparent", "tracestate", "x-request-id", "anthropic-version"}
    | {"anthropic-beta", "openai-beta"}
)
"""Request headers that reach an engine; the rest of its header block is ours."""

PHRASES = {
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
AGAIN = 1
"""Seconds after which a refused client may try again …"""
SOMEBODY = 60
"""… where somebody has to act first …"""
LONGEST = 3600
"""… and at most: whoever acts may be earlier than any plan."""


@dataclass(frozen=True, slots=True)
class Refusal:
    status: int
    message: str
    code: str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def body(self, native: bool = False) -> dict[str, Any]:
        """In the shape of OpenAI's errors, or of Ollama's."""
        if native:
            return {"error": self.message}
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}


def local(path: str, table: Table) -> str | None:
    """What of ours answers it."""
    return "ollama" if path == "/" and any(target.traits.native for target in table.targets) else LOCAL.get(path)


def refused_route(method: str, path: str, table: Table) -> Refusal:
    if path in LOCAL:
        return Refusal(405, f"{path} takes GET, not {method}", "method_not_allowed", (("Allow", "GET, HEAD"),))
    routes = table.routes
    if path in routes:
        return Refusal(405, f"{path} takes POST, not {method}", "method_not_allowed", (("Allow", "POST, OPTIONS"),))
    known = ", ".join([*LOCAL, *routes])
    return Refusal(404, f"no route {path[:200]}; known: {known}", "unknown_route")


def unknown_model(name: str, known: Iterable[str]) -> Refusal:
    return Refusal(404, f"no model {name[:200]!r}; known: {', '.join(known) or 'none'}", "model_not_found")


def unspoken(name: str, path: str, targets: Sequence[Target]) -> Refusal:
    speaks = ", ".join(dict.fromkeys(route for target in targets for route in target.traits.routes))
    return Refusal(404, f"{name!r} has no route {path}; it has: {speaks}", "unknown_route")


def other_case(key: str) -> Refusal:
    """Go reads keys in any letters: of `model` and `Model` Ollama would take the last, whatever was looked at here."""
    text = f"the key {key[:200]!r} of the body must be written in small letters: {key[:200].casefold()!r}"
    return Refusal(400, text, "bad_request")


def gone(name: str, targets: Sequence[Target], now: float) -> Refusal:
    """`now`: Unix seconds."""
    reasons = "; ".join(f"{target.service}: {target.reason or target.state}" for target in targets)
    known = [target.retry_at - now for target in targets if target.retry_at is not None]
    unknown = SOMEBODY if all(target.gone for target in targets) else AGAIN
    return unavailable(f"{name!r} takes no requests now: {reasons}", after=min(known, default=unknown))


def unavailable(message: str, code: str = "unavailable", after: float = AGAIN) -> Refusal:
    return Refusal(503, message, code, (("Retry-After", str(min(LONGEST, max(AGAIN, math.ceil(after))))),))


def models(table: Table, time: int, allowed: Container[str] | None = None) -> dict[str, Any]:
    """`GET /v1/models`: every listed name once, with the state of its best target."""
    order = ("open", "drain", "hold", "gone")
    data = []
    for name in table.names():
        named = [target for target in table.named(name) if listed(target, name)]
        if not named or (allowed is not None and name not in allowed):
            continue
        best = min(named, key=lambda t: order.index(t.state) if t.state in order else len(order))
        data.append(
            {
                "id": name,
                "object": "model",
                "created": time,
                "owned_by": best.service,
                "state": best.state,
                "context_length": best.context_length,
            }
        )
    return {"object": "list", "data": data}


def listed(target: Target, name: str) -> bool:
    policy = target.policies.get(name)
    return target.listed if policy is None else policy.listed


def answer(
    status: int,
    body: bytes,
    headers: Iterable[tuple[str, str]] = (),
    kind: str = "application/json",
    head_only: bool = False,
) -> bytes:
    lines = [f"HTTP/1.1 {status} {PHRASES[status]}"]
    lines += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"] if status != 204 else []
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if head_only else body)


def event(refusal: Refusal, lines: bool = False) -> bytes:
    """For a stream whose status is already sent. `lines`: one of JSON lines, not of events."""
    if lines:
        return json.dumps(refusal.body(native=True)).encode() + b"\n"
    return b"event: error\ndata: " + json.dumps(refusal.body()).encode() + b"\n\n"


def upstream_head(path: str, target: Target, kept: dict[str, str], length: int, request_id: str) -> bytes:
    """The header block for an engine: what the client said is in it only where it is in `FORWARDED`. The body is known to be
    JSON; an engine may refuse one that is not said to be."""
    ours = {"host": f"{target.host}:{target.port}", "content-length": str(length), "accept-encoding": "identity"}
    injected = {name.lower(): value for name, value in target.headers}
    kept = {"x-request-id": request_id, "content-type": "application/json"} | kept
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in (kept | ours | injected).items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
