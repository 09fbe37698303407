"""Which graph an architecture builds, and the bytes of its compute buffer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from llmsupervisor.plan.gguf import GgufHeader
from llmsupervisor.plan.memory_alloc import CACHE, Graph, Tensor
from llmsupervisor.plan.memory_graph import Attention, Builder, Run
from llmsupervisor.plan.memory_pooling import bert, gemma_embedding, pool
from llmsupervisor.plan.memory_shape import Layer, NoFormula, Shape

MAX_EXPERTS_USED = 64
FEW = 6


@dataclass(frozen=True, slots=True)
class Compute:
    """Bytes of the buffer, and of the inputs in it."""

    bytes: int
    inputs: int


def compute(header: GgufHeader, shape: Shape, run: Run, adapters: Sequence[GgufHeader] = ()) -> Compute | NoFormula:
    """The compute buffer of the reserved prompt graph on one backend (llama.cpp's `compute buffer size`)."""
    build = BUILDERS.get(shape.architecture)
    if build is None or (shape.architecture == "lfm2" and shape.window):
        return NoFormula(f"no formula for the compute buffer of architecture {shape.architecture!r}")
    if adapters and any(tensor.name.startswith("token_embd.") for adapter in adapters for tensor in adapter.tensors):
        return NoFormula("no formula for the compute buffer with a LoRA of the embedding")
    builder = Builder(header, _short(header, shape, adapters), run, adapters)
    if any(used > MAX_EXPERTS_USED for used in builder.experts_used):
        return NoFormula(f"the file says more than {MAX_EXPERTS_USED} experts per token")
    alignment = 128 if run.device else 32
    if run.pooling and shape.cache and shape.architecture not in _DECODERS.split():
        return NoFormula(f"no formula for the compute buffer of architecture {shape.architecture!r} that embeds")
    try:
        graph = build(builder)
    except (KeyError, IndexError, ZeroDivisionError, ValueError, AssertionError):
        return NoFormula(f"the tensors are not those of a {shape.architecture} model")
    inputs = graph.input_bytes(alignment)
    return Compute(graph.size(alignment), inputs)


def _short(header: GgufHeader, shape: Shape, adapters: Sequence[GgufHeader]) -> Shape:
    """Layers that are all the same need the buffer of the first few: each works in what the one before left."""
    kinds: dict[int, set[tuple[str, tuple[int, ...]]]] = {}
    for tensor in (tensor for file in (header, *adapters) for tensor in file.tensors):
        if tensor.layer is not None:
            kinds.setdefault(tensor.layer, set()).add((tensor.name.split(".", 2)[2], tensor.shape))
    first = replace(shape.layers[0], index=0)
    same = all(replace(one, index=0) == first and kinds.get(one.index) == kinds.get(0) for one in shape.layers)
    return replace(shape, layers=shape.layers[:FEW]) if same else shape


def _decoder(b: Builder) -> Graph:
    """llama and all that differ from it by norms, biases, experts and sliding layers."""
    g, architecture = b.graph, b.shape.architecture
    cur = b.embed(scaled=architecture == "gemma3")
    positions = g.input(b.n, kind="i32")
    full = b.attention(b.run.cells)
    sliding = b.attention(b.run.cells_sliding) if b.shape.window else full
    out = g.input(b.run.rows, kind="i32")
    own = architecture == "gpt-oss"
    for layer in b.shape.layers:
        before = cur
        q, k, v = b.qkv(layer, b.rms(cur))
        if b.has(layer, "attn_q_norm.weight"):
            q, k = b.rms(q), b.rms(k)
        q, k = g.same(q, positions), g.same(k, positions)
        inputs = sliding if layer.sliding else full
        cur = b.attend(layer, inputs, q, k, v, v_first=not b.shape.window)
        if not own:
            cur, before = b.only_outputs(layer, out, cur, before)
            if b.has(layer, "post_attention_norm.weight"):
                cur = b.rms(cur)
        between = g.same(cur, before)
        cur = _feed_forward(b, layer, b.rms(between))
        if b.has(layer, "post_ffw_norm.weight"):
            cur = b.rms(cur)
        cur = g.same(cur, between)
    if own:
        cur.output = True
        cur = g.new((cur.dims[0], b.run.rows), cur, out)
    return _finish(b, cur)


def _finish(b: Builder, cur: Tensor) -> Graph:
    g = b.finish(cur, capped=b.shape.architecture == "gemma2")
    pool(b, b.normed)
    return g


def _feed_forward(b: Builder, layer: Layer, a: Tensor) -> Tensor:
    if not b.has(layer, "ffn_gate_inp.weight"):
        return b.ffn(layer, a)
    if b.shape.architecture == "gpt-oss":
        return b.experts(layer, a, normed=False, scaled=_scaled(b), gating="softmax_weight")
    return b.experts(layer, a, normed=True, scaled=_scaled(b))


def _scaled(b: Builder) -> bool:
    scale = b.header.values.get(f"{b.shape.architecture}.expert_weights_scale", 0.0)
    return scale not in (0.0, 1.0)


def _deepseek2(b: Builder) -> Graph:
    g, header, n = b.graph, b.header, b.n
    cur = b.embed()
    positions = g.input(n, kind="i32")
    inputs = b.attention(b.run.cells, k_only=b.shape.mla)
    out = g.input(b.run.rows, kind="i32")
    rank = header.number("attention.kv_lora_rank") or 0
    rope = header.number("rope.dimension_count") or 0
    dense = header.number("leading_dense_block_count") or 0
    for layer in b.shape.layers:
        before = cur
        attend = _mla if b.shape.mla else _mla_decompressed
        cur = attend(b, layer, inputs, b.rms(cur), positions, rank, rope)
        cur, before = b.only_outputs(layer, out, cur, before)
        between = g.same(cur, before)
        normed = b.rms(between)
        if layer.index < dense:
            cur = b.ffn(layer, normed)
        else:
            gating = "sigmoid" if header.number("expert_gating_func") == 2 else "softmax"
            weighed = bool(header.values.get(f"{header.architecture}.expert_weights_norm"))
            routed = b.experts(layer, normed, normed=weighed, scaled=_scaled(b), gating=gating)
            cur = g.same(routed, b.ffn(layer, normed, "_shexp"))
        cur = g.same(cur, between)
    return b.finish(cur)


def _latent(b: Builder, layer: Layer, a: Tensor, positions: Tensor, rank: int, rope: int) -> tuple[Tensor, ...]:
    """Queries, the compressed keys and values, and the rotated part of the keys."""
    g, n = b.graph, b.n
    if b.has(layer, "attn_q_a.weight"):
        q = b.linear(layer, "attn_q_b", b.rms(b.linear(layer, "attn_q_a", a)))
    else:
        q = b.linear(layer, "attn_q", a)
    q = g.reshape(q, q.dims[0] // layer.heads, layer.heads, n)
    both = b.linear(layer, "attn_kv_a_mqa", a)
    width = 4 * (rank + rope)
    k_rope = g.same(g.view(both, (rope, 1, n), (width, width)), positions)
    return q, b.rms(g.view(both, (rank, n), (width,))), k_rope


def _mla(b: Builder, layer: Layer, inputs: Attention, a: Tensor, positions: Tensor, rank: int, rope: int) -> Tensor:
    g, n = b.graph, b.n
    q, latent, k_rope = _latent(b, layer, a, positions, rank, rope)
    head, heads = q.dims[0], layer.heads
    nope = head - rope
    q_nope = g.view(q, (nope, heads, n), (q.strides[1], q.strides[2]))
    q_rope = g.same(g.view(q, (rope, heads, n), (q.strides[1], q.strides[2])), positions)
    absorbed = g.permute(g.new((rank, n, heads), g.permute(q_nope, 0, 2, 1, 3)), 0, 2, 1, 3)
    query = g.new((rank + rope, heads, n), absorbed, q_rope)
    value = g.reshape(latent, rank, 1, n)
    key = g.new((rank + rope, 1, n), value, k_rope)
    for part in (query, value, key):
        g.expand(part)
    g.expand(g.store(g.view(key, (rank + rope, n), (key.strides[2],)), inputs.k_ids))
    value_head = b.header.number("attention.value_length_mla") or 0
    found = b.heads(layer, inputs, query, rank, decompress=value_head)
    return b.linear(layer, "attn_output", found)


def _mla_decompressed(
    b: Builder, layer: Layer, inputs: Attention, a: Tensor, positions: Tensor, rank: int, rope: int
) -> Tensor:
    g, n, heads = b.graph, b.n, layer.heads
    q, latent, k_rope = _latent(b, layer, a, positions, rank, rope)
    nope = q.dims[0] - rope
    both = b.linear(layer, "attn_kv_b", latent)
    width = 4 * (nope + layer.head_v)
    key = g.view(both, (nope, heads, n), (width, width * heads))
    value = g.copy(g.view(both, (layer.head_v, heads, n), (width, width * heads)))
    query = g.same(q, positions)
    key = g.new((q.dims[0], heads, n), key, g.new((rope, heads, n), k_rope))
    return b.attend(layer, inputs, query, key, value, v_first=True)


def _states(b: Builder, ids: Tensor, size: int, *, read_in_place: Tensor | None = None) -> Tensor:
    """`build_rs`: the states of the sequences of this ubatch, gathered; or read where they lie by an operation."""
    g, n = b.graph, b.run.sequences
    if read_in_place is not None:
        gathered = g.new((size, n - 1), g.view(ids, (n - 1,)))
        g.expand(read_in_place)
        g.expand(g.store(g.view(gathered, (size, 0), (4 * size,))))
        return read_in_place
    gathered = g.new((size, n), ids)
    found = g.view(gathered, (size, n), (4 * size,))
    g.expand(found)
    g.expand(g.store(g.view(gathered, (size, 0), (4 * size,))))
    return found


def _lfm2(b: Builder) -> Graph:
    g, width = b.graph, b.shape.embedding
    cur = b.embed()
    ids = g.input(b.run.sequences, kind="i32")
    full = b.attention(b.run.cells)
    positions = g.input(b.n, kind="i32")
    out = g.input(b.run.rows, kind="i32")
    for layer in b.shape.layers:
        before = cur
        normed = b.rms(cur)
        if layer.recurrent:
            cur = _short_convolution(b, layer, normed, ids)
        else:
            q, k, v = b.qkv(layer, normed)
            q, k = g.same(b.rms(q), positions), g.same(b.rms(k), positions)
            cur = b.attend(layer, full, q, k, v, v_first=True)
        if layer is b.shape.layers[-1]:
            cur = g.new((width, b.run.rows), cur, out)
            before = g.new((width, b.run.rows), before, out)
        between = g.same(before, cur)
        cur = g.same(between, b.ffn(layer, b.rms(between)))
    return b.finish(cur)


def _short_convolution(b: Builder, layer: Layer, a: Tensor, ids: Tensor) -> Tensor:
    g, width, sequences = b.graph, b.shape.embedding, b.run.sequences
    each = b.n // sequences
    kept = layer.conv_state // width
    bcx = b.linear(layer, "shortconv.in_proj", g.reshape(a, width, each, sequences))
    strides = (bcx.strides[1], bcx.strides[2])
    part_b, part_c, part_x = (g.view(bcx, (width, each, sequences), strides) for _ in range(3))
    mixed = g.transpose(g.same(part_b, part_x))
    state = g.reshape(_states(b, ids, layer.conv_state), kept, width, sequences)
    window = g.new((kept + each, width, sequences), state, mixed)
    tail = g.view(window, (kept, width, sequences), (window.strides[1], window.strides[2]))
    g.expand(g.store(tail))
    convolved = g.new((width, each, sequences), window)
    y = b.linear(layer, "shortconv.out_proj", g.same(part_c, convolved))
    return g.reshape(y, width, b.n)


def _mamba2(b: Builder) -> Graph:
    g = b.graph
    cur = b.embed()
    ids = g.input(b.run.sequences, kind="i32")
    out = g.input(b.run.rows, kind="i32")
    for layer in b.shape.layers:
        before = cur
        cur = _mamba2_layer(b, layer, b.rms(cur), ids)
        cur, before = b.only_outputs(layer, out, cur, before)
        cur = g.same(cur, before)
    return b.finish(cur)


def _mamba2_layer(b: Builder, layer: Layer, a: Tensor, ids: Tensor) -> Tensor:
    g, header, s = b.graph, b.header, b.run.sequences
    each = b.n // s
    inner, state = header.number("ssm.inner_size") or 0, header.number("ssm.state_size") or 0
    groups, heads = header.number("ssm.group_count") or 0, header.number("ssm.time_step_rank") or 1
    kept = (header.number("ssm.conv_kernel") or 1) - 1
    wide, head = inner + 2 * groups * state, inner // heads
    conv = g.reshape(_states(b, ids, layer.conv_state), kept, wide, s)
    projected = b.linear(layer, "ssm_in", a)
    projected = g.reshape(projected, projected.dims[0], each, s)
    row = projected.strides
    z = g.view(projected, (head, heads, each, s), (4 * head, row[1], row[2]))
    xbc = g.view(projected, (wide, each, s), (row[1], row[2]))
    dt = g.view(projected, (heads, each, s), (row[1], row[2]))
    window = g.new((kept + each, wide, s), conv, g.transpose(xbc))
    g.expand(g.store(g.view(window, (kept, wide, s), (window.strides[1], window.strides[2]))))
    xbc = g.same(g.same(g.new((wide, each, s), window)))
    row = xbc.strides
    x = g.view(xbc, (head, heads, each, s), (4 * head, row[1], row[2]))
    part_b = g.view(xbc, (state, groups, each, s), (4 * state, row[1], row[2]))
    part_c = g.view(xbc, (state, groups, each, s), (4 * state, row[1], row[2]))
    dt = g.same(g.copy(dt))
    scanned = g.new((inner * each * s + state * inner * s,), CACHE, x, dt, part_b, part_c, g.view(ids, (s,)))
    y_all = _states(b, ids, state * inner, read_in_place=scanned)
    g.expand(g.store(g.view(y_all, (state * inner, s, 1), (4 * state * inner, 4 * state * inner * s))))
    y = g.view(y_all, (head, heads, each, s), (x.strides[1], heads * x.strides[1], each * heads * x.strides[1]))
    y = g.same(y, g.same(x))
    y = g.new(z.dims, g.copy(z), y)
    if b.has(layer, "ssm_norm.weight"):
        y = b.rms(g.reshape(y, inner // groups, groups, each, s))
    return b.linear(layer, "ssm_out", g.reshape(y, inner, b.n))


_DECODERS = (
    "llama mistral3 qwen2 qwen3 qwen3moe phi3 glm4 gemma gemma2 gemma3 gpt-oss internlm2 ernie4_5 smollm3 exaone minicpm "
    "hunyuan-dense xverse granite granitemoe"
)

BUILDERS: dict[str, Callable[[Builder], Graph]] = {
    **dict.fromkeys(_DECODERS.split(), _decoder),
    "deepseek2": _deepseek2,
    **dict.fromkeys(("bert", "nomic-bert", "jina-bert-v3"), bert),
    "gemma-embedding": gemma_embedding,
    "lfm2": _lfm2,
    "mamba2": _mamba2,
}
