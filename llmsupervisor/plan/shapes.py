"""Models of known shape, for sums without a file: the tensors of Llama 3.1 8B as GGUF files and the Hub have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod

from llmsupervisor.plan.ggml_types import BLOCKS
from llmsupervisor.plan.gguf import GgufHeader, Tensor, Value
from llmsupervisor.plan.hf import HfModel, HfTensor

LAYERS, EMBEDDING, FF, HEADS, HEADS_KV, HEAD, VOCABULARY = 32, 4096, 14336, 32, 8, 128, 128256
TRAINED = 131072


@dataclass(frozen=True, slots=True)
class KnownModel:
    """`ggufs`: file type → header. `hubs`: precision of the weights → model."""

    title: str
    ggufs: Mapping[str, GgufHeader]
    hubs: Mapping[str, HfModel]


def _more_bits(layer: int) -> bool:
    """Layers of which Q4_K_M keeps two matrices in six bits (llama.cpp's `use_more_bits`)."""
    eighth = LAYERS // 8
    return layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2


def _q4_k_m(name: str, layer: int) -> str:
    six = name == "output" or (name in ("attn_v", "ffn_down") and _more_bits(layer))
    return "q6_K" if six else "q4_K"


def _matrices(layer: str) -> dict[str, tuple[int, int]]:
    """(columns, rows)."""
    kv = HEADS_KV * HEAD
    sizes = {"attn_q": (EMBEDDING, EMBEDDING), "attn_k": (EMBEDDING, kv), "attn_v": (EMBEDDING, kv)}
    sizes |= {"attn_output": (EMBEDDING, EMBEDDING), "ffn_gate": (EMBEDDING, FF), "ffn_up": (EMBEDDING, FF)}
    return {f"{layer}{name}": size for name, size in (sizes | {"ffn_down": (FF, EMBEDDING)}).items()}


def _gguf(kind: Callable[[str, int], str]) -> GgufHeader:
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (EMBEDDING, VOCABULARY), "output": (EMBEDDING, VOCABULARY)}
    shapes |= {"output_norm": (EMBEDDING,), "rope_freqs": (HEAD // 2,)}
    for i in range(LAYERS):
        shapes |= _matrices(f"blk.{i}.")
        shapes |= {f"blk.{i}.{name}": (EMBEDDING,) for name in ("attn_norm", "ffn_norm")}
    tensors = []
    for name, shape in shapes.items():
        layer = int(name.split(".")[1]) if name.startswith("blk.") else None
        form = kind(name.rpartition(".")[2], layer or 0) if len(shape) > 1 else "f32"
        elements, size = BLOCKS[form]
        tensors.append(Tensor(f"{name}.weight", shape, form, prod(shape) // elements * size, layer))
    values: dict[str, Value] = {
        "block_count": LAYERS,
        "context_length": TRAINED,
        "embedding_length": EMBEDDING,
        "feed_forward_length": FF,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS_KV,
        "rope.dimension_count": HEAD,
    }
    said: dict[str, Value] = {
        "general.architecture": "llama",
        **{f"llama.{key}": value for key, value in values.items()},
    }
    return GgufHeader(
        3, said, {"tokenizer.ggml.tokens": VOCABULARY}, tuple(tensors), 32, 0, sum(t.bytes for t in tensors)
    )


_HUB = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj"}


def _hub(bits: float) -> HfModel:
    """`bits` of each weight of the linear layers, scales included; embedding and output in bf16."""
    tensors = [
        HfTensor(f"{name}.weight", "BF16", (VOCABULARY, EMBEDDING), 2 * VOCABULARY * EMBEDDING) for name in _ENDS
    ]
    tensors.append(HfTensor("model.norm.weight", "BF16", (EMBEDDING,), 2 * EMBEDDING))
    for i in range(LAYERS):
        for name, (columns, rows) in _matrices("").items():
            size = int(columns * rows * bits / 8)
            tensors.append(HfTensor(f"model.layers.{i}.{_HUB.get(name, name)}.weight", "U8", (rows, columns), size))
        norms = ("input_layernorm", "post_attention_layernorm")
        tensors += [HfTensor(f"model.layers.{i}.{name}.weight", "BF16", (EMBEDDING,), 2 * EMBEDDING) for name in norms]
    config = {
        "num_hidden_layers": LAYERS,
        "hidden_size": EMBEDDING,
        "intermediate_size": FF,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS_KV,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": TRAINED,
    }
    return HfModel(dict(config), tuple(tensors))


_ENDS = ("model.embed_tokens", "lm_head")


@cache
def llama_3_1_8b() -> KnownModel:
    ggufs = {"Q4_K_M": _gguf(_q4_k_m), "Q8_0": _gguf(lambda *_: "q8_0"), "F16": _gguf(lambda *_: "f16")}
    return KnownModel("Llama 3.1 8B", ggufs, {"bf16": _hub(16), "fp8": _hub(8), "w4a16": _hub(4 + 16 / 128)})


SHAPES: dict[str, Callable[[], KnownModel]] = {"llama-3.1-8b": llama_3_1_8b}
