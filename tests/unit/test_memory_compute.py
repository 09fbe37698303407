"""Compute buffers: whole MiB as `llama-fit-params` of llama.cpp 0.6 says them, which reserves logits for a whole batch; and
the allocator that they come from."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.gguf_files import Model, decoder, deepseek2, header

from llmsupervisor.plan.memory import Memory, Settings, estimate
from llmsupervisor.plan.memory_alloc import Graph

MIB = 1024 * 1024


def _fused(of: Model) -> Model:
    """Gate and up of the experts as one tensor."""
    tensors = dict(of.tensors)
    for name in [name for name in tensors if name.endswith("ffn_gate_exps.weight")]:
        (rows, width, count), kind = tensors.pop(name)
        del tensors[name.replace("gate", "up")]
        tensors[name.replace("gate", "gate_up")] = ((rows, 2 * width, count), kind)
    return replace(of, tensors=tensors)


GEMMA2 = {"attention.sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
RANKED = deepseek2(
    q_rank=256,
    ff_exp=2048,
    keys={"expert_weights_norm": True, "expert_weights_scale": 2.5, "expert_gating_func": 2},
)


@pytest.mark.parametrize(
    ("of", "settings", "cache", "compute"),
    [
        (decoder("phi3", fused=True), {}, 8, 18),
        (decoder("glm4", post_norms=True), {}, 8, 18),
        (
            decoder("gemma2", post_norms=True, head=256, tied=True, keys=GEMMA2),
            {"context_length": 16384, "flash_attention": False},
            82,
            314,
        ),
        (deepseek2(layers=27), {"parallel": 2, "flash_attention": False}, 243, 97),
        (deepseek2(layers=26, absorbed=False), {"parallel": 2}, 1040, 22),
        (RANKED, {"parallel": 2}, 36, 57),
        (_fused(RANKED), {"parallel": 2}, 36, 57),
    ],
    ids=["phi3", "glm4", "gemma2", "latent", "old", "ranked", "fused"],
)
def test_compute_buffer(of: Model, settings: dict[str, object], cache: int, compute: int) -> None:
    found = estimate(header(of), Settings(**{"context_length": 4096, "outputs": 2048, **settings}))  # type: ignore[arg-type]
    assert isinstance(found, Memory) and not found.unknown
    kept = sum(part.bytes for part in found.parts if part.name.startswith("KV cache"))
    worked = sum(part.bytes for part in found.parts if part.name == "compute")
    assert (kept // MIB, worked // MIB) == (cache, compute)


# --- the allocator ---


def test_a_result_takes_the_place_of_a_parent_that_nobody_else_reads() -> None:
    g = Graph()
    a = g.input(64)
    g.expand(g.same(g.same(a)))
    assert g.size(32) == 256


def test_a_parent_that_is_read_again_stays() -> None:
    g = Graph()
    a = g.new((64,), g.input(8))
    g.expand(g.same(g.same(a), a))
    assert g.size(32) == 32 + 2 * 256


def test_freed_holes_are_used_the_best_fitting_first() -> None:
    g = Graph()
    big, small, rest = g.input(256), g.input(64), g.input(8)
    g.expand(g.new((8,), big))
    g.expand(g.new((8,), small, rest))
    assert g.size(32) == 1024 + 256 + 32 + 32


def test_a_view_keeps_its_base() -> None:
    g = Graph()
    a = g.new((64,), g.input(8))
    view = g.view(a, (32,))
    g.expand(g.new((64,), view))
    assert g.size(32) == 32 + 2 * 256
