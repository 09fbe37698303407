"""What its memory sums hold a service back for, and what they warn of, before it starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from llmsupervisor.base.units import format_size
from llmsupervisor.plan.facts import Facts
from llmsupervisor.plan.launch import Refusal, ServicePlan
from llmsupervisor.plan.measure import capacity, need
from llmsupervisor.plan.sums import Most, Place, Sums

READ_AGAIN = "weights that find no room are read from the disk again at every token"
KILLED = "what finds no room has the kernel end a process"
LESS = "a smaller model, a shorter context_length, or more gpu_layers"
OFF = '; gate = "off" starts it all the same'


def refusals(plan: ServicePlan, most: Most | None = None) -> Iterator[Refusal]:
    """`most`: what would fit instead."""
    memory, strict = plan.memory, plan.service.gate == "strict"
    if plan.service.gate == "off":
        return
    if memory is None:
        if strict:
            yield _refusal(plan, "what it takes of memory is not known: nobody has looked at its model", "strict")
        return
    if memory.refused:
        yield _refusal(plan, memory.refused)
    for place in too_much(memory):
        yield _refusal(
            plan,
            f"memory: needs {place.sum} on {place.label}, and may take {_budget(plan, place)}{_instead(most)}{OFF}",
        )
    if strict:
        for text in on_host(memory):
            yield _refusal(plan, text, "strict")
    if strict and memory.unknown:
        yield _refusal(plan, f"what it takes of memory is not all known: {'; '.join(memory.unknown)}", "strict")


def _refusal(plan: ServicePlan, text: str, gate: str = "") -> Refusal:
    more = f'; gate = "{gate}" asks for that' if gate else ""
    return Refusal("memory", f"services.{plan.name}: {text}{more}", "vram")


def too_much(memory: Sums) -> Iterator[Place]:
    """Where it can never fit. Weights that are mapped are read from the file as they are needed: only slow."""
    for place in memory.over:
        if place.known - place.mapped > (place.budget or 0):
            yield place


def on_host(memory: Sums) -> Iterator[str]:
    """Why what lies in the host's memory would be slow. Where it runs, what is not its weights may be missing from what
    is free because it has it: that much is left to it."""
    place = memory.at(None)
    if place is None or not place.weights or place in too_much(memory):
        return
    slow = place.mapped == place.weights
    if place.budget is not None and place.known > place.budget:
        why = f"and there is {format_size(place.budget)} for it"
    elif place.free is not None and place.weights > place.free:
        why = f"and {format_size(place.free)} of it is free"
    else:
        return
    yield f"memory: needs {place.sum} on the host, {why}: {READ_AGAIN if slow else KILLED}; {LESS}"


def _budget(plan: ServicePlan, place: Place) -> str:
    said = plan.service.gpu_memory
    why = "gpu_memory" if place.gpu and said == place.budget else "all that there is"
    return f"{format_size(place.budget)} ({why})"


def _instead(most: Most | None) -> str:
    if most is None:
        return ""
    fits = [f"{name} = {size}" for name, size in _most(most) if size]
    alone = " of one model alone" if most.models else ""
    return f"; {' or '.join(fits)} would fit" if fits else f"; not even the shortest context{alone} would fit"


def _most(most: Most) -> Iterable[tuple[str, int | None]]:
    models = ((f"context_length of {name}", context) for name, context in most.models)
    return ("context_length", most.context_length), *models, ("parallel", most.parallel)


def warnings(plan: ServicePlan) -> Iterator[str]:
    """Of what is on GPUs: nothing else can take its place there; and of weights that are on the host."""
    memory = plan.memory
    if memory is None or plan.service.gate == "strict":
        return
    if plan.service.gate != "off":
        yield from (f"services.{plan.name}: {text}" for text in on_host(memory))
    if not plan.gpus:
        return
    if memory.unknown:
        why = "; ".join(memory.unknown)
        yield f"services.{plan.name}: what it takes of memory is not all known, and it starts all the same: {why}"
    yield from (f"services.{plan.name}: {text}" for text in memory.doubts)
    if memory.kv_tokens is not None and 0 <= memory.kv_tokens < (plan.service.context_length or 0):
        says = f"its KV cache would hold {memory.kv_tokens} tokens, fewer than context_length"
        yield f"services.{plan.name}: {says} = {plan.service.context_length}: its engine refuses to start"


def crowded(plans: Sequence[ServicePlan], facts: Facts) -> dict[str, str]:
    """Service → warning: with those before it in the spec that stay on its GPU for ever, it never finds room."""
    found: dict[str, str] = {}
    for card in facts.gpus or ():
        there = capacity(card)
        stay: list[tuple[str, int]] = []
        for plan in plans:
            size = need(plan, card.uuid) if card.uuid in plan.gpus else None
            if size is None or there is None or plan.service.gate == "off":
                continue
            if stays(plan):
                stay.append((plan.name, size))
            sizes = stay if stays(plan) else [*stay, (plan.name, size)]
            total = sum(size for _, size in sizes)
            if len(sizes) > 1 and total > there:
                listed = " + ".join(f"{name} {format_size(size)}" for name, size in sizes)
                found[plan.name] = (
                    f"services.{plan.name}: GPU {card.index} has {format_size(there)}, and {listed} = {format_size(total)} "
                    "are to be there together: it waits as long as the others stay"
                )
    return found


def stays(plan: ServicePlan) -> bool:
    return plan.service.start == "boot" and plan.service.keep_alive is None
