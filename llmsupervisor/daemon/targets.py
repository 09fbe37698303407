"""What the gateway is told: of a service, where it is, whether it takes requests, and why not; and its limits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from llmsupervisor.link import view as link
from llmsupervisor.link.view import Limits, NamePolicy, Traits, ViewTarget
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.runtime.adapter import adapter_for
from llmsupervisor.runtime.definition import Count, Definition
from llmsupervisor.runtime.models import Model
from llmsupervisor.service.states import HAS_PROCESS, State, Status
from llmsupervisor.service.target import Target, TargetState
from llmsupervisor.spec.gateway import is_loopback
from llmsupervisor.spec.model import Gateway, Service

if TYPE_CHECKING:
    from llmsupervisor.daemon.runner import Runner

Route = Literal["open", "hold", "drain", "gone"]


def endpoint_of(service: str, attempt: int, model: str = "") -> str:
    """Of a service with several models each has one: its requests end, and it drains, for itself."""
    return f"{service}@{attempt}/{model}" if model else f"{service}@{attempt}"


def belongs(endpoint: str, service: str, attempt: int) -> bool:
    whole = endpoint_of(service, attempt)
    return endpoint == whole or endpoint.startswith(f"{whole}/")


def targets_of(
    runner: Runner,
    status: Status,
    horizon: float,
    closed: str = "",
    reopen: float | None = None,
    zero: float = 0.0,
    load: float | None = None,
) -> list[ViewTarget]:
    """One for each model: of an Ollama with several, `SERVICE/MODEL` each, and the first has the service's own names.
    Where the service takes requests, each of its models says for itself whether it does.

    What an engine was started with is told of the run; live keys (names, overflow, listed) are the spec's of now. What
    comes back after `horizon` (monotonic seconds) does not come back in time for those who would wait now. `closed`: why
    it cannot start until then, and `reopen`: when it can, Unix seconds. `zero`: Unix seconds of the monotonic zero.
    `load`: seconds that its last start took.
    """
    process = runner.process if status.state in HAS_PROCESS else None
    plan = process.plan if process else runner.plan
    live = runner.plan.service
    headers = {} if process is None or process.key is None else {process.key[0]: process.key[1]}
    state, reason = _route(status, horizon, closed)
    again = _next_try(status, zero) if not closed else reopen if status.goal == "up" else None
    starts = status.goal == "up" and status.state not in (State.READY, State.UNREADY)
    load_s = math.ceil(load) if load is not None and starts else None
    since = status.started if status.state is State.STARTING else None
    models = [(each.name, each.tag, each.context_length) for each in _models(runner, plan)]
    names_of = adapter_for(plan.definition).names
    single = [("", names_of(runner.name, plan.service)[0], plan.service.context_length)]
    attempt = process.attempt if process else status.attempt
    found: list[ViewTarget] = []
    for name, model, context in models or single:
        own = [runner.name, *live.aliases, *live.names] if not found else []
        several = name if len(models) > 1 else ""
        entry = runner.models.entries.get(name) if state == "open" else None
        route, why = (state, reason) if entry is None else _of_model(name, entry.target, horizon)
        at = again if entry is None else _model_at(entry.target, zero)
        watched = entry.process if entry is not None else None
        found.append(
            {
                "target": f"{runner.name}/{name}" if several else runner.name,
                "service": runner.name,
                "endpoint": endpoint_of(runner.name, attempt, several),
                "address": process.endpoint if process else None,
                "state": route,
                "reason": why,
                "retry_at": None if at is None or route == "open" else math.ceil(at),
                "load_s": load_s,
                "drain_timeout_s": live.drain_timeout,
                "loading_since": None if since is None else math.floor(since + zero),
                "parallel": plan.service.parallel,
                "kv_tokens": plan.service.kv_tokens,
                "names": list(dict.fromkeys([*own, name] if name else own)),
                "inject": {"headers": headers},
                "runtime": plan.definition.name,
                "model": model,
                "context_length": context,
                "overflow": live.overflow,
                "policies": _policies(live) if own else {},
                "listed": live.listed,
                "traits": _traits(plan.definition, live),
                "runner": watched.args.address if watched is not None else None,
            }
        )
    return found


def _models(runner: Runner, plan: ServicePlan) -> list[Model]:
    """Those that are written down for the run; before, those of the plan."""
    entries = runner.models.entries
    return [entry.model for entry in entries.values()] or list(adapter_for(plan.definition).models(plan.service))


def _of_model(name: str, target: Target, horizon: float) -> tuple[Route, str]:
    reason = f"{name} is {target.state}" + (f": {target.reason}" if target.reason else "")
    match target.state:
        case TargetState.LOADED:
            return "open", ""
        case TargetState.UNLOADING:
            return "drain", reason
        case TargetState.FAILED if target.deadline is None or target.deadline > horizon:
            return "gone", reason
    return "hold", reason


def _next_try(status: Status, zero: float) -> float | None:
    due = status.goal == "up" and not status.unkillable and status.state in (State.BACKOFF, State.FAILED)
    return status.retry_at + zero if due and status.retry_at is not None else None


def _model_at(target: Target, zero: float) -> float | None:
    due = target.state is TargetState.FAILED
    return target.deadline + zero if due and target.deadline is not None else None


def _policies(service: Service) -> dict[str, NamePolicy]:
    return {
        name: {"set": dict(policy.set), "strip": list(policy.strip), "listed": policy.listed}
        for name, policy in service.names.items()
    }


def _traits(definition: Definition, live: Service) -> Traits:
    pin, pinned = definition.pin, live.client_options == "pinned"
    traits: Traits = {
        "routes": dict(definition.routes),
        "timing": dict(definition.timing),
        "remove": list(definition.answer.remove),
        "usage_forced": definition.answer.usage_forced,
        "count": {api: _count(count) for api, count in definition.count.items()},
        "progress": definition.answer.progress,
        "slots": definition.slots,
    }
    if pin is not None:
        removed = list(pin.remove) if pinned else []
        traits["pin"] = {"apis": list(pin.apis), "remove": removed, "set": dict(pin.set), "force": pinned}
    if definition.answer.usage is not None:
        traits["usage"] = {"apis": list(definition.answer.usage_apis), "set": definition.answer.usage}
    if definition.runner is not None:
        traits["enrich"] = True
    return traits


def _count(count: Count) -> link.Count:
    told: link.Count = {"path": count.path, "body": count.body, "set": dict(count.set), "answer": count.answer}
    if count.runner:
        told |= {"runner": True, "template": count.template}
    return told


def _route(status: Status, horizon: float, closed: str) -> tuple[Route, str]:
    """hold and drain: it comes back by itself. gone: it does not, at least not in time."""
    why = status.reason or (f"stopped by {status.stopped_by}" if status.stopped_by else "")
    reason = status.state.value + (f": {why}" if why else "")
    if status.goal == "down":
        return "gone", reason
    if closed and status.state is not State.READY:
        return "gone", f"{status.state.value}: {closed}"
    match status.state:
        case State.READY:
            return "open", ""
        case State.DRAINING:
            return "drain", reason
        case State.STOPPED:
            return "gone", reason
        case State.FAILED if status.unkillable or status.retry_at is None or status.retry_at > horizon:
            return "gone", reason
    return "hold", reason


def limits_of(gateway: Gateway) -> Limits:
    hosts = gateway.hosts
    if hosts is None and is_loopback(gateway.listen):
        hosts = ()
    return {
        "queue_deadline_s": gateway.queue_deadline,
        "queue_size": gateway.queue_size,
        "body_bytes": gateway.max_body,
        "hosts": None if hosts is None else list(hosts),
        "origins": list(gateway.origins),
        "trusted_proxies": list(gateway.trusted_proxies),
        "scrape": gateway.scrape,
        "prefix_hashes": gateway.prefix_hashes,
        "history_age_s": gateway.history_age,
        "history_bytes": gateway.history_size,
    }
