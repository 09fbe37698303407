"""What else would fit: as the plan of that very size says."""

from __future__ import annotations

from typing import Any

import pytest
from support.gguf_files import Type, decoder, header, lora
from support.planned import CARD, A, at, box, llama, llama_8b, one, sums

from llmsupervisor.plan.answers import most
from llmsupervisor.plan.launch import ServicePlan
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
