"""The sums: known figures of known models, splits over devices, refusals, what is not known. That they are llama.cpp's
own figures is shown in `tests/engines/test_memory_oracle.py`."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from support.encoders import bert
from support.gguf_files import Model, Type, decoder, deepseek2, gpt_oss, header, lfm2, mamba2

from llmsupervisor.plan.ggml_types import BLOCKS
from llmsupervisor.plan.gguf import GgufHeader
from llmsupervisor.plan.memory import Memory, Part, Refused, Settings, estimate, kv_bytes_per_token, projector
from llmsupervisor.plan.memory_place import HOST, Where, layer_devices
from llmsupervisor.plan.memory_shape import NoFormula, Shape, shape_of

MIB = 1024 * 1024


@cache
def llama_8b(weights: Type = Type.Q8_0) -> GgufHeader:
    return header(decoder(layers=32, embd=4096, ff=14336, heads=32, heads_kv=8, vocabulary=128256, weights=weights))


def memory(of: GgufHeader, **settings: object) -> Memory:
    found = estimate(of, Settings(**{"context_length": 8192, **settings}))  # type: ignore[arg-type]
    assert isinstance(found, Memory), found
    return found


def parts(of: Memory) -> dict[tuple[str, Where], int]:
    assert len({(part.name, part.where) for part in of.parts}) == len(of.parts)
    return {(part.name, part.where): part.bytes for part in of.parts}


# --- Llama 3.1 8B, as every table has it ---


KIB_PER_TOKEN = {"f32": 256, "f16": 128, "bf16": 128, "q8_0": 68, "q5_1": 48, "q5_0": 44, "q4_1": 40, "q4_0": 36}
KIB_PER_TOKEN["iq4_nl"] = 36


@pytest.mark.parametrize(
    ("kind", "kib"),
    KIB_PER_TOKEN.items(),
)
def test_kv_per_token_of_llama_8b(kind: str, kib: int) -> None:
    assert kv_bytes_per_token(llama_8b(), kind, kind) == kib * 1024
    assert parts(memory(llama_8b(), kv_type_k=kind, kv_type_v=kind))["KV cache", HOST] == 8192 * kib * 1024


@pytest.mark.parametrize(("weights", "total", "on_gpu"), [(Type.Q8_0, 8137.6, 7605.3), (Type.F16, 15317, 14315)])
def test_weights_of_llama_8b(weights: Type, total: float, on_gpu: float) -> None:
    assert parts(memory(llama_8b(weights)))["weights", HOST] / MIB == pytest.approx(total, abs=0.6)
    found = parts(memory(llama_8b(weights), gpus=(1.0,)))
    assert found["weights", 0] / MIB == pytest.approx(on_gpu, abs=0.6)
    assert (found["weights", 0] + found["weights", HOST]) / MIB == pytest.approx(total, abs=0.6)


@pytest.mark.parametrize(
    ("settings", "mib"),
    [
        ({}, 132),
        ({"parallel": 4}, 132),
        ({"context_length": 32768}, 156),
        ({"context_length": 131072}, 252),
        ({"parallel": 4, "ubatch": 2048}, 528),
    ],
)
def test_compute_buffer_of_llama_8b_on_llama_server(settings: dict[str, int], mib: int) -> None:
    assert parts(memory(llama_8b(), **settings))["compute", HOST] // MIB == mib


def test_rows_of_logits() -> None:
    """One per slot and drafted token, not one per token of a batch."""
    usual = parts(memory(llama_8b()))["compute", HOST]
    tool = parts(memory(llama_8b(), outputs=512))["compute", HOST]
    assert (usual // MIB, tool // MIB) == (132, 298)
    drafting = parts(memory(llama_8b(), parallel=8, draft_tokens=3))
    assert drafting["output buffer", HOST] == 32 * 128256 * 4


# --- caches ---


@pytest.mark.parametrize(
    ("settings", "cells"),
    [
        ({"context_length": 1000, "parallel": 3}, 3 * 1024),
        ({"context_length": 3334, "parallel": 3}, 3 * 3584),
        ({"context_length": 3334, "parallel": 3, "unified": True}, 10240),
        ({"context_length": 8192, "parallel": 4, "unified": True, "pool": 16384}, 16384),
    ],
)
def test_cells(settings: dict[str, int], cells: int) -> None:
    assert parts(memory(llama_8b(), **settings))["KV cache", HOST] == cells * 128 * 1024


def test_sliding_layers_keep_their_window() -> None:
    gemma = header(
        decoder("gemma3", layers=48, heads=16, heads_kv=8, head=256, keys={"attention.sliding_window": 1024}, tied=True)
    )
    per_cell = 2 * 8 * 256 * 2
    assert kv_bytes_per_token(gemma, "f16", "f16") == 8 * per_cell
    one = parts(memory(gemma, context_length=32768))
    assert one["KV cache", HOST] == 8 * 32768 * per_cell
    assert one["KV cache, sliding", HOST] == 40 * 1536 * per_cell
    slots = parts(memory(gemma, parallel=4))
    assert slots["KV cache, sliding", HOST] == 4 * one["KV cache, sliding", HOST]
    pool = parts(memory(gemma, parallel=4, unified=True))
    assert pool["KV cache, sliding", HOST] == 40 * (4 * 1024 + 512) * per_cell
    full = parts(memory(gemma, context_length=32768, swa_full=True))
    assert full["KV cache, sliding", HOST] == 40 * 32768 * per_cell


def test_gpt_oss_slides_in_turn() -> None:
    shape = shape_of(header(gpt_oss(layers=4)))
    assert isinstance(shape, Shape)
    assert [layer.sliding for layer in shape.layers] == [True, False, True, False]


def test_the_file_may_list_the_sliding_layers() -> None:
    keys = {"attention.sliding_window": 512, "attention.sliding_window_pattern": [False, True, True, False]}
    shape = shape_of(header(decoder("gemma3", keys=keys)))
    assert isinstance(shape, Shape)
    assert [layer.sliding for layer in shape.layers] == [False, True, True, False]
    assert isinstance(shape_of(header(decoder("step35", keys={"attention.sliding_window": 512}))), NoFormula)


def test_latent_attention_keeps_one_compressed_key() -> None:
    lite = header(deepseek2(layers=27))
    assert kv_bytes_per_token(lite, "f16", "f16") == 27 * 576 * 2
    old = header(deepseek2(layers=26, absorbed=False))
    assert kv_bytes_per_token(old, "f16", "f16") == 26 * 8 * (192 + 128) * 2


def test_states_do_not_grow_with_the_context() -> None:
    mamba = header(mamba2(layers=64, embd=2560))
    assert kv_bytes_per_token(mamba, "f16", "f16") == 0
    for context in (1024, 65536):
        found = parts(memory(mamba, context_length=context, parallel=4))
        assert found["recurrent state", HOST] // MIB == 655
        assert ("KV cache", HOST) not in found
    hybrid = parts(memory(header(lfm2()), parallel=2))
    assert hybrid["recurrent state", HOST] == 2 * 3 * 512 * 2 * 4
    assert hybrid["KV cache", HOST] == 2 * 8192 * 2 * 2 * 64 * 2


def test_layers_that_only_predict_are_not_loaded() -> None:
    plain, more = decoder(layers=3), decoder(layers=4, keys={"nextn_predict_layers": 1})
    assert parts(memory(header(more)))["weights", HOST] == parts(memory(header(plain)))["weights", HOST]
    assert parts(memory(header(more)))["KV cache", HOST] == parts(memory(header(plain)))["KV cache", HOST]


def test_without_flash_attention_every_layer_keeps_values_as_wide_as_the_widest() -> None:
    """llama.cpp says 13 MiB of cache and 80 MiB of compute for this model."""
    ragged = header(lfm2(kv=(0, 2, 8, 0)))
    settings = {"context_length": 4096, "outputs": 2048}
    flash, plain = (parts(memory(ragged, flash_attention=on, **settings)) for on in (True, False))
    assert flash["KV cache", HOST] == 4096 * 64 * ((2 + 2) + (8 + 8)) * 2
    assert plain["KV cache", HOST] == 4096 * 64 * ((2 + 8) + (8 + 8)) * 2
    assert plain["compute", HOST] // MIB == 80


# --- devices ---


@pytest.mark.parametrize(
    ("gpu_layers", "split", "expected"),
    [
        (None, (), [HOST] * 5),
        (None, (1.0,), [0] * 5),
        (0, (1.0,), [HOST] * 5),
        (1, (1.0,), [HOST] * 4 + [0]),
        (3, (1.0,), [HOST, HOST, 0, 0, 0]),
        (99, (1.0,), [0] * 5),
        (None, (1.0, 1.0), [0, 0, 0, 1, 1]),
        (None, (24.0, 16.0), [0, 0, 0, 1, 1]),
        (None, (1.0, 4.0), [0, 1, 1, 1, 1]),
        (4, (1.0, 1.0), [HOST, 0, 0, 1, 1]),
        (None, (0.0, 1.0), [1] * 5),
        (None, (0.0, 0.0), [HOST] * 5),
        (None, (1e39, 1e39), [0, 0, 0, 1, 1]),
    ],
)
def test_layers_over_devices(gpu_layers: int | None, split: tuple[float, ...], expected: list[Where]) -> None:
    assert layer_devices(4, gpu_layers, split) == expected


def test_weights_follow_their_layers() -> None:
    model = header(decoder(layers=4))
    by_name = {t.name: t.bytes for t in model.tensors}
    layer = sum(size for name, size in by_name.items() if name.startswith("blk.0."))
    found = parts(memory(model, gpus=(1.0, 1.0), gpu_layers=3, gpu_overhead=1000))
    assert found["weights", HOST] == by_name["token_embd.weight"] + 2 * layer
    assert found["weights", 0] == 2 * layer
    assert found["weights", 1] == by_name["output.weight"] + by_name["output_norm.weight"]
    assert found["process", 0] == found["process", 1] == 1000
    whole = parts(memory(model))
    assert found["KV cache", HOST] == found["KV cache", 0] == whole["KV cache", HOST] // 2


def test_a_tied_output_is_copied_to_its_gpu() -> None:
    tied = header(decoder(tied=True))
    table = next(t.bytes for t in tied.tensors if t.name == "token_embd.weight")
    on_gpu, on_host = parts(memory(tied, gpus=(1.0,))), parts(memory(tied))
    assert on_gpu["weights", HOST] == table
    assert on_gpu["weights", 0] + table == on_host["weights", HOST] + table


def test_the_norm_of_the_embedding_is_with_the_first_layer() -> None:
    """Not with the embedding on the host, nor with the output."""
    plain = decoder("bloom", layers=4)
    norm = {"token_embd_norm.weight": ((512,), Type.F32)}
    models = [header(replace(plain, tensors={**plain.tensors, **more})) for more in ({}, norm)]
    for gpus, layers, where in (((1.0, 1.0), None, 0), ((1.0,), 3, HOST)):
        without, with_ = (parts(memory(model, gpus=gpus, gpu_layers=layers)) for model in models)
        grown = {place: with_[place] - size for place, size in without.items() if with_[place] != size}
        assert grown == {("weights", where): 512 * 4}


def test_factors_of_the_positions_are_with_every_layer_but_once_a_device() -> None:
    plain = decoder(layers=4)
    factors = {"rope_freqs.weight": ((32,), Type.F32)}
    models = [header(replace(plain, tensors={**plain.tensors, **more})) for more in ({}, factors)]
    without, with_ = (parts(memory(model, gpus=(1.0, 1.0), gpu_layers=3)) for model in models)
    grown = {place: with_[place] - size for place, size in without.items() if with_[place] != size}
    assert grown == {("weights", HOST): 128, ("weights", 0): 128}


def test_kv_may_stay_on_the_host() -> None:
    found = parts(memory(llama_8b(), gpus=(1.0,), kv_offload=False))
    assert ("KV cache", HOST) in found and ("KV cache", 0) not in found


def test_flash_attention_on_a_gpu_copies_quantised_kv_of_one_layer() -> None:
    f16, q8 = (
        parts(memory(llama_8b(), context_length=131072, gpus=(1.0,), kv_type_k=kind, kv_type_v=kind))["compute", 0]
        for kind in ("f16", "q8_0")
    )
    assert q8 - f16 == pytest.approx(2 * 131072 * 1024 * 2, rel=0.15)


def test_only_the_host_is_exact() -> None:
    assert memory(llama_8b()).exact
    on_gpu = memory(llama_8b(), gpus=(1.0,), gpu_overhead=300 * MIB)
    assert not on_gpu.exact and on_gpu.total is not None
    exact = {part.name for part in on_gpu.parts if part.exact}
    assert exact == {"weights", "KV cache", "output buffer"}


# --- what is not known, or refused ---


def test_an_architecture_without_a_formula_is_not_guessed() -> None:
    model = header(replace(decoder(), architecture="brand-new"))
    assert isinstance(kv_bytes_per_token(model, "f16", "f16"), NoFormula)
    found = memory(model)
    assert found.total is None and "brand-new" in found.unknown[0]
    assert [part.name for part in found.parts] == ["weights"]
    assert memory(model, gpus=(1.0, 1.0)).parts == ()


def test_an_architecture_without_a_compute_formula_has_its_caches() -> None:
    found = memory(header(decoder("stablelm")))
    assert found.total is None and "compute" in found.unknown[0]
    assert {part.name for part in found.parts} == {"weights", "KV cache", "output buffer"}


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (replace(bert(), architecture="modern-bert"), "architecture 'modern-bert'"),
        (deepseek2(), "architecture 'deepseek2' that embeds"),
        (replace(bert(), keys={**bert().keys, "pooling_type": 9}), "pooling (unknown)"),
    ],
)
def test_an_embedding_server_without_a_formula(model: Model, says: str) -> None:
    found = memory(header(model), embedding=True)
    assert found.total is None and says in found.unknown[0]
    assert "compute" not in {part.name for part in found.parts}


def test_an_encoder_keeps_nothing_and_answers_every_token() -> None:
    """The rows grow with the first full batch: logits and embedding of each."""
    found = parts(memory(header(bert()), context_length=512, embedding=True))
    assert found["output buffer", HOST] == 512 * 4 * (1024 + 256)
    assert not any(name.startswith("KV cache") for name, _ in found) and found["compute", HOST]
    assert ("KV cache", HOST) in parts(memory(header(decoder()), embedding=True))


def test_an_unknown_kv_type_has_no_figure() -> None:
    found = kv_bytes_per_token(llama_8b(), "f16", "q3_K")
    assert isinstance(found, NoFormula) and "'q3_K' is not one of f32" in found.reason


def test_more_experts_per_token_than_any_model_has_are_not_figured() -> None:
    found = memory(header(decoder("qwen3moe", qk_norm=True, experts=128, experts_used=65, ff_exp=64)))
    assert found.total is None and "more than 64 experts" in found.unknown[0]


def test_an_unmeasured_process_is_unknown() -> None:
    found = memory(llama_8b(), gpus=(1.0,))
    assert found.total is None and "not measured" in found.unknown[0]


@pytest.mark.parametrize(
    ("of", "settings", "said"),
    [
        (decoder(), {"kv_type_k": "q3_K"}, "allowed: f32"),
        (decoder(head=80), {"kv_type_k": "q8_0"}, "multiple of 32"),
        (decoder(), {"kv_type_v": "q8_0", "flash_attention": False}, "needs flash attention"),
        (deepseek2(layers=27), {"kv_type_k": "q8_0"}, "of one type"),
        (decoder(), {"context_length": 0}, "at least 1"),
    ],
)
def test_what_llama_cpp_refuses(of: Model, settings: dict[str, object], said: str) -> None:
    found = estimate(header(of), Settings(**{"context_length": 1024, **settings}))  # type: ignore[arg-type]
    assert isinstance(found, Refused) and said in found.reason


def test_a_second_model_and_a_projector() -> None:
    main, draft = memory(llama_8b()), memory(header(decoder()))
    both = main.and_(draft, "draft")
    assert both.total == (main.total or 0) + (draft.total or 0)
    assert Part("draft weights", *_rest(draft, "weights")) in both.parts
    with_pictures = both.and_(projector(header(decoder("clip")), 0), "projector")
    assert with_pictures.total is None and "pictures" in with_pictures.unknown[0]


def _rest(of: Memory, name: str) -> tuple[int, Where, str, bool]:
    part = next(part for part in of.parts if part.name == name)
    return part.bytes, part.where, part.why, part.exact


def test_block_sizes_divide() -> None:
    assert all(elements > 0 and size > 0 for elements, size in BLOCKS.values())
