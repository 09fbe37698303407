"""What else would fit: as the plan of that very size says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.gguf_files import Type, decoder, header, lora
from support.planned import CARD, GIB, A, at, box, llama, llama_8b, ollama, ollama_of, one, sums

from llmsupervisor.plan import show
from llmsupervisor.plan.answers import most
from llmsupervisor.plan.launch import Plan, ServicePlan
from llmsupervisor.plan.learned import Learned
from llmsupervisor.plan.measure import key

DRAFT = header(decoder(layers=16, embd=2048, ff=8192, heads=32, heads_kv=8, vocabulary=128256, tied=True))


@pytest.mark.parametrize("keys", [{"draft": "/m/d.gguf"}, {"lora": ["/m/lora.gguf"]}, {"mmproj": "/m/d.gguf"}])
def test_what_would_fit_fits_with_all_that_the_process_loads(keys: dict[str, Any]) -> None:
    """A draft model's cache grows with each token too. Of a projector a start has shown what pictures take."""
    model = decoder(layers=32, embd=4096, ff=14336, heads=32, heads_kv=8, vocabulary=128256, weights=Type.Q8_0)
    files = {"/m/8b.gguf": llama_8b(), "/m/d.gguf": DRAFT, "/m/lora.gguf": header(lora(model, 64, "attn_", "ffn_"))}

    def chat(**more: int) -> tuple[ServicePlan, Any]:
        plan, facts = box(llama(**keys, **more), ggufs=files)
        return plan.services["chat"], facts

    now, facts = chat()
    if "mmproj" in keys:
        shown = at(now, A).known
        now = one(
            llama(**keys), ggufs=files, learned=(Learned(key(now, facts, CARD), held=shown, planned=shown, overhead=0),)
        )
    found = most(now, facts)
    assert found and found.context_length and found.parallel
    for name, value, step in (("context_length", found.context_length, 256), ("parallel", found.parallel, 1)):
        assert not sums(chat(**{name: value})[0]).over, f"{name} = {value}"
        assert sums(chat(**{name: value + step})[0]).over, f"{name} = {value + step}"


def test_what_else_would_fit_into_ollama_fits() -> None:
    """Each model's context with the other as it is; both share `parallel`."""
    tags, cards = {"big:latest": llama_8b(), "small:latest": DRAFT}, (replace(CARD, memory_total=16 * GIB),)
    asked = {"big": 4096, "small": 4096}

    def chat(contexts: dict[str, int], **keys: Any) -> ServicePlan:
        return one(ollama_of(contexts, **keys), tags=tags, gpus=cards)

    plan, facts = box(ollama_of(asked), tags=tags, gpus=cards)
    found = most(plan.services["chat"], facts)
    assert found and found.context_length is None and found.parallel and found.parallel > 2
    assert [name for name, _ in found.models] == ["big", "small"]
    for name, longest in found.models:
        assert longest and longest > 4096
        assert fits_as_asked(chat(asked | {name: longest})), name
        assert not fits_as_asked(chat(asked | {name: longest + 256})), name
    assert fits_as_asked(chat(asked, parallel=found.parallel))
    assert not fits_as_asked(chat(asked, parallel=found.parallel + 1))
    told = replace(plan.services["chat"], memory=replace(sums(plan.services["chat"]), most=found))
    (line,) = (line for line in show.text(Plan({"chat": told})).splitlines() if "at most" in line)
    big, small = (context for _, context in found.models)
    assert f"the others as they are: big {big}, small {small} at this parallel, parallel = {found.parallel}" in line
    assert sums(told).to_json()["most"] == {
        "context_length": None, "parallel": found.parallel, "models": {"big": big, "small": small}
    }  # fmt: skip


def fits_as_asked(plan: ServicePlan) -> bool:
    return not sums(plan).over and not sums(plan).doubts


def test_what_would_fit_instead_is_told_of_each_model_of_ollama() -> None:
    tags, cards = {"big:latest": llama_8b(), "small:latest": DRAFT}, (replace(CARD, memory_total=16 * GIB),)
    (refusal,) = one(ollama_of({"big": 65536, "small": 4096}), tags=tags, gpus=cards).refusals
    assert "context_length of big = " in refusal.text and "context_length of small" not in refusal.text
    (refusal,) = one(
        ollama_of({"big": 65536, "small": 65536}), tags=tags, gpus=(replace(CARD, memory_total=8 * GIB),)
    ).refusals
    assert "not even the shortest context of one model alone would fit" in refusal.text


def test_what_else_would_fit_into_ollama_is_unknown_with_its_sums() -> None:
    plan, facts = box(ollama("s", "t"), tags={"s:latest": DRAFT})
    assert most(plan.services["chat"], facts) is None
    plan, facts = box(ollama("s"), tags={"s:latest": DRAFT}, gpus=(replace(CARD, memory_total=None),))
    assert most(plan.services["chat"], facts) is None
