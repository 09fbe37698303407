"""Rules that look into the model's own header, and what it takes back of those that do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from support.boxes import service
from support.gguf_files import decoder, deepseek2, header
from support.planned import CARD, OTHER, box, definitions, hf_llama, llama, llama_8b

from llmsupervisor.plan.check import check
from llmsupervisor.plan.facts import Binary
from llmsupervisor.plan.gguf import GgufError
from llmsupervisor.plan.hf import HfError, HfModel
from llmsupervisor.plan.lint import Finding, fixed, lint
from llmsupervisor.plan.rules import model

Json = dict[str, Any]
SMALL = header(decoder(embd=512))
SHARED = header(decoder(layers=32, embd=4096, ff=14336, heads=64, heads_kv=8, vocabulary=128256))
LATENT = header(deepseek2(layers=26, embd=4096, ff=14336, experts=64, ff_exp=1408))
SLIDING = header(decoder("gemma3", layers=12, keys={"attention.sliding_window": 1024}))
SCALES = {"quant_method": "fp8", "kv_cache_scheme": {"type": "float"}}


def vllm(**keys: Any) -> str:
    said = {
        "runtime": "vllm",
        "model": "/m/hf",
        "parallel": 4,
        "kv_cache_type": "fp8",
        "gpus": [0],
        "gpu_memory": "20GiB",
    }
    return service("chat", **{**said, "context_length": 8192, **keys})


def many(*names: str, context_length: int = 2048, kind: str = "q8_0") -> str:
    models = [{"name": name, "context_length": context_length} for name in names]
    return service(
        "chat",
        runtime="ollama",
        model=None,
        context_length=None,
        parallel=1,
        kv_cache_type=kind,
        gpus=[0],
        models=models,
    )


def found(text: str, rule: str = "", **facts: Any) -> list[Finding]:
    """`gguf`, `folder` or `tags` is the model."""
    given: Json = {}
    if gguf := facts.pop("gguf", None):
        given["ggufs"] = {"/m/8b.gguf": gguf}
    if (hf := facts.pop("hf", None)) is not None:
        given["folders"] = {"/m/hf": hf}
    made, known = box(text, **given, **facts)
    return [f for f in lint(made, known, check(text, "spec.toml", definitions()).loaded) if rule in ("", f.rule)]


def hf(**config: Any) -> HfModel:
    return hf_llama(**{"quantization_config": SCALES, "max_position_embeddings": 131072, **config})


class Case(NamedTuple):
    fires: list[tuple[str, Json]]
    silent: list[tuple[str, Json]]
    words: str


BOTH = {"gpus": (CARD, OTHER)}
CASES = {
    "C02": Case(
        [(llama(context_length=262144), {}), (many("a", context_length=262144), {"tags": {"a:latest": llama_8b()}})],
        [
            (llama(context_length=131072), {}),
            (llama(context_length=262144, extra_args=["--rope-scaling", "yarn"]), {}),
            (llama(context_length=262144), {"ggufs": {}}),
            (llama(context_length=262144), {"gguf": GgufError("broken", "no")}),
            (llama(context_length=262144), {"gguf": replace(SMALL, values={})}),
        ],
        "and the model was trained for 131072",
    ),
    "C14": Case(
        [(llama(), {"gguf": LATENT}), (many("b", "a"), {"tags": {"a:latest": LATENT, "b:latest": llama_8b()}})],
        [(llama(kv_cache_type="f16"), {"gguf": LATENT}), (llama(), {})],
        "deepseek2 keeps its cache compressed already",
    ),
    "C16": Case(
        [
            (vllm(), {"hf": hf_llama()}),
            (vllm(kv_cache_type="fp8_e4m3"), {"hf": hf(quantization_config={"quant_method": "awq"})}),
        ],
        [
            (vllm(), {"hf": hf()}),
            (vllm(kv_cache_type="auto"), {"hf": hf_llama()}),
            (vllm(), {"hf": HfError("no")}),
            (vllm(), {}),
        ],
        "1.0 is taken for all of keys and values",
    ),
    "C17": Case(
        [(vllm(), {"hf": hf(head_dim=256)}), (vllm(), {"hf": hf(num_attention_heads=16)})],
        [
            (vllm(), {"hf": hf()}),
            (vllm(kv_cache_type="auto"), {"hf": hf(head_dim=256)}),
            (vllm(), {"hf": HfModel({}, ())}),
        ],
        "heads of 256 elements",
    ),
    "C18": Case(
        [(vllm(), {"hf": hf(sliding_window=1024)})],
        [
            (vllm(), {"hf": hf(sliding_window=4096)}),
            (vllm(), {"hf": hf()}),
            (vllm(), {"hf": hf(sliding_window=1024, use_sliding_window=False)}),
            (vllm(extra_args=["--kv-cache-dtype-skip-layers", "sliding_window"]), {"hf": hf(sliding_window=1024)}),
        ],
        "a window of 1024 tokens",
    ),
    "C52": Case(
        [(vllm(gpus=[0, 1], split="tensor"), {"hf": hf(num_attention_heads=33), **BOTH})],
        [(vllm(gpus=[0, 1], split="tensor"), {"hf": hf(), **BOTH}), (vllm(), {"hf": hf(num_attention_heads=33)})],
        "33 attention heads do not divide by 2 GPUs",
    ),
    "C53": Case(
        [(vllm(gpus=[0, 1], split="tensor"), {"hf": hf(num_key_value_heads=1), **BOTH})],
        [
            (vllm(gpus=[0, 1], split="tensor"), {"hf": hf(num_key_value_heads=2), **BOTH}),
            (vllm(gpus=[0, 1], split="tensor"), {"hf": hf(num_key_value_heads=1, kv_lora_rank=512), **BOTH}),
        ],
        "1 KV heads on 2 GPUs: each of them is kept 2 times",
    ),
    "C106": Case(
        [(vllm(context_length=40960), {"hf": hf(max_position_embeddings=32768)})],
        [
            (vllm(context_length=32768), {"hf": hf(max_position_embeddings=32768)}),
            (vllm(context_length=40960), {"hf": hf(max_position_embeddings=32768, rope_scaling={"factor": 4.0})}),
            (
                vllm(context_length=40960, extra_args=["--hf-overrides", "{}"]),
                {"hf": hf(max_position_embeddings=32768)},
            ),
            (vllm(context_length=40960), {"hf": HfModel({}, ())}),
        ],
        "the model takes 32768 tokens at most",
    ),
}


def test_every_rule_on_the_model_has_its_case() -> None:
    assert set(CASES) == {rule.id for rule in model.RULES}


@pytest.mark.parametrize(("rule", "at"), [(rule, i) for rule, case in CASES.items() for i in range(len(case.fires))])
def test_it_fires_and_its_change_cures_it(rule: str, at: int) -> None:
    text, facts = CASES[rule].fires[at]
    (finding,) = found(text, rule, **dict(facts))
    assert CASES[rule].words in finding.says and finding.effect and finding.evidence and finding.change
    if finding.fix:
        changed = fixed(text, finding)
        assert changed is not None and not found(changed, rule, **dict(facts))


@pytest.mark.parametrize(("rule", "at"), [(rule, i) for rule, case in CASES.items() for i in range(len(case.silent))])
def test_it_is_silent(rule: str, at: int) -> None:
    text, facts = CASES[rule].silent[at]
    assert not found(text, rule, **dict(facts))


# --- what a header takes back of other rules ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "facts", "fires"),
    [
        (llama(kv_cache_type="f16"), {}, True),
        (llama(kv_cache_type="f16"), {"gguf": SMALL}, False),
        (llama(kv_cache_type="f16"), {"gguf": SHARED}, False),
        (llama(kv_cache_type="f16"), {"gguf": LATENT}, False),
        (many("a", kind="f16"), {"tags": {"a:latest": SMALL}}, False),
        (many("a", kind="f16"), {"tags": {"a:latest": llama_8b()}}, True),
        (vllm(kv_cache_type="auto"), {"hf": hf()}, True),
        (vllm(kv_cache_type="auto"), {"hf": hf_llama()}, False),
        (vllm(kv_cache_type="auto"), {"hf": hf(head_dim=256)}, False),
    ],
)
def test_c13_asks_for_no_type_that_another_rule_would_warn_of(text: str, facts: Json, fires: bool) -> None:
    assert bool(found(text, "C13", **facts)) == fires


def test_c13_says_how_much_is_freed() -> None:
    (finding,) = found(llama(kv_cache_type="f16"), "C13")
    assert finding.effect.startswith("1.9 GiB of 4.0 GiB of KV cache free")
    (unread,) = found(llama(kv_cache_type="f16"), "C13", ggufs={})
    assert unread.effect.startswith("half the memory of the KV cache free")


def test_c12_knows_models_that_suffer() -> None:
    assert not found(llama(kv_cache_type="q4_0"), "C12")
    (small,) = found(llama(kv_cache_type="q4_0"), "C12", gguf=SMALL)
    assert "of this model it has 13 million parameters" in small.says
    (shared,) = found(llama(kv_cache_type="q4_0"), "C12", gguf=SHARED)
    assert "of this model 8 query heads look at each KV head" in shared.says


@pytest.mark.parametrize(("layers", "fires"), [(32, True), (33, False), (40, False)])
def test_c32_counts_the_layers_of_the_model(layers: int, fires: bool) -> None:
    said = found(llama(gpu_layers=layers), "C32")
    assert bool(said) == fires and (not fires or "1 of 33 layers" in said[0].says)


def test_windows_are_looked_for_before_they_are_talked_of() -> None:
    for rule, flag in (("C37", ["--swa-full"]), ("C39", ["--ctx-checkpoints", "0"])):
        assert not found(llama(extra_args=flag), rule)
        assert found(llama(extra_args=flag), rule, gguf=SLIDING) and found(llama(extra_args=flag), rule, ggufs={})


@pytest.mark.parametrize(
    ("version", "kind", "fires"), [("0.6.0-dev", "q5_1", False), ("0.6.0-dev", "iq4_nl", True), ("8763", "q5_1", True)]
)
def test_c08_knows_builds_that_compute_every_type(version: str, kind: str, fires: bool) -> None:
    binaries = {"llama-server": Binary("/usr/bin/llama-server", "1:1", version)}
    assert bool(found(llama(kv_cache_type=kind), "C08", binaries=binaries)) == fires
