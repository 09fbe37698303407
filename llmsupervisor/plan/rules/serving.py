"""How requests are served, whatever the runtime: what makes them slow, cuts them, or lets strangers in."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.rules.rule import (
    ENGINES,
    LLAMA,
    OLLAMA,
    VLLM,
    Box,
    Edit,
    Hit,
    number,
    rule,
    said,
)
from llmsupervisor.spec.model import cpu_list

SPECULATIVE = ("--spec-draft-model", "--speculative-config", "-sc", "--spec-method", "--spec-model", "--spec-tokens")
_EVERYWHERE = re.compile(r"(--?[\w-]+=)?(https?://)?(0\.0\.0\.0|\[::\]|::)(:(\d+|\{port\}))?")


@rule(
    "C86",
    "input-below-context",
    "error",
    LLAMA,
    when="`ubatch` of an embedding or reranking service is less than `context_length`",
    harm="a longer input is answered with HTTP 500 “input is too large to process”, though it fits the context",
    effect="every input that fits the context is answered",
    source="run of llama-server build 11434 (“input is too large to process. increase the physical batch size”)",
)
def input_below_context(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    ubatch, context = number(plan, "--ubatch-size"), plan.service.context_length or 0
    if plan.service.task != "chat" and ubatch is not None and ubatch < context:
        keys = ("ubatch", "batch") if plan.service.batch is not None else ("ubatch",)
        yield Hit(
            "ubatch",
            f"an input must fit into ubatch = {ubatch:.0f}: of context_length = {context} tokens, longer ones are answered with "
            "HTTP 500",
            " and ".join(f"{key} = {context}" for key in keys),
            {"task": plan.service.task, "ubatch": ubatch, "context_length": context},
            tuple(Edit((key,), context) for key in keys),
        )


@rule(
    "C87",
    "pooled-batch",
    "warning",
    VLLM,
    when="`batch` of an embedding or reranking service is less than `context_length`",
    harm="where the model does not allow split prompts, vLLM refuses to start",
    effect="vLLM starts with models whose prompts cannot be split",
    source="vLLM 0.32 config/scheduler.py (max_num_batched_tokens below max_model_len without chunked prefill)",
)
def pooled_batch(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    batch, context = plan.service.batch, plan.service.context_length or 0
    if plan.service.task != "chat" and batch is not None and batch < context:
        yield Hit(
            "batch",
            f"batch = {batch} is less than context_length = {context}: a model whose prompts cannot be split does not start",
            f"batch = {context}",
            {"task": plan.service.task, "batch": batch, "context_length": context},
            (Edit(("batch",), context),),
        )


@rule(
    "C54",
    "open-address",
    "warning",
    when="the command line or environment of an engine names 0.0.0.0 or [::]",
    harm="everybody who reaches the box uses the model, past the gateway's keys, limits and records",
    effect="only the gateway reaches the engine",
    source="llama-server's own warning at the start; vLLM docs/usage/security (keys do not cover every path); Ollama has no keys",
)
def open_address(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    command = plan.service.command or ()
    words = [(word, "command") for word in command] + [(word, "extra_args") for word in plan.service.extra_args]
    words += [(text, "env") for text in plan.service.env.values()]
    for word, key in words:
        if _EVERYWHERE.fullmatch(word):
            whole = key == "command" and word in ("0.0.0.0", "::")
            yield Hit(
                key,
                f"{word} lets everybody who reaches this box use the engine, past the keys and limits of the gateway",
                'write "{host}" there, which is 127.0.0.1'
                if key == "command"
                else "leave it out: the engine is reached on 127.0.0.1",
                {key: word},
                (Edit(("command", command.index(word)), "{host}"),) if whole else (),
            )
            return


@rule(
    "C89",
    "probe-off",
    "warning",
    *ENGINES,
    when="`probe.enabled` is false",
    harm="an engine that hangs goes on answering its health path: nobody restarts it",
    effect="an engine that hangs is restarted",
    source="llama.cpp #27388, #13281, #16448; vLLM #39863, #36451 (85 minutes of outage in one report); Ollama #9382",
)
def probe_off(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    if not plan.service.probe.enabled:
        yield Hit(
            "probe",
            f"no request proves that {plan.name} works: an engine that hangs goes on answering its health path with 200",
            "probe = { enabled = true }",
            {"probe.enabled": False},
            (Edit(("probe", "enabled"), True),),
        )


@rule(
    "C44",
    "keep-alive-zero",
    "error",
    *ENGINES,
    when='`keep_alive` is "0s"',
    harm="the model is unloaded after every answer, and every request pays a load",
    effect="a load only after real pauses",
    source="Ollama FAQ (keep_alive 0 unloads at once)",
)
def keep_alive_zero(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    of_models = [model.name for model in plan.service.models or () if model.keep_alive == 0]
    key = "models" if of_models else "keep_alive"
    if of_models or plan.service.keep_alive == 0:
        yield Hit(
            key,
            f'keep_alive = "0s"{" of " + ", ".join(of_models) if of_models else ""}: the model is unloaded after every answer, '
            "and each request waits for a load",
            'keep_alive = "10m", or longer than the usual pause between two requests',
            {"keep_alive": 0, "models": list(of_models)},
        )


@rule(
    "C88",
    "threads-over-cpus",
    "warning",
    LLAMA,
    OLLAMA,
    when="`threads` is more than the CPUs that `cpus` names",
    harm="threads wait for each other in turns: decoding crawls or stands still",
    effect="decoding at the speed of the CPUs that there are",
    source="llama.cpp #10397",
)
def threads_over_cpus(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    threads, cpus = plan.service.threads or 0, len(cpu_list(plan.service.cpus))
    if cpus and threads > cpus:
        yield Hit(
            "threads",
            f'{threads} threads share the {cpus} CPUs of cpus = "{plan.service.cpus}": each step waits for the one that does not run',
            f"threads = {cpus}",
            {"threads": threads, "cpus": plan.service.cpus},
            (Edit(("threads",), cpus),),
        )


@rule(
    "C28",
    "prefix-off",
    "warning",
    LLAMA,
    VLLM,
    when="`prefix_caching` of a chat service is false",
    harm="every turn of a conversation computes all earlier ones again",
    effect="turns of a conversation compute only what is new",
    source="the Mooncake trace of real conversations: 36.6 % of 512-token blocks are known beginnings",
)
def prefix_off(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    if plan.service.prefix_caching is False and plan.service.task == "chat":
        yield Hit(
            "prefix_caching",
            "prefix_caching = false: every turn of a conversation computes all of its earlier ones again, up to "
            f"{plan.service.context_length or 0} tokens before the first one of the answer",
            "prefix_caching = true",
            {"prefix_caching": False, "context_length": plan.service.context_length},
            (Edit(("prefix_caching",), True),),
        )


@rule(
    "C30",
    "draft-at-load",
    "warning",
    LLAMA,
    VLLM,
    when="a draft model or another speculative method, and `parallel` above 8",
    harm="speculation gains at one or few requests; with many it costs more than it saves",
    effect="more tokens a second at full load",
    source="vLLM #16258 (3 times slower at 10 requests), #19254 (4 times slower under load, acceptance 38.8 %)",
)
def draft_at_load(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    parallel = plan.service.parallel or 1
    if parallel > 8 and (found := said(plan, *SPECULATIVE)):
        yield Hit(
            "draft" if plan.service.draft else "extra_args",
            f"speculative decoding ({found}) with {parallel} requests at once: from about 8 on guesses cost more than they save",
            "leave it out, or measure both at the concurrency of production",
            {"parallel": parallel, "flag": found},
        )


@rule(
    "C97",
    "drain-zero",
    "warning",
    *ENGINES,
    when='`drain_timeout` is "0s"',
    harm="every restart and every applied change cuts the answers that are under way",
    effect="answers that are under way end before a restart",
    source="runs of llama-server 0.6.0 and vLLM 0.32 (SIGTERM ends generation at once; neither finishes open requests)",
)
def drain_zero(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    if plan.service.drain_timeout == 0:
        yield Hit(
            "drain_timeout",
            'drain_timeout = "0s": every restart and every applied change cuts answers in the middle',
            'drain_timeout = "30s", or as long as a usual answer takes',
            {"drain_timeout": 0, "parallel": plan.service.parallel},
            (Edit(("drain_timeout",), "30s"),),
        )


RULES = (
    input_below_context,
    keep_alive_zero,
    pooled_batch,
    open_address,
    probe_off,
    threads_over_cpus,
    prefix_off,
    draft_at_load,
    drain_zero,
)
