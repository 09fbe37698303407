"""What else would fit, side by side: of vLLM and Ollama."""

from __future__ import annotations

from dataclasses import replace

from support.gguf_files import decoder, header
from support.planned import CARD, box, hf_llama, llama_8b, ollama, one, sums, vllm

from llmsupervisor.plan.tables import of_plan

DRAFT = header(decoder(layers=16, embd=2048, ff=8192, heads=32, heads_kv=8, vocabulary=128256, tied=True))


def rows(told: str) -> dict[str, list[str]]:
    return {row.split(" | ")[0].strip("| *"): row.split(" | ") for row in told.splitlines()[2:]}


def test_the_alternatives_of_vllm() -> None:
    folders = {"/m/llama": hf_llama()}
    found = rows(of_plan(*box(vllm(), folders=folders)))
    assert list(found) == ["KV cache", "---", "auto", "fp8"]
    auto, fp8 = found["auto"], found["fp8"]
    tokens = sums(one(vllm(), folders=folders)).kv_tokens
    assert tokens and auto[1:7] == ["128.0 KiB", "22.0 GiB", f"{tokens:,}", "yes", str(tokens), str(tokens // 8192)]
    assert fp8[1:3] == ["64.0 KiB", "22.0 GiB"] and int(fp8[5]) >= 2 * tokens
    assert auto[7:] == ["–", "–", "3", "kv_cache_type, gpu_memory |"]
    small = rows(of_plan(*box(vllm(gpu_memory="17GiB"), folders=folders)))
    assert small["auto"][4] == "no", "one request of full length has no room"


def test_the_alternatives_of_vllm_for_so_many_tokens() -> None:
    """The memory changes, not the tokens."""
    told = of_plan(*box(vllm(kv_tokens=65536, gpu_memory=None), folders={"/m/llama": hf_llama()}))
    auto, fp8 = rows(told)["auto"], rows(told)["fp8"]
    assert auto[3] == fp8[3] == "65,552" and auto[2] != fp8[2] and fp8[-1] == "kv_cache_type, kv_tokens |"


def test_a_card_that_cannot_compute_with_fp8() -> None:
    old = replace(CARD, compute_capability=(8, 6))
    assert "fp8" not in of_plan(*box(vllm(), folders={"/m/llama": hf_llama()}, gpus=(old,)))
    cpu = of_plan(*box(vllm(gpus=[], gpu_memory=None), folders={"/m/llama": hf_llama()}, gpus=()))
    assert list(rows(cpu)) == ["KV cache", "---", "auto"] and rows(cpu)["auto"][9] == "–"


def test_the_alternatives_of_ollama() -> None:
    told = of_plan(*box(ollama("big", "small"), tags={"big:latest": llama_8b(), "small:latest": DRAFT}))
    assert told.startswith("## chat: parallel = 2\n")
    found = rows(told)
    assert list(found) == ["KV cache", "---", "f16", "q8_0", "q4_0"] and "| **q8_0** |" in told
    assert found["q8_0"][3:5] == ["16,384", "yes"] and found["q8_0"][5].startswith("big ")
    assert int(found["q4_0"][6]) > int(found["q8_0"][6]) > int(found["f16"][6])
    assert found["f16"][7:] == ["–", "–", "3", "kv_cache_type of all models |"]
