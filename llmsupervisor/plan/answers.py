"""What else would fit: the largest context at this `parallel`, and the reverse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from llmsupervisor.plan.facts import Facts, gguf, header_of
from llmsupervisor.plan.gguf import GgufHeader
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.measure import cards_of
from llmsupervisor.plan.measure_llama import models, settings_of
from llmsupervisor.plan.measure_ollama import ollama
from llmsupervisor.plan.measure_vllm import asked
from llmsupervisor.plan.measured import Estimate
from llmsupervisor.plan.memory import Memory, Refused, Settings
from llmsupervisor.plan.memory_place import HOST, Where
from llmsupervisor.plan.sums import Most
from llmsupervisor.spec.model import OllamaModel

CONTEXT_STEP = 256
"""llama.cpp pads contexts to it."""
MOST_PARALLEL = 256
"""llama.cpp's own limit."""
LONGEST = 1 << 20
"""Tokens, where a file does not say what its model was trained for."""

PARALLEL = "OLLAMA_NUM_PARALLEL"


def most(plan: ServicePlan, facts: Facts) -> Most | None:
    """None: it cannot be told."""
    if plan.memory is None or plan.memory.unknown:
        return None
    match plan.definition.adapter:
        case "llama_server":
            return _llama(plan, facts)
        case "vllm":
            return _vllm(plan, plan.memory.kv_tokens)
        case "ollama":
            return _ollama(plan, facts)
    return None


def _llama(plan: ServicePlan, facts: Facts) -> Most | None:
    cards = cards_of(plan, facts)
    header = facts.ggufs.get(gguf(plan.service.model or ""))
    settings = settings_of(plan, cards)
    if not isinstance(header, GgufHeader) or isinstance(settings, str) or plan.memory is None:
        return None

    def loaded(changed: Settings) -> Memory | Refused:
        return models(plan, facts, header, changed)[0]

    now = loaded(settings)
    if not isinstance(now, Memory) or now.unknown:
        return None
    room: dict[Where, int] = {}
    for place in plan.memory.places:
        where: Where = HOST if place.gpu is None else plan.gpus.index(place.gpu)
        if place.budget is None:
            return None
        if place.gpu is not None or not cards:
            room[where] = place.budget - (place.known - now.sum_at(where))
    trained = header.context_train or LONGEST
    steps = largest(trained // CONTEXT_STEP, room, lambda n: loaded(replace(settings, context_length=n * CONTEXT_STEP)))
    slots = largest(MOST_PARALLEL, room, lambda n: loaded(replace(settings, parallel=n)))
    return Most(steps and steps * CONTEXT_STEP, slots)


def largest(limit: int, room: Mapping[Where, int], sums: Callable[[int], Memory | Refused]) -> int | None:
    """The largest n whose sums fit into `room`; None: not even 1 does."""

    def fits(n: int) -> bool:
        memory = sums(n)
        return (
            isinstance(memory, Memory)
            and not memory.unknown
            and all(memory.sum_at(where) <= size for where, size in room.items())
        )

    return search(limit, fits)


def search(limit: int, fits: Callable[[int], bool]) -> int | None:
    """The largest n up to `limit` that fits, where each smaller one does."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low or None


def _vllm(plan: ServicePlan, tokens: int | None) -> Most | None:
    """Its pool does not grow with either: a request must fit into it, and more at once only take turns."""
    wish = asked(plan, len(plan.gpus))
    if tokens is None or not wish.length:
        return None
    return Most(tokens // wish.block * wish.block or None, tokens // wish.length or None)


def _ollama(plan: ServicePlan, facts: Facts) -> Most | None:
    """Each model's context with the others as they are; all models share one `parallel`. What makes Ollama unload a model
    for another is no fit."""
    cards = cards_of(plan, facts)
    now = ollama(plan, facts, cards)
    if plan.memory is None or now is None or now.unknown:
        return None
    room: dict[str | None, int] = {}
    for place in plan.memory.places:
        if place.budget is None:
            return None
        if place.gpu is not None or not cards:
            room[place.gpu] = place.budget - (place.known - _sum_at(now, place.gpu))

    def fits(changed: ServicePlan) -> bool:
        found = ollama(changed, facts, cards)
        return (
            found is not None
            and not found.unknown
            and len(found.doubts) <= len(now.doubts)
            and all(_sum_at(found, gpu) <= size for gpu, size in room.items())
        )

    def longest(model: OllamaModel) -> int | None:
        header = header_of(plan.service, model, facts)
        trained = (header.context_train if isinstance(header, GgufHeader) else None) or LONGEST
        steps = search(trained // CONTEXT_STEP, lambda n: fits(_with_context(plan, model.name, n * CONTEXT_STEP)))
        return steps and steps * CONTEXT_STEP

    contexts = tuple((model.name, longest(model)) for model in plan.service.models or ())
    return Most(None, search(MOST_PARALLEL, lambda n: fits(_with_parallel(plan, n))), contexts)


def _sum_at(found: Estimate, gpu: str | None) -> int:
    return sum(part.bytes for part in found.parts if part.gpu == gpu)


def _with_context(plan: ServicePlan, name: str, context: int) -> ServicePlan:
    models = [
        model.model_copy(update={"context_length": context}) if model.name == name else model
        for model in plan.service.models or ()
    ]
    return replace(plan, service=plan.service.model_copy(update={"models": tuple(models)}))


def _with_parallel(plan: ServicePlan, parallel: int) -> ServicePlan:
    said = (replace(item, value=str(parallel)) if item.name == PARALLEL else item for item in plan.env)
    return replace(plan, env=tuple(said))
