"""Weights that flags put elsewhere than their layer, and LoRA files beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from support.gguf_files import decoder, header, lfm2, lora, mamba2
from support.planned import CARD, OTHER, A, at, llama, one, sums

from llmsupervisor.plan.gguf import GgufHeader
from llmsupervisor.plan.memory import Memory, Settings, estimate
from llmsupervisor.plan.memory_overrides import Unreadable, read
from llmsupervisor.plan.memory_place import HOST, Override, Where, places
from llmsupervisor.plan.memory_tensor import UNKNOWN, by_tensors


def memory(of: GgufHeader, **settings: object) -> Memory:
    found = estimate(of, Settings(**{"context_length": 8192, **settings}))  # type: ignore[arg-type]
    assert isinstance(found, Memory), found
    return found


def parts(of: Memory) -> dict[tuple[str, Where], int]:
    return {(part.name, part.where): part.bytes for part in of.parts}


def said(text: str, gpus: int = 1) -> tuple[Override, ...]:
    found = read(text.split(), gpus)
    assert not isinstance(found, Unreadable), found
    return found


def test_experts_on_the_host() -> None:
    model = header(decoder("qwen3moe", layers=4, qk_norm=True, experts=8, experts_used=2, ff_exp=512))
    experts = sum(t.bytes for t in model.tensors if "exps" in t.name and (t.layer or 0) < 3)
    overrides = said("--n-cpu-moe 3")
    usual, moved = parts(memory(model, gpus=(1.0,))), parts(memory(model, gpus=(1.0,), overrides=overrides))
    assert usual["weights", 0] - moved["weights", 0] == moved["weights", HOST] - usual["weights", HOST] == experts
    assert ("compute, weights of the host", 0) in moved


MOE = header(decoder("qwen3moe", layers=4, qk_norm=True, experts=8, experts_used=2, ff_exp=512))


def moved(text: str, gpus: int = 1, model: GgufHeader = MOE) -> dict[Where, set[str]]:
    """The tensors that a command line puts elsewhere."""
    overrides = said(text, gpus)
    devices: list[Where] = [0] * 20
    found: dict[Where, set[str]] = {}
    for tensor in model.tensors:
        there, usual = (places(model, tensor, devices, moves)[0] for moves in (overrides, ()))
        if there != usual:
            found.setdefault(there, set()).add(tensor.name)
    return found


def names(*parts: str, layers: Sequence[int] = range(4)) -> set[str]:
    return {f"blk.{layer}.{part}.weight" for layer in layers for part in parts}


EXPERTS = ("ffn_up_exps", "ffn_gate_exps", "ffn_down_exps")


@pytest.mark.parametrize(
    ("text", "tensors"),
    [
        ("--cpu-moe", names(*EXPERTS)),
        ("-ncmoe 2", names(*EXPERTS, layers=(0, 1))),
        ("--n-cpu-moe 0", set()),
        (r"-ot \.ffn_down_exps=CPU", names("ffn_down_exps")),
        (
            r"--override-tensor blk\.[23]\.attn_q\.=CPU,^output\.weight=CPU",
            {*names("attn_q", layers=(2, 3)), "output.weight"},
        ),
        (r"-ot exps=CUDA0 --cpu-moe", set()),
        (r"--cpu-moe -ot exps=CUDA0", names(*EXPERTS)),
        ("--n-cpu-ffn 4", set()),
    ],
)
def test_the_first_pattern_that_is_found_counts(text: str, tensors: set[str]) -> None:
    assert moved(text) == ({HOST: tensors} if tensors else {})


def test_dense_layers_on_the_host() -> None:
    dense = header(decoder(layers=12))
    found = moved("--n-cpu-ffn 2", model=dense)
    assert found == {HOST: names("ffn_up", "ffn_gate", "ffn_down", layers=(0, 1))}, "and not of layers 10 and 11"


def test_weights_on_another_gpu() -> None:
    assert moved("-ot attn_k=CUDA1", gpus=2) == {1: names("attn_k", "attn_k_norm")}
    without = memory(MOE, gpus=(1.0, 1.0), gpu_overhead=0)
    with_ = memory(MOE, gpus=(1.0, 1.0), gpu_overhead=0, overrides=said("-ot exps=CUDA1", 2))
    assert parts(with_)["weights", 1] > parts(without)["weights", 1]
    assert all("pipeline" not in part.why for part in with_.parts), "overrides end it"


def test_a_tied_table_that_is_moved_is_there_once() -> None:
    tied = header(decoder(tied=True))
    table = tied.tensor("token_embd.weight")
    assert table
    usual, both = (parts(memory(tied, gpus=(1.0,), overrides=said(text))) for text in ("", "-ot token_embd=CUDA0"))
    assert usual["weights", HOST] - table.bytes == both.get(("weights", HOST), 0)
    assert usual["weights", 0] == both["weights", 0]


@pytest.mark.parametrize(
    "text", ["-ot exps=CUDA1", "-ot exps=Vulkan0", "-ot (a+)+$=CPU", "-ot (=CPU", "-ot (?<=x)a=CPU", "-ncmoe many"]
)
def test_what_cannot_be_read_is_not_guessed(text: str) -> None:
    assert isinstance(read(text.split(), 1), Unreadable)


# --- split = "tensor" ---


def test_matrices_are_shared_and_all_else_is_on_each() -> None:
    model = header(decoder(layers=4))
    one = parts(memory(model, gpus=(1.0,), gpu_overhead=0))
    found = by_tensors(model, Settings(8192, gpus=(1.0, 3.0), gpu_overhead=0, tensor=True))
    assert isinstance(found, Memory) and found.unknown == (UNKNOWN,)
    there = parts(found)
    assert there["KV cache", 0] + there["KV cache", 1] == one["KV cache", 0]
    assert there["KV cache", 1] == 3 * there["KV cache", 0]
    norms = 4 * 512 * (2 * 4 + 1)
    assert there["weights", 0] + there["weights", 1] == one["weights", 0] + norms
    assert there["weights", HOST] == one["weights", HOST] and ("compute", 0) not in there
    assert all(not part.exact for part in found.parts if part.where != HOST)


def test_what_is_not_split_by_tensors() -> None:
    for model, says in ((mamba2(), "does not split mamba2"), (lfm2(), "no formula for split")):
        found = by_tensors(header(model), Settings(8192, gpus=(1.0, 1.0), tensor=True))
        assert isinstance(found, Memory) and not found.parts and says in found.unknown[0]


# --- LoRA ---


def test_lora_lies_where_what_it_changes_does() -> None:
    model = decoder(layers=4, embd=512)
    base, changes = header(model), header(lora(model, 16, "attn_q", "ffn_down"))
    each = 16 * 4 * ((512 + 512) + (1536 + 512))
    on_gpu = estimate(base, Settings(1024, gpus=(1.0,), gpu_layers=3, gpu_overhead=0), (changes,))
    assert isinstance(on_gpu, Memory)
    assert (parts(on_gpu)["LoRA weights", 0], parts(on_gpu)["LoRA weights", HOST]) == (2 * each, 2 * each)
    both = estimate(base, Settings(1024), (changes, changes))
    assert isinstance(both, Memory) and parts(both)["LoRA weights", HOST] == 8 * each
    narrow = decoder(ff=64)
    more = estimate(header(narrow), Settings(1024), (header(lora(narrow, 16, "attn_")),))
    assert isinstance(more, Memory)
    assert parts(more)["compute", HOST] > parts(memory(header(narrow), context_length=1024))["compute", HOST]
    strangers = header(lora(decoder("llama", layers=9), 16, "blk.8."))
    other = estimate(base, Settings(1024), (strangers,))
    assert isinstance(other, Memory) and ("LoRA weights", HOST) not in parts(other)


def test_lora_of_the_embedding_has_no_formula_for_the_buffer() -> None:
    model = decoder()
    found = estimate(header(model), Settings(1024), (header(lora(model, 8, "token_embd")),))
    assert isinstance(found, Memory) and found.unknown and "LoRA of the embedding" in found.unknown[0]


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"draft": "/m/8b.gguf", "extra_args": ["-otd", "exps=CPU"]}, "no formula for -otd"),
        ({"env": {"LLAMA_ARG_CPU_MOE": "1"}}, "no formula for LLAMA_ARG_CPU_MOE; write its flag into extra_args"),
        ({"gpus": [0, 1], "split": "tensor", "extra_args": ["-ot", "exps=CUDA1"]}, 'to a GPU where split = "tensor"'),
    ],
)
def test_where_overrides_have_no_formula(keys: dict[str, Any], why: str) -> None:
    chat = one(llama(**keys), gpus=(CARD, OTHER))
    assert why in "; ".join(sums(chat).unknown) and at(chat, A).weights is None
