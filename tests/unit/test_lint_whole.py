"""Findings of a whole spec: their order, what they are read from, how they are told."""

from __future__ import annotations

from dataclasses import replace

from support.boxes import load
from support.findings import BOX, definitions, found, llama, ollama, vllm

from llmsupervisor.plan.facts import Facts
from llmsupervisor.plan.lint import fixed, lint
from llmsupervisor.plan.plan import plan
from llmsupervisor.plan.rules.rule import flag, number


def test_errors_come_first() -> None:
    text = llama("a", context_length=1000, kv_cache_type="f16") + llama("b", kv_cache_type="q5_1")
    assert [(f.service, f.rule) for f in found(text)] == [("b", "C08"), ("a", "C13"), ("a", "C03")]


def test_without_facts_and_text() -> None:
    spec, loaded = load(llama(kv_cache_type="f16", gpus=[]) + vllm(gpus=[0]), definitions())
    made = plan(spec, definitions(), Facts(), loaded.origins)
    (finding,) = lint(made)
    assert (finding.rule, finding.file, finding.line) == ("C13", "", 0)
    assert str(finding).startswith("warning C13 services.chat.kv_cache_type: the KV cache")
    assert found(llama(gpus="auto") + ollama(gpus="auto"), Facts()) == []


def test_services_of_a_missing_gpu_are_compared_by_the_words_of_the_spec() -> None:
    assert {f.rule for f in found(ollama(gpus=[7]) + llama(gpus=[7]), replace(BOX, gpus=()))} == {"C95"}


def test_what_stands_in_defaults_is_changed_in_the_service_or_not_at_all() -> None:
    text = '[defaults]\nkv_cache_type = "f16"\nextra_args = ["--swa-full"]\n' + llama(kv_cache_type=None)
    kv, swa = found(text)
    assert (kv.line, kv.rule, swa.line, swa.rule) == (2, "C13", 3, "C37")
    changed = fixed(text, kv)
    assert changed is not None and changed.startswith(text) and changed.endswith('kv_cache_type = "q8_0"\n')
    assert fixed(text, swa) is None


def test_json() -> None:
    told = found(llama(kv_cache_type="f16"))[0].to_json()
    assert told["evidence"] == {"kv_cache_type": "f16", "context_length": 2048, "parallel": 4}
    assert (told["rule"], told["fixable"], told["ignored"], "fix" in told) == ("C13", True, None, False)


def test_flags_and_their_values() -> None:
    assert [flag(w) for w in ("--a_b=c_d", "-x", "word", "--")] == ["--a-b", "-x", "", "--"]
    spec, _ = load(vllm(extra_args=["--watermark", "0.5", "--watermark=0.25", "--name", "x"]), definitions())
    made = plan(spec, definitions(), BOX, {}).services["big"]
    assert number(made, "--watermark") == 0.25
    assert number(made, "--name") is None and number(made, "--none") is None
