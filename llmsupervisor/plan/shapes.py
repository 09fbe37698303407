"""Models of known shape, for sums without a file: their tensors as GGUF files and the Hub have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

from llmsupervisor.plan.ggml_types import BLOCKS
from llmsupervisor.plan.gguf import GgufHeader, Tensor, Value
from llmsupervisor.plan.hf import HfModel, HfTensor


@dataclass(frozen=True, slots=True)
class KnownModel:
    """`ggufs`: file type → header. `hubs`: precision of the weights → model. `trained`: tokens of context."""

    title: str
    ggufs: Mapping[str, GgufHeader]
    hubs: Mapping[str, HfModel]
    trained: int


@dataclass(frozen=True, slots=True)
class Dense:
    """Of its `config.json` on the Hub; embedding and output are two matrices."""

    title: str
    architecture: str
    layers: int
    embedding: int
    ff: int
    heads: int
    heads_kv: int
    vocabulary: int
    trained: int
    head: int = 128
    qk_norm: bool = False
    rope_freqs: bool = False
    shared_v: str = "q4_K"
    """What Q4_K_M keeps the values of the other layers in: eight heads of a 70B share them, and they get a bit more."""

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Of a layer: (columns, rows)."""
        q, kv, width = self.heads * self.head, self.heads_kv * self.head, self.embedding
        attention = {"attn_q": (width, q), "attn_k": (width, kv), "attn_v": (width, kv), "attn_output": (q, width)}
        return attention | {"ffn_gate": (width, self.ff), "ffn_up": (width, self.ff), "ffn_down": (self.ff, width)}

    def vectors(self) -> dict[str, int]:
        found = {"attn_norm": self.embedding, "ffn_norm": self.embedding}
        return found | ({"attn_q_norm": self.head, "attn_k_norm": self.head} if self.qk_norm else {})

    def _more_bits(self, layer: int) -> bool:
        """Layers of which Q4_K_M keeps two matrices in six bits (llama.cpp's `use_more_bits`)."""
        eighth = self.layers // 8
        return layer < eighth or layer >= 7 * self.layers // 8 or (layer - eighth) % 3 == 2

    def q4_k_m(self, name: str, layer: int) -> str:
        if name == "output" or (name in ("attn_v", "ffn_down") and self._more_bits(layer)):
            return "q6_K"
        return self.shared_v if name == "attn_v" else "q4_K"

    def gguf(self, kind: Callable[[str, int], str]) -> GgufHeader:
        width = self.embedding
        shapes: dict[str, tuple[int, ...]] = {
            "token_embd": (width, self.vocabulary),
            "output": (width, self.vocabulary),
            "output_norm": (width,),
        }
        if self.rope_freqs:
            shapes["rope_freqs"] = (self.head // 2,)
        for i in range(self.layers):
            shapes |= {f"blk.{i}.{name}": size for name, size in self.matrices().items()}
            shapes |= {f"blk.{i}.{name}": (size,) for name, size in self.vectors().items()}
        tensors = []
        for name, shape in shapes.items():
            layer = int(name.split(".")[1]) if name.startswith("blk.") else None
            form = kind(name.rpartition(".")[2], layer or 0) if len(shape) > 1 else "f32"
            elements, size = BLOCKS[form]
            tensors.append(Tensor(f"{name}.weight", shape, form, prod(shape) // elements * size, layer))
        values: dict[str, Value] = {
            "block_count": self.layers,
            "context_length": self.trained,
            "embedding_length": width,
            "feed_forward_length": self.ff,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.heads_kv,
            "attention.key_length": self.head,
            "attention.value_length": self.head,
            "rope.dimension_count": self.head,
        }
        said: dict[str, Value] = {"general.architecture": self.architecture}
        said |= {f"{self.architecture}.{key}": value for key, value in values.items()}
        whole = sum(tensor.bytes for tensor in tensors)
        return GgufHeader(3, said, {"tokenizer.ggml.tokens": self.vocabulary}, tuple(tensors), 32, 0, whole)

    def hub(self, bits: float) -> HfModel:
        """`bits` of each weight of the linear layers, scales included; embedding and output in bf16."""
        ends = (self.vocabulary, self.embedding)
        tensors = [HfTensor(f"{name}.weight", "BF16", ends, 2 * prod(ends)) for name in _ENDS]
        tensors.append(HfTensor("model.norm.weight", "BF16", (self.embedding,), 2 * self.embedding))
        for i in range(self.layers):
            for name, (columns, rows) in self.matrices().items():
                size = int(columns * rows * bits / 8)
                tensors.append(HfTensor(f"model.layers.{i}.{_HUB.get(name, name)}.weight", "U8", (rows, columns), size))
            for name, size in self.vectors().items():
                tensors.append(HfTensor(f"model.layers.{i}.{name}.weight", "BF16", (size,), 2 * size))
        config = {
            "num_hidden_layers": self.layers,
            "hidden_size": self.embedding,
            "intermediate_size": self.ff,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads_kv,
            "head_dim": self.head,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.trained,
        }
        return HfModel(dict(config), tuple(tensors))

    def known(self) -> KnownModel:
        ggufs = {
            "Q4_K_M": self.gguf(self.q4_k_m),
            "Q8_0": self.gguf(lambda *_: "q8_0"),
            "F16": self.gguf(lambda *_: "f16"),
        }
        hubs = {"bf16": self.hub(16), "fp8": self.hub(8), "w4a16": self.hub(4 + 16 / 128)}
        return KnownModel(self.title, ggufs, hubs, self.trained)


_HUB = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj"}
_ENDS = ("model.embed_tokens", "lm_head")

SHAPES: dict[str, Dense] = {
    "llama-3.1-8b": Dense(
        "Llama 3.1 8B", "llama", 32, 4096, 14336, 32, 8, vocabulary=128256, trained=131072, rope_freqs=True
    ),
    "llama-3.3-70b": Dense(
        "Llama 3.3 70B",
        "llama",
        80,
        8192,
        28672,
        64,
        8,
        vocabulary=128256,
        trained=131072,
        rope_freqs=True,
        shared_v="q5_K",
    ),
    "qwen3-8b": Dense("Qwen3 8B", "qwen3", 36, 4096, 12288, 32, 8, vocabulary=151936, trained=40960, qk_norm=True),
    "qwen3-32b": Dense("Qwen3 32B", "qwen3", 64, 5120, 25600, 64, 8, vocabulary=151936, trained=40960, qk_norm=True),
    "mistral-small-24b": Dense("Mistral Small 24B", "llama", 40, 5120, 32768, 32, 8, vocabulary=131072, trained=32768),
}
"""From meta-llama/Llama-3.1-8B-Instruct, meta-llama/Llama-3.3-70B-Instruct, Qwen/Qwen3-8B, Qwen/Qwen3-32B and
mistralai/Mistral-Small-24B-Instruct-2501."""
