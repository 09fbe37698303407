"""The part of the daemon's exposition that is about engines, their memory and their objectives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmsupervisor.base.exposition import Scalar
from llmsupervisor.daemon.snapshot import context_limit, own_conditions

if TYPE_CHECKING:
    from llmsupervisor.daemon.daemon import Daemon
    from llmsupervisor.daemon.runner import Runner

ENGINE = ("service", "where")


def gauge(name: str, help: str, *labels: str) -> Scalar:
    return Scalar("gauge", f"llmsupervisor_{name}", help, labels)


def counter(name: str, help: str, *labels: str) -> Scalar:
    return Scalar("counter", f"llmsupervisor_{name}", help, labels)


def engines(daemon: Daemon) -> list[Scalar]:
    return [*_figures(daemon), *_memory(daemon), *_objectives(daemon), *_conditions(daemon)]


def _figures(daemon: Daemon) -> list[Scalar]:
    running = gauge("requests_running", "Requests that are with an engine now.", *ENGINE)
    queued = gauge("requests_queued", "Requests that wait now.", *ENGINE)
    usage = gauge("kv_usage_ratio", "Share of the KV cache that running requests hold.", "service", "source")
    tokens = gauge(
        "kv_tokens", "Tokens in the KV cache: of requests that run, and those that may be evicted.", "service", "held"
    )
    capacity = gauge("kv_capacity_tokens", "Tokens that fit the KV cache.", "service")
    limit = gauge("context_limit_tokens", "Prompt and output that fit one request.", "service")
    hits = counter("prefix_hit_tokens_total", "Prompt tokens that the engine found in a cache.", "service")
    queries = counter("prefix_query_tokens_total", "Prompt tokens that it looked for there.", "service")
    drafted = counter("spec_draft_tokens_total", "Tokens that were drafted.", "service")
    accepted = counter("spec_accepted_tokens_total", "Drafted tokens that were right.", "service")
    preempted = counter("preemptions_total", "Requests that had to give up their KV.", "service")
    age = gauge("scrape_age_seconds", "Since the engine told its figures.", "service")
    found = [running, queued, usage, tokens, capacity, limit, hits, queries, drafted, accepted, preempted, age]
    for service, runner in daemon.box.runners.items():
        figures = runner.scraper.figures
        if runner.process is not None:
            _set(limit, context_limit(runner), service)
        if figures is None:
            continue
        _set(running, figures.requests_running, service, "engine")
        _set(queued, figures.requests_waiting, service, "engine")
        _set(usage, figures.kv_cache_usage, service, "slots" if runner.plan.definition.slots else "engine")
        _set(tokens, figures.kv_tokens_used, service, "running")
        _set(tokens, figures.kv_tokens_cached, service, "cached")
        _set(capacity, figures.kv_tokens_capacity, service)
        _set(hits, figures.prefix_hits_total, service)
        _set(queries, figures.prefix_queries_total, service)
        _set(drafted, figures.draft_tokens_total, service)
        _set(accepted, figures.draft_accepted_total, service)
        _set(preempted, figures.preemptions_total, service)
        if runner.scraper.time is not None:
            age.set(round(max(0.0, daemon.clock.wall() - runner.scraper.time), 1), service)
    return found


def _memory(daemon: Daemon) -> list[Scalar]:
    rss = gauge("process_resident_bytes", "Memory of a service's processes that is no file's.", "service")
    swap = gauge("process_swap_bytes", "Memory of them that is swapped out.", "service")
    parts = gauge("engine_memory_bytes", "What an engine said that it allocated.", "service", "where", "part")
    growth = gauge(
        "memory_growth_bytes_per_request", "Of memory over requests, once there are enough.", "service", "where"
    )
    for service, runner in daemon.box.runners.items():
        trend = daemon.trends.of.get(service)
        if trend is not None:
            _set(rss, trend.rss, service)
            _set(swap, trend.swap, service)
            for where, kind in (("host", "memory"), ("gpu", "GPU memory")):
                slope = trend.slope(kind)
                _set(growth, None if slope is None else round(slope, 1), service, where)
        for where, part, size in _allocated(runner):
            parts.set(size, service, where, part)
    return [rss, swap, parts, growth]


def _allocated(runner: Runner) -> list[tuple[str, str, int]]:
    said = runner.scraper.allocated
    if said is None or runner.process is None:
        return []
    every = [
        (where, part, getattr(parts, part))
        for where, parts in (("gpu", said.gpu), ("host", said.host))
        if parts is not None
        for part in ("weights", "kv", "compute")
    ]
    return [(where, part, size) for where, part, size in every if size is not None]


def _objectives(daemon: Daemon) -> list[Scalar]:
    labels = ("service", "objective")
    limit = gauge("slo_limit_seconds", "What an objective of the spec allows.", *labels)
    measured = gauge("slo_measured_seconds", "What was measured over its window, from 20 requests on.", *labels)
    breached = gauge("slo_breached", "1 while an objective is missed.", *labels)
    for service in daemon.box.runners:
        for each in daemon.trends.objectives.get(service, ()):
            limit.set(each.limit_s, service, each.name)
            _set(measured, each.measured_s, service, each.name)
            breached.set(int(each.breached), service, each.name)
    return [limit, measured, breached]


def _conditions(daemon: Daemon) -> list[Scalar]:
    services = gauge("service_condition", "1 while something is wrong with a service.", "service", "id")
    own = gauge("daemon_condition", "1 while something is wrong with the daemon or the gateway.", "id")
    for service, runner in daemon.box.runners.items():
        for condition in runner.conditions.all():
            services.set(1, service, condition.id)
    for said in own_conditions(daemon):
        own.set(1, said["id"])
    return [services, own]


def _set(family: Scalar, value: float | None, *labels: str) -> None:
    if value is not None:
        family.set(value, *labels)
