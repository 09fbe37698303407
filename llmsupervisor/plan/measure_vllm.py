"""vLLM's own arithmetic: weights of a rank, the pages of its KV cache, and what the budget leaves for them.

Pages and pool are vLLM's, exactly; activations, CUDA graphs and what lies outside of torch are estimates until a start
has shown them. Source: vLLM 0.32 `v1/core/kv_cache_utils.py`, `v1/kv_cache_interface.py`, `v1/worker/gpu_worker.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from llmsupervisor.plan.facts import Facts, GpuFact
from llmsupervisor.plan.hf import HfError, HfModel, HfTensor
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.measured import ALL, Estimate
from llmsupervisor.plan.memory_shape import NoFormula
from llmsupervisor.plan.rules.rule import number, said, value, variable
from llmsupervisor.plan.sums import Kind, Part
from llmsupervisor.spec.model import Service

GIB = 1024**3
BLOCK_GPU, BLOCK_CPU = 16, 128
"""Tokens of a page, where nobody says another number."""
OUTSIDE_TORCH = int(0.35 * GIB)
"""Of a process on a GPU: as logged for an 8B model on an RTX 3090 (vLLM #10517)."""
GRAPHS = GIB // 2
"""For CUDA graphs; between 0.3 and 0.8 GiB."""
HYBRID = (
    "layers_block_type",
    "hybrid_override_pattern",
    "attn_layer_period",
    "block_configs",
    "full_attention_interval",
    "linear_num_key_heads",
    "mamba_d_state",
    "ssm_state_size",
    "compress_ratios",
    "index_topk",
)
"""Keys of models whose layers keep something else than keys and values, or not all of them."""
SECOND_MODEL = ("--speculative-config", "-sc", "--spec-method", "--spec-model")
OFFLOAD = ("--cpu-offload-gb", "--offload-group-size")
"""Weights on the host."""
UNCOUNTED = (*SECOND_MODEL, *OFFLOAD, "--enable-lora")
"""Flags that move weights, and so what a budget leaves for the KV cache."""
UNPAGED = (*SECOND_MODEL, "--kv-cache-dtype-skip-layers")
"""Flags that change the pages of the KV cache."""
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,4})\.")


@dataclass(frozen=True, slots=True)
class Pages:
    """Of the KV cache of one rank. A request of full length takes `blocks` of them."""

    bytes: int
    """Of one block, over all layers that share it."""
    blocks: int
    length: int
    per_token: int

    def tokens(self, pool: int) -> int:
        """As vLLM tells them: requests of full length that fit × their length."""
        return pool // self.bytes * self.length // self.blocks

    def pool(self, tokens: int) -> int:
        """Bytes that hold so many tokens, and the block that vLLM keeps empty."""
        return (-(-tokens * self.blocks // self.length) + 1) * self.bytes


def pages(
    model: HfModel, *, kv_type: str, length: int, tensor: int, pipeline: int, block: int, in_flight: int
) -> Pages | NoFormula:
    if odd := [key for key in HYBRID if model.text.get(key)]:
        return NoFormula(f"no formula for the KV cache of a model with {odd[0]}")
    layers, heads = model.number("num_hidden_layers", "n_layer"), model.number("num_attention_heads", "n_head")
    hidden = model.number("hidden_size", "n_embd")
    if not layers or not heads or not hidden:
        return NoFormula("config.json does not say num_hidden_layers, num_attention_heads and hidden_size")
    kinds = _kinds(model, layers)
    width = _width(kv_type, model)
    for found in (kinds, width):
        if isinstance(found, NoFormula):
            return found
    assert not isinstance(kinds, NoFormula) and not isinstance(width, NoFormula)
    rank = model.number("kv_lora_rank")
    if rank:
        row = (rank + (model.number("qk_rope_head_dim") or 0)) * width
    else:
        kv = model.number("num_key_value_heads", "n_head_kv", "num_kv_heads", "multi_query_group_num") or heads
        size = model.number("head_dim", "hidden_size_per_head") or hidden // heads
        row = max(1, kv // tensor) * 2 * size * width
    full, sliding = (-(-count // pipeline) for count in kinds)
    window = model.number("sliding_window") or length
    cut = -(-min(window - 1 + in_flight, length) // block) + 1
    sizes = [(count, needs) for count, needs in ((full, -(-length // block)), (sliding, cut)) if count]
    smallest, largest = min(count for count, _ in sizes), max(count for count, _ in sizes)
    group = largest if largest < 1.5 * smallest else smallest
    blocks = sum(-(-count // group) * needs for count, needs in sizes)
    return Pages(group * block * row, blocks, length, full * row)


def _kinds(model: HfModel, layers: int) -> tuple[int, int] | NoFormula:
    """(layers that attend to everything, layers that slide)."""
    listed = model.text.get("layer_types")
    if isinstance(listed, list):
        words = [str(word) for word in listed[:layers]]
        sliding = words.count("sliding_attention")
        if len(words) == layers and sliding + words.count("full_attention") == layers:
            return (layers - sliding, sliding)
        return NoFormula("no formula for the KV cache of a model whose layers are of other kinds than full and sliding")
    if not model.number("sliding_window"):
        return (layers, 0)
    full = _full(model, layers)
    if full is None:
        return NoFormula("config.json does not say which layers slide (layer_types)")
    return (full, layers - full)


def _full(model: HfModel, layers: int) -> int | None:
    """Layers that attend to everything where the file has no `layer_types`: what the classes of transformers 5 fill in,
    and vLLM's rule that all slide where nothing is filled in."""
    kind, slides = str(model.text.get("model_type")), model.text.get("use_sliding_window")
    if kind in ("qwen2", "qwen3"):
        after = model.text.get("max_window_layers")
        return layers if slides is not True else min(layers, after) if isinstance(after, int) and after >= 0 else None
    if slides is False:
        return layers
    if kind == "gemma2":
        return layers // 2
    if kind in ("gemma3", "gemma3_text"):
        return layers // (model.number("sliding_window_pattern") or 6)
    return 0 if kind in ("mistral", "mixtral", "phi3") else None


def _width(kv_type: str, model: HfModel) -> int | NoFormula:
    """Bytes of one element."""
    if kv_type in ("fp8", "fp8_e4m3", "fp8_e5m2"):
        return 1
    scheme = model.config.get("quantization_config")
    if kv_type == "auto" and isinstance(scheme, dict) and scheme.get("kv_cache_scheme"):
        return 1
    if kv_type in ("auto", "float16", "bfloat16"):
        return 2
    return NoFormula(f"no formula for a KV cache of type {kv_type}")


def weights(model: HfModel, tensor: int, pipeline: int, online_fp8: bool) -> list[int]:
    """Bytes on each rank of the pipeline; matrices are split over the ranks of `tensor`, vectors are on all."""
    layers = model.number("num_hidden_layers", "n_layer") or 1
    kv = model.number("num_key_value_heads", "n_head_kv", "num_kv_heads", "multi_query_group_num") or tensor
    found = [0] * pipeline
    for one in model.tensors:
        layer = _LAYER.search(one.name)
        last = "lm_head" in one.name or one.name.endswith(".norm.weight")
        place = int(layer[1]) * pipeline // layers if layer else pipeline - 1 if last else 0
        found[min(place, pipeline - 1)] += _of_rank(one, tensor, kv, online_fp8)
    return found


def _of_rank(one: HfTensor, tensor: int, kv: int, online_fp8: bool) -> int:
    size = one.bytes
    linear = len(one.shape) == 2 and "embed" not in one.name and "lm_head" not in one.name
    if online_fp8 and linear and one.dtype in ("BF16", "F16"):
        size = prod(one.shape)
    if len(one.shape) < 2:
        return size
    shared = min(tensor, kv) if ".k_proj." in one.name or ".v_proj." in one.name else tensor
    return -(-size // shared)


def activation(model: HfModel, tokens: int, requests: int, tensor: int) -> int:
    """The peak of a step of so many tokens, and what sampling takes. Fits two logs of vLLM #10517 to 0.01 GiB."""
    hidden = model.number("hidden_size", "n_embd") or 0
    inner = model.number("intermediate_size", "n_inner") or 4 * hidden
    if experts := model.number("num_experts_per_tok"):
        inner = max(inner, experts * (model.number("moe_intermediate_size") or inner))
    rows = requests * (model.number("vocab_size") or 0) * 4
    return tokens * 2 * (3 * inner // tensor + 3 * hidden) + rows * 5 // 2


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says, as far as it moves memory."""

    length: int
    requests: int
    kv_type: str
    batch: int
    tensor: int
    pipeline: int
    block: int

    def pages(self, model: HfModel) -> Pages | NoFormula:
        return pages(
            model,
            kv_type=self.kv_type,
            length=self.length,
            tensor=self.tensor,
            pipeline=self.pipeline,
            block=self.block,
            in_flight=self.batch,
        )


def asked(plan: ServicePlan, gpus: int) -> Asked:
    return Asked(
        length=int(number(plan, "--max-model-len") or 0),
        requests=int(number(plan, "--max-num-seqs") or 1),
        kv_type=value(plan, "--kv-cache-dtype") or "auto",
        batch=int(number(plan, "--max-num-batched-tokens") or 2048),
        tensor=int(number(plan, "--tensor-parallel-size", "-tp") or 1),
        pipeline=int(number(plan, "--pipeline-parallel-size", "-pp") or 1),
        block=int(number(plan, "--block-size") or (BLOCK_GPU if gpus else BLOCK_CPU)),
    )


def pool_bytes(service: Service, facts: Facts, gpus: int, batch: int) -> int | None:
    """Of one GPU, for `kv_tokens`. None: not said, or no formula."""
    model = facts.folders.get(service.model or "")
    if not isinstance(model, HfModel) or not service.kv_tokens or not service.context_length:
        return None
    many = max(1, gpus)
    tensor, pipeline = (1, many) if service.split == "pipeline" else (many, 1)
    found = Asked(
        service.context_length,
        service.parallel or 1,
        service.kv_cache_type or "auto",
        service.batch or batch,
        tensor,
        pipeline,
        BLOCK_GPU if gpus else BLOCK_CPU,
    ).pages(model)
    return None if isinstance(found, NoFormula) else found.pool(service.kv_tokens)


def vllm(plan: ServicePlan, facts: Facts, cards: Sequence[GpuFact]) -> Estimate | None:
    model = facts.folders.get(plan.service.model or "")
    if model is None:
        return None
    pool = int(number(plan, "--kv-cache-memory-bytes") or 0)
    budgeted = bool(cards) and not pool and plan.service.gpu_memory is not None
    if isinstance(model, HfError):
        return Estimate(missing=ALL, unknown=(f"the model: {model}",), budgeted=budgeted)
    wish = asked(plan, len(cards))
    ranks = weights(model, wish.tensor, wish.pipeline, value(plan, "--quantization", "-q") == "fp8")
    found = _pages(plan, wish, model)
    if isinstance(found, Pages) and (blocks := number(plan, "--num-gpu-blocks-override")):
        pool = int(blocks) * found.bytes
        budgeted = False
    uncounted = [flag for flag in UNCOUNTED if said(plan, flag) and number(plan, flag) != 0]
    offload = any(flag in OFFLOAD for flag in uncounted)
    if not cards:
        return _on_host(plan, sum(ranks), found, pool, uncounted)
    parts: list[Part] = []
    pools: list[int] = []
    step = activation(model, wish.batch, wish.requests, wish.tensor)
    graphs = 0 if said(plan, "--enforce-eager") else GRAPHS
    for place, card in enumerate(cards):
        held = 0 if offload else ranks[min(place // wish.tensor, len(ranks) - 1)]
        parts += [
            Part(card.uuid, "weights", "weights", held, "tensors of the model's files"),
            Part(card.uuid, "compute", "activations", step, f"a step of {wish.batch} tokens", exact=False),
            Part(card.uuid, "compute", "CUDA graphs", graphs, "0.3 to 0.8 GiB by vLLM's own reports", exact=False),
            Part(card.uuid, "overhead", "outside of torch", OUTSIDE_TORCH, "as logged on an RTX 3090", exact=False),
        ]
        left = (plan.service.gpu_memory or 0) - held - step - graphs - OUTSIDE_TORCH
        pools.append(pool or (max(0, left) if budgeted and not uncounted else 0))
        why = "what the budget leaves" if budgeted else "--kv-cache-memory-bytes"
        if pools[-1]:
            parts.append(Part(card.uuid, "kv_cache", "KV cache", pools[-1], why, exact=bool(pool)))
    no_budget = not pool and not budgeted
    no_pool = no_budget or (bool(uncounted) and not pool)
    unknown = _unknown(found, uncounted)
    if no_budget:
        unknown.append("its KV cache has no budget")
    exact = isinstance(found, Pages)
    return Estimate(
        parts=tuple(parts),
        missing=_missing(pool=no_pool, weights=bool(uncounted)),
        unknown=tuple(unknown),
        kv_bytes_per_token=found.per_token * wish.tensor if exact and isinstance(found, Pages) else None,
        kv_tokens=found.tokens(min(pools)) if isinstance(found, Pages) and not no_pool else None,
        budgeted=budgeted,
        cache_ram=_offloaded(plan),
    )


def _pages(plan: ServicePlan, wish: Asked, model: HfModel) -> Pages | NoFormula:
    if not wish.length:
        return NoFormula("the command line does not say --max-model-len")
    flag = said(plan, *UNPAGED)
    return NoFormula(f"no formula for {flag}") if flag else wish.pages(model)


def _unknown(found: Pages | NoFormula, uncounted: Sequence[str]) -> list[str]:
    why = [found.reason] if isinstance(found, NoFormula) else []
    return list(dict.fromkeys([*why, *(f"no formula for {flag}" for flag in uncounted)]))


def _missing(*, pool: bool, weights: bool) -> frozenset[Kind]:
    """`pool`, `weights`: not known."""
    return frozenset(kind for kind in ALL if (pool if kind == "kv_cache" else weights))


def _offloaded(plan: ServicePlan) -> int:
    return int((number(plan, "--kv-offloading-size") or 0) * GIB)


def _on_host(
    plan: ServicePlan, weights: int, found: Pages | NoFormula, pool: int, uncounted: Sequence[str]
) -> Estimate:
    space = variable(plan, "VLLM_CPU_KVCACHE_SPACE") or ""
    pool = pool or (int(space) * GIB if space.isdigit() else 0)
    parts = [Part(None, "weights", "weights", weights, "tensors of the model's files")]
    if pool:
        parts.append(Part(None, "kv_cache", "KV cache", pool, "as said"))
    unknown = ["what a step takes on the host has no formula", *_unknown(found, uncounted)]
    if not pool:
        unknown.append("its KV cache has no budget: kv_tokens, or VLLM_CPU_KVCACHE_SPACE in env")
    return Estimate(
        parts=tuple(parts),
        missing=_missing(pool=not pool, weights=bool(uncounted)) | {"compute"},
        unknown=tuple(unknown),
        kv_bytes_per_token=found.per_token if isinstance(found, Pages) else None,
        kv_tokens=found.tokens(pool) if isinstance(found, Pages) and pool else None,
        cache_ram=_offloaded(plan),
    )
