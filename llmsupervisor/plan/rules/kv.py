"""The type of the KV cache: what is computed on the CPU unseen, what no GPU can do, what wastes memory or quality."""

from __future__ import annotations

from collections.abc import Iterator

from llmsupervisor.base.units import format_size
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.rules.model import folder, latent, read, uncalibrated, wide
from llmsupervisor.plan.rules.rule import ENGINES, LLAMA, OLLAMA, VLLM, Box, Edit, Hit, count, on_gpu, release, rule

BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "float16": 2.0, "bfloat16": 2.0, "auto": 2.0, "q8_0": 34 / 32, "fp8": 1.0}
"""Of one value. `auto` is the model's own type, today nearly always one of 16 bits."""
CAPABILITY = {"fp8": (8, 9), "fp8_e4m3": (8, 9), "nvfp4": (10, 0), "nvfp4_4over6": (10, 0)}
"""What vLLM's type needs of a GPU."""
LONG = 32768


def _context(plan: ServicePlan) -> int:
    """Tokens of one request; of Ollama's models the longest."""
    lengths = [model.context_length for model in plan.service.models or ()]
    return max(lengths, default=plan.service.context_length or 0)


@rule(
    "C08",
    "kv-odd",
    "error",
    LLAMA,
    when='`kv_cache_type` is "iq4_nl" on a GPU, or "q4_1", "q5_0", "q5_1" with a build that is not known to be 0.6 or later',
    harm="a CUDA build without GGML_CUDA_FA_ALL_QUANTS computes attention on the CPU, 8 to 45 times slower, and logs nothing",
    effect="attention back on the GPU: prefill and decoding several times faster",
    source="llama.cpp #28455, #27109, #24485, PR #28456 (1511 → 197 tokens/s); ggml/src/ggml-cuda/fattn.cu of 0.6 (all but iq4_nl)",
)
def odd(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    kind = plan.service.kv_cache_type
    slow = ("iq4_nl",) if (release(plan, box) or (0, 0)) >= (0, 6) else ("q4_1", "q5_0", "q5_1", "iq4_nl")
    if kind in slow and on_gpu(plan):
        yield Hit(
            "kv_cache_type",
            f'kv_cache_type = "{kind}" has no flash attention kernel in a default CUDA build: attention then runs on the '
            "CPU, 8 to 45 times slower, and no line of the log says so",
            'kv_cache_type = "q8_0" (or "q4_0"); keep it only where this build has GGML_CUDA_FA_ALL_QUANTS',
            {"kv_cache_type": kind, "gpus": list(plan.gpus)},
        )


@rule(
    "C10",
    "kv-ollama-type",
    "error",
    OLLAMA,
    when='`kv_cache_type` is none of "f16", "q8_0" and "q4_0", or two different ones on a GPU',
    harm="older releases of Ollama take f16 instead and do not say so, newer ones hand the type to a runner that may not have it",
    effect="the type that is asked for is the one that is used",
    source="Ollama FAQ (OLLAMA_KV_CACHE_TYPE); SupportsKVCacheType in its fs/ggml; llama.cpp #28524",
)
def ollama_type(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    kind = plan.service.kv_cache_type or ""
    parts = set(kind.split("/"))
    if len(parts) > 1 and on_gpu(plan):
        yield Hit(
            "kv_cache_type",
            f'kv_cache_type = "{kind}": a default CUDA build has flash attention for keys and values of one type only, and '
            "computes the rest on the CPU",
            'kv_cache_type = "q8_0"; keep it only where this build has GGML_CUDA_FA_ALL_QUANTS',
            {"kv_cache_type": kind},
        )
    elif not parts <= {"f16", "q8_0", "q4_0"}:
        yield Hit(
            "kv_cache_type",
            f'kv_cache_type = "{kind}" is none of the three that Ollama supports: f16 is taken unseen, or loads fail',
            'kv_cache_type = "q8_0"',
            {"kv_cache_type": kind},
        )


@rule(
    "C12",
    "kv-q4-risk",
    "warning",
    LLAMA,
    OLLAMA,
    when='`kv_cache_type = "q4_0"` and a context of 32768 tokens or more, or a model of less than 4 billion parameters, or with 7 or more query '
    "heads for one KV head",
    harm="the error of a 4-bit cache grows with the length of the context, and small models and shared heads bear less of it",
    effect="answers to long prompts as good as those of an 8-bit cache, for nearly twice its memory",
    source="Ollama FAQ; llama.cpp #21551; ik_llama.cpp PR #1547",
)
def q4_long(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    context = _context(plan)
    why = next((text for model in read(plan, box) if (text := model.sensitive)), "")
    if plan.service.kv_cache_type == "q4_0" and (context >= LONG or why):
        says = (
            f'kv_cache_type = "q4_0" at {context} tokens a request: the error of a 4-bit cache grows with the context'
        )
        yield Hit(
            "kv_cache_type",
            says + (f", and of this model {why}" if why else ", and answers to long prompts suffer first"),
            'kv_cache_type = "q8_0", or compare answers of both on your own prompts',
            {"kv_cache_type": "q4_0", "context_length": context},
            (Edit(("kv_cache_type",), "q8_0"),),
            judgement=True,
        )


@rule(
    "C13",
    "kv-f16",
    "warning",
    *ENGINES,
    when='`kv_cache_type` is left at 16 bits or more: "f16", "bf16", "f32", "auto" … (not of embedding and reranking services, nor where a smaller '
    "one would be the finding: C12 a small model, or heads that many share, C14 latent attention, C15 vLLM on the CPU or on a GPU below compute "
    "capability 8.9, C16 no scales in the checkpoint, C17 wide heads)",
    harm="the KV cache takes twice the memory: half the context, or half the requests at once",
    effect="half the memory of the KV cache free: twice the context, or twice the requests at once",
    source="llama.cpp PR #7412 (q8_0: KLD 0.00098), #21551; vLLM blog of April 2026 (fp8: 94–99 % of the scores)",
)
def f16(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    service = plan.service
    kind = service.kv_cache_type or ""
    vllm = plan.definition.adapter == VLLM
    better = "fp8" if vllm else "q8_0"
    if (
        BYTES.get(kind, 0) < 2
        or service.task != "chat"
        or (not _takes_fp8(plan, box) if vllm else _bears_none(plan, box))
    ):
        return
    context, parallel = _context(plan), service.parallel or 1
    less = round(100 * (1 - BYTES[better] / BYTES[kind]))
    fix = [Edit(("kv_cache_type",), better)]
    if service.flash_attention is False:
        fix.append(Edit(("flash_attention",), True))
    what = "the type of the model (auto)" if kind == "auto" else kind
    yield Hit(
        "kv_cache_type",
        f"the KV cache of {count(parallel, 'request')} of {context} tokens is left at {what}; {better} takes {less} % less memory",
        " and ".join(f"{edit.path[0]} = {_toml(edit.value)}" for edit in fix)
        + ", or the reason in a comment: # llmsupervisor: ignore C13 REASON",
        {"kv_cache_type": kind, "context_length": context, "parallel": parallel},
        () if vllm else tuple(fix),
        effect=_freed(plan, less),
    )


def _freed(plan: ServicePlan, percent: int) -> str:
    """Empty: it is not known how much the cache takes."""
    places = plan.memory.places if plan.memory else ()
    cache = sum(place.kv_cache or 0 for place in places)
    if not cache or any(place.kv_cache is None for place in places):
        return ""
    return f"{format_size(cache * percent // 100)} of {format_size(cache)} of KV cache free, for more requests at once or longer ones"


def _takes_fp8(plan: ServicePlan, box: Box) -> bool:
    """Not known of an unknown GPU and an unread model: then yes."""
    known = [card.compute_capability for card in box.cards(plan) if card.compute_capability]
    model = folder(plan, box)
    bears = model is None or not (uncalibrated(model) or wide(model))
    return bears and on_gpu(plan) and all(capability >= CAPABILITY["fp8"] for capability in known)


def _bears_none(plan: ServicePlan, box: Box) -> bool:
    return any(model.sensitive or latent(model) for model in read(plan, box))


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'


@rule(
    "C15",
    "kv-capability",
    "error",
    VLLM,
    when="`kv_cache_type` is fp8 below compute capability 8.9, nvfp4 below 10.0",
    harm="vLLM refuses to start, or emulates the type slowly",
    effect="vLLM starts on this GPU",
    source="vLLM 0.32 v1/attention/backends/triton_attn.py (“FP8 KV cache is not supported …”); its quantized_kvcache docs",
)
def capability(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    kind = plan.service.kv_cache_type or ""
    needed = CAPABILITY.get(kind)
    for card in box.cards(plan):
        if needed and card.compute_capability and card.compute_capability < needed:
            has, wants = (".".join(map(str, pair)) for pair in (card.compute_capability, needed))
            yield Hit(
                "kv_cache_type",
                f'kv_cache_type = "{kind}" needs compute capability {wants}, and GPU {card.index} ({card.name}) has {has}',
                'kv_cache_type = "auto", or a GPU that has it',
                {"kv_cache_type": kind, "gpu": card.index, "compute_capability": has},
            )
            return


RULES = (odd, ollama_type, q4_long, f16, capability)
