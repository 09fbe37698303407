"""Flags and variables that vLLM takes besides our settings."""

from __future__ import annotations

from collections.abc import Iterator

from llmsupervisor.base.units import format_duration
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.rules.rule import VLLM, Box, Edit, Hit, count, on_gpu, rule, said, variable, without

READY_TIMEOUT = 600
"""Seconds; VLLM_ENGINE_READY_TIMEOUT_S of vLLM 0.32 where nobody sets it."""


@rule(
    "C90",
    "ready-timeout",
    "warning",
    VLLM,
    when="`start_timeout` is longer than vLLM's own VLLM_ENGINE_READY_TIMEOUT_S (600 s)",
    harm="vLLM gives up first: a slow first start, with graphs to compile, is begun again and again",
    effect="a slow first start is waited for",
    source="vLLM 0.32 envs.py; #32116, PR #44751 (workers stay behind after this timeout)",
)
def ready_timeout(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    wish = plan.service.start_timeout or 0
    text = variable(plan, "VLLM_ENGINE_READY_TIMEOUT_S") or str(READY_TIMEOUT)
    if text.isdigit() and wish > int(text):
        yield Hit(
            "start_timeout",
            f"start_timeout = {format_duration(wish)}, and vLLM itself gives up after {text} s",
            f'env = {{ VLLM_ENGINE_READY_TIMEOUT_S = "{int(wish)}" }}',
            {"start_timeout": wish, "VLLM_ENGINE_READY_TIMEOUT_S": int(text)},
            (Edit(("env", "VLLM_ENGINE_READY_TIMEOUT_S"), str(int(wish))),),
        )


@rule(
    "C92",
    "remote-code",
    "warning",
    VLLM,
    when="`--trust-remote-code` or `--allowed-local-media-path` is given",
    harm="the first runs Python from the model's folder, the second lets clients read files of this box",
    effect="no foreign code, and no files of this box for clients",
    source="vLLM docs/usage/security; --help of 0.32",
)
def remote_code(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    harm = {
        "--trust-remote-code": "runs whatever Python lies in the folder of the model, as the user of the daemon",
        "--allowed-local-media-path": "lets every client read files below that path",
    }
    if found := said(plan, *harm):
        yield Hit(
            "extra_args",
            f"{found} {harm[found]}",
            f"leave {found} out, or say why it is needed: # llmsupervisor: ignore C92 REASON",
            {"extra_args": list(plan.service.extra_args), "model": plan.service.model},
        )


@rule(
    "C29",
    "eager",
    "warning",
    VLLM,
    when="`--enforce-eager` is given on a GPU",
    harm="no CUDA graphs: slower decoding",
    effect="faster decoding; a longer start and some memory for the graphs",
    source="vLLM docs/configuration/engine_args and optimization",
)
def eager(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    if said(plan, "--enforce-eager") and on_gpu(plan):
        yield Hit(
            "extra_args",
            "--enforce-eager decodes without CUDA graphs: each token is launched kernel by kernel",
            "leave --enforce-eager out, unless the start must be short or the memory of the graphs is needed",
            {"extra_args": list(plan.service.extra_args)},
            without(plan, "--enforce-eager"),
        )


@rule(
    "C24",
    "places-over-pool",
    "warning",
    VLLM,
    when="`parallel` requests of `context_length` would need more than four times `kv_tokens`",
    harm="when long requests come together some are thrown out and computed again: it shows in the slowest answers alone",
    effect="fewer answers are begun anew",
    source="vLLM docs/configuration/optimization (preemption); PR #44594 (1065 preemptions, 40.6 ms between tokens at the 99th percentile)",
)
def places_over_pool(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    tokens, context, parallel = plan.service.kv_tokens, plan.service.context_length or 0, plan.service.parallel or 1
    if tokens is not None and context <= tokens and parallel * context > 4 * tokens:
        whole = tokens // context
        yield Hit(
            "parallel",
            f"parallel = {parallel}, and kv_tokens = {tokens} hold {count(whole, 'request')} of context_length = {context}: whoever comes "
            "beyond what there is throws another one out",
            f"parallel = {4 * whole} at most, more kv_tokens, or a context_length nearer to what requests need",
            {"parallel": parallel, "kv_tokens": tokens, "context_length": context},
            (Edit(("parallel",), 4 * whole),),
            judgement=True,
        )


RULES = (places_over_pool, ready_timeout, remote_code, eager)
