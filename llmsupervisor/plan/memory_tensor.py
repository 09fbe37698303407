"""Matrices that are split over all GPUs (`--split-mode tensor`): what can be told without one.

Source: `llama_meta_device_get_split_state` and `llm_arch_supports_sm_tensor` of llama.cpp 0.6. Matrices and the KV cache
are split by the shares, in whole heads and blocks whose rest wanders over the GPUs layer by layer; everything else is on
each of them. What a GPU computes with has no formula.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from llmsupervisor.plan.gguf import GgufHeader
from llmsupervisor.plan.memory import Memory, Part, Refused, Settings, estimate
from llmsupervisor.plan.memory_place import HOST, Override, layer_devices, weights
from llmsupervisor.plan.memory_shape import NoFormula, shape_of

NOT_SPLIT = frozenset(
    [
        "grok",
        "mpt",
        "plamo2",
        "minicpm3",
        "gemma3n",
        "mamba",
        "mamba2",
        "jamba",
        "falcon-h1",
        "olmo2",
        "olmoe",
        "deepseek2",
        "deepseek2-ocr",
        "bitnet",
        "nemotron_h",
        "nemotron_h_moe",
        "granitehybrid",
        "minimax-01",
        "kimi-linear",
        "bailingmoe3",
    ]
)
_SPLIT = Override(r"^(blk\.\d+\.(attn_(q|k|v|qkv|output|gate)|ffn_(up|gate|gate_up|down)(_exps)?)|output)\.weight$", 1)
"""Place 1 stands for all GPUs together, place 0 for each."""
UNKNOWN = 'what a GPU computes with has no formula where split = "tensor"'


def by_tensors(header: GgufHeader, settings: Settings, adapters: Sequence[GgufHeader] = ()) -> Memory | Refused:
    shape = shape_of(header)
    if header.architecture in NOT_SPLIT:
        return Memory((), (f"llama.cpp 0.6 does not split {header.architecture} by tensors",))
    if isinstance(shape, NoFormula) or any(layer.recurrent for layer in shape.layers):
        return Memory((), (f'no formula for split = "tensor" of architecture {header.architecture!r}',))
    whole = estimate(header, replace(settings, gpus=(1.0,)), adapters)
    if isinstance(whole, Refused):
        return whole
    devices = layer_devices(shape.layers_all, settings.gpu_layers, (1.0,))
    each = weights(header, devices, len(shape.layers), (*settings.overrides, _SPLIT)).get(0, 0)
    return Memory(tuple(_shared(whole.parts, each, settings.gpus)), (*whole.unknown, UNKNOWN))


def _shared(parts: Sequence[Part], each: int, shares: Sequence[float]) -> Iterator[Part]:
    for part in parts:
        if part.where == HOST:
            yield part
        elif not part.name.startswith("compute"):
            here = min(each, part.bytes) if part.name == "weights" else 0
            for gpu, share in enumerate(shares):
                size = here + round((part.bytes - here) * share / sum(shares))
                yield replace(
                    part, bytes=size, where=gpu, why=f"{part.why}, split over {len(shares)} GPUs", exact=False
                )
