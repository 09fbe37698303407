"""GGUF files of known shape without weights: a real header, then a hole as long as the data would be."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter

from llmsupervisor.plan.ggml_types import TYPES
from llmsupervisor.plan.gguf import GgufHeader, Tensor

VOCABULARY = 1024


@dataclass(frozen=True)
class Model:
    """`keys` without the architecture in front. Tensors: name → (dimensions as ggml counts them, type)."""

    architecture: str
    keys: Mapping[str, Any]
    tensors: Mapping[str, tuple[Sequence[int], Type]]
    vocabulary: int = VOCABULARY


def write(model: Model, path: Path) -> Path:
    writer = GGUFWriter(path, model.architecture)
    for key, value in model.keys.items():
        name = f"{model.architecture}.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_array(name, value)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}" for i in range(model.vocabulary)])
    writer.add_token_scores([0.0] * model.vocabulary)
    writer.add_token_types([1] * model.vocabulary)
    if "token_types.weight" in model.tensors:
        writer.add_token_type_count(2)
    for name, (dims, kind) in model.tensors.items():
        shape = tuple(reversed(dims))
        size = int(numpy.prod(shape)) // BLOCKS[kind][0] * BLOCKS[kind][1]
        writer.add_tensor_info(name, shape, numpy.dtype(numpy.float32), size, raw_dtype=kind)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    data = sum(
        -(-int(numpy.prod(dims)) // BLOCKS[kind][0] * BLOCKS[kind][1] // 32) * 32
        for dims, kind in model.tensors.values()
    )
    header = -(-path.stat().st_size // 32) * 32
    os.truncate(path, header + data)
    return path


def header(model: Model) -> GgufHeader:
    """As the reader would give it."""
    values = {f"{model.architecture}.{k}": tuple(v) if isinstance(v, list) else v for k, v in model.keys.items()}

    def one(name: str, dims: Sequence[int], kind: Type) -> Tensor:
        type_name, block, size = TYPES[int(kind)]
        layer = int(name.split(".")[1]) if name.startswith("blk.") else None
        return Tensor(name, tuple(dims), type_name, prod(dims) // block * size, layer)

    return GgufHeader(
        version=3,
        values={"general.architecture": model.architecture, **values},
        lengths={"tokenizer.ggml.tokens": model.vocabulary},
        tensors=tuple(one(name, *what) for name, what in model.tensors.items()),
        alignment=32,
        data_offset=0,
        data_bytes=0,
    )


BLOCKS = {kind: TYPES[int(kind)][1:] for kind in Type if int(kind) in TYPES}


def decoder(
    architecture: str = "llama",
    *,
    layers: int = 4,
    embd: int = 512,
    ff: int = 1536,
    heads: int = 8,
    heads_kv: int | list[int] = 2,
    head: int | None = None,
    context: int = 131072,
    vocabulary: int = VOCABULARY,
    tied: bool = False,
    bias: bool = False,
    qk_norm: bool = False,
    post_norms: bool = False,
    fused: bool = False,
    experts: int = 0,
    experts_used: int = 0,
    ff_exp: int = 0,
    weights: Type = Type.Q8_0,
    keys: Mapping[str, Any] | None = None,
) -> Model:
    size = head or embd // heads
    per_layer = [heads_kv] * layers if isinstance(heads_kv, int) else heads_kv
    said: dict[str, Any] = {
        "context_length": context,
        "embedding_length": embd,
        "block_count": layers,
        "feed_forward_length": ff,
        "attention.head_count": heads,
        "attention.head_count_kv": heads_kv,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": size,
    }
    if head:
        said |= {"attention.key_length": head, "attention.value_length": head}
    if experts:
        said |= {"expert_count": experts, "expert_used_count": experts_used}
        said |= {"expert_feed_forward_length": ff_exp} if architecture != "llama" else {}
    tensors: dict[str, tuple[Sequence[int], Type]] = {"token_embd.weight": ((embd, vocabulary), weights)}
    tensors["output_norm.weight"] = ((embd,), Type.F32)
    if not tied:
        tensors["output.weight"] = ((embd, vocabulary), weights)
    for i in range(layers):
        kv = per_layer[i]
        b = f"blk.{i}."
        tensors[b + "attn_norm.weight"] = ((embd,), Type.F32)
        parts = {"q": size * heads, "k": size * kv, "v": size * kv}
        if fused:
            tensors[b + "attn_qkv.weight"] = ((embd, sum(parts.values())), weights)
        else:
            for name, rows in parts.items():
                tensors[b + f"attn_{name}.weight"] = ((embd, rows), weights)
                if bias:
                    tensors[b + f"attn_{name}.bias"] = ((rows,), Type.F32)
        if qk_norm:
            tensors[b + "attn_q_norm.weight"] = ((size,), Type.F32)
            tensors[b + "attn_k_norm.weight"] = ((size,), Type.F32)
        tensors[b + "attn_output.weight"] = ((size * heads, embd), weights)
        if post_norms:
            tensors[b + "post_attention_norm.weight"] = ((embd,), Type.F32)
            tensors[b + "post_ffw_norm.weight"] = ((embd,), Type.F32)
        tensors[b + "ffn_norm.weight"] = ((embd,), Type.F32)
        if experts:
            width = ff_exp or ff
            tensors[b + "ffn_gate_inp.weight"] = ((embd, experts), Type.F32)
            tensors[b + "ffn_gate_exps.weight"] = ((embd, width, experts), weights)
            tensors[b + "ffn_up_exps.weight"] = ((embd, width, experts), weights)
            tensors[b + "ffn_down_exps.weight"] = ((width, embd, experts), weights)
        elif architecture in ("phi3", "glm4"):
            tensors[b + "ffn_up.weight"] = ((embd, 2 * ff), weights)
            tensors[b + "ffn_down.weight"] = ((ff, embd), weights)
        else:
            tensors[b + "ffn_gate.weight"] = ((embd, ff), weights)
            tensors[b + "ffn_up.weight"] = ((embd, ff), weights)
            tensors[b + "ffn_down.weight"] = ((ff, embd), weights)
    return Model(architecture, said | dict(keys or {}), tensors, vocabulary)


def gpt_oss(*, layers: int = 4, embd: int = 512, heads: int = 8, heads_kv: int = 2, experts: int = 8) -> Model:
    """Sliding layers in turn, sinks, biases, experts chosen before the softmax."""
    base = decoder(
        "gpt-oss",
        layers=layers,
        embd=embd,
        heads=heads,
        heads_kv=heads_kv,
        head=64,
        bias=True,
        experts=experts,
        experts_used=4,
        ff_exp=embd,
        keys={"attention.sliding_window": 128},
    )
    tensors = dict(base.tensors)
    for i in range(layers):
        b = f"blk.{i}."
        del tensors[b + "ffn_norm.weight"]
        tensors[b + "post_attention_norm.weight"] = ((embd,), Type.F32)
        tensors[b + "attn_sinks.weight"] = ((heads,), Type.F32)
        tensors[b + "attn_output.bias"] = ((embd,), Type.F32)
        tensors[b + "ffn_gate_inp.bias"] = ((experts,), Type.F32)
        for name in ("gate", "up", "down"):
            tensors[b + f"ffn_{name}_exps.bias"] = ((embd, experts), Type.F32)
    return Model("gpt-oss", base.keys, tensors, base.vocabulary)


def deepseek2(
    *,
    layers: int = 4,
    embd: int = 512,
    ff: int = 1536,
    heads: int = 8,
    experts: int = 8,
    experts_used: int = 4,
    ff_exp: int = 256,
    rank: int = 512,
    q_rank: int = 0,
    rope: int = 64,
    nope: int = 128,
    value: int = 128,
    absorbed: bool = True,
    fused: bool = False,
    vocabulary: int = VOCABULARY,
    weights: Type = Type.Q8_0,
    keys: Mapping[str, Any] | None = None,
) -> Model:
    """Multi-head latent attention, kept compressed (`absorbed`) or as in older files; gate and up of the experts in
    one tensor (`fused`); one dense layer, shared expert.

    llama.cpp takes 26 and 27 layers for the lite kind, without a rank of the queries.
    """
    said: dict[str, Any] = {
        "context_length": 163840,
        "embedding_length": embd,
        "block_count": layers,
        "feed_forward_length": ff,
        "attention.head_count": heads,
        "attention.head_count_kv": 1 if absorbed else heads,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rope if absorbed else nope + rope,
        "attention.value_length": rank if absorbed else value,
        "rope.dimension_count": rope,
        "leading_dense_block_count": 1,
        "expert_count": experts,
        "expert_used_count": experts_used,
        "expert_shared_count": 2,
        "expert_feed_forward_length": ff_exp,
        "expert_gating_func": 1,
    }
    if absorbed:
        said |= {"attention.key_length_mla": nope + rope, "attention.value_length_mla": value}
    if q_rank:
        said["attention.q_lora_rank"] = q_rank
    tensors: dict[str, tuple[Sequence[int], Type]] = {
        "token_embd.weight": ((embd, vocabulary), weights),
        "output_norm.weight": ((embd,), Type.F32),
        "output.weight": ((embd, vocabulary), weights),
    }
    for i in range(layers):
        b = f"blk.{i}."
        tensors[b + "attn_norm.weight"] = ((embd,), Type.F32)
        if q_rank:
            tensors[b + "attn_q_a_norm.weight"] = ((q_rank,), Type.F32)
            tensors[b + "attn_q_a.weight"] = ((embd, q_rank), weights)
            tensors[b + "attn_q_b.weight"] = ((q_rank, heads * (nope + rope)), weights)
        else:
            tensors[b + "attn_q.weight"] = ((embd, heads * (nope + rope)), weights)
        tensors[b + "attn_kv_a_norm.weight"] = ((rank,), Type.F32)
        tensors[b + "attn_kv_a_mqa.weight"] = ((embd, rank + rope), weights)
        if absorbed:
            tensors[b + "attn_k_b.weight"] = ((nope, rank, heads), weights)
            tensors[b + "attn_v_b.weight"] = ((rank, value, heads), weights)
        else:
            tensors[b + "attn_kv_b.weight"] = ((rank, heads * (nope + value)), weights)
        tensors[b + "attn_output.weight"] = ((heads * value, embd), weights)
        tensors[b + "ffn_norm.weight"] = ((embd,), Type.F32)
        if i == 0:
            for name, dims in (("gate", (embd, ff)), ("up", (embd, ff)), ("down", (ff, embd))):
                tensors[b + f"ffn_{name}.weight"] = (dims, weights)
            continue
        tensors[b + "ffn_gate_inp.weight"] = ((embd, experts), Type.F32)
        if fused:
            tensors[b + "ffn_gate_up_exps.weight"] = ((embd, 2 * ff_exp, experts), weights)
        for name in ("gate", "up", "down"):
            one = (ff_exp, embd) if name == "down" else (embd, ff_exp)
            both = (2 * ff_exp, embd) if name == "down" else (embd, 2 * ff_exp)
            if name == "down" or not fused:
                tensors[b + f"ffn_{name}_exps.weight"] = ((*one, experts), weights)
            tensors[b + f"ffn_{name}_shexp.weight"] = (both, weights)
    return Model("deepseek2", said | dict(keys or {}), tensors, vocabulary)


def lfm2(
    *, embd: int = 512, ff: int = 1536, heads: int = 8, kv: Sequence[int] = (0, 0, 2, 0), vocabulary: int = VOCABULARY
) -> Model:
    """Short convolutions, and attention where `kv` says how many heads."""
    base = decoder("lfm2", layers=len(kv), embd=embd, ff=ff, heads=heads, heads_kv=list(kv), vocabulary=vocabulary)
    tensors = {name: what for name, what in base.tensors.items() if name not in ("output.weight", "output_norm.weight")}
    tensors["token_embd_norm.weight"] = ((embd,), Type.F32)
    for i, count in enumerate(kv):
        b = f"blk.{i}."
        if count:
            tensors[b + "attn_q_norm.weight"] = ((embd // heads,), Type.F32)
            tensors[b + "attn_k_norm.weight"] = ((embd // heads,), Type.F32)
            continue
        for name in ("q", "k", "v", "output"):
            del tensors[b + f"attn_{name}.weight"]
        tensors[b + "shortconv.conv.weight"] = ((3, embd), Type.F32)
        tensors[b + "shortconv.in_proj.weight"] = ((embd, 3 * embd), Type.Q8_0)
        tensors[b + "shortconv.out_proj.weight"] = ((embd, embd), Type.Q8_0)
    return Model("lfm2", {**base.keys, "shortconv.l_cache": 3}, tensors, vocabulary)


def mamba2(
    *, layers: int = 4, embd: int = 512, state: int = 128, groups: int = 1, head: int = 64, vocabulary: int = VOCABULARY
) -> Model:
    inner = 2 * embd
    heads, wide = inner // head, inner + 2 * groups * state
    said = {
        "context_length": 1048576,
        "embedding_length": embd,
        "block_count": layers,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.group_count": groups,
        "ssm.time_step_rank": heads,
    }
    tensors: dict[str, tuple[Sequence[int], Type]] = {
        "token_embd.weight": ((embd, vocabulary), Type.Q8_0),
        "output_norm.weight": ((embd,), Type.F32),
    }
    for i in range(layers):
        b = f"blk.{i}."
        tensors[b + "attn_norm.weight"] = ((embd,), Type.F32)
        tensors[b + "ssm_in.weight"] = ((embd, inner + wide + heads), Type.Q8_0)
        tensors[b + "ssm_conv1d.weight"] = ((4, wide), Type.F32)
        tensors[b + "ssm_conv1d.bias"] = ((wide,), Type.F32)
        tensors[b + "ssm_dt.bias"] = ((heads,), Type.F32)
        tensors[b + "ssm_a"] = ((1, heads), Type.F32)
        tensors[b + "ssm_d"] = ((1, heads), Type.F32)
        tensors[b + "ssm_norm.weight"] = ((inner // groups, groups), Type.F32)
        tensors[b + "ssm_out.weight"] = ((inner, embd), Type.Q8_0)
    return Model("mamba2", said, tensors, vocabulary)


def lora(model: Model, rank: int, *names: str) -> Model:
    """Of the matrices whose names hold one of `names`, as `convert_lora_to_gguf.py` writes them."""
    tensors: dict[str, tuple[Sequence[int], Type]] = {}
    for name, (dims, _) in model.tensors.items():
        if len(dims) > 1 and any(part in name for part in names):
            tensors[f"{name}.lora_a"] = ((dims[0], rank, *dims[2:]), Type.F32)
            tensors[f"{name}.lora_b"] = ((rank, *dims[1:]), Type.F32)
    return Model(model.architecture, {}, tensors, 1)


def write_lora(model: Model, path: Path) -> Path:
    """With weights: they are read at the start, and are all 0."""
    writer = GGUFWriter(path, model.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 1.0)
    for name, (dims, _) in model.tensors.items():
        writer.add_tensor(name, numpy.zeros(tuple(reversed(dims)), numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
