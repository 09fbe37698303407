"""llama-server's own arithmetic, by its command line: model, draft model and projector of one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import is_

from llmsupervisor.plan.facts import Facts, GpuFact, gguf
from llmsupervisor.plan.gguf import GgufError, GgufHeader
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.measured import ALL, Estimate
from llmsupervisor.plan.memory import Memory, Refused, Settings, estimate, kv_bytes_per_token, projector
from llmsupervisor.plan.memory import Part as Line
from llmsupervisor.plan.memory_overrides import Unreadable, read
from llmsupervisor.plan.memory_place import HOST
from llmsupervisor.plan.memory_shape import NoFormula, shape_of
from llmsupervisor.plan.memory_tensor import by_tensors
from llmsupervisor.plan.rules.rule import number, said, value, variable
from llmsupervisor.plan.sums import Kind, Part

MIB = 1024 * 1024
CACHE_RAM = 8192
"""MiB that llama-server keeps of finished prompts, where nothing says another number."""
OVERRIDES = tuple(f"LLAMA_ARG_{name}" for name in ("OVERRIDE_TENSOR", "CPU_MOE", "N_CPU_MOE", "N_CPU_FFN"))
DRAFT_OVERRIDES = (
    "--spec-draft-override-tensor",
    "-otd",
    "--override-tensor-draft",
    "--spec-draft-cpu-moe",
    "-cmoed",
    "--cpu-moe-draft",
    "--spec-draft-n-cpu-moe",
    "--spec-draft-ncmoe",
    "-ncmoed",
    "--n-cpu-moe-draft",
)
CONTROL = ("--control-vector", "--control-vector-scaled")
KEPT = 2048
_known: dict[tuple[tuple[int, ...], Settings], tuple[tuple[GgufHeader, ...], Memory | Refused]] = {}


def llama(plan: ServicePlan, facts: Facts, cards: Sequence[GpuFact]) -> Estimate | None:
    header = _header(plan.service.model, facts)
    if header is None:
        return None
    if isinstance(header, GgufError):
        return Estimate(missing=ALL, unknown=(f"the model's header: {header.wrong}",))
    settings = settings_of(plan, cards)
    if isinstance(settings, str):
        return Estimate(missing=ALL, unknown=(settings,))
    memory, missing = models(plan, facts, header, settings)
    if isinstance(memory, Refused):
        return Estimate(missing=ALL, unknown=(memory.reason,), refused=memory.reason)
    memory, more = _with("mmproj", plan, facts, settings, memory)
    missing |= more
    per_token = kv_bytes_per_token(header, settings.kv_type_k, settings.kv_type_v)
    return Estimate(
        parts=tuple(_part(line, cards) for line in memory.parts),
        missing=missing,
        unknown=memory.unknown,
        kv_bytes_per_token=None if isinstance(per_token, NoFormula) else per_token,
        kv_tokens=settings.cells * settings.streams,
        cache_ram=cache_ram(plan.service.task, number(plan, "--cache-ram", "-cram")),
        mapped=(value(plan, "--load-mode", "-lm") or "auto") in ("auto", "mmap"),
    )


def models(
    plan: ServicePlan, facts: Facts, header: GgufHeader, settings: Settings
) -> tuple[Memory | Refused, frozenset[Kind]]:
    """What grows with the context: the model with its adapters, and its draft model. And kinds of which not all is known."""
    adapters = [(path, _header(path, facts)) for path in plan.service.lora or ()]
    memory = memo(header, settings, tuple(one for _, one in adapters if isinstance(one, GgufHeader)))
    if isinstance(memory, Refused):
        return memory, ALL
    missing = _missing(header, memory)
    if unread := [path for path, one in adapters if not isinstance(one, GgufHeader)]:
        memory = replace(memory, unknown=(*memory.unknown, f"lora: the header of {unread[0]} was not read"))
        missing |= {"weights", "compute"}
    if flag := said(plan, *CONTROL):
        memory = replace(memory, unknown=(*memory.unknown, f"no formula for {flag}"))
        missing |= {"weights", "compute"}
    memory, more = _with("draft", plan, facts, settings, memory)
    return memory, missing | more


def cache_ram(task: str, said: float | None) -> int:
    """Bytes. Only prompts of completions are kept."""
    return int(CACHE_RAM if said is None else said) * MIB if task == "chat" else 0


def memo(header: GgufHeader, settings: Settings, adapters: tuple[GgufHeader, ...] = ()) -> Memory | Refused:
    """The same header is the same object (`host/headers.py`)."""
    headers = (header, *adapters)
    key = (tuple(map(id, headers)), settings)
    if (known := _known.get(key)) is not None and all(map(is_, known[0], headers)):
        return known[1]
    found = (by_tensors if settings.tensor else estimate)(header, settings, adapters)
    _known[key] = (headers, found)
    if len(_known) > KEPT:
        _known.clear()
    return found


def _header(path: str | None, facts: Facts) -> GgufHeader | GgufError | None:
    return facts.ggufs.get(gguf(path)) if path else None


def _missing(header: GgufHeader, memory: Memory) -> frozenset[Kind]:
    if not memory.unknown:
        return frozenset()
    if isinstance(shape_of(header), NoFormula):
        return ALL if not memory.parts else frozenset(("kv_cache", "compute"))
    return frozenset(("compute",))


def _with(
    name: str, plan: ServicePlan, facts: Facts, settings: Settings, memory: Memory
) -> tuple[Memory, frozenset[Kind]]:
    """With the draft model, or the projector."""
    path = getattr(plan.service, name)
    header = _header(path, facts)
    if header is None:
        return memory, frozenset()
    if isinstance(header, GgufError):
        return replace(memory, unknown=(*memory.unknown, f"{name}: {header.wrong}")), ALL
    if name == "mmproj":
        where = 0 if settings.gpus and not said(plan, "--no-mmproj-offload") else HOST
        return memory.and_(projector(header, where), name), frozenset(("compute",))
    if other := said(plan, *DRAFT_OVERRIDES):
        return replace(memory, unknown=(*memory.unknown, f"no formula for {other}")), ALL
    kinds = [value(plan, f"--spec-draft-type-{which}") or "f16" for which in "kv"]
    layers = value(plan, "--spec-draft-ngl")
    smaller = replace(
        settings,
        kv_type_k=kinds[0],
        kv_type_v=kinds[1],
        draft_tokens=0,
        overrides=(),
        gpu_layers=_layers(layers),
    )
    found = memo(header, smaller)
    if isinstance(found, Refused):
        return replace(memory, unknown=(*memory.unknown, f"{name}: {found.reason}")), ALL
    buffers = tuple(line for line in found.parts if line.name != "process")
    return memory.and_(replace(found, parts=buffers), name), _missing(header, found)


def settings_of(plan: ServicePlan, cards: Sequence[GpuFact]) -> Settings | str:
    """As the command line says; text: why no formula holds."""
    tokens, parallel = number(plan, "--ctx-size", "-c"), number(plan, "--parallel", "-np")
    if not tokens or not parallel:
        return "the command line does not say --ctx-size and --parallel"
    if said(plan, "--rpc"):
        return "no formula for --rpc"
    split = value(plan, "--split-mode", "-sm")
    if len(cards) > 1 and split == "none" and (other := said(plan, "--main-gpu", "-mg")):
        return f'no formula for {other} where split = "none"'
    if len(cards) > 1 and split == "row":
        return f'no formula for split = "row" over {len(cards)} GPUs'
    if cards and (other := next((name for name in OVERRIDES if variable(plan, name)), "")):
        return f"no formula for {other}; write its flag into extra_args"
    overrides = read(plan.words, len(cards)) if cards else ()
    if isinstance(overrides, Unreadable):
        return overrides.why
    tensor = len(cards) > 1 and split == "tensor"
    if tensor and any(one.where != HOST for one in overrides):
        return 'no formula for --override-tensor to a GPU where split = "tensor"'
    shares = _shares(plan, cards)
    if split == "none":
        shares = tuple(share if place == 0 else 0.0 for place, share in enumerate(shares))
    return Settings(
        context_length=int(tokens) // int(parallel),
        parallel=int(parallel),
        kv_type_k=value(plan, "--cache-type-k", "-ctk") or "f16",
        kv_type_v=value(plan, "--cache-type-v", "-ctv") or "f16",
        flash_attention=value(plan, "--flash-attn", "-fa") != "off",
        swa_full=bool(said(plan, "--swa-full")),
        batch=int(number(plan, "--batch-size", "-b") or 2048),
        ubatch=int(number(plan, "--ubatch-size", "-ub") or 512),
        draft_tokens=int(number(plan, "--spec-draft-n-max") or 0) if plan.service.draft else 0,
        embedding=plan.service.task != "chat",
        pooling=value(plan, "--pooling") or ("rank" if plan.service.task == "rerank" else ""),
        gpus=shares,
        gpu_layers=_layers(value(plan, "--n-gpu-layers", "-ngl")),
        kv_offload=not said(plan, "--no-kv-offload", "-nkvo"),
        overrides=overrides,
        tensor=tensor,
        gpu_overhead=0,
    )


def _layers(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _shares(plan: ServicePlan, cards: Sequence[GpuFact]) -> tuple[float, ...]:
    """Of each GPU: as said, else by its memory, as llama.cpp does with what is free."""
    if told := value(plan, "--tensor-split", "-ts"):
        parts = told.replace("/", ",").split(",")
        if len(parts) == len(cards) and all(part.replace(".", "", 1).isdigit() for part in parts):
            return tuple(float(part) for part in parts)
    totals = [card.memory_total for card in cards]
    return tuple(float(total) for total in totals if total) if all(totals) else (1.0,) * len(cards)


_KINDS: tuple[tuple[str, Kind], ...] = (
    ("weights", "weights"),
    ("LoRA weights", "weights"),
    ("KV cache", "kv_cache"),
    ("recurrent", "kv_cache"),
)


def kind_of(name: str) -> Kind:
    """Of a part by its name, without the model in front."""
    bare = name.removeprefix("draft ").removeprefix("mmproj ")
    return next((kind for start, kind in _KINDS if bare.startswith(start)), "compute")


def _part(line: Line, cards: Sequence[GpuFact]) -> Part:
    where = None if line.where == HOST else cards[line.where].uuid
    return Part(where, kind_of(line.name), line.name, line.bytes, line.why, line.exact)
