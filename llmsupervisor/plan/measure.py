"""The sums of one service of a finished plan: which formulas, what was learned, how much there is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from llmsupervisor.base.ids import canonical, hash8
from llmsupervisor.plan.facts import Facts, GpuFact
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.learned import HOST, Key, Learned, alike, same
from llmsupervisor.plan.measure_llama import llama
from llmsupervisor.plan.measure_ollama import ollama
from llmsupervisor.plan.measure_vllm import vllm
from llmsupervisor.plan.measured import ALL, Estimate
from llmsupervisor.plan.sums import Kind, Part, Place, Sums

MIB = 1024 * 1024
CONTEXT = 457 * MIB
"""Of a process on a GPU, until a start has shown it: what Ollama reserves for each GPU (`ml/device.go`). Measured elsewhere:
107 MiB on an RTX 4060 Ti, 555 MiB on an RTX PRO 6000 (llama.cpp PR #23604)."""
ASSUMED = "assumed until a start has shown it: CUDA context and libraries"
MOVES_MEMORY = [
    "task",
    "context_length",
    "parallel",
    "kv_cache_type",
    "kv_tokens",
    "gpu_memory",
    "split",
    "flash_attention",
    "gpu_layers",
    "batch",
    "ubatch",
    "draft",
    "mmproj",
    "lora",
    "quantization",
    "attention_backend",
    "extra_args",
    "env",
    "model",
    "models",
]
"""Settings of a service."""
WHAT = {"llama_server": llama, "vllm": vllm, "ollama": ollama}


def sums(plan: ServicePlan, facts: Facts) -> Sums | None:
    """None: nobody looked at its model, or its runtime has no formulas."""
    look = WHAT.get(plan.definition.adapter)
    cards = cards_of(plan, facts)
    try:
        found = look(plan, facts, cards) if look else None
    except (ArithmeticError, LookupError, ValueError, TypeError, AssertionError) as error:
        # a model file is anybody's: no header may take the plan of the others with it
        found = Estimate(missing=ALL, unknown=(f"the sums failed: {type(error).__name__}: {error}",))
    if found is None:
        return None
    on_cards = [_place(plan, facts, found, card, taught=False) for card in cards]
    taught = bool(on_cards) and all(place.whole for place in on_cards)
    places = [*on_cards, _place(plan, facts, found, None, taught)]
    lessons = [text for place in places if (text := place.lesson)]
    return Sums(
        places=tuple(place.place for place in places),
        parts=tuple(part for place in places for part in place.parts),
        unknown=() if all(place.whole for place in places) else found.unknown,
        kv_bytes_per_token=found.kv_bytes_per_token,
        kv_tokens=found.kv_tokens,
        learned="; ".join(dict.fromkeys(lessons)),
        refused=found.refused,
        doubts=found.doubts,
    )


def cards_of(plan: ServicePlan, facts: Facts) -> tuple[GpuFact, ...]:
    known = {gpu.uuid: gpu for gpu in facts.gpus or ()}
    return tuple(known[uuid] for uuid in plan.gpus if uuid in known)


def capacity(card: GpuFact) -> int | None:
    return None if card.memory_total is None else card.memory_total - (card.memory_reserved or 0)


def key(plan: ServicePlan, facts: Facts, card: GpuFact | None) -> Key:
    """Of what a start on this card (None: the host) teaches."""
    said = plan.service.model_dump(mode="json", include=set(MOVES_MEMORY))
    binary = next((b for b in facts.binaries.values() if b.path == plan.words[0]), None)
    files = [item for item in plan.artefacts if item[0] != plan.words[0]]
    version = (binary and (binary.version or binary.identity)) or ""
    place = [plan.gpus.index(card.uuid)] if card and len(plan.gpus) > 1 and card.uuid in plan.gpus else []
    flags = hash8(canonical([said, files, len(plan.gpus), *place]))
    return Key(plan.definition.name, version, card.name if card else HOST, flags)


@dataclass(frozen=True, slots=True)
class _Told:
    place: Place
    parts: tuple[Part, ...]
    lesson: str = ""
    whole: bool = False
    """A start showed all of it, whatever the formulas do not know."""


def _place(plan: ServicePlan, facts: Facts, found: Estimate, card: GpuFact | None, taught: bool) -> _Told:
    """`taught`: a start showed all that it takes of its GPUs; what is left beside them is what the formulas know."""
    uuid = card.uuid if card else None
    parts = [part for part in found.parts if part.gpu == uuid]
    on_gpu = bool(plan.gpus)
    known = key(plan, facts, card)
    here = card is not None or not on_gpu
    lesson = same(facts.learned, known) if here else None
    if lesson is not None:
        parts += _differing(parts, lesson, uuid)
    elif here and not found.budgeted and (part := _overhead(facts, known, card, found.processes, parts)) is not None:
        parts.append(part)
    missing = set(found.missing)
    if here and not found.budgeted and not any(part.kind == "overhead" for part in parts):
        missing.add("overhead")
    whole = lesson is not None or not here

    def size(kind: Kind) -> int | None:
        return None if kind in missing else sum(part.bytes for part in parts if part.kind == kind)

    least = sum(part.bytes for part in parts)
    place = Place(
        uuid,
        f"GPU {card.index}" if card else HOST,
        size("weights"),
        size("kv_cache"),
        size("compute"),
        size("overhead"),
        budget=_budget(plan, facts, card),
        free=card.memory_free if card else facts.memory_free,
        known=least,
        total=least if lesson is not None or taught or not missing else None,
        cache_ram=0 if card else found.cache_ram,
        mapped=sum(part.bytes for part in parts if part.kind == "weights") if found.mapped and not card else 0,
    )
    return _Told(place, tuple(part for part in parts if part.bytes), _says(lesson), whole)


def _budget(plan: ServicePlan, facts: Facts, card: GpuFact | None) -> int | None:
    if card is None:
        return min((size for size in (facts.memory, facts.memory_limit) if size is not None), default=None)
    there, said = capacity(card), plan.service.gpu_memory
    return min((size for size in (there, said) if size is not None), default=None)


def _overhead(facts: Facts, known: Key, card: GpuFact | None, processes: int, parts: Sequence[Part]) -> Part | None:
    uuid = card.uuid if card else None
    if (other := alike(facts.learned, known, sum(part.bytes for part in parts))) is not None:
        why = f"learned from a start of {known.runtime} {known.version} with other settings"
        return Part(uuid, "overhead", "process", other.overhead, why, exact=False)
    return Part(uuid, "overhead", "process", CONTEXT * processes, ASSUMED, exact=False) if card else None


def _differing(parts: list[Part], lesson: Learned, uuid: str | None) -> Iterable[Part]:
    """What a start with the same settings held beyond the parts."""
    why = _says(lesson)
    said = sum(part.bytes for part in parts)
    if lesson.compute is not None:
        said += (more := lesson.compute - sum(part.bytes for part in parts if part.kind == "compute"))
        yield Part(uuid, "compute", "compute, learned", more, "as the engine said at its start", exact=False)
    yield Part(uuid, "overhead", "process", lesson.held - said, why, exact=False)


def _says(lesson: Learned | None) -> str:
    if lesson is None:
        return ""
    count = f"{lesson.starts} start{'s' * (lesson.starts > 1)}"
    return f"learned from {count} of {lesson.key.runtime} {lesson.key.version} with these settings".replace("  ", " ")


def beside(plans: Sequence[ServicePlan]) -> list[ServicePlan]:
    """With what the others of the plan take on each GPU."""
    found = []
    for plan in plans:
        if plan.memory is not None:
            places = tuple(
                replace(place, beside=tuple(_others(plan, plans, place.gpu))) if place.gpu else place
                for place in plan.memory.places
            )
            plan = replace(plan, memory=replace(plan.memory, places=places))
        found.append(plan)
    return found


def _others(plan: ServicePlan, plans: Sequence[ServicePlan], gpu: str) -> Iterable[tuple[str, int | None]]:
    for other in plans:
        if other.name != plan.name and gpu in other.gpus:
            yield other.name, need(other, gpu)


def need(plan: ServicePlan, gpu: str) -> int | None:
    """Bytes that it will hold there, by its sums, else what the spec allows it; None: unknown."""
    said = plan.memory.need(gpu) if plan.memory else None
    return plan.service.gpu_memory if said is None else said
