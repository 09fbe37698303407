"""What fits, in tables: of a known model on a card of some size, and of each service of a plan for every KV type."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from llmsupervisor.base.units import format_size
from llmsupervisor.plan.answers import CONTEXT_STEP, MOST_PARALLEL, largest, most
from llmsupervisor.plan.facts import Facts
from llmsupervisor.plan.gguf import GgufHeader
from llmsupervisor.plan.hf import HfModel
from llmsupervisor.plan.launch import Plan, ServicePlan
from llmsupervisor.plan.measure import CONTEXT, cards_of
from llmsupervisor.plan.measure_llama import memo
from llmsupervisor.plan.measure_vllm import BLOCK_GPU, GRAPHS, OUTSIDE_TORCH, Pages, activation, pages, weights
from llmsupervisor.plan.memory import Memory, Refused, Settings, kv_bytes_per_token
from llmsupervisor.plan.memory_place import Where
from llmsupervisor.plan.memory_shape import NoFormula
from llmsupervisor.plan.plan import replan
from llmsupervisor.plan.rules.kv import CAPABILITY
from llmsupervisor.plan.shapes import KnownModel
from llmsupervisor.plan.sums import Most

MIB, GIB = 1024**2, 1024**3
CONTEXTS = (4096, 8192, 16384, 32768, 131072)
KV_TYPES = ("f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
SERVED = ("f16", "q8_0", "q4_0")
SHARE = 0.92
"""Of a card, that vLLM takes unless it is told a budget."""
BATCH, REQUESTS = 2048, 256
"""vLLM's own defaults on a card of less than 70 GiB."""
KNOBS = "context_length, parallel, kv_cache_type"
UNMEASURED = "–"


def wrong(model: KnownModel) -> str:
    """Why there are no sums of it; empty: there are."""
    for header in model.ggufs.values():
        found = memo(header, _settings("f16", 4096))
        if isinstance(found, Refused):
            return found.reason
        if found.unknown:
            return "; ".join(found.unknown)
    for hub in model.hubs.values():
        paged = _paged(hub, "auto", 4096)
        if isinstance(paged, NoFormula):
            return paged.reason
    return ""


def of_model(model: KnownModel, vram: int) -> str:
    """Markdown."""
    parts = [
        f"## {model.title} on {format_size(vram)}",
        "Weights. llama.cpp keeps the embedding in the host's memory.",
        _table(("file", "bytes", "all", "on the GPU"), _weights(model)),
    ]
    for header in list(model.ggufs.values())[:1]:
        parts += [
            "A token of context, and requests of full length.",
            _table(("KV cache", "bytes per token", "8k", "32k", "128k"), _cache(header)),
            f"llama-server on one GPU, {format_size(CONTEXT)} of it for the process until a start has shown how much: "
            f"requests at once ({MOST_PARALLEL} at most) by their context.",
            _table(("weights, KV cache", "tokens", *map(_short, CONTEXTS)), _llama(model, vram)),
        ]
    if model.hubs:
        parts += [
            f"vLLM with {SHARE:.0%} of the GPU, {BATCH} tokens a step and {REQUESTS} requests at most; activations, graphs and "
            "what lies outside of torch are estimates. Requests of full length that its pool holds.",
            _table(("weights, KV cache", "pool", "tokens", *map(_short, CONTEXTS[:-1])), _vllm(model, vram)),
        ]
    parts += [
        "What is traded, at 8k of context. Throughput and latency are blank: nobody has measured them on this card.",
        _table(
            (
                "choice",
                "memory of a request",
                "requests at once",
                "longest context",
                "throughput",
                "latency",
                "processes",
                "knobs",
            ),
            _traded(model, vram),
        ),
    ]
    return "\n\n".join(parts)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [tuple(head), *(tuple(row) for row in rows)]
    lines.insert(1, ("---", *("---:" for _ in lines[0][1:])))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _short(tokens: int) -> str:
    return f"@{tokens // 1024}k"


def _weights(model: KnownModel) -> Iterator[tuple[str, ...]]:
    for name, header in model.ggufs.items():
        on_gpu = _memory(header, Settings(8192, gpus=(1.0,), gpu_overhead=0))
        placed = sum(part.bytes for part in on_gpu.parts if part.name == "weights" and part.where == 0)
        yield f"{name} (GGUF)", f"{header.weight_bytes:,}", format_size(header.weight_bytes), format_size(placed)
    for name, hub in model.hubs.items():
        size = hub.weight_bytes
        yield f"{name} (safetensors)", f"{size:,}", format_size(size), format_size(size)


def _memory(header: GgufHeader, settings: Settings) -> Memory:
    found = memo(header, settings)
    assert isinstance(found, Memory), found
    return found


def _per_token(header: GgufHeader, kind: str) -> int:
    found = kv_bytes_per_token(header, kind, kind)
    assert not isinstance(found, NoFormula), found
    return found


def _cache(header: GgufHeader) -> Iterator[tuple[str, ...]]:
    for kind in KV_TYPES:
        size = _per_token(header, kind)
        yield kind, f"{size:,}", *(format_size(size * tokens) for tokens in (8192, 32768, 131072))
    fp8 = _per_token(header, "f16") // 2
    yield "fp8 (vLLM)", f"{fp8:,}", *(format_size(fp8 * tokens) for tokens in (8192, 32768, 131072))


def _settings(kind: str, context: int, parallel: int = 1) -> Settings:
    return Settings(context, parallel, kind, kind, gpus=(1.0,), gpu_overhead=0)


def _slots(header: GgufHeader, kind: str, context: int, vram: int) -> int:
    room: dict[Where, int] = {0: vram - CONTEXT}
    return largest(MOST_PARALLEL, room, lambda n: memo(header, _settings(kind, context, n))) or 0


def _longest(header: GgufHeader, kind: str, vram: int, trained: int) -> int:
    room: dict[Where, int] = {0: vram - CONTEXT}
    steps = largest(trained // CONTEXT_STEP, room, lambda n: memo(header, _settings(kind, n * CONTEXT_STEP)))
    return (steps or 0) * CONTEXT_STEP


def _llama(model: KnownModel, vram: int) -> Iterator[tuple[str, ...]]:
    for name, header in model.ggufs.items():
        for kind in SERVED:
            fixed = _memory(header, _settings(kind, model.trained))
            beside = sum(part.bytes for part in fixed.parts if part.where == 0 and part.name != "KV cache")
            tokens = max(0, vram - CONTEXT - beside) // _per_token(header, kind) // 256 * 256
            yield (
                f"{name}, {kind}",
                f"{tokens:,}",
                *(_within(model, c, str(_slots(header, kind, c, vram))) for c in CONTEXTS),
            )


def _within(model: KnownModel, context: int, said: str) -> str:
    """Beyond what it was trained for there is nothing to say."""
    return said if context <= model.trained else UNMEASURED


def _paged(hub: HfModel, kind: str, length: int) -> Pages | NoFormula:
    return pages(hub, kv_type=kind, length=length, tensor=1, pipeline=1, block=BLOCK_GPU, in_flight=BATCH)


def _pages(hub: HfModel, kind: str, length: int) -> Pages:
    found = _paged(hub, kind, length)
    assert isinstance(found, Pages), found
    return found


def _pool(hub: HfModel, vram: int) -> int:
    taken = weights(hub, 1, 1, False)[0] + activation(hub, BATCH, REQUESTS, 1) + GRAPHS + OUTSIDE_TORCH
    return max(0, int(vram * SHARE) - taken)


def _vllm(model: KnownModel, vram: int) -> Iterator[tuple[str, ...]]:
    for name, hub in model.hubs.items():
        pool = _pool(hub, vram)
        for kind, said in (("auto", "bf16"), ("fp8", "fp8")):
            tokens = _pages(hub, kind, CONTEXTS[0]).tokens(pool)
            yield (
                f"{name}, {said}",
                format_size(pool),
                f"{tokens:,}",
                *(_within(model, c, f"{tokens / c:.1f}") for c in CONTEXTS[:-1]),
            )


def _traded(model: KnownModel, vram: int) -> Iterator[tuple[str, ...]]:
    for name, header in model.ggufs.items():
        for kind in SERVED:
            size, longest = _per_token(header, kind) * 8192, _longest(header, kind, vram, model.trained)
            slots = _slots(header, kind, 8192, vram)
            yield _row(f"llama-server, {name}, {kind}", size, slots, longest, "1", KNOBS)
            if kind == "q8_0":  # one llama-server behind a server of its own
                yield _row(f"Ollama, {name}, {kind}", size, slots, longest, "2", f"{KNOBS} of all models, models")
    for name, hub in model.hubs.items():
        for kind, said in (("auto", "bf16"), ("fp8", "fp8")):
            found = _pages(hub, kind, 8192)
            tokens = found.tokens(_pool(hub, vram))
            longest, size = min(model.trained, tokens), found.per_token * 8192
            yield _row(f"vLLM, {name}, {said}", size, tokens // 8192, longest, "3", f"{KNOBS}, gpu_memory")


def _row(choice: str, size: int, requests: int, longest: int, processes: str, knobs: str) -> tuple[str, ...]:
    return choice, format_size(size), str(requests), f"{longest:,}", UNMEASURED, UNMEASURED, processes, knobs


# --- of a plan ----------------------------------------------------------------------------------------------------


def of_plan(plan: Plan, facts: Facts) -> str:
    """For each service that has sums: the same with every type of the KV cache."""
    head = (
        "KV cache",
        "per token",
        "total on the GPUs",
        "tokens",
        "fits",
        "context_length at most",
        "parallel at most",
    )
    more = ("throughput", "latency", "processes", "knobs")
    parts = []
    for service in plan.services.values():
        rows = list(_alternatives(service, facts))
        if rows:
            context = service.service.context_length
            asked = f"context_length = {context}, " if context else ""
            parts.append(
                f"## {service.name}: {asked}parallel = {service.service.parallel}\n\n{_table((*head, *more), rows)}"
            )
    return "\n\n".join(parts) or "no service whose model was read: nothing to compare"


def _alternatives(plan: ServicePlan, facts: Facts) -> Iterator[tuple[str, ...]]:
    for kind in _kinds(plan, facts):
        other = _with_kind(plan, kind, facts)
        found = other.memory if other else None
        if other is None or found is None:
            continue
        places = [place for place in found.places if place.gpu or not plan.gpus]
        total = None if any(place.total is None for place in places) else sum(place.known for place in places)
        limit = most(other, facts)
        too_few = found.kv_tokens is not None and found.kv_tokens < (plan.service.context_length or 0)
        yield (
            f"**{kind}**" if kind == plan.service.kv_cache_type else kind,
            format_size(found.kv_bytes_per_token),
            format_size(total),
            UNMEASURED if found.kv_tokens is None else f"{found.kv_tokens:,}",
            {True: "yes", False: "no", None: UNMEASURED}[False if too_few else found.fits],
            _contexts(limit) if limit else UNMEASURED,
            str(limit.parallel or 0) if limit else UNMEASURED,
            UNMEASURED,
            UNMEASURED,
            *_handled(plan, kind),
        )


def _kinds(plan: ServicePlan, facts: Facts) -> tuple[str, ...]:
    """That the engine has on this card."""
    match plan.definition.adapter:
        case "llama_server":
            return KV_TYPES
        case "ollama":
            return SERVED
        case "vllm":
            cards = [card.compute_capability for card in cards_of(plan, facts)]
            fp8 = bool(cards) and all(one is None or one >= CAPABILITY["fp8"] for one in cards)
            return ("auto", "fp8") if fp8 else ("auto",)
    return ()


def _with_kind(plan: ServicePlan, kind: str, facts: Facts) -> ServicePlan | None:
    """On the same GPUs. None: this engine does not take it."""
    said = plan.service.model_dump(mode="json", exclude_unset=True) | {"kv_cache_type": kind}
    if plan.gpus:
        said["gpus"] = list(plan.gpus)
    wanted = {**plan.wanted, "service": said}
    return replan(wanted, plan.name, {plan.definition.name: plan.definition}, facts, plan.port)


def _contexts(limit: Most) -> str:
    return ", ".join(f"{name} {size or 0}" for name, size in limit.models) or str(limit.context_length or 0)


def _handled(plan: ServicePlan, kind: str) -> tuple[str, str]:
    """(processes, knobs)."""
    match plan.definition.adapter:
        case "vllm":
            pool = "kv_tokens" if plan.service.kv_tokens else "gpu_memory"
            return "3" if len(plan.gpus) == 1 else UNMEASURED, f"kv_cache_type, {pool}"
        case "ollama":
            return str(1 + len(plan.service.models or ())), "kv_cache_type of all models"
    return "1", "kv_cache_type" if kind in SERVED else "kv_cache_type, and a build with all FA kernels"
