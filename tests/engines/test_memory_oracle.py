"""Our sums against llama.cpp's own: `llama-fit-params` builds the real graph of a file without weights, and
llama-server says what it really allocated."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from support import engines
from support.gguf_files import Model, Type, decoder, deepseek2, gpt_oss, lfm2, lora, mamba2, write, write_lora
from support.oracle import COMPUTE, MIB, header_of, server_log

from llmsupervisor.plan.ggml_types import TYPES
from llmsupervisor.plan.gguf import GgufHeader
from llmsupervisor.plan.memory import Memory, Settings, estimate
from llmsupervisor.plan.shapes import SHAPES

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

SWA = {"attention.sliding_window": 1024}
GEMMA2 = {"attention.sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
DEEP = {"expert_weights_norm": True, "expert_weights_scale": 2.5, "expert_gating_func": 2}

GRANITE = {"logit_scale": 8.0, "embedding_scale": 12.0, "residual_scale": 0.22}
RELATIVES: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("mistral3", "internlm2", "ernie4_5", "smollm3", "exaone", "minicpm", "xverse")},
    "gemma": {"tied": True},
    "hunyuan-dense": {"qk_norm": True},
    "granite": {"keys": GRANITE},
    "granitemoe": {"keys": GRANITE, "experts": 8, "experts_used": 2},
}
"""Architectures that build the graph of llama, or nearly so."""

LLAMA_8B = decoder(layers=32, embd=4096, ff=14336, heads=32, heads_kv=8, vocabulary=2048)
GEMMA3_12B = decoder(
    "gemma3", layers=48, embd=3840, ff=15360, heads=16, heads_kv=8, head=256, vocabulary=2048, tied=True,
    qk_norm=True, post_norms=True, keys=SWA,
)  # fmt: skip
DEEPSEEK_V2_LITE = deepseek2(
    layers=27, embd=2048, ff=10944, heads=16, experts=64, experts_used=6, ff_exp=1408, vocabulary=2048
)
LFM2_1B = lfm2(embd=2048, ff=8192, heads=32, kv=(0, 0, 8, 0, 0, 8, 0, 0, 8, 0, 8, 0, 8, 0, 8, 0), vocabulary=2048)
MAMBA2_3B = mamba2(layers=64, embd=2560, vocabulary=2048)
"""The shapes of Llama 3.1 8B, Gemma 3 12B, DeepSeek V2 Lite, LFM2 1.2B and Mamba2 2.7B, with few tokens in the
vocabulary: `llama-fit-params` reserves logits for a whole batch, which llama-server does not."""

CASES: dict[str, tuple[Model, dict[str, Any]]] = {
    "llama 8k": (LLAMA_8B, {"context_length": 8192}),
    "llama 4 x 8k": (LLAMA_8B, {"context_length": 8192, "parallel": 4}),
    "llama 128k": (LLAMA_8B, {"context_length": 131072}),
    "llama 3 x 3333": (LLAMA_8B, {"context_length": 3334, "parallel": 3}),
    "llama ubatch 2048": (LLAMA_8B, {"context_length": 8192, "parallel": 4, "ubatch": 2048}),
    "llama without flash attention": (LLAMA_8B, {"context_length": 32768, "flash_attention": False}),
    **{
        f"llama {kind}": (LLAMA_8B, {"context_length": 32768, "kv_type_k": kind, "kv_type_v": kind})
        for kind in ("f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
    },
    "llama q8_0 and q4_0": (LLAMA_8B, {"context_length": 4096, "kv_type_k": "q8_0", "kv_type_v": "q4_0"}),
    "multi-head": (decoder(heads_kv=8), {"context_length": 4096}),
    "large vocabulary": (decoder(vocabulary=32000), {"context_length": 4096}),
    "shorter than a batch": (decoder(), {"context_length": 256}),
    "heads wider than the model": (decoder(head=128, heads=16), {"context_length": 4096}),
    "one layer": (decoder(layers=1), {"context_length": 4096}),
    "tied": (decoder(tied=True), {"context_length": 4096}),
    "f16 weights": (decoder(weights=Type.F16), {"context_length": 4096}),
    "mixtral": (decoder(experts=8, experts_used=2), {"context_length": 4096}),
    "qwen2": (decoder("qwen2", bias=True), {"context_length": 4096, "parallel": 2}),
    "qwen3": (decoder("qwen3", qk_norm=True, head=128), {"context_length": 4096}),
    "qwen3moe": (
        decoder("qwen3moe", qk_norm=True, head=128, experts=16, experts_used=4, ff_exp=256),
        {"context_length": 4096, "parallel": 2},
    ),
    "phi3": (decoder("phi3", fused=True), {"context_length": 4096}),
    "glm4": (decoder("glm4", post_norms=True), {"context_length": 4096}),
    "gemma2": (
        decoder("gemma2", post_norms=True, head=256, tied=True, keys=GEMMA2),
        {"context_length": 16384, "flash_attention": False},
    ),
    "gemma3 32k": (GEMMA3_12B, {"context_length": 32768}),
    "gemma3 4 x 8k": (GEMMA3_12B, {"context_length": 8192, "parallel": 4}),
    "gemma3 swa-full": (GEMMA3_12B, {"context_length": 32768, "swa_full": True}),
    "gemma3 4 x 8k q8_0": (
        GEMMA3_12B,
        {"context_length": 8192, "parallel": 4, "kv_type_k": "q8_0", "kv_type_v": "q8_0"},
    ),
    **{
        f"{name}{' heads' if shape else ''}": (decoder(name, **keys, **shape), {"context_length": 4096, "parallel": 2})
        for name, keys in RELATIVES.items()
        for shape in ({}, {"ff": 256, "heads_kv": 8})
    },
    "gpt-oss": (gpt_oss(), {"context_length": 8192, "parallel": 2}),
    "deepseek2 32k": (DEEPSEEK_V2_LITE, {"context_length": 32768}),
    "deepseek2 q8_0": (DEEPSEEK_V2_LITE, {"context_length": 32768, "kv_type_k": "q8_0", "kv_type_v": "q8_0"}),
    "deepseek2 without flash attention": (
        deepseek2(layers=27),
        {"context_length": 4096, "parallel": 2, "flash_attention": False},
    ),
    "deepseek2 with a rank of queries": (deepseek2(q_rank=256, keys=DEEP), {"context_length": 4096, "parallel": 4}),
    "deepseek2 of an old file": (deepseek2(layers=26, absorbed=False), {"context_length": 4096, "parallel": 2}),
    "deepseek2 with fused experts": (deepseek2(layers=27, fused=True), {"context_length": 4096, "parallel": 2}),
    "deepseek2 with fused experts and a rank": (
        deepseek2(q_rank=256, fused=True, keys=DEEP),
        {"context_length": 8192, "kv_type_k": "q8_0", "kv_type_v": "q8_0"},
    ),
    "lfm2 ragged": (lfm2(kv=(0, 4, 0, 0, 2, 0, 8, 0, 0)), {"context_length": 4096, "parallel": 3}),
    "lfm2 that begins and ends with attention": (lfm2(kv=(2, 0, 0, 0, 0, 4)), {"context_length": 8192}),
    "lfm2 32k": (LFM2_1B, {"context_length": 32768}),
    "lfm2 4 x 8k": (LFM2_1B, {"context_length": 8192, "parallel": 4}),
    "mamba2": (MAMBA2_3B, {"context_length": 32768}),
    "mamba2 4": (MAMBA2_3B, {"context_length": 32768, "parallel": 4}),
}


@dataclass
class Said:
    model: int
    context: int
    compute: int
    """Whole MiB, rounded down."""


def fit_params(path: Path, settings: Settings) -> Said:
    tool = engines.llama_server().with_name("llama-fit-params")
    arguments = {
        "-m": path,
        "-c": settings.tokens,
        "-np": settings.parallel,
        "-b": settings.batch,
        "-ub": settings.ubatch,
        "-ctk": settings.kv_type_k,
        "-ctv": settings.kv_type_v,
        "-fa": "on" if settings.flash_attention else "off",
        "--fit-print": "on",
    }
    words = [str(word) for pair in arguments.items() for word in pair]
    more = ["--no-repack"] + (["--swa-full"] if settings.swa_full else [])
    done = subprocess.run([tool, *words, *more], capture_output=True, text=True, errors="replace", timeout=300)
    found = re.search(r"^Host (\d+) (\d+) (\d+)", done.stdout, re.MULTILINE)
    assert found, done.stdout + done.stderr
    return Said(*map(int, found.groups()))


def sums(memory: Memory) -> Said:
    def of(*names: str) -> int:
        return sum(part.bytes for part in memory.parts if part.name in names) // MIB

    return Said(of("weights"), of("KV cache", "KV cache, sliding", "recurrent state"), of("compute"))


@pytest.mark.parametrize("name", CASES)
def test_as_llama_cpp_says(name: str, tmp_path: Path) -> None:
    model, said = CASES[name]
    path = write(model, tmp_path / "model.gguf")
    settings = Settings(**said)
    settings = replace(settings, outputs=min(settings.batch, settings.tokens))  # as this tool reserves
    memory = estimate(header_of(path), settings)
    assert isinstance(memory, Memory)
    assert memory.exact, memory.unknown
    assert sums(memory) == fit_params(path, settings)


def of_header(header: GgufHeader) -> Model:
    name = header.architecture
    keys = {key.removeprefix(f"{name}."): value for key, value in header.values.items() if key.startswith(f"{name}.")}
    keys |= {"attention.layer_norm_rms_epsilon": 1e-5}
    kinds = {TYPES[int(kind)][0]: kind for kind in Type if int(kind) in TYPES}
    tensors = {tensor.name: (tensor.shape, kinds[tensor.type]) for tensor in header.tensors}
    return Model(name, keys, tensors, header.vocabulary or 0)


@pytest.mark.parametrize("name", SHAPES)
def test_known_models_are_as_llama_cpp_says(name: str, tmp_path: Path) -> None:
    header = SHAPES[name].known().ggufs["Q4_K_M"]
    settings = Settings(context_length=8192, parallel=2, kv_type_k="q8_0", kv_type_v="q8_0", outputs=2048)
    memory = estimate(header, settings)
    assert isinstance(memory, Memory) and memory.exact
    assert sums(memory) == fit_params(write(of_header(header), tmp_path / "model.gguf"), settings)


@pytest.mark.parametrize("names", [("attn_",), ("attn_", "ffn_", "output")])
def test_lora_is_as_llama_server_allocates(names: tuple[str, ...], tmp_path: Path) -> None:
    """Narrow layers, so that the adapters are where the buffer is largest; it is reserved again when they are there."""
    model = decoder(ff=64)
    path, adapter = write(model, tmp_path / "model.gguf"), write_lora(lora(model, 16, *names), tmp_path / "lora.gguf")
    arguments = ["-m", path, "--lora", adapter, "-c", 1024, "-np", 1, "--no-kv-unified"]
    text = server_log(arguments, tmp_path, COMPUTE, times=2)
    memory = estimate(header_of(path), Settings(context_length=1024), (header_of(adapter),))
    assert isinstance(memory, Memory) and memory.exact
    ours = {part.name: part.bytes / MIB for part in memory.parts}
    assert float(re.findall(COMPUTE, text)[-1]) == pytest.approx(ours["compute"], abs=0.006)
    (found,) = re.findall(r"LoRA buffer size = +([\d.]+) MiB", text)
    assert float(found) == pytest.approx(ours["LoRA weights"], abs=0.006)


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_as_llama_server_allocates(unified: bool, kv_type: str, tmp_path: Path) -> None:
    """The real model and the real server: buffers with two digits, also for a pool shared by all slots."""
    model = engines.smollm2()
    settings = Settings(context_length=1024, parallel=4, unified=unified, kv_type_k=kv_type, kv_type_v=kv_type)
    pool = "--kv-unified" if unified else "--no-kv-unified"
    arguments = ["-m", model, "-c", settings.tokens, "-np", 4, "-ctk", kv_type, "-ctv", kv_type, pool]
    text = server_log(arguments, tmp_path, COMPUTE)
    found = re.findall(COMPUTE, text)
    memory = estimate(header_of(model), settings)
    assert isinstance(memory, Memory) and memory.exact
    ours = {part.name: part.bytes / MIB for part in memory.parts}
    assert float(found[-1]) == pytest.approx(ours["compute"], abs=0.006)
    assert [float(kv) for kv in re.findall(r"KV buffer size = +([\d.]+) MiB", text)] == [
        pytest.approx(ours["KV cache"], abs=0.006)
    ]
    assert [float(out) for out in re.findall(r"output buffer size = +([\d.]+) MiB", text)] == [
        pytest.approx(ours["output buffer"], abs=0.006)
    ]
