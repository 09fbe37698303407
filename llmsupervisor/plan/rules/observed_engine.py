"""What requests show of the engine: caches that missed, answers that stood still, work that was done twice."""

from __future__ import annotations

from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.observed import SOME, Seen
from llmsupervisor.plan.rules.observed import often, part_of
from llmsupervisor.plan.rules.rule import LLAMA, VLLM, Box, Edit, Hit, number, observed_rule

AGAIN = 0.01
"""Share of requests that were begun anew."""
HOUR = 60
"""Minutes with requests below which figures over time show nothing."""
FULL, EMPTY, WAITS = 0.9, 0.3, 0.2
GUESSES, RIGHT = 2000, 0.4
GAP = 0.2
"""Share of prompts that a cache could have known, beyond what it knew."""


@observed_rule(
    "R72",
    "prefix-missed",
    "warning",
    LLAMA,
    VLLM,
    when=f"prompts repeat at least 20 points more of their beginnings than the engine read from its cache, of at least {SOME}",
    harm="known beginnings are computed again, before the first token",
    effect="less of each prompt is computed",
    source="the gateway's records (`hash_ids`, `cached_tokens`); llama.cpp tools/server README (--cache-ram, --slot-prompt-similarity); vLLM docs/design/prefix_caching",
    of="prompts",
)
def prefix_missed(plan: ServicePlan, seen: Seen, box: Box) -> Hit | None:
    if seen.repeated is None or seen.cached is None or seen.repeated - seen.cached < GAP:
        return None
    off = plan.service.prefix_caching is False
    return Hit(
        "prefix_caching" if off else "cache_ram" if plan.definition.adapter == LLAMA else "kv_tokens",
        f"{seen.repeated:.0%} of the blocks of {seen.prompts} prompts had come before, and {seen.cached:.0%} of their tokens "
        "were read from the cache",
        "prefix_caching = true"
        if off
        else "more cache_ram, or more parallel: each keeps the beginnings of more conversations"
        if plan.definition.adapter == LLAMA
        else "more kv_tokens: finished prompts stay in what is left of them",
        {"repeated": round(seen.repeated, 3), "cached": round(seen.cached, 3), "prefix_caching": not off},
        (Edit(("prefix_caching",), True),) if off else (),
        effect=f"at most {seen.repeated - seen.cached:.0%} of all prompt tokens less to compute",
    )


@observed_rule(
    "R80",
    "token-gaps",
    "warning",
    VLLM,
    when=f"the gaps between tokens (95 %) are over five times the usual ones, and long prompts come, of at least {SOME}",
    harm="running answers stand still while a long prompt is computed",
    effect="shorter pauses in running answers; long prompts take a little longer",
    source="the gateway's records (`itl_p50_ms`, `itl_p95_ms`); vLLM docs/configuration/optimization (max_num_batched_tokens)",
    of="answers",
)
def token_gaps(plan: ServicePlan, seen: Seen, box: Box) -> Hit | None:
    batch = number(plan, "--max-num-batched-tokens") or 0
    usual, late, prompt = seen.itl_p50_ms, seen.itl_p95_ms, seen.prompt_p95
    if not usual or not late or not prompt:
        return None
    if late > 5 * usual and prompt > 8192 and batch > 2048:
        return Hit(
            "batch",
            f"tokens of {seen.answers} answers come {usual:.0f} ms apart, and {late:.0f} ms at the 95th percentile; prompts of "
            f"{prompt} tokens (95 %) are computed {batch:.0f} at a time",
            "batch = 2048",
            {"batch": batch, "itl_p50_ms": usual, "itl_p95_ms": late, "prompt_p95": prompt},
            (Edit(("batch",), 2048),),
            judgement=True,
        )
    return None


@observed_rule(
    "R68",
    "preemptions",
    "warning",
    VLLM,
    when=f"more than 1 % of requests were thrown out and begun anew, of at least {SOME}",
    harm="their prompts are computed twice: it shows in the slowest answers alone",
    effect="answers are not begun anew; a little fewer run at once",
    source="vLLM's own count (`vllm:num_preemptions_total`); docs/configuration/optimization; PR #44594 (1065 → 187 preemptions, 40.6 → 17.7 ms "
    "between tokens at the 99th percentile)",
)
def preemptions(plan: ServicePlan, seen: Seen, box: Box) -> Hit | None:
    if seen.preemptions and often(seen.preemptions, seen.requests, AGAIN):
        parallel, kind = plan.service.parallel or 1, plan.service.kv_cache_type
        wish = max(1, parallel * 3 // 4)
        return Hit(
            "parallel",
            f"{seen.preemptions} times a request was thrown out of the KV cache and begun anew, at {seen.requests} requests",
            f"parallel = {wish}, more kv_tokens{'' if kind == 'fp8' else ', or kv_cache_type = ' + chr(34) + 'fp8' + chr(34)}",
            {
                "preemptions": seen.preemptions,
                "parallel": parallel,
                "kv_tokens": plan.service.kv_tokens,
                "kv_cache_type": kind,
            },
            (Edit(("parallel",), wish),) if wish < parallel else (),
            judgement=True,
        )
    return None


@observed_rule(
    "R81",
    "guesses-wrong",
    "warning",
    LLAMA,
    VLLM,
    when=f"fewer than 40 % of the tokens that were guessed ahead were right, of at least {GUESSES} guesses and {SOME} requests",
    harm="guessing costs more than it saves, and holds memory",
    effect="faster decoding at load, and the memory of the draft model free",
    source="the engine's own counts; vLLM #19254 (38.8 % right: four times slower than without), #16258",
)
def guesses_wrong(plan: ServicePlan, seen: Seen, box: Box) -> Hit | None:
    drafted, accepted = seen.drafted or 0, seen.accepted
    if accepted is not None and drafted >= GUESSES and accepted < RIGHT * drafted:
        return Hit(
            "draft" if plan.service.draft else "extra_args",
            f"{part_of(accepted, drafted)} tokens that were guessed ahead were right",
            "leave draft out, or a draft model of the same family"
            if plan.service.draft
            else "leave speculation out, or guess fewer ahead",
            {"drafted": drafted, "accepted": accepted, "parallel": plan.service.parallel},
            (Edit(("draft",)),) if plan.service.draft else (),
            judgement=True,
        )
    return None


@observed_rule(
    "R69",
    "kv-full",
    "warning",
    VLLM,
    when=f"the KV cache was more than 90 % full for more than 5 % of at least {HOUR} minutes with requests",
    harm="the next long request throws another one out",
    effect="room for the longest requests that come together",
    source="the engine's figures over time (`kv_cache_usage`); vLLM docs/configuration/optimization (preemption)",
    least=0,
)
def kv_full(plan: ServicePlan, seen: Seen, box: Box) -> Hit | None:
    busy = seen.busy
    if busy is not None and busy.minutes >= HOUR and busy.kv_p95 is not None and busy.kv_p95 > FULL:
        return Hit(
            "kv_tokens",
            f"for 5 % of {busy.minutes} minutes with requests the KV cache was {busy.kv_p95:.0%} full or more",
            "more kv_tokens or gpu_memory, a kv_cache_type of fewer bits, or less parallel",
            {"minutes": busy.minutes, "kv_p95": busy.kv_p95, "parallel": plan.service.parallel},
        )
    return None


@observed_rule(
    "R70",
    "kv-empty",
    "warning",
    VLLM,
    when=f"requests waited inside the engine for more than 20 % of at least {HOUR} minutes with requests, and the KV cache was under 30 % full",
    harm="places are missing, not memory: the first token comes late",
    effect="more requests are decoded at once, in memory that is there",
    source="the engine's figures over time (`requests_waiting`, `kv_cache_usage`); vLLM docs/configuration/optimization",
    least=0,
)
def kv_empty(plan: ServicePlan, seen: Seen, box: Box) -> Hit | None:
    busy, parallel = seen.busy, plan.service.parallel or 1
    if busy is None or busy.minutes < HOUR or busy.kv_p95 is None or busy.kv_p95 >= EMPTY or busy.waiting <= WAITS:
        return None
    return Hit(
        "parallel",
        f"requests waited in the engine for {busy.waiting:.0%} of {busy.minutes} minutes with requests, and the KV cache was at most "
        f"{busy.kv_p95:.0%} full for 95 % of them",
        f"parallel = {2 * parallel}",
        {"minutes": busy.minutes, "kv_p95": busy.kv_p95, "waiting": round(busy.waiting, 3), "parallel": parallel},
        (Edit(("parallel",), 2 * parallel),),
        judgement=True,
    )


RULES = (preemptions, kv_full, kv_empty, guesses_wrong, prefix_missed, token_gaps)
