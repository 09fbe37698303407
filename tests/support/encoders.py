"""GGUF files of encoders, without weights."""

from __future__ import annotations

from collections.abc import Sequence

from support.gguf_files import VOCABULARY, Model, Type, decoder


def bert(architecture: str = "bert", *, layers: int = 4, embd: int = 256, ff: int = 1024, ranks: bool = False) -> Model:
    """An encoder; all but `bert` itself turn their positions and have a gate. `ranks`: with a head for reranking."""
    own = architecture == "bert"
    tensors: dict[str, tuple[Sequence[int], Type]] = {
        "token_embd.weight": ((embd, VOCABULARY), Type.F16),
        "token_types.weight": ((embd, 2), Type.F32),
    }
    if own:
        tensors["position_embd.weight"] = ((embd, 512), Type.F32)
    norms = ["token_embd_norm"]
    for i in range(layers):
        matrices = {f"attn_{name}": (embd, embd) for name in ("q", "k", "v", "output")}
        matrices |= {"ffn_up": (embd, ff), "ffn_down": (ff, embd)} | ({} if own else {"ffn_gate": (embd, ff)})
        for name, dims in matrices.items():
            tensors[f"blk.{i}.{name}.weight"] = (dims, Type.F16)
            if own:
                tensors[f"blk.{i}.{name}.bias"] = ((dims[1],), Type.F32)
        norms += [f"blk.{i}.attn_output_norm", f"blk.{i}.layer_output_norm"]
    for name in norms:
        tensors |= {f"{name}.{part}": ((embd,), Type.F32) for part in ("weight", "bias")}
    for name, rows in {"cls": embd, "cls.output": 1}.items() if ranks else ():
        tensors |= {f"{name}.weight": ((embd, rows), Type.F32), f"{name}.bias": ((rows,), Type.F32)}
    keys = {
        "context_length": 512,
        "embedding_length": embd,
        "block_count": layers,
        "feed_forward_length": ff,
        "attention.head_count": 4,
        "attention.layer_norm_epsilon": 1e-12,
        "attention.causal": False,
        "pooling_type": 2,
        **({} if own else {"rope.freq_base": 1000.0}),
    }
    return Model(architecture, keys, tensors)


def gemma_embedding(layers: int = 7) -> Model:
    keys = {"attention.sliding_window": 128, "pooling_type": 1}
    return decoder(
        "gemma-embedding", layers=layers, embd=256, ff=512, heads=4, heads_kv=1, head=64, tied=True, qk_norm=True,
        post_norms=True, keys=keys,
    )  # fmt: skip
