"""The sums of vLLM and Ollama by their own arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.gguf_files import decoder, header
from support.planned import CARD, GIB, OTHER, A, B, at, box, hf_llama, llama, llama_8b, ollama, one, sums, vllm

from llmsupervisor.plan import measure, show
from llmsupervisor.plan.answers import most
from llmsupervisor.plan.gguf import GgufError
from llmsupervisor.plan.hf import HfError
from llmsupervisor.plan.launch import Plan
from llmsupervisor.plan.learned import Learned
from llmsupervisor.plan.measure import CONTEXT, key, need
from llmsupervisor.plan.measure_ollama import reckons
from llmsupervisor.plan.measure_vllm import Pages, pages

MIB = 1024 * 1024
FIXTURES = Path(__file__).parents[1] / "fixtures" / "vllm"
DRAFT = header(decoder(layers=16, embd=2048, ff=8192, heads=32, heads_kv=8, vocabulary=128256, tied=True))
STRANGE = replace(llama_8b(), values={**llama_8b().values, "general.architecture": "unheard-of"})


# --- vLLM ---


def test_vllm_takes_its_budget_and_the_cache_what_is_left() -> None:
    chat = one(vllm(), folders={"/m/llama": hf_llama()})
    gpu = at(chat, A)
    assert gpu.total == 22 * GIB and gpu.budget == 22 * GIB
    assert gpu.weights == 16060522496
    assert sums(chat).kv_bytes_per_token == 128 * 1024
    assert gpu.kv_cache is not None and sums(chat).kv_tokens == gpu.kv_cache // (2 * MIB) * 16
    found = most(chat, box(vllm(), folders={"/m/llama": hf_llama()})[1])
    assert found and found.context_length == sums(chat).kv_tokens and found.parallel == sums(chat).kv_tokens // 8192
    short = one(vllm(gpu_memory="17GiB"), folders={"/m/llama": hf_llama()})
    assert "fewer than context_length = 8192: its engine refuses to start" in short.warnings[-1]
    assert one(vllm(gpu_memory="15GiB"), folders={"/m/llama": hf_llama()}).refusals


def test_vllm_for_so_many_tokens() -> None:
    """The flag is in bytes: exactly the blocks that hold them, and the one that vLLM keeps empty."""
    chat = one(vllm(kv_tokens=65536, gpu_memory=None), folders={"/m/llama": hf_llama()})
    blocks = 65536 // 16 + 1
    assert ("--kv-cache-memory-bytes", str(blocks * 2 * MIB)) in [arg.words for arg in chat.argv]
    assert at(chat, A).kv_cache == blocks * 2 * MIB and sums(chat).kv_tokens == blocks * 16
    fp8 = one(vllm(kv_tokens=65536, gpu_memory=None, kv_cache_type="fp8"), folders={"/m/llama": hf_llama()})
    assert at(fp8, A).kv_cache == blocks * MIB


def test_vllm_over_two_cards() -> None:
    folders, cards = {"/m/llama": hf_llama()}, (CARD, replace(OTHER, memory_total=24 * GIB))
    tensor = one(vllm(gpus=[0, 1], kv_tokens=65536), folders=folders, gpus=cards)
    layers = one(vllm(gpus=[0, 1], kv_tokens=65536, split="pipeline"), folders=folders, gpus=cards)
    for chat in (tensor, layers):
        assert at(chat, A).kv_cache == at(chat, B).kv_cache == 4097 * MIB
    norms = 65 * 4096 * 2
    assert at(tensor, A).weights == (16060522496 - norms) // 2 + norms
    first, last = at(layers, A).weights, at(layers, B).weights
    assert first and last and first + last == 16060522496 and last - first == 4096 * 2
    assert sums(tensor).kv_bytes_per_token == 128 * 1024


@pytest.mark.parametrize(
    ("config", "tokens", "per_token"),
    [
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, 8192 * 13, 32 * 576 * 2),
        ({"layer_types": ["full_attention"] * 32}, None, 128 * 1024),
        ({"sliding_window": 4096, "model_type": "qwen2", "max_window_layers": 28}, None, 128 * 1024),
        # 8 groups of 4 layers share a pool: full ones need 512 blocks each, sliding ones (1023 + 2048) / 16 + 1
        (
            {"layer_types": (["sliding_attention"] * 7 + ["full_attention"]) * 4, "sliding_window": 1024},
            None,
            16 * 1024,
        ),
    ],
)
def test_pages_of_other_attention(config: dict[str, Any], tokens: int | None, per_token: int) -> None:
    chat = one(vllm(kv_tokens=16384), folders={"/m/llama": hf_llama(**config)})
    found = sums(chat)
    assert found.kv_bytes_per_token == per_token and found.kv_tokens is not None and found.kv_tokens >= 16384


@pytest.mark.parametrize(
    ("config", "keys", "says"),
    [
        ({"full_attention_interval": 4}, {}, "full_attention_interval"),
        ({"num_hidden_layers": None}, {}, "does not say num_hidden_layers"),
        ({"layer_types": ["mamba"] * 32}, {}, "of other kinds"),
        ({"sliding_window": 4096}, {}, "which layers slide"),
        ({"sliding_window": 4096, "model_type": "qwen3", "use_sliding_window": True}, {}, "which layers slide"),
        ({}, {"kv_cache_type": "nvfp4"}, "a KV cache of type nvfp4"),
    ],
)
def test_vllm_without_a_formula(config: dict[str, Any], keys: dict[str, Any], says: str) -> None:
    chat = one(vllm(**keys), folders={"/m/llama": hf_llama(**config)})
    assert says in "; ".join(sums(chat).unknown) and sums(chat).kv_tokens is None and at(chat, A).total == 22 * GIB
    assert most(chat, box(vllm(), folders={"/m/llama": hf_llama()})[1]) is None


@pytest.mark.parametrize(
    ("keys", "flag", "known"),
    [
        ({"extra_args": ["--speculative-config", "{}"]}, "--speculative-config", None),
        ({"extra_args": ["--spec-model=/m/d"]}, "--spec-model", None),
        ({"extra_args": ["--cpu-offload-gb", "8"]}, "--cpu-offload-gb", None),
        ({"lora": ["/m/lora"]}, "--enable-lora", None),
        (
            {"extra_args": ["--kv-cache-dtype-skip-layers", "sliding_window"]},
            "--kv-cache-dtype-skip-layers",
            16060522496,
        ),
    ],
)
def test_flags_of_vllm_that_nobody_counts(keys: dict[str, Any], flag: str, known: int | None) -> None:
    folders = {"/m/llama": hf_llama()}
    plan, facts = box(vllm(**keys), folders=folders)
    chat = plan.services["chat"]
    assert sums(chat).unknown == (f"no formula for {flag}",) and flag in chat.warnings[0] and not chat.refusals
    assert at(chat, A).weights == known and need(chat, A) == 22 * GIB, "its budget, whatever it puts there"
    assert sums(chat).kv_tokens is None and most(chat, facts) is None
    on_host = one(vllm(gpus=[], gpu_memory=None, **keys), folders=folders, gpus=())
    assert f"no formula for {flag}" in sums(on_host).unknown and at(on_host, None).weights == known


def test_weights_that_vllm_keeps_on_the_host_refuse_no_start() -> None:
    folders, offload = {"/m/llama": hf_llama()}, ["--cpu-offload-gb", "8"]
    assert one(vllm(gpu_memory="12GiB"), folders=folders).refusals
    assert not one(vllm(gpu_memory="12GiB", extra_args=offload), folders=folders).refusals
    assert one(vllm(gpu_memory="12GiB", extra_args=["--cpu-offload-gb", "0"]), folders=folders).refusals
    pool = one(vllm(gpu_memory=None, kv_tokens=65536, extra_args=offload), folders=folders)
    assert at(pool, A).kv_cache == 4097 * 2 * MIB and sums(pool).kv_tokens == 4097 * 16


def test_a_command_line_of_vllm_that_does_not_say_its_context() -> None:
    plan, facts = box(vllm(), folders={"/m/llama": hf_llama()})
    chat = plan.services["chat"]
    silent = replace(chat, argv=tuple(arg for arg in chat.argv if arg.words[0] != "--max-model-len"))
    found = measure.sums(silent, facts)
    assert found and found.unknown == ("the command line does not say --max-model-len",) and found.kv_tokens is None


def test_vllm_whose_model_cannot_be_read() -> None:
    chat = one(vllm(), folders={"/m/llama": HfError("/m/llama holds no safetensors files")})
    assert need(chat, A) == 22 * GIB and "holds no safetensors" in chat.warnings[0]
    unbudgeted = one(vllm(gpu_memory=None, kv_tokens=5), folders={"/m/llama": hf_llama(mamba_d_state=1)})
    assert at(unbudgeted, A).kv_cache is None and "has no budget" in sums(unbudgeted).unknown[-1]


def test_without_the_tokens_of_the_pool_nothing_is_said_of_what_else_would_fit() -> None:
    text, folders = vllm(gpu_memory=None, kv_tokens=5), {"/m/llama": hf_llama(mamba_d_state=1)}
    plan, facts = box(text, folders=folders)
    lesson = Learned(key(plan.services["chat"], facts, CARD), 20 * GIB, 20 * GIB, 0)
    chat = one(text, folders=folders, learned=(lesson,))
    assert at(chat, A).total == 20 * GIB and not sums(chat).unknown, "a start has shown it"
    assert sums(chat).kv_tokens is None and most(chat, facts) is None


def test_vllm_on_the_cpu() -> None:
    keys: dict[str, Any] = {"gpus": [], "gpu_memory": None}
    chat = one(vllm(env={"VLLM_CPU_KVCACHE_SPACE": "1"}, **keys), folders={"/m/llama": hf_llama()}, gpus=())
    assert at(chat, None).kv_cache == GIB and sums(chat).kv_tokens == 8192
    blocks = one(
        vllm(extra_args=["--num-gpu-blocks-override", "65"], **keys), folders={"/m/llama": hf_llama()}, gpus=()
    )
    assert sums(blocks).kv_tokens == 65 * 128 and at(blocks, None).kv_cache == 65 * 16 * MIB
    nothing = one(vllm(**keys), folders={"/m/llama": hf_llama(full_attention_interval=4)}, gpus=())
    assert at(nothing, None).kv_cache is None and sums(nothing).kv_tokens is None


def test_fp8_weights_made_at_the_start() -> None:
    model = hf_llama(quantization_config={"kv_cache_scheme": {"num_bits": 8}}, num_experts_per_tok=2)
    chat = one(vllm(quantization="fp8", kv_tokens=65536), folders={"/m/llama": model})
    assert at(chat, A).weights == 9081200640 and at(chat, A).kv_cache == 4097 * MIB
    eager = one(
        vllm(extra_args=["--enforce-eager"]), folders={"/m/llama": hf_llama(text_config=dict(hf_llama().config))}
    )
    assert not [part for part in sums(eager).parts if part.name == "CUDA graphs"]


def test_the_pool_that_vllm_logged() -> None:
    """vLLM 0.32 on the CPU, a model of 2 layers with 2 heads of 32: as its log and its metric say."""
    log = (FIXTURES / "startup_log_default_cpu.txt").read_text()
    assert "(1.0/9.46) GiB for KV cache" in log and "KV cache size: 2,097,152 tokens" in log
    tiny = hf_llama(num_hidden_layers=2, hidden_size=128, num_attention_heads=4, num_key_value_heads=2)
    found = pages(tiny, kv_type="auto", length=1024, tensor=1, pipeline=1, block=128, in_flight=2048)
    assert isinstance(found, Pages) and found.tokens(GIB) == 2_097_152
    metric = (FIXTURES / "metrics_load.txt").read_text()
    assert 'kv_cache_size_tokens="5120"' in metric and 'num_gpu_blocks="40"' in metric
    assert found.tokens(40 * found.bytes) == 5120


@pytest.mark.parametrize(
    ("said", "full"),
    [
        ({"model_type": "gemma2"}, [i % 2 for i in range(32)]),
        ({"model_type": "gemma3_text"}, [(i + 1) % 6 == 0 for i in range(32)]),
        ({"model_type": "gemma3_text", "sliding_window_pattern": 4}, [(i + 1) % 4 == 0 for i in range(32)]),
        ({"model_type": "qwen3", "use_sliding_window": True, "max_window_layers": 28}, [i < 28 for i in range(32)]),
        ({"model_type": "mistral"}, [False] * 32),
    ],
)
def test_layers_that_slide_where_no_list_says_so(said: dict[str, Any], full: list[bool]) -> None:
    """As transformers 5 fills in `layer_types`; without them vLLM has all layers slide."""
    found, listed = (
        pages(
            hf_llama(sliding_window=1024, **more),
            kv_type="auto",
            length=8192,
            tensor=1,
            pipeline=1,
            block=16,
            in_flight=2048,
        )
        for more in (said, {"layer_types": ["full_attention" if each else "sliding_attention" for each in full]})
    )
    assert isinstance(found, Pages) and found == listed


ODD = st.sampled_from([0, -1, 1.5, 2**31, 2**63, True, "x", None, [], {}, [1] * 32, ["sliding_attention"] * 32])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(
        st.sampled_from([*hf_llama().config, "text_config", "layer_types", "sliding_window", "kv_lora_rank"]), ODD
    )
)
def test_no_configuration_breaks_the_plan(config: dict[str, Any]) -> None:
    chat = one(vllm(kv_tokens=65536), folders={"/m/llama": hf_llama(**config)})
    assert show.text(Plan({"chat": chat})) and not [t for t in sums(chat).unknown if "failed" in t]


# --- Ollama ---


def test_ollama_with_all_its_models_loaded() -> None:
    tags = {"llama3.1:8b": llama_8b(), "small:latest": DRAFT}
    chat = one(ollama("llama3.1:8b", "small"), tags=tags)
    assert at(chat, A).kv_cache == 8192 * (68 * 1024 + 17 * 1024)
    assert at(chat, A).overhead == 2 * CONTEXT, "one process each"
    assert sums(chat).fits and most(chat, box(llama())[1]) is None
    half = one(
        ollama("llama3.1:8b", "small"), tags={"llama3.1:8b": llama_8b(), "small:latest": GgufError("broken", "gone")}
    )
    assert "small: gone" in sums(half).unknown and need(half, A) is None
    strange = one(ollama("s"), tags={"s:latest": STRANGE})
    assert at(strange, A).kv_cache is None and sums(strange).unknown
    unread = one(ollama("s", "t"), tags={"s:latest": DRAFT})
    assert "t: its files were not looked at" in sums(unread).unknown
    assert one(ollama("s"), tags={}).memory is None
    spread = one(ollama("s", gpus=[0, 1], split="layer"), tags={"s:latest": DRAFT}, gpus=(CARD, OTHER))
    assert at(spread, B).kv_cache
    chosen = one(ollama("s", gpus=[0, 1]), tags={"s:latest": DRAFT}, gpus=(CARD, OTHER))
    assert "its own choice" in sums(chosen).unknown[0]


def test_what_ollama_would_refuse_is_in_no_sum() -> None:
    odd = header(decoder(heads=9, embd=576))
    odd = replace(odd, values={**odd.values, "llama.attention.key_length": 48})
    chat = one(ollama("odd", "s", kv_cache_type="q8_0"), tags={"odd:latest": odd, "s:latest": DRAFT})
    (why,) = sums(chat).unknown
    assert why.startswith("odd: KV type q8_0 needs heads of a multiple of 32")
    assert need(chat, A) is None and {part.name.split()[0] for part in sums(chat).parts} == {"s", "process"}


def test_keys_and_values_of_two_types_in_ollama() -> None:
    """Half of the cache in each of them."""
    tags = {"s:latest": DRAFT}
    whole, half, mixed = (
        at(one(ollama("s", kv_cache_type=kind), tags=tags), A).kv_cache for kind in ("f16", "q8_0", "f16/q8_0")
    )
    assert whole and half and mixed and mixed == (whole + half) // 2


def test_whom_ollama_unloads_by_its_own_arithmetic() -> None:
    """Both fit, but Ollama counts an f16 cache and leaves a fifth free."""
    tags, cards = {"a:latest": llama_8b(), "b:latest": llama_8b()}, (replace(CARD, memory_total=19 * GIB),)
    both = one(ollama("a", "b"), tags=tags, gpus=cards)
    assert sums(both).fits is True
    (text,) = both.warnings
    assert "Ollama reckons 8.9 GiB for b" in text and "80% of what is free, 10.9 GiB here" in text
    assert not one(ollama("a"), tags=tags, gpus=cards).warnings and not one(ollama("a", "b"), tags=tags).warnings


def test_what_ollama_reckons_whatever_the_cache() -> None:
    """2 × layers × heads × head × tokens × 2 bytes and the file: as it decides whom to unload."""
    assert reckons(llama_8b(), 8192) == llama_8b().weight_bytes + 2 * 32 * 8 * 128 * 8192 * 2
    assert reckons(STRANGE, 8192) is None
