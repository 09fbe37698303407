"""What `/metrics` tells: of every request that ended, of the moment, and what the daemon told last. Names: `docs/metrics.md`."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from llmsupervisor.base.exposition import Family, Foreign, Histogram, Scalar, parse, render
from llmsupervisor.gateway.view import Table
from llmsupervisor.link.requests import RequestRecord

OTHER = "other"
"""In the place of every service, model and client that the spec does not have: labels are bounded by it."""
RECENT = 1000
"""Requests of a service that its 95th percentile is of."""

PROVIDERS = {"llama-server": "llama_cpp"}
"""Of a runtime, where it is not the runtime's own name."""
OPERATIONS = {
    "chat.completions": "chat",
    "responses": "chat",
    "messages": "chat",
    "completions": "text_completion",
    "infill": "text_completion",
}
"""OpenTelemetry's word for an api, where it is not the api's own name."""
REASONS = {
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_context_window_exceeded": "ctx",
    "client_gone": "client_gone",
    "engine_exit": "engine_exit",
    "timeout": "timeout",
    "queue_timeout": "queue_timeout",
    "rejected": "rejected",
    "error": "error",
    "incomplete": "incomplete",
}
"""`finish_reason` of a record → `reason`; all others are a regular end, `stop`."""
FAILURES = {"client_gone", "engine_exit", "timeout", "queue_timeout", "rejected", "error", "incomplete"}

# The advice of OpenTelemetry, and what local models need beyond it.
TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 320)
TPOT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
DURATION = tuple(0.01 * 2**n for n in range(17))
USAGE = tuple(4**n for n in range(14))
SPAN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
CONTEXT = tuple(2**n for n in range(6, 21))

_GEN_AI = ("service", "gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")


@dataclass(slots=True)
class Moment:
    """What only the gateway's parts know. By service where it is a mapping; seconds."""

    running: Mapping[str, int] = field(default_factory=dict)
    queued: Mapping[str, int] = field(default_factory=dict)
    connections: int = 0
    loop_lag: float | None = None
    """The longest of the last seconds."""
    records_dropped: int = 0
    generation: int | None = None
    """Of the view; None: none came yet."""
    view_age: float | None = None


class Metrics:
    """`moment` is asked at each scrape."""

    def __init__(self, moment: Callable[[], Moment]) -> None:
        self._moment = moment
        self._services: dict[str, str] = {}
        """With its provider."""
        self._models: frozenset[str] = frozenset()
        self._clients: frozenset[str] = frozenset()
        self._contexts: dict[str, deque[int]] = {}
        self._pushed: str | None = None
        self._parsed: dict[str, Foreign] = {}
        self.families: list[Family] = []
        self._requests()
        self._gauges()

    def _requests(self) -> None:
        one, of = ("service",), self._histogram
        self._ttft = of(
            "gen_ai_server_time_to_first_token_seconds",
            "From the first byte of a request to its first token, wait included. Streams only.",
            _GEN_AI,
            TTFT,
        )
        self._tpot = of(
            "gen_ai_server_time_per_output_token_seconds", "Decode time by token after the first.", _GEN_AI, TPOT
        )
        self._duration = of(
            "gen_ai_server_request_duration_seconds",
            "From the first byte of a request to the last of its answer.",
            (*_GEN_AI, "error_type"),
            DURATION,
        )
        self._usage = of(
            "gen_ai_client_token_usage", "Tokens of a request, by type.", (*_GEN_AI, "gen_ai_token_type"), USAGE
        )
        self._queue = of(
            "llmsupervisor_request_queue_seconds",
            "Wait for a turn: in the gateway, and in the engine where it is known.",
            ("service", "where"),
            SPAN,
        )
        self._load = of("llmsupervisor_request_load_seconds", "Wait for the service to come up.", one, SPAN)
        self._prefill = of("llmsupervisor_request_prefill_seconds", "Work on the prompt.", ("service", "source"), SPAN)
        self._decode = of(
            "llmsupervisor_request_decode_seconds", "From the first token to the last.", ("service", "source"), SPAN
        )
        self._rest = of(
            "llmsupervisor_request_other_seconds", "What is neither wait nor load, prefill, decode.", one, SPAN
        )
        self._context = of("llmsupervisor_request_context_tokens", "Prompt and output of a request.", one, CONTEXT)
        add = self._counter
        self._prefilled = add("llmsupervisor_prefill_tokens_total", "Prompt tokens that were not in a cache.", one)
        self._cached = add("llmsupervisor_prefill_cached_tokens_total", "Prompt tokens that were in a cache.", one)
        self._decoded = add("llmsupervisor_decode_tokens_total", "Tokens of answers.", one)
        self._prefill_busy = add(
            "llmsupervisor_prefill_busy_seconds_total", "Prefill, summed over requests that run side by side.", one
        )
        self._decode_busy = add(
            "llmsupervisor_decode_busy_seconds_total", "Decode, summed over requests that run side by side.", one
        )
        self._ended = add(
            "llmsupervisor_requests_total",
            "Requests that ended, by class of status and why.",
            ("service", "status", "reason"),
        )
        self._asked = add("llmsupervisor_client_requests_total", "Requests that ended, by key.", ("client",))
        self._used = add("llmsupervisor_client_tokens_total", "Tokens of a key's requests.", ("client", "type"))

    def _gauges(self) -> None:
        of = self._gauge
        self._p95 = of(
            "llmsupervisor_request_context_tokens_p95",
            f"95th percentile of prompt and output, exact, of the last {RECENT} requests.",
            ("service",),
        )
        self._running = of(
            "llmsupervisor_requests_running", "Requests that are with an engine now.", ("service", "where")
        )
        self._queued = of("llmsupervisor_requests_queued", "Requests that wait now.", ("service", "where"))
        self._connections = of("llmsupervisor_gateway_connections", "Connections of clients.")
        self._lag = of(
            "llmsupervisor_gateway_loop_lag_seconds", "Longest delay of the gateway's own loop of the last seconds."
        )
        self._generation = of("llmsupervisor_gateway_view_generation", "Generation of what the daemon said last.")
        self._view_age = of("llmsupervisor_gateway_view_age_seconds", "Since the daemon said it.")
        self._pushed_age = of(
            "llmsupervisor_daemon_exposition_age_seconds", "Since the daemon told its own metrics, which follow."
        )
        self._lost = self._counter("llmsupervisor_request_records_dropped_total", "Records that could not be written.")

    # --- what comes -----------------------------------------------------------------------------------------------

    def know(self, table: Table) -> None:
        """At each view. Series of what it does not have any more go."""
        self._services = {each.service: PROVIDERS.get(each.runtime, each.runtime) for each in table.targets}
        self._models = frozenset(table.names())
        self._clients = frozenset(key.name for key in table.keys)
        for family in self.families:
            family.retain("service", {*self._services, OTHER})
            family.retain("gen_ai_request_model", {*self._models, OTHER})
            family.retain("client", {*self._clients, OTHER})
        self._contexts = {name: values for name, values in self._contexts.items() if name in self._services}

    def observe(self, record: RequestRecord) -> None:
        service = record["service"] if record["service"] in self._services else OTHER
        model = record["model"] if record["model"] in self._models else OTHER
        gen_ai = (
            service,
            OPERATIONS.get(record["api"], record["api"]),
            self._services.get(service, ""),
            model,
        )
        reason = "ctx" if record["truncated"] else REASONS.get(record["finish_reason"] or "", "stop")
        self._ended.add(1, service, f"{record['status'] // 100}xx", reason)
        self._duration.observe(record["total_ms"] / 1e3, *gen_ai, reason if reason in FAILURES else "")
        if (ttft := record["ttft_ms"]) is not None and record["stream"]:
            self._ttft.observe(ttft / 1e3, *gen_ai)
        if speed := record["decode_tokens_per_s"]:
            self._tpot.observe(1 / speed, *gen_ai)
        self._spans(record, service)
        self._tokens(record, service, gen_ai)

    def _spans(self, record: RequestRecord, service: str) -> None:
        sources = record["sources"]
        if (queue := record["queue_ms"]) is not None:
            self._queue.observe(queue / 1e3, service, "gateway")
        if (queue := record["engine_queue_ms"]) is not None:
            self._queue.observe(queue / 1e3, service, "engine")
        if (load := record["load_ms"]) is not None:
            self._load.observe(load / 1e3, service)
        if (prefill := record["prefill_ms"]) is not None:
            self._prefill.observe(prefill / 1e3, service, _source(sources.get("prefill_ms")))
            self._prefill_busy.add(prefill / 1e3, service)
        if (decode := record["decode_ms"]) is not None:
            self._decode.observe(decode / 1e3, service, _source(sources.get("decode_ms")))
            self._decode_busy.add(decode / 1e3, service)
        if (rest := record["other_ms"]) is not None:
            self._rest.observe(rest / 1e3, service)

    def _tokens(self, record: RequestRecord, service: str, gen_ai: tuple[str, ...]) -> None:
        prompt, cached, completion = record["prompt_tokens"], record["cached_tokens"], record["completion_tokens"]
        client = record["client"]
        if client is not None:
            client = client if client in self._clients else OTHER
            self._asked.add(1, client)
        if cached is not None:
            self._cached.add(cached, service)
        if prompt is not None:
            self._prefilled.add(max(prompt - (cached or 0), 0), service)
            self._usage.observe(prompt, *gen_ai, "input")
            if client is not None:
                self._used.add(prompt, client, "input")
        if completion is not None:
            self._decoded.add(completion, service)
            self._usage.observe(completion, *gen_ai, "output")
            if client is not None:
                self._used.add(completion, client, "output")
        if prompt is not None and service != OTHER:
            self._context.observe(prompt + (completion or 0), service)
            self._contexts.setdefault(service, deque(maxlen=RECENT)).append(prompt + (completion or 0))

    # --- what is told ---------------------------------------------------------------------------------------------

    def text(self, pushed: str | None, pushed_age: float | None) -> bytes:
        """`pushed`: the last text of the daemon, `pushed_age` seconds old; None: none came."""
        self._set(self._moment(), pushed_age)
        if pushed is not self._pushed:
            self._pushed, self._parsed = pushed, parse(pushed or "")
        return render(self.families, self._parsed)

    def _set(self, moment: Moment, pushed_age: float | None) -> None:
        for family, by_service in ((self._running, moment.running), (self._queued, moment.queued)):
            family.clear()
            for service in self._services:
                family.set(by_service.get(service, 0), service, "gateway")
        self._p95.clear()
        for service, values in self._contexts.items():
            self._p95.set(sorted(values)[math.ceil(0.95 * len(values)) - 1], service)
        self._lost.set(moment.records_dropped)
        for gauge, value in (
            (self._connections, moment.connections),
            (self._lag, moment.loop_lag),
            (self._generation, moment.generation),
            (self._view_age, moment.view_age),
            (self._pushed_age, pushed_age),
        ):
            gauge.clear()
            if value is not None:
                gauge.set(value)

    # --- families -------------------------------------------------------------------------------------------------

    def _histogram(self, name: str, help: str, labels: tuple[str, ...], bounds: tuple[float, ...]) -> Histogram:
        made = Histogram(name, help, labels, bounds)
        self.families.append(made)
        return made

    def _counter(self, name: str, help: str, labels: tuple[str, ...] = ()) -> Scalar:
        made = Scalar("counter", name, help, labels)
        self.families.append(made)
        return made

    def _gauge(self, name: str, help: str, labels: tuple[str, ...] = ()) -> Scalar:
        made = Scalar("gauge", name, help, labels)
        self.families.append(made)
        return made


def _source(said: str | None) -> str:
    """`both` is the engine's figure, of which ours differs."""
    return "gateway" if said == "gateway" else "engine"
