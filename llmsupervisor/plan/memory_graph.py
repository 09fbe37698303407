"""The graphs that llama.cpp reserves its compute buffer for: one ubatch of a full prompt, `rows` outputs.

Each function follows one of `llama-graph.cpp` (blocks) or `models/*.cpp` (architectures), operation by operation: the
order of the operations decides what lives at the same time. Which biases and norms there are is read from the tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from llmsupervisor.plan.gguf import GgufHeader
from llmsupervisor.plan.gguf import Tensor as FileTensor
from llmsupervisor.plan.memory_alloc import CACHE, Graph, Tensor
from llmsupervisor.plan.memory_shape import Layer, Shape


@dataclass(frozen=True, slots=True)
class Run:
    """What the size depends on beside the model. `cells`: of the KV cache, per stream; `cells_sliding`: of the
    sliding layers'. `rows`: outputs at once. `rotate_k`, `rotate_v`: sides of the rotation of quantised KV, 0 = none.
    `cast_k`, `cast_v`: f32 in the cache, f16 for flash attention. `device`: on a GPU, which gets its inputs from the host, and whose flash attention makes f16 copies of one layer's
    keys and values where they are of another type (`copy_k`, `copy_v`)."""

    tokens: int
    sequences: int
    unified: bool
    cells: int
    cells_sliding: int
    rows: int
    flash: bool
    rotate_k: int = 0
    rotate_v: int = 0
    cast_k: bool = False
    cast_v: bool = False
    device: bool = False
    copy_k: bool = False
    copy_v: bool = False
    pooling: str = ""
    """Of an embedding server, which pools the tokens of a sequence."""

    @property
    def streams(self) -> int:
        return 1 if self.unified else self.sequences


@dataclass(slots=True)
class Attention:
    """Inputs of the layers that share one cache."""

    k_ids: Tensor
    v_ids: Tensor | None
    mask: Tensor
    rotate_k: Tensor | None
    rotate_v: Tensor | None


class Builder:
    def __init__(self, header: GgufHeader, shape: Shape, run: Run, adapters: Sequence[GgufHeader] = ()) -> None:
        self.graph = Graph()
        self.header = header
        self.shape = shape
        self.run = run
        self.n = run.tokens
        self.names: dict[str, FileTensor] = {t.name: t for t in header.tensors}
        self.adapters = [{t.name: t.shape[1] for t in one.tensors if len(t.shape) > 1} for one in adapters]
        """Of each LoRA: matrix → its rows."""
        self.normed = self.graph.input(0)
        """The last hidden state of each token, once it is there."""
        self.experts_used = header.numbers("expert_used_count", header.n_layers or 0) or ()

    def has(self, layer: Layer, name: str) -> bool:
        return f"blk.{layer.index}.{name}" in self.names

    # --- inputs ---

    def embed(self, scaled: bool = False) -> Tensor:
        """From tokens; beside it what batches of vectors, and of both, would use."""
        g, size = self.graph, (self.shape.embedding, self.n)
        if self.run.device:
            return g.input(*size)
        found = g.new(size, g.input(self.n, kind="i32"))
        g.expand(found)
        g.expand(g.input(*size))
        mixed = g.new(size, g.input(*size))
        rows = g.new(size, g.input(self.n, kind="i32"))
        g.expand(Tensor(mixed.dims, "f32", (rows, g.input(self.n, kind="i64"), mixed), base=mixed))
        if scaled:
            found = g.same(found, g.input(1, self.n))
        g.expand(found)
        return found

    def attention(self, cells: int, *, k_only: bool = False, rotated: bool = True) -> Attention:
        g, run = self.graph, self.run
        widest = max((layer.v for layer in self.shape.layers), default=0)
        return Attention(
            k_ids=g.input(self.n, kind="i64"),
            v_ids=None if k_only else g.input(self.n if run.flash else self.n * widest, kind="i64"),
            mask=g.input(cells, self.n // run.streams, 1, run.streams, kind="f16" if run.flash else "f32"),
            rotate_k=g.input(run.rotate_k, run.rotate_k) if run.rotate_k and rotated and not k_only else None,
            rotate_v=g.input(run.rotate_v, run.rotate_v) if run.rotate_v and rotated and not k_only else None,
        )

    # --- blocks ---

    def rms(self, a: Tensor, weight: bool = True) -> Tensor:
        normed = self.graph.same(a)
        return self.graph.same(normed) if weight else normed

    def linear(self, layer: Layer, name: str, a: Tensor) -> Tensor:
        found = self.adapted(f"blk.{layer.index}.{name}.weight", a)
        return self.graph.same(found) if self.has(layer, f"{name}.bias") else found

    def adapted(self, name: str, a: Tensor, *chosen: Tensor) -> Tensor:
        """`build_lora_mm`, and of experts `build_lora_mm_id`."""
        g = self.graph
        found = self.product(self.names[name].shape[1], a, *chosen)
        for ranks in self.adapters:
            if (rank := ranks.get(f"{name}.lora_a")) and (rows := ranks.get(f"{name}.lora_b")):
                found = g.same(found, g.same(self.product(rows, self.product(rank, a, *chosen), *chosen)))
        return found

    def product(self, rows: int, a: Tensor, *chosen: Tensor) -> Tensor:
        if not chosen:
            return self.graph.matmul(rows, a)
        used, n = chosen[0].dims[:2]
        return self.graph.new((rows, used, n), a, *chosen)

    def qkv(self, layer: Layer, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        g, n = self.graph, self.n
        sizes = ((layer.head_k, layer.heads), (layer.head_k, layer.heads_kv), (layer.head_v, layer.heads_kv))
        if self.has(layer, "attn_qkv.weight"):
            fused = self.linear(layer, "attn_qkv", a)
            q, k, v = (g.view(fused, (size, heads, n), (4 * size, fused.strides[1])) for size, heads in sizes)
            return q, k, v
        made = [self.linear(layer, name, a) for name in ("attn_q", "attn_k", "attn_v")]
        q, k, v = (g.reshape(part, size, heads, n) for part, (size, heads) in zip(made, sizes, strict=True))
        return q, k, v

    def rotate(self, a: Tensor, matrix: Tensor | None) -> Tensor:
        if matrix is None:
            return a
        g, side = self.graph, matrix.dims[0]
        count = a.bytes // 4 // side
        flat = g.reshape(a, side, count) if a.contiguous else g.copy(a, side, count)
        return g.reshape(g.matmul(side, flat, matrix), *a.dims)

    def attend(self, layer: Layer, inputs: Attention, q: Tensor, k: Tensor, v: Tensor, *, v_first: bool) -> Tensor:
        """`v_first`: the order in which llama.cpp adds K and V differs between plain and sliding caches."""
        g = self.graph
        q, k = self.rotate(q, inputs.rotate_k), self.rotate(k, inputs.rotate_k)
        v = self.rotate(v, inputs.rotate_v)
        for part in (q, v, k) if v_first else (q, k, v):
            g.expand(part)
        g.expand(g.store(g.view(k, (layer.k, self.n), (k.strides[2],)), inputs.k_ids))
        flat = g.view(v, (layer.v, self.n), (v.strides[2],))
        if not self.run.flash:
            packed = v.strides[2] == 4 * layer.v
            flat = g.reshape(v, layer.v, self.n) if packed else g.copy(v, layer.v, self.n)
            widest = max(one.v for one in self.shape.layers)
            if layer.v < widest:
                flat = g.new((widest, self.n), flat)
            flat = g.reshape(flat, 1, max(layer.v, widest) * self.n)
        assert inputs.v_ids is not None
        g.expand(g.store(flat, inputs.v_ids))
        found = self.heads(layer, inputs, q, layer.head_v)
        if inputs.rotate_v is not None:
            found = self.rotate(found, inputs.rotate_v)
        return self.linear(layer, "attn_output", found)

    def mask(self) -> Tensor:
        """Without a cache: of the tokens to each other."""
        return self.graph.input(self.n, self.n, kind="f16" if self.run.flash else "f32")

    def attend_bare(self, layer: Layer, mask: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`build_attn` without a cache."""
        g, n = self.graph, self.n
        for part in (q, k, v):
            g.expand(part)
        size, heads = q.dims[:2]
        q = g.permute(g.view(q, (size, heads, n, 1), (q.strides[1], q.strides[2], q.strides[2] * n)), 0, 2, 1, 3)
        k, v = g.permute(k, 0, 2, 1, 3), g.permute(v, 0, 2, 1, 3)
        if self.run.flash:
            k, v = g.new(k.dims, k, kind="f16"), g.new(v.dims, v, kind="f16")
            found = g.new((layer.head_v, heads, n), q, k, v, mask)
            found = g.reshape(found, layer.head_v * heads, n)
        else:
            scores = g.same(g.new((n, n, heads), k, q), mask)
            sums = g.new((layer.head_v, n, heads), g.copy(g.transpose(v)), scores)
            found = g.copy(g.permute(sums, 0, 2, 1, 3), layer.head_v * heads, n)
        g.expand(found)
        return self.linear(layer, "attn_output", found)

    def heads(self, layer: Layer, inputs: Attention, q: Tensor, head_v: int, decompress: int = 0) -> Tensor:
        """`build_attn_mha`: scores and sums. `decompress`: rows of a value head of MLA."""
        g, streams = self.graph, self.run.streams
        size, heads, n, _ = q.dims
        cells = inputs.mask.dims[0]
        each = n // streams
        q = g.view(q, (size, heads, each, streams), (q.strides[1], q.strides[2], q.strides[2] * each))
        q = g.permute(q, 0, 2, 1, 3)
        if self.run.flash:
            kept = (cells, 1 if decompress else layer.heads_kv, streams)
            k = [g.new((size, *kept), CACHE, kind="f16")] if self.run.cast_k else []
            v = [g.new((head_v, *kept), CACHE, kind="f16")] if self.run.cast_v else []
            found = g.new((head_v, heads, each, streams), q, *k, *v, inputs.mask)
            rows = prod(kept)
            found.extra = 2 * rows * (size * self.run.copy_k + (0 if decompress else head_v) * self.run.copy_v)
            if decompress:
                found = g.matmul(decompress, g.permute(found, 0, 2, 1, 3))
                found = g.copy(g.permute(found, 0, 2, 1, 3))
            found = g.reshape(found, found.dims[0] * heads, n)
        else:
            scores = g.new((cells, each, heads, streams), q)
            if self.header.values.get(f"{self.shape.architecture}.attn_logit_softcapping"):
                scores = g.same(g.same(g.same(scores)))
            scores = g.same(scores, inputs.mask)
            if decompress:
                kind = "f32" if self.run.cast_k else "f16"
                turned = g.new((cells, head_v, 1, streams), CACHE, kind=kind)
                sums = g.matmul(decompress, g.new((head_v, each, heads, streams), turned, scores))
            else:
                sums = g.new((head_v, each, heads, streams), scores)
            found = g.permute(sums, 0, 2, 1, 3)
            found = g.copy(found, (decompress or head_v) * heads, n)
        g.expand(found)
        return found

    def ffn(self, layer: Layer, a: Tensor, suffix: str = "") -> Tensor:
        """Gate and up side by side, or one fused tensor of both (`swiglu`)."""
        up = self.linear(layer, f"ffn_up{suffix}", a)
        if self.has(layer, f"ffn_gate{suffix}.weight"):
            found = self.graph.new(up.dims, self.linear(layer, f"ffn_gate{suffix}", a), up)
        else:
            found = self.graph.new((up.dims[0] // 2, *up.dims[1:]), up)
        return self.linear(layer, f"ffn_down{suffix}", found)

    def experts(self, layer: Layer, a: Tensor, *, normed: bool, scaled: bool, gating: str = "softmax") -> Tensor:
        """`build_moe_ffn`. `gating`: softmax, sigmoid or softmax_weight (after the choice)."""
        g, n = self.graph, self.n_of(a)
        used = self.experts_used[layer.index]
        logits = self.linear(layer, "ffn_gate_inp", a)
        count = logits.dims[0]
        probs = logits if gating == "softmax_weight" else g.same(logits)
        select = g.same(probs) if self.has(layer, "exp_probs_b.bias") else probs
        chosen = g.view(g.new((count, n), select, kind="i32"), (used, n), (4 * count,))
        weights = g.new((1, used, n), g.reshape(probs, 1, count, n), chosen)
        if gating == "softmax_weight":
            weights = g.reshape(g.same(g.reshape(weights, used, n)), 1, used, n)
        if normed:
            flat = g.reshape(weights, used, n)
            total = g.same(g.new((1, n), flat))
            weights = g.reshape(g.same(flat, total), 1, used, n)
        if scaled:
            weights = g.same(weights)
        g.expand(weights)
        wide = g.reshape(a, self.shape.embedding, 1, n)

        def of_experts(name: str, source: Tensor) -> Tensor:
            made = self.adapted(f"blk.{layer.index}.{name}.weight", source, chosen)
            return g.same(made, chosen) if self.has(layer, f"{name}.bias") else made

        if self.has(layer, "ffn_gate_up_exps.weight"):
            both = of_experts("ffn_gate_up_exps", wide)
            half = both.dims[0] // 2
            gate = g.view(both, (half, used, n), (both.strides[1], both.strides[2]))
            up = g.view(both, (half, used, n), (both.strides[1], both.strides[2]))
        else:
            up = of_experts("ffn_up_exps", wide)
            gate = of_experts("ffn_gate_exps", wide)
        found = of_experts("ffn_down_exps", g.new(up.dims, gate, up))
        found = g.same(found, weights)
        g.expand(found)
        parts = [g.view(found, (self.shape.embedding, n), (found.strides[2],)) for _ in range(used)]
        for part in parts:
            g.expand(part)
        total = parts[0]
        for part in parts[1:]:
            total = Tensor((self.shape.embedding, n, 1, 1), "f32", (total, part), in_place=True)
            g.expand(total)
        return g.copy(total) if used == 1 else total

    @staticmethod
    def n_of(a: Tensor) -> int:
        return a.dims[1]

    def only_outputs(self, layer: Layer, out: Tensor, *parts: Tensor) -> list[Tensor]:
        """After the last attention only the rows that are asked for go on."""
        if layer is not self.shape.layers[-1]:
            return list(parts)
        return [self.graph.new((part.dims[0], self.run.rows), part, out) for part in parts]

    def finish(self, a: Tensor, *, capped: bool = False) -> Graph:
        g = self.graph
        normed = self.normed = self.rms(a)
        normed.output = True
        table = self.names.get("output.weight") or self.names.get("token_embd.weight")
        logits = self.adapted(table.name, normed) if table and len(table.shape) > 1 else g.matmul(0, normed)
        if capped:
            logits = g.same(g.same(g.same(logits)))
        logits.output = True
        g.expand(logits)
        return g
