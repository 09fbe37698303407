"""What the model's own header says of the settings: lengths it was not trained for, heads that cannot be shared out, caches it does
not bear. Silent on a model whose header nobody has read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from llmsupervisor.plan.facts import gguf, header_of
from llmsupervisor.plan.gguf import GgufHeader
from llmsupervisor.plan.hf import HfModel
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.memory_shape import NoFormula, Shape, shape_of
from llmsupervisor.plan.rules.rule import LLAMA, OLLAMA, VLLM, Box, Edit, Hit, number, rule, said
from llmsupervisor.spec.locate import Path

ROPE = ("--rope-scaling", "--rope-scale", "--rope-freq-base", "--rope-freq-scale", "--yarn-orig-ctx", "--override-kv")
SMALL = 4 * 10**9
"""Parameters below which a cache of few bits costs answers first."""
SHARED = 7
"""Query heads for one KV head: an error in it is an error in so many."""
WIDE = 256
"""Elements of a head from which on vLLM's fp8 prefill gets slower."""
WINDOW = 2048
"""Tokens of a sliding window that are too few to gain from a smaller type."""


@dataclass(frozen=True, slots=True)
class Read:
    """A GGUF model of a service; `path`: where its context_length is said."""

    name: str
    header: GgufHeader
    context: int
    path: Path

    @property
    def shape(self) -> Shape | None:
        found = shape_of(self.header)
        return None if isinstance(found, NoFormula) else found

    @property
    def parameters(self) -> int | None:
        """None: the file holds no tensors."""
        return sum(prod(tensor.shape) for tensor in self.header.tensors) or None

    @property
    def queries_per_kv(self) -> float:
        """0: not known."""
        heads, kv = self.header.heads, self.header.heads_kv
        return max((h / k for h, k in zip(heads or (), kv or (), strict=False) if k), default=0.0)

    @property
    def sensitive(self) -> str:
        """Why a cache of few bits would cost answers; empty: nothing is known that would."""
        if self.parameters is not None and self.parameters < SMALL:
            size, unit = (10**9, "billion") if self.parameters >= 10**9 else (10**6, "million")
            return f"it has {self.parameters / size:.2g} {unit} parameters"
        shared = self.queries_per_kv
        return f"{shared:g} query heads look at each KV head" if shared >= SHARED else ""


def read(plan: ServicePlan, box: Box) -> list[Read]:
    facts = box.facts
    if plan.definition.adapter == OLLAMA:
        found = [
            (model.name, header_of(plan.service, model, facts), model.context_length, index)
            for index, model in enumerate(plan.service.models or ())
        ]
        return [
            Read(name, header, context, ("models", index, "context_length"))
            for name, header, context, index in found
            if isinstance(header, GgufHeader)
        ]
    header = facts.ggufs.get(gguf(plan.service.model or ""))
    if plan.definition.adapter != LLAMA or not isinstance(header, GgufHeader):
        return []
    return [Read("", header, plan.service.context_length or 0, ("context_length",))]


def folder(plan: ServicePlan, box: Box) -> HfModel | None:
    found = box.facts.folders.get(plan.service.model or "")
    return found if isinstance(found, HfModel) else None


def latent(model: Read) -> bool:
    """Multi-head latent attention: it keeps little, and kernels for a quantised one are few."""
    shape = model.shape
    return bool(shape and shape.mla) or model.header.architecture in ("deepseek2", "deepseek32", "glm-dsa")


def _of(model: Read) -> str:
    return f" of {model.name}" if model.name else ""


@rule(
    "C02",
    "context-over-trained",
    "error",
    LLAMA,
    OLLAMA,
    when="`context_length` is more than the model was trained for, and no rope scaling is asked for",
    harm="llama-server reserves KV cache for all of it, and lets requests have only what the model was trained for; so does Ollama",
    effect="what is reserved can be used",
    source="run of llama-server build 11434 (“the slot context (16384) exceeds the training context of the model (8192) - capping”); "
    "Ollama llm/server.go",
)
def over_trained(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    if said(plan, *ROPE):
        return
    for model in read(plan, box):
        trained = model.header.context_train
        if trained and model.context > trained:
            yield Hit(
                str(model.path[0]),
                f"context_length = {model.context}{_of(model)}, and the model was trained for {trained}: requests get no more than that, "
                "and KV cache is reserved for all",
                f"context_length = {trained}{_of(model)}, or rope scaling in extra_args where the model is made for it",
                {"context_length": model.context, "trained": trained, "architecture": model.header.architecture},
                (Edit(model.path, trained),),
            )


@rule(
    "C106",
    "length-over-derived",
    "error",
    VLLM,
    when="`context_length` is more than `max_position_embeddings` of the model, and its configuration scales no rope",
    harm="vLLM refuses to start",
    effect="vLLM starts",
    source="vLLM 0.32 config/model.py (“… is greater than the derived max_model_len”)",
)
def over_derived(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    model, context = folder(plan, box), plan.service.context_length or 0
    most = model.number("max_position_embeddings") if model else None
    if model is None or most is None or context <= most or said(plan, "--hf-overrides"):
        return
    if not any(model.text.get(key) for key in ("rope_scaling", "rope_parameters")):
        yield Hit(
            "context_length",
            f"context_length = {context}, and the model takes {most} tokens at most: vLLM refuses to start",
            f"context_length = {most}",
            {"context_length": context, "max_position_embeddings": most},
            (Edit(("context_length",), most),),
        )


@rule(
    "C52",
    "heads-indivisible",
    "error",
    VLLM,
    when='attention heads, or KV heads, cannot be shared out evenly over the GPUs of `split = "tensor"`',
    harm="vLLM refuses to start",
    effect="vLLM starts",
    source="vLLM 0.32 config/model.py (“Total number of attention heads … must be divisible by tensor parallel size”)",
)
def heads_indivisible(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    model, tensor = folder(plan, box), int(number(plan, "--tensor-parallel-size") or 1)
    heads = model.number("num_attention_heads", "n_head") if model else None
    if heads and heads % tensor:
        fits = [n for n in range(1, tensor) if heads % n == 0]
        yield Hit(
            "gpus",
            f"{heads} attention heads do not divide by {tensor} GPUs: vLLM refuses to start",
            f'{max(fits)} of the GPUs, or split = "pipeline"',
            {"num_attention_heads": heads, "gpus": tensor},
        )


@rule(
    "C53",
    "heads-replicated",
    "warning",
    VLLM,
    when='`split = "tensor"` over more GPUs than the model has KV heads',
    harm="KV heads are kept several times: more GPUs hold no more requests",
    effect="the KV cache of all GPUs holds different requests",
    source="vLLM 0.32 config/model.py (get_num_kv_heads: at least one for each GPU)",
)
def heads_replicated(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    model, tensor = folder(plan, box), int(number(plan, "--tensor-parallel-size") or 1)
    heads = model.number("num_key_value_heads", "n_head_kv", "num_kv_heads") if model else None
    if model and heads and tensor > heads and not model.number("kv_lora_rank"):
        yield Hit(
            "gpus",
            f"{heads} KV heads on {tensor} GPUs: each of them is kept {-(-tensor // heads)} times",
            f'{heads} GPUs and a second service on the others, or split = "pipeline"',
            {"num_key_value_heads": heads, "gpus": tensor},
        )


@rule(
    "C14",
    "kv-latent",
    "warning",
    LLAMA,
    OLLAMA,
    when="a quantised `kv_cache_type` of a model with multi-head latent attention (DeepSeek, GLM)",
    harm="little memory is saved, decoding is slower, and some answers were garbage",
    effect="the cache that the kernels are made for",
    source="llama.cpp #25382 (garbage with q8_0), #28454 (2.8 times slower)",
)
def kv_latent(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    kind = plan.service.kv_cache_type or ""
    for model in read(plan, box):
        if latent(model) and kind.startswith(("q", "iq")):
            yield Hit(
                "kv_cache_type",
                f'kv_cache_type = "{kind}"{_of(model)}: {model.header.architecture} keeps its cache compressed already, and quantised ones '
                "were slow or wrong",
                'kv_cache_type = "f16"',
                {"kv_cache_type": kind, "architecture": model.header.architecture},
                (Edit(("kv_cache_type",), "f16"),),
            )
            return


def uncalibrated(model: HfModel) -> bool:
    """Its checkpoint says no scales for an fp8 cache."""
    quantization = model.config.get("quantization_config")
    return not (isinstance(quantization, dict) and quantization.get("kv_cache_scheme"))


@rule(
    "C16",
    "kv-scales",
    "warning",
    VLLM,
    when="`kv_cache_type` is fp8, and the checkpoint has no `kv_cache_scheme`",
    harm="keys and values are scaled by 1.0, whatever they are: answers to long prompts may suffer, and nothing says so",
    effect="the scales that the model was calibrated with",
    source="vLLM docs/features/quantization/quantized_kvcache; model_executor/layers/quantization/kv_cache.py (scale 1.0)",
)
def kv_scales(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    model, kind = folder(plan, box), plan.service.kv_cache_type or ""
    if model and kind in ("fp8", "fp8_e4m3") and uncalibrated(model):
        yield Hit(
            "kv_cache_type",
            f'kv_cache_type = "{kind}", and the checkpoint says no scales for it: 1.0 is taken for all of keys and values',
            'a checkpoint that was calibrated with kv_cache_scheme, kv_cache_type = "auto", or (looked at with long prompts): '
            "# llmsupervisor: ignore C16 REASON",
            {"kv_cache_type": kind, "kv_cache_scheme": None},
        )


def wide(model: HfModel) -> int | None:
    heads, hidden = model.number("num_attention_heads"), model.number("hidden_size")
    size = model.number("head_dim") or (hidden // heads if heads and hidden else None)
    return size if size is not None and size >= WIDE else None


@rule(
    "C17",
    "kv-wide-heads",
    "warning",
    VLLM,
    when="`kv_cache_type` is fp8, and a head has 256 elements or more",
    harm="prompts are computed more slowly than with 16 bits",
    effect="faster prefill, for twice the memory of the KV cache",
    source="vLLM blog of April 2026 (head_dim 256: prefill regresses)",
)
def kv_wide(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    model, kind = folder(plan, box), plan.service.kv_cache_type or ""
    if model and kind.startswith("fp8") and (size := wide(model)):
        yield Hit(
            "kv_cache_type",
            f'kv_cache_type = "{kind}" with heads of {size} elements: prefill is slower than with 16 bits',
            'kv_cache_type = "auto", if prompts are long and memory is not short',
            {"kv_cache_type": kind, "head_dim": size},
            (Edit(("kv_cache_type",), "auto"),),
            judgement=True,
        )


@rule(
    "C18",
    "kv-sliding",
    "info",
    VLLM,
    when=f"`kv_cache_type` is fp8, and layers of the model look back at {WINDOW} tokens or fewer",
    harm="these layers gain nothing from it, and lose precision",
    effect="full precision where memory is not the question",
    source="vLLM blog of April 2026; vLLM 0.32 config/cache.py (kv_cache_dtype_skip_layers)",
)
def kv_sliding(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    model, kind = folder(plan, box), plan.service.kv_cache_type or ""
    window = model.number("sliding_window") if model else None
    if model is None or not window or window > WINDOW or not kind.startswith("fp8"):
        return
    if model.text.get("use_sliding_window") is not False and not said(plan, "--kv-cache-dtype-skip-layers"):
        yield Hit(
            "extra_args",
            f'kv_cache_type = "{kind}" also of layers with a window of {window} tokens, which hold little whatever their type',
            'extra_args = [… "--kv-cache-dtype-skip-layers", "sliding_window"]',
            {"kv_cache_type": kind, "sliding_window": window},
        )


RULES = (over_trained, over_derived, heads_indivisible, heads_replicated, kv_latent, kv_scales, kv_wide, kv_sliding)
