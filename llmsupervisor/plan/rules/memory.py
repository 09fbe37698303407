"""Memory that configuration alone promises twice, or wastes: budgets, batches, host caches. Sizes of models are not looked at."""

from __future__ import annotations

from collections.abc import Iterator

from llmsupervisor.base.units import format_size
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.rules.model import read
from llmsupervisor.plan.rules.rule import (
    ENGINES,
    LLAMA,
    VLLM,
    Box,
    Edit,
    Hit,
    count,
    number,
    on_gpu,
    rule,
    said,
    without,
)
from llmsupervisor.runtime.llama_server import CELLS, padded
from llmsupervisor.runtime.values import default_of

GIB = 1024**3
SHARED, ALONE, ADVISED = 0.97, 0.95, 0.92
"""Shares of a GPU: of all budgets together, of one, and vLLM's own default."""
SMALL_CARD = 70 * GIB
"""vLLM doubles its own batch on larger ones."""


@rule(
    "C20",
    "budget-shared",
    "error",
    VLLM,
    when="the `gpu_memory` of the services that run together on a GPU is more than 97 % of it, or one is more than all of it",
    harm="vLLM compares its share of the whole GPU with what is free when it starts: the later service does not start",
    effect="the later service starts too",
    source="vLLM 0.32 v1/worker/gpu_worker.py (“… on startup is less than desired GPU memory utilization”)",
)
def shared(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    mine = plan.service.gpu_memory
    for card in box.cards(plan) if mine else ():
        others = {
            other.name: other.service.gpu_memory
            for other in box.beside(plan)
            if other.service.gpu_memory and other.service.start == "boot" and card.uuid in other.gpus
        }
        budgets = {plan.name: mine or 0, **others}
        total, asked = card.memory_total, sum(budgets.values())
        if total and (asked > total if not others else asked > SHARED * total):
            left = max(SHARED * total - sum(others.values()), 0)
            listed = " + ".join(f"{name} {format_size(size)}" for name, size in budgets.items())
            yield Hit(
                "gpu_memory",
                f"GPU {card.index} has {format_size(total)}, and {listed} = {format_size(asked)} of it are promised",
                f'gpu_memory = "{int(left / GIB * 10) / 10}GiB" at most, or another GPU'
                if left >= GIB
                else "another GPU: the other services leave nothing for it",
                {"gpu": card.index, "memory_total": total, **budgets},
            )
            return


@rule(
    "C21",
    "budget-high",
    "warning",
    VLLM,
    when="`gpu_memory` is more than 95 % of a GPU",
    harm="CUDA graphs and the allocator's peaks come on top: out of memory at the start or under load",
    effect="room for CUDA graphs and peaks; a little less KV cache",
    source="vLLM #57475, #19186, #11251 (0.97–0.98: out of memory while graphs are captured)",
)
def high(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    budget = plan.service.gpu_memory or 0
    for card in box.cards(plan):
        if card.memory_total and ALONE * card.memory_total < budget <= card.memory_total:
            share = round(100 * budget / card.memory_total)
            yield Hit(
                "gpu_memory",
                f"gpu_memory = {format_size(budget)} is {share} % of GPU {card.index}: CUDA graphs and peaks of the allocator "
                "come on top of what vLLM counts",
                f'gpu_memory = "{int(ADVISED * card.memory_total / GIB * 10) / 10}GiB"',
                {"gpu_memory": budget, "gpu": card.index, "memory_total": card.memory_total},
            )
            return


@rule(
    "C23",
    "kv-below-context",
    "error",
    VLLM,
    when="`kv_tokens` is less than `context_length`",
    harm="not even one request fits, and vLLM refuses to start",
    effect="vLLM starts, and at least one whole request fits",
    source="vLLM 0.32 v1/core/kv_cache_utils.py (“larger than the available KV cache memory”); #10517",
)
def below_context(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    tokens, context = plan.service.kv_tokens, plan.service.context_length or 0
    if tokens is not None and tokens < context:
        yield Hit(
            "kv_tokens",
            f"kv_tokens = {tokens} hold less than one request of context_length = {context}: vLLM refuses to start",
            f"kv_tokens = {context * (plan.service.parallel or 1)} ({count(plan.service.parallel or 1, 'full request')}), "
            f"or context_length = {tokens}",
            {"kv_tokens": tokens, "context_length": context},
        )


@rule(
    "C25",
    "batch-small",
    "warning",
    VLLM,
    when="`batch` is less than 512",
    harm="a step computes so few prompt tokens that prefill starves: the first token comes late",
    effect="the first token comes after fewer steps",
    source="vLLM engine/arg_utils.py (2048 by default, chosen for throughput)",
)
def batch_small(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    batch = number(plan, "--max-num-batched-tokens")
    if batch is not None and batch < 512 and plan.service.task == "chat":
        context = plan.service.context_length or 0
        steps = -(-context // int(batch))
        yield Hit(
            "batch",
            f"batch = {batch:.0f}: a prompt of {context} tokens takes {steps} steps before its first token, the decoding of "
            "others in each",
            "batch = 2048",
            {"batch": batch, "context_length": context},
            (Edit(("batch",), 2048),),
        )


@rule(
    "C26",
    "batch-large",
    "warning",
    VLLM,
    when="`batch` is more than 8192 on a GPU of less than 70 GiB",
    harm="activations take memory from the KV cache, and everybody's tokens wait for a long prefill step",
    effect="shorter pauses for everybody during a long prefill, and more KV cache",
    source="vLLM engine/arg_utils.py (8192 only from 70 GiB on); activation of #10517: 110,592 bytes a token for an 8B model",
)
def batch_large(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    batch = number(plan, "--max-num-batched-tokens") or 0
    for card in box.cards(plan):
        if batch > 8192 and plan.service.task == "chat" and card.memory_total and card.memory_total < SMALL_CARD:
            yield Hit(
                "batch",
                f"batch = {batch:.0f} on a GPU of {format_size(card.memory_total)}: for an 8B model its activations take "
                f"{format_size(int(batch) * 110592)}, and all tokens wait for such a step",
                "batch = 8192 at most",
                {"batch": batch, "gpu": card.index, "memory_total": card.memory_total},
                (Edit(("batch",), 8192),),
            )
            return


@rule(
    "C32",
    "layers-on-cpu",
    "warning",
    LLAMA,
    when="`gpu_layers` is less than the layers of the model and one for its output; of a model that nobody has read, less than 100",
    harm="layers beyond it are computed on the CPU at every token",
    effect="every layer on the GPU: decoding several times faster, if it fits",
    source="llama.cpp common/fit.cpp and its log (“offloaded X/Y layers to GPU”); Ollama #12922, #14073",
)
def layers(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    wish = plan.service.gpu_layers
    layers = next((model.header.n_layers for model in read(plan, box)), None)
    if isinstance(wish, int) and wish < (layers + 1 if layers else 100) and on_gpu(plan):
        rest = (
            f"{layers + 1 - wish} of {layers + 1} layers (with the output)"
            if layers
            else "every layer of the model beyond that"
        )
        yield Hit(
            "gpu_layers",
            f"gpu_layers = {wish}: {rest} is computed on the CPU, and each token waits for it",
            'gpu_layers = "all"; where that does not fit, a smaller quantisation or context_length',
            {"gpu_layers": wish, "layers": layers, "gpus": list(plan.gpus)},
            (Edit(("gpu_layers",), "all"),),
            judgement=True,
        )


@rule(
    "C35",
    "ubatch-large",
    "warning",
    LLAMA,
    when="`ubatch` of a chat service is more than 2048, or more than `batch`",
    harm="the compute buffer grows in proportion, and takes the memory of KV cache",
    effect="memory of the compute buffer free for KV cache, at nearly the same prefill speed",
    source="measured: Llama 3.1 8B 132 MiB at 512, 528 MiB at 2048; llama.cpp src/llama-context.cpp (n_ubatch ≤ n_batch)",
)
def ubatch_large(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    batch, ubatch = number(plan, "--batch-size") or 0, number(plan, "--ubatch-size") or 0
    seen = {"batch": batch, "ubatch": ubatch}
    if plan.service.task != "chat":
        return
    if ubatch > 2048:
        yield Hit(
            "ubatch",
            f"ubatch = {ubatch:.0f} makes the compute buffer {ubatch / 512:g} times that of 512",
            "ubatch = 2048 at most",
            seen,
            (Edit(("ubatch",), 2048),),
        )
    elif ubatch > batch:
        yield Hit(
            "ubatch",
            f"ubatch = {ubatch:.0f} is more than batch = {batch:.0f}: no more than {batch:.0f} tokens are ever computed at once",
            f"ubatch = {batch:.0f}",
            seen,
            (Edit(("ubatch",), int(batch)),),
        )


@rule(
    "C37",
    "swa-full",
    "warning",
    LLAMA,
    when="`--swa-full` is given (not of a model that is known to have no sliding windows)",
    harm="layers with a sliding window hold the whole context: Gemma 3 12B at 32768 tokens takes 12288 MiB of KV instead of 2528",
    effect="up to four fifths of the KV cache free",
    source="measured with llama.cpp's own sizes (Gemma 3 12B shape)",
)
def swa_full(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    shape = next((model.shape for model in read(plan, box)), None)
    if said(plan, "--swa-full") and (shape is None or any(layer.sliding for layer in shape.layers)):
        context = plan.service.context_length or 0
        yield Hit(
            "extra_args",
            f"--swa-full keeps all {context} tokens in layers that look at a window of one or two thousand: up to five times "
            "the KV cache",
            "leave --swa-full out, unless partial reuse of prompts is worth that memory",
            {"extra_args": list(plan.service.extra_args), "context_length": context},
            without(plan, "--swa-full"),
        )


@rule(
    "C41",
    "cache-ram",
    "warning",
    *ENGINES,
    when="the `cache_ram` of all services (of Ollama: for each model) is more than a quarter of the box's memory",
    harm="the host's prompt caches fill slowly, until the box swaps or its OOM killer takes an engine",
    effect="no swapping, and no engine killed for host memory",
    source="llama.cpp #22629, #20509; Ollama #18264; ik_llama.cpp #2320",
)
def cache_ram(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    sizes = {other.name: _cache(other) for other in box.plan.services.values()}
    memory, asked = box.facts.memory, sum(sizes.values())
    if memory and asked > memory / 4 and plan.name == max(sizes, key=lambda name: sizes[name]):
        room = memory / 4 - (asked - sizes[plan.name])
        yield Hit(
            "cache_ram",
            f"prompt caches of {format_size(asked)} ({', '.join(f'{n} {format_size(s)}' for n, s in sizes.items() if s)}) are "
            f"{round(100 * asked / memory)} % of this box's {format_size(memory)}",
            f'cache_ram = "{max(int(room / _models(plan) / 1024**2), 256)}MiB"',
            {"memory": memory, **{name: size for name, size in sizes.items() if size}},
        )


def _cache(plan: ServicePlan) -> int:
    if plan.definition.adapter not in ENGINES:
        return 0
    size = plan.service.cache_ram
    return int((default_of("cache_ram", plan.definition) or 0) if size is None else size) * _models(plan)


def _models(plan: ServicePlan) -> int:
    return len(plan.service.models or ()) or 1


@rule(
    "C03",
    "context-padded",
    "info",
    LLAMA,
    when="`context_length` is no multiple of 256",
    harm="each request's context is padded, and the padding costs KV cache that the spec does not show",
    effect="the spec says what is allocated",
    source="llama.cpp src/llama-context.cpp; runs of 0.6.0 (-c 1000 -np 3 became 3 × 512)",
)
def context_padded(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    context, parallel = plan.service.context_length or 0, plan.service.parallel or 1
    if context % CELLS:
        yield Hit(
            "context_length",
            f"context_length = {context} is padded to {padded(context)}: {parallel} × {padded(context) - context} tokens of KV "
            "cache that nobody sees",
            f"context_length = {padded(context)}",
            {"context_length": context, "parallel": parallel},
            (Edit(("context_length",), padded(context)),),
        )


RULES = (
    shared,
    high,
    below_context,
    batch_small,
    batch_large,
    layers,
    ubatch_large,
    swa_full,
    cache_ram,
    context_padded,
)
