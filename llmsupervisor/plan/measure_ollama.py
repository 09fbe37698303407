"""Ollama: one llama-server for each of its models, and what Ollama itself reckons before it loads a second one."""

from __future__ import annotations

from collections.abc import Sequence

from llmsupervisor.base.units import format_size
from llmsupervisor.plan.facts import Facts, GpuFact, header_of
from llmsupervisor.plan.gguf import GgufError, GgufHeader
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.measure_llama import cache_ram, kind_of, memo
from llmsupervisor.plan.measured import ALL, Estimate
from llmsupervisor.plan.memory import Refused, Settings
from llmsupervisor.plan.memory_place import HOST
from llmsupervisor.plan.memory_shape import NoFormula, shape_of
from llmsupervisor.plan.rules.rule import variable
from llmsupervisor.plan.sums import Kind, Part

SHARE = 0.8
"""Of what is free, into which Ollama loads a model beside others (`server/sched.go`)."""
BATCH = 512
"""num_batch, where nothing says another."""


def ollama(plan: ServicePlan, facts: Facts, cards: Sequence[GpuFact]) -> Estimate | None:
    """With all its models loaded. On one GPU; over several only where it is told to spread them."""
    models = plan.service.models or ()
    headers = {model.name: header_of(plan.service, model, facts) for model in models}
    if not models or all(header is None for header in headers.values()):
        return None
    if len(cards) > 1 and variable(plan, "OLLAMA_SCHED_SPREAD") != "true":
        return Estimate(missing=ALL, unknown=("on which of its GPUs Ollama puts a model is its own choice",))
    parts: list[Part] = []
    doubts: list[str] = []
    left = min((card.memory_total or 0 for card in cards), default=0)
    unknown: list[str] = []
    missing: set[Kind] = set()
    tokens = 0
    kept = variable(plan, "LLAMA_ARG_CACHE_RAM") or ""
    for model in models:
        header = headers[model.name]
        if not isinstance(header, GgufHeader):
            wrong = header.wrong if isinstance(header, GgufError) else "its files were not looked at"
            unknown.append(f"{model.name}: {wrong}")
            missing |= ALL
            continue
        kv = variable(plan, "OLLAMA_KV_CACHE_TYPE") or "f16"
        settings = Settings(
            context_length=model.context_length,
            parallel=int(variable(plan, "OLLAMA_NUM_PARALLEL") or 1),
            kv_type_k=variable(plan, "LLAMA_ARG_CACHE_TYPE_K") or kv,
            kv_type_v=variable(plan, "LLAMA_ARG_CACHE_TYPE_V") or kv,
            flash_attention=variable(plan, "OLLAMA_FLASH_ATTENTION") not in ("0", "false"),
            batch=BATCH,
            embedding=plan.service.task != "chat",
            gpus=tuple(float(card.memory_total or 1) for card in cards),
            gpu_overhead=0,
        )
        memory = memo(header, settings)
        if isinstance(memory, Refused):
            unknown.append(f"{model.name}: {memory.reason}")
            missing |= ALL
            continue
        if memory.unknown:
            unknown += [f"{model.name}: {text}" for text in memory.unknown]
            missing |= {"kv_cache", "compute"} if isinstance(shape_of(header), NoFormula) else {"compute"}
        if doubt := _evicts(model.name, header, settings.tokens, left, bool(parts)):
            doubts.append(doubt)
        left -= sum(line.bytes for line in memory.parts if line.where != HOST)
        tokens += settings.cells * settings.streams
        for line in memory.parts:
            where = None if line.where == HOST else cards[line.where].uuid
            name = f"{model.name} {line.name}"
            parts.append(Part(where, kind_of(line.name), name, line.bytes, line.why, line.exact))
    return Estimate(
        tuple(parts),
        frozenset(missing),
        tuple(unknown),
        kv_tokens=tokens or None,
        processes=len(models),
        doubts=tuple(doubts),
        cache_ram=len(models) * cache_ram(plan.service.task, float(kept) if kept.isdigit() else None),
        mapped=bool(cards),  # on the CPU Ollama gives its runner `--load-mode none`
    )


def _evicts(name: str, header: GgufHeader, tokens: int, left: int, second: bool) -> str:
    """Where Ollama will unload another model for this one, whatever it really takes."""
    size = reckons(header, tokens)
    if not second or not left or size is None or size <= SHARE * left:
        return ""
    return (
        f"Ollama reckons {format_size(size)} for {name} (its file and an f16 cache) and loads it beside others only into "
        f"{SHARE:.0%} of what is free, {format_size(max(0, left))} here: it unloads another model first"
    )


def reckons(header: GgufHeader, tokens: int) -> int | None:
    """Bytes that Ollama expects of a model before it loads it: its file and an f16 cache, whatever the KV type
    (`PredictServerVRAM` of `server/sched.go`)."""
    shape = shape_of(header)
    if isinstance(shape, NoFormula) or not header.heads:
        return None
    fewest = min((layer.heads_kv for layer in shape.layers if layer.heads_kv), default=0)
    head = shape.embedding // max(1, header.heads[0])
    return header.weight_bytes + 2 * len(shape.layers) * fewest * head * tokens * 2
