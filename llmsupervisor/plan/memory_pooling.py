"""The graphs of embedding and reranking servers: encoders without a cache, and what pools the tokens of a sequence.

Source: `models/bert.cpp`, `models/gemma-embedding.cpp`, `build_pooling` and `build_attn` without a cache of llama.cpp.
"""

from __future__ import annotations

from llmsupervisor.plan.gguf import GgufHeader
from llmsupervisor.plan.memory_alloc import Graph, Tensor
from llmsupervisor.plan.memory_graph import Builder
from llmsupervisor.plan.memory_shape import Layer

POOLINGS = ("none", "mean", "cls", "last", "rank")
ROTATES = ("nomic-bert", "jina-bert-v3")


def pooling_of(header: GgufHeader) -> str:
    """As the file says; llama.cpp takes none where it says nothing."""
    kind = header.number("pooling_type") or 0
    return POOLINGS[kind] if kind < len(POOLINGS) else ""


def pool(b: Builder, tokens: Tensor) -> None:
    """`tokens`: the last hidden state of each."""
    g, sequences, kind = b.graph, b.run.sequences, b.run.pooling
    if kind in ("", "none"):
        return
    if kind == "mean":
        turned = g.copy(g.transpose(tokens))
        found = g.new((tokens.dims[0], sequences), turned, g.input(b.n, sequences))
    else:
        found = g.new((tokens.dims[0], sequences), tokens, g.input(sequences, kind="i32"))
    if kind == "rank":
        found = _head(b, found)
    found.output = True
    g.expand(found)


def _head(b: Builder, found: Tensor) -> Tensor:
    g = b.graph
    for name, bent in (("cls", True), ("cls.output", False)):
        if (weight := b.names.get(f"{name}.weight")) is not None:
            found = g.matmul(weight.shape[1], found)
            found = g.same(found) if f"{name}.bias" in b.names else found
            found = g.same(found) if bent else found
    return g.same(found) if b.shape.architecture in ("qwen3", "qwen3vl") else found


def bert(b: Builder) -> Graph:
    g, architecture = b.graph, b.shape.architecture
    positions = g.input(b.n, kind="i32")
    cur = b.embed()
    if "token_types.weight" in b.names:
        cur = g.same(cur)
    if architecture == "bert":
        cur = g.same(g.new(cur.dims, positions), cur)
    cur = _norm(b, cur)
    mask = b.mask()
    out = g.input(b.run.rows, kind="i32")
    for layer in b.shape.layers:
        before = cur
        q, k, v = b.qkv(layer, cur)
        q, k = (_flat_norm(b, layer, name, part) for name, part in (("q", q), ("k", k)))
        if architecture in ROTATES:
            q, k = g.same(q, positions), g.same(k, positions)
        cur = b.attend_bare(layer, mask, q, k, v)
        cur, before = b.only_outputs(layer, out, cur, before)
        cur = between = _norm(b, g.same(cur, before))
        if b.has(layer, "ffn_gate.weight"):
            cur = b.ffn(layer, cur)
        else:
            cur = b.linear(layer, "ffn_down", g.same(b.linear(layer, "ffn_up", cur)))
        cur = _norm(b, g.same(cur, between))
    cur.output = True
    g.expand(cur)
    pool(b, cur)
    return g


def gemma_embedding(b: Builder) -> Graph:
    g = b.graph
    cur = b.embed(scaled=True)
    positions = g.input(b.n, kind="i32")
    full, sliding = b.mask(), b.mask()
    every = b.header.number("attention.sliding_window_pattern") or 6
    out = g.input(b.run.rows, kind="i32")
    for layer in b.shape.layers:
        before = cur
        q, k, v = b.qkv(layer, b.rms(cur))
        q, k = g.same(g.same(b.rms(q), positions)), g.same(b.rms(k), positions)
        cur = b.attend_bare(layer, full if layer.index % every == every - 1 else sliding, q, k, v)
        cur, before = b.only_outputs(layer, out, cur, before)
        between = g.same(b.rms(cur), before)
        cur = g.same(b.rms(b.ffn(layer, b.rms(between))), between)
    cur = b.rms(cur)
    cur.output = True
    g.expand(cur)
    pool(b, cur)
    return g


def _norm(b: Builder, a: Tensor) -> Tensor:
    """LayerNorm never works in place, and has a weight and a bias."""
    return b.graph.same(b.graph.same(b.graph.new(a.dims, a)))


def _flat_norm(b: Builder, layer: Layer, name: str, a: Tensor) -> Tensor:
    if not b.has(layer, f"attn_{name}_norm.weight"):
        return a
    flat = b.graph.reshape(a, a.dims[0] * a.dims[1], a.dims[2])
    return b.graph.reshape(_norm(b, flat), *a.dims)
