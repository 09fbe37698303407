"""What recorded requests show: answers that were cut, requests that waited, memory that nobody used. Silent on few requests."""

from __future__ import annotations

from llmsupervisor.base.units import format_duration
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.observed import KEEP, SOME, WAITED_MS, Seen
from llmsupervisor.plan.rules.model import folder, read
from llmsupervisor.plan.rules.rule import ENGINES, LLAMA, OLLAMA, Box, Edit, Hit, observed_rule
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


def _context(plan: ServicePlan, seen: Seen, box: Box, says: str, effect: str) -> Hit:
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
    )


@observed_rule(
    "R61",
    "answers-cut",
    "error",
    *ENGINES,
    when=f"more than one answer in a thousand ended because the context was full, of at least {SOME}",
    harm="answers stop in the middle, with HTTP 200",
    effect="these answers go on to their end",
    source="the gateway's records (`truncated`); Ollama #3839, #17427; llama.cpp server README (context full: finish_reason length)",
    of="answers",
)
def answers_cut(plan: ServicePlan, seen: Seen, box: Box) -> Hit | None:
    if often(seen.cut, seen.answers, RARE):
        limit, _ = _limit(plan, seen)
        says = f"{part_of(seen.cut, seen.answers)} answers{whose(seen)} ended because context_length = {limit} was full"
        return _context(plan, seen, box, says, f"{seen.cut} answers would have had room to go on")
    return None


@observed_rule(
    "R62",
    "too-long",
    "error",
    *ENGINES,
    when=f"more than one request in a thousand was refused as longer than the context, of at least {SOME}",
    harm="clients get HTTP 400 context_length_exceeded",
    effect="these requests are served",
    source="the gateway's records (HTTP 400 `context_length_exceeded`); Ollama #17889; llama.cpp #23652",
    of="asked",
)
def too_long(plan: ServicePlan, seen: Seen, box: Box) -> Hit | None:
    if often(seen.refused, seen.asked, RARE):
        limit, _ = _limit(plan, seen)
        says = f"{part_of(seen.refused, seen.asked)} requests{whose(seen)} did not fit context_length = {limit}; the longest asked for {seen.longest} tokens"
        return _context(plan, seen, box, says, f"all but one request in a thousand fit; {seen.refused} did not")
    return None


@observed_rule(
    "R98",
    "queue-given-up",
    "error",
    *ENGINES,
    when=f"more than one request in a thousand waited in vain for its turn, of at least {SOME}",
    harm="clients get HTTP 503 after the whole `queue_deadline`",
    effect="more requests are decoded at once, and fewer wait",
    source="the gateway's records (`queue_timeout`); Ollama FAQ (503 of a full queue)",
)
def given_up(plan: ServicePlan, seen: Seen, box: Box) -> Hit | None:
    if not often(seen.given_up, seen.requests, RARE):
        return None
    if 2 * seen.given_up_loading > seen.given_up:
        deadline = box.gateway.queue_deadline if box.gateway else None
        return Hit(
            "start",
            f"{part_of(seen.given_up, seen.requests)} requests{whose(seen)} waited in vain for the gateway's queue_deadline of "
            f"{format_duration(deadline)}, most of them for a load",
            'a queue_deadline in [gateway] that is longer than a load, a longer keep_alive, or start = "boot"',
            {"given_up": seen.given_up, "while_loading": seen.given_up_loading, "load_p50_ms": seen.load_p50_ms},
            effect="requests wait for the load instead of failing",
        )
    says = f"{part_of(seen.given_up, seen.requests)} requests{whose(seen)} waited until the gateway's queue_deadline, in vain"
    return _slots(plan, seen, says)


@observed_rule(
    "R99",
    "engine-lost",
    "error",
    *ENGINES,
    when=f"more than one request in a thousand ended with its engine, of at least {SOME}",
    harm="answers break off, and their clients have to ask again",
    effect="no answer breaks off",
    source="the gateway's records (`engine_exit`)",
)
def engine_lost(plan: ServicePlan, seen: Seen, box: Box) -> Hit | None:
    if often(seen.lost, seen.requests, RARE):
        return Hit(
            "drain_timeout" if plan.service.drain_timeout < 1 else "restart",
            f"{part_of(seen.lost, seen.requests)} requests{whose(seen)} ended because the engine did",
            f"llmsupervisor events and llmsupervisor logs {plan.name} --previous say why it ended; before a stop that is wanted, drain",
            {"engine_exit": seen.lost},
        )
    return None


@observed_rule(
    "R71",
    "slots-few",
    "warning",
    *ENGINES,
    when=f"more than 5 % of requests waited a second or more for a turn, of at least {SOME}",
    harm="the first token comes late, whatever the engine could do",
    effect="more requests are decoded at once, and fewer wait",
    source="the gateway's records (`queue_ms`); Little's law; vLLM docs/configuration/optimization; Ollama FAQ (OLLAMA_NUM_PARALLEL)",
)
def slots_few(plan: ServicePlan, seen: Seen, box: Box) -> Hit | None:
    if often(seen.waited, seen.requests, WAITING):
        says = (
            f"{part_of(seen.waited, seen.requests)} requests{whose(seen)} waited {WAITED_MS / 1000:g} s or more for one of "
            f"{plan.service.parallel} places (95 %: {format_duration((seen.queue_p95_ms or 0) / 1000)})"
        )
        return _slots(plan, seen, says)
    return None


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
    )


@observed_rule(
    "R73",
    "cold-starts",
    "warning",
    *ENGINES,
    when=f"more than 1 % of requests waited for a load, of at least {SOME}, and `keep_alive` ends",
    harm="the first request after each pause waits until the model is loaded",
    effect="fewer requests wait for a load; the memory is held for longer",
    source="the gateway's records (`load_ms`); Ollama FAQ (keep_alive)",
)
def cold_starts(plan: ServicePlan, seen: Seen, box: Box) -> Hit | None:
    keep, path = _keep(plan, seen)
    if keep is None or not often(seen.loads, seen.requests, COLD):
        return None
    colds = seen.colds or {}
    wish = next((each for each in KEEP if each > keep and colds.get(each, 0) <= COLD * seen.requests), None)
    text = "forever" if wish is None else _text(wish)
    return Hit(
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


@observed_rule(
    "R63",
    "context-unused",
    "warning",
    LLAMA,
    OLLAMA,
    when=f"no request needed half of `context_length`, its `max_tokens` counted whole, of at least {LEAST}",
    harm="KV cache is reserved that no request has used",
    effect="memory free for more requests at once, or for another model",
    source="the gateway's records; llama.cpp src/llama-kv-cache.cpp (reserved whole at the start)",
    of="sized",
    least=LEAST,
)
def context_unused(plan: ServicePlan, seen: Seen, box: Box) -> Hit | None:
    limit, path = _limit(plan, seen)
    wish = context_for(seen.longest or 0)
    if seen.longest is None or seen.cut or seen.refused or 2 * wish > limit:
        return None
    share = round(100 * (1 - wish / limit))
    return Hit(
        str(path[0]),
        f"the longest of {seen.sized} requests{whose(seen)} asked for {seen.longest} tokens (99 %: {seen.p99}), and KV cache for "
        f"{plan.service.parallel} × {limit} is reserved",
        f"context_length = {wish}{whose(seen)}, or {limit // wish} times as many requests at once in the same memory",
        {"context_length": limit, "longest": seen.longest, "p99": seen.p99, "parallel": plan.service.parallel},
        (Edit(path, wish),),
        judgement=True,
        effect=f"{share} % of its KV cache free",
    )


@observed_rule(
    "R85",
    "slots-idle",
    "info",
    LLAMA,
    when=f"never more than half of a `parallel` of 4 or more requests were there at once, of at least {LEAST}",
    harm="each place has KV cache of its own, used or not",
    effect="memory free for longer requests, or for another model",
    source="the gateway's records; llama.cpp src/llama-kv-cache.cpp (reserved whole at the start)",
    least=LEAST,
)
def slots_idle(plan: ServicePlan, seen: Seen, box: Box) -> Hit | None:
    parallel = plan.service.parallel or 1
    most = seen.at_once_max
    if parallel >= 4 and most and 2 * most <= parallel:
        return Hit(
            "parallel",
            f"never more than {most} of {seen.requests} requests were there at once, and there are {parallel} places",
            f"parallel = {most}, or {parallel // most} times the context_length in the same memory",
            {"parallel": parallel, "at_once_max": most, "at_once_p95": seen.at_once_p95},
            (Edit(("parallel",), most),),
            judgement=True,
            effect=f"{round(100 * (1 - most / parallel))} % of its KV cache free",
        )
    return None


@observed_rule(
    "R64",
    "answers-limited",
    "info",
    *ENGINES,
    when=f"more than 2 % of answers ended at the client's `max_tokens`, of at least {SOME}",
    harm="answers stop in the middle, as their clients asked for",
    effect="answers end by themselves",
    source="the gateway's records (`finish_reason` length below a full context)",
    of="answers",
)
def answers_limited(plan: ServicePlan, seen: Seen, box: Box) -> Hit | None:
    if often(seen.limited, seen.answers, LIMITED):
        return Hit(
            "names",
            f"{part_of(seen.limited, seen.answers)} answers{whose(seen)} ended at their client's max_tokens, half of them at {seen.limit_p50} or less",
            f'more max_tokens in the clients; or names."{plan.name}-long" = {{ strip = ["max_tokens"] }} for those that cannot',
            {"limited": seen.limited, "max_tokens_p50": seen.limit_p50},
        )
    return None


@observed_rule(
    "R103",
    "answers-run-away",
    "warning",
    *ENGINES,
    when="more than one answer in a thousand had no `max_tokens`, filled the context, and was over ten times as long as 95 % of those that "
    f"end by themselves, of at least {SOME}",
    harm="a model that repeats itself holds its place until the context is full, and others wait",
    effect="a place is free again once an answer is twice as long as the usual long one",
    source="the gateway's records (`truncated`, `max_tokens`, `completion_tokens`); Ollama (boundedNumPredict: it ends such answers at a multiple of the context)",
    of="answers",
)
def run_away(plan: ServicePlan, seen: Seen, box: Box) -> Hit | None:
    if not often(seen.runaway, seen.answers, RARE) or not seen.answer_p95:
        return None
    cap = 2 * seen.answer_p95
    return Hit(
        "names",
        f"{part_of(seen.runaway, seen.answers)} answers{whose(seen)} without max_tokens went on until the context was full; 95 % of those that end "
        f"by themselves have {seen.answer_p95} tokens or fewer",
        f'max_tokens in the clients; or names."{plan.name}-capped" = {{ set = {{ max_tokens = {cap} }} }} for those that cannot',
        {"runaway": seen.runaway, "answer_p95": seen.answer_p95},
    )


RULES = (
    answers_cut,
    run_away,
    too_long,
    given_up,
    engine_lost,
    slots_few,
    cold_starts,
    context_unused,
    slots_idle,
    answers_limited,
)
