"""What recorded requests show: answers that were cut, requests that waited, memory that nobody used. Silent on few requests."""

from __future__ import annotations

from collections.abc import Iterator

from llmsupervisor.base.units import format_duration
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.observed import KEEP, SOME, WAITED_MS, Seen
from llmsupervisor.plan.rules.model import folder, read
from llmsupervisor.plan.rules.rule import ENGINES, LLAMA, OLLAMA, Box, Edit, Hit, rule
from llmsupervisor.plan.size import LEAST, context_for
from llmsupervisor.spec.locate import Path

RARE = 0.001
"""Share of requests above which refused and cut ones are no accident."""
FEW = 3
"""Requests; fewer show nothing."""
WAITING, COLD, LIMITED = 0.05, 0.01, 0.02


def part_of(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.1f} %)"


def often(part: int, whole: int, share: float) -> bool:
    return part >= FEW and part > share * whole


def whose(seen: Seen) -> str:
    return f" of {seen.model}" if seen.model else ""


def _limit(plan: ServicePlan, seen: Seen) -> tuple[int, Path]:
    """(context_length, where it is said). Of an Ollama's models the one that the requests are for, else the first."""
    models = plan.service.models or ()
    names = [model.name for model in models]
    if not models:
        return plan.service.context_length or 0, ("context_length",)
    index = names.index(seen.model) if seen.model in names else 0
    return models[index].context_length, ("models", index, "context_length")


def _enough(seen: Seen, limit: int) -> int:
    """The context that one request in a thousand does not fit; where that is no more, those that were cut are longer than is known."""
    fits = context_for(seen.p999 or 0)
    return fits if fits > limit else 2 * limit


def _trained(plan: ServicePlan, seen: Seen, box: Box) -> int | None:
    """Tokens; None: nobody has read the model."""
    if (hf := folder(plan, box)) is not None:
        return hf.number("max_position_embeddings")
    models = read(plan, box)
    return next((m.header.context_train for m in models if m.name in ("", seen.model) or len(models) == 1), None)


def _context(plan: ServicePlan, seen: Seen, box: Box, says: str, requests: int, effect: str) -> Hit:
    limit, path = _limit(plan, seen)
    wish, trained = _enough(seen, limit), _trained(plan, seen, box)
    if trained is not None and wish > trained:
        wish = trained
        effect = "more of them would fit" if wish > limit else "these requests are served by a model that can"
    return Hit(
        str(path[0]),
        says,
        f"context_length = {wish}{whose(seen)}; the KV cache grows with it, and plan says whether that fits"
        if wish > limit
        else f"overflow to a service whose model takes more: this one was trained for {trained} tokens",
        {
            "context_length": limit,
            "trained": trained,
            "longest": seen.longest,
            "p99": seen.p99,
            "cut": seen.cut,
            "refused": seen.refused,
        },
        (Edit(path, wish),) if wish > limit else (),
        judgement=True,
        effect=effect,
        requests=requests,
    )


@rule(
    "R61",
    "answers-cut",
    "error",
    *ENGINES,
    when=f"more than one answer in a thousand ended because the context was full, of at least {SOME}",
    harm="answers stop in the middle, with HTTP 200",
    effect="these answers go on to their end",
    source="the gateway's records (`truncated`); Ollama #3839, #17427; llama.cpp server README (context full: finish_reason length)",
)
def answers_cut(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    for seen in box.seen.get(plan.name, ()):
        if seen.answers >= SOME and often(seen.cut, seen.answers, RARE):
            limit, _ = _limit(plan, seen)
            says = f"{part_of(seen.cut, seen.answers)} answers{whose(seen)} ended because context_length = {limit} was full"
            yield _context(plan, seen, box, says, seen.answers, f"{seen.cut} answers would have had room to go on")


@rule(
    "R62",
    "too-long",
    "error",
    *ENGINES,
    when=f"more than one request in a thousand was refused as longer than the context, of at least {SOME}",
    harm="clients get HTTP 400 context_length_exceeded",
    effect="these requests are served",
    source="the gateway's records (HTTP 400 `context_length_exceeded`); Ollama #17889; llama.cpp #23652",
)
def too_long(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    for seen in box.seen.get(plan.name, ()):
        whole = seen.sized + seen.refused
        if whole >= SOME and often(seen.refused, whole, RARE):
            limit, _ = _limit(plan, seen)
            says = f"{part_of(seen.refused, whole)} requests{whose(seen)} did not fit context_length = {limit}; the longest asked for {seen.longest} tokens"
            yield _context(
                plan, seen, box, says, whole, f"all but one request in a thousand fit; {seen.refused} did not"
            )


@rule(
    "R98",
    "queue-given-up",
    "error",
    *ENGINES,
    when=f"more than one request in a thousand waited in vain for its turn, of at least {SOME}",
    harm="clients get HTTP 503 after the whole `queue_deadline`",
    effect="more requests are decoded at once, and fewer wait",
    source="the gateway's records (`queue_timeout`); Ollama FAQ (503 of a full queue)",
)
def given_up(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    for seen in box.seen.get(plan.name, ()):
        if seen.requests < SOME or not often(seen.given_up, seen.requests, RARE):
            continue
        if 2 * seen.given_up_loading > seen.given_up:
            deadline = box.gateway.queue_deadline if box.gateway else None
            yield Hit(
                "start",
                f"{part_of(seen.given_up, seen.requests)} requests{whose(seen)} waited in vain for the gateway's queue_deadline of "
                f"{format_duration(deadline)}, most of them for a load",
                'a queue_deadline in [gateway] that is longer than a load, a longer keep_alive, or start = "boot"',
                {"given_up": seen.given_up, "while_loading": seen.given_up_loading, "load_p50_ms": seen.load_p50_ms},
                effect="requests wait for the load instead of failing",
                requests=seen.requests,
            )
        else:
            yield _slots(
                plan,
                seen,
                f"{part_of(seen.given_up, seen.requests)} requests{whose(seen)} waited until the gateway's queue_deadline, in vain",
            )


@rule(
    "R99",
    "engine-lost",
    "error",
    *ENGINES,
    when=f"more than one request in a thousand ended with its engine, of at least {SOME}",
    harm="answers break off, and their clients have to ask again",
    effect="no answer breaks off",
    source="the gateway's records (`engine_exit`)",
)
def engine_lost(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    for seen in box.seen.get(plan.name, ()):
        if seen.requests >= SOME and often(seen.lost, seen.requests, RARE):
            yield Hit(
                "drain_timeout" if plan.service.drain_timeout < 1 else "restart",
                f"{part_of(seen.lost, seen.requests)} requests{whose(seen)} ended because the engine did",
                f"llmsupervisor events and llmsupervisor logs {plan.name} --previous say why it ended; before a stop that is wanted, drain",
                {"engine_exit": seen.lost},
                requests=seen.requests,
            )


@rule(
    "R71",
    "slots-few",
    "warning",
    *ENGINES,
    when=f"more than 5 % of requests waited a second or more for a turn, of at least {SOME}",
    harm="the first token comes late, whatever the engine could do",
    effect="more requests are decoded at once, and fewer wait",
    source="the gateway's records (`queue_ms`); Little's law; vLLM docs/configuration/optimization; Ollama FAQ (OLLAMA_NUM_PARALLEL)",
)
def slots_few(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    for seen in box.seen.get(plan.name, ()):
        if seen.requests >= SOME and often(seen.waited, seen.requests, WAITING):
            says = (
                f"{part_of(seen.waited, seen.requests)} requests{whose(seen)} waited {WAITED_MS / 1000:g} s or more for one of "
                f"{plan.service.parallel} places (95 %: {format_duration((seen.queue_p95_ms or 0) / 1000)})"
            )
            yield _slots(plan, seen, says)


def _slots(plan: ServicePlan, seen: Seen, says: str) -> Hit:
    """Twice as many at most: what a step costs with more than that nobody has measured here."""
    parallel = plan.service.parallel or 1
    wish = min(seen.at_once_p95 or 0, 2 * parallel)
    found = sum(count for places, count in (seen.places or {}).items() if parallel < places <= wish)
    more = wish > parallel
    return Hit(
        "parallel",
        says,
        f"parallel = {wish}; the KV cache grows with it, each answer gets slower, and plan says whether it fits"
        if more
        else "requests wait for something else than a place: a faster model, a shorter max_tokens, or a second instance",
        {
            "parallel": parallel,
            "at_once_p95": seen.at_once_p95,
            "at_once_max": seen.at_once_max,
            "waited": seen.waited,
            "queue_p95_ms": seen.queue_p95_ms,
        },
        (Edit(("parallel",), wish),) if more else (),
        judgement=True,
        effect=f"{found} more of {seen.requests} requests would have found a place at once" if more else "",
        requests=seen.requests,
    )


@rule(
    "R73",
    "cold-starts",
    "warning",
    *ENGINES,
    when=f"more than 1 % of requests waited for a load, of at least {SOME}, and `keep_alive` ends",
    harm="the first request after each pause waits until the model is loaded",
    effect="fewer requests wait for a load; the memory is held for longer",
    source="the gateway's records (`load_ms`); Ollama FAQ (keep_alive)",
)
def cold_starts(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    for seen in box.seen.get(plan.name, ()):
        keep, path = _keep(plan, seen)
        if keep is None or seen.requests < SOME or not often(seen.loads, seen.requests, COLD):
            continue
        colds = seen.colds or {}
        wish = next((each for each in KEEP if each > keep and colds.get(each, 0) <= COLD * seen.requests), None)
        text = "forever" if wish is None else _text(wish)
        yield Hit(
            str(path[0]),
            f"{part_of(seen.loads, seen.requests)} requests{whose(seen)} waited for a load (half of them {format_duration((seen.load_p50_ms or 0) / 1000)} or "
            f"more): keep_alive = {_text(keep)}",
            f'keep_alive = "{text}"{whose(seen)}',
            {
                "keep_alive": _text(keep),
                "loads": seen.loads,
                "load_p50_ms": seen.load_p50_ms,
                "pauses": {_text(k): n for k, n in colds.items()},
            },
            (Edit(path, text),),
            judgement=True,
            effect=f"{colds.get(wish, 0) if wish else 0} of {seen.requests} requests would have come after a longer pause",
            requests=seen.requests,
        )


def _keep(plan: ServicePlan, seen: Seen) -> tuple[float | None, Path]:
    models = plan.service.models or ()
    for index, model in enumerate(models):
        if model.name == seen.model or len(models) == 1:
            return model.keep_alive, ("models", index, "keep_alive")
    return plan.service.keep_alive, ("keep_alive",)


def _text(seconds: float) -> str:
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


@rule(
    "R63",
    "context-unused",
    "warning",
    LLAMA,
    OLLAMA,
    when=f"no request needed half of `context_length`, its `max_tokens` counted whole, of at least {LEAST}",
    harm="KV cache is reserved that no request has used",
    effect="memory free for more requests at once, or for another model",
    source="the gateway's records; llama.cpp src/llama-kv-cache.cpp (reserved whole at the start)",
)
def context_unused(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    for seen in box.seen.get(plan.name, ()):
        limit, path = _limit(plan, seen)
        wish = context_for(seen.longest or 0)
        if seen.sized < LEAST or seen.longest is None or seen.cut or seen.refused or 2 * wish > limit:
            continue
        share = round(100 * (1 - wish / limit))
        yield Hit(
            str(path[0]),
            f"the longest of {seen.sized} requests{whose(seen)} asked for {seen.longest} tokens (99 %: {seen.p99}), and KV cache for "
            f"{plan.service.parallel} × {limit} is reserved",
            f"context_length = {wish}{whose(seen)}, or {limit // wish} times as many requests at once in the same memory",
            {"context_length": limit, "longest": seen.longest, "p99": seen.p99, "parallel": plan.service.parallel},
            (Edit(path, wish),),
            judgement=True,
            effect=f"{share} % of its KV cache free",
            requests=seen.sized,
        )


@rule(
    "R85",
    "slots-idle",
    "info",
    LLAMA,
    when=f"never more than half of a `parallel` of 4 or more requests were there at once, of at least {LEAST}",
    harm="each place has KV cache of its own, used or not",
    effect="memory free for longer requests, or for another model",
    source="the gateway's records; llama.cpp src/llama-kv-cache.cpp (reserved whole at the start)",
)
def slots_idle(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    parallel = plan.service.parallel or 1
    for seen in box.seen.get(plan.name, ()):
        most = seen.at_once_max
        if seen.requests >= LEAST and parallel >= 4 and most and 2 * most <= parallel:
            yield Hit(
                "parallel",
                f"never more than {most} of {seen.requests} requests were there at once, and there are {parallel} places",
                f"parallel = {most}, or {parallel // most} times the context_length in the same memory",
                {"parallel": parallel, "at_once_max": most, "at_once_p95": seen.at_once_p95},
                (Edit(("parallel",), most),),
                judgement=True,
                effect=f"{round(100 * (1 - most / parallel))} % of its KV cache free",
                requests=seen.requests,
            )


@rule(
    "R64",
    "answers-limited",
    "info",
    *ENGINES,
    when=f"more than 2 % of answers ended at the client's `max_tokens`, of at least {SOME}",
    harm="answers stop in the middle, as their clients asked for",
    effect="answers end by themselves",
    source="the gateway's records (`finish_reason` length below a full context)",
)
def answers_limited(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    for seen in box.seen.get(plan.name, ()):
        if seen.answers >= SOME and often(seen.limited, seen.answers, LIMITED):
            yield Hit(
                "names",
                f"{part_of(seen.limited, seen.answers)} answers{whose(seen)} ended at their client's max_tokens, half of them at {seen.limit_p50} or less",
                f'more max_tokens in the clients; or names."{plan.name}-long" = {{ strip = ["max_tokens"] }} for those that cannot',
                {"limited": seen.limited, "max_tokens_p50": seen.limit_p50},
                requests=seen.answers,
            )


RULES = (
    answers_cut,
    too_long,
    given_up,
    engine_lost,
    slots_few,
    cold_starts,
    context_unused,
    slots_idle,
    answers_limited,
)
