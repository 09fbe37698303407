"""What lies on the host against its memory, of one service and of all that stay there together."""

from __future__ import annotations

from typing import Any

import pytest
from support.planned import GIB, at, box, llama, one, sums

from llmsupervisor.plan import show
from llmsupervisor.plan.measure_llama import cache_ram


@pytest.mark.parametrize("where", [{"gpus": []}, {"gpu_layers": 8}])
@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"memory": 5 * GIB}, "and there is 5.0 GiB for it"),
        ({"memory_limit": 5 * GIB}, "and there is 5.0 GiB for it"),
        ({"memory_free": 4 * GIB}, "and 4.0 GiB of it is free"),
    ],
)
def test_weights_that_find_no_room_on_the_host(where: Any, facts: Any, why: str) -> None:
    """A warning with the sum; `strict` refuses."""
    (warning,) = one(llama(**where), **facts).warnings
    sum = "weights 7.9 GiB + KV cache" if "gpus" in where else "weights 5.9 GiB + KV cache"
    assert warning.startswith("services.chat: memory: needs ") and sum in warning and why in warning
    assert not one(llama(**where), **facts).refusals and not one(llama(**where, gate="off"), **facts).warnings
    strict = one(llama(**where, gate="strict"), **facts)
    (refusal,) = strict.refusals
    assert why in refusal.text and 'gate = "strict" asks for that' in refusal.text
    assert not any(why in text for text in strict.warnings)


def test_a_host_with_room_is_silent() -> None:
    free = {"memory_free": 12 * GIB, "memory_limit": 20 * GIB}
    for where in ({"gpus": []}, {"gpu_layers": 8}, {}):
        assert not one(llama(**where), **free).warnings
    assert not one(llama(), memory_free=1 * GIB).warnings, "all layers are on the GPU"


@pytest.mark.parametrize("mode", ["none", "mlock", "mmap+mlock", "dio"])
def test_weights_that_are_no_pages_of_a_file_have_to_lie_in_memory(mode: str) -> None:
    said = {"gpus": [], "extra_args": ["--load-mode", mode]}
    (refusal,) = one(llama(**said), memory=9 * GIB).refusals
    assert "on host, and may take 9.0 GiB (all that there is)" in refusal.text
    (warning,) = one(llama(**said), memory_free=4 * GIB).warnings
    assert "what finds no room has the kernel end a process" in warning
    assert not one(llama(gpus=[], extra_args=["--load-mode", "mmap"]), memory=9 * GIB).refusals


# --- all services together ---


def two(**second: Any) -> str:
    """Each 7.9 GiB of weights, 2.1 GiB of KV cache, and a GiB for prompts."""
    return llama(gpus=[]) + llama("two", **{"gpus": [], **second})


def told(text: str, **facts: Any) -> tuple[list[str], list[str]]:
    """Of the second service, beside what is said of it alone."""
    plan = box(text, gpus=(), **facts)[0].services["two"]
    return [t for t in plan.warnings if "together" in t], [r.text for r in plan.refusals if "together" in r.text]


def test_services_on_the_host_are_summed() -> None:
    assert told(two(), memory=24 * GIB) == ([], [])
    (kept,), none = told(two(), memory=21 * GIB)
    assert (
        "the host has 21.0 GiB, and chat 10.2 GiB and 1.0 GiB for prompts + two 10.2 GiB and 1.0 GiB for prompts"
        in kept
    )
    assert "smaller cache_ram" in kept and not none
    assert told(two(cache_ram="128MiB"), memory=22 * GIB) == ([], [])
    (slow,), none = told(two(), memory=16 * GIB)
    assert "read from the disk again at every token" in slow and not none
    none, (strict,) = told(two(gate="strict"), memory=16 * GIB)
    assert 'gate = "strict" asks for that' in strict and not none
    none, (killed,) = told(two(context_length=40960), memory=12 * GIB)
    assert "has the kernel end a process" in killed and not none


def test_who_does_not_stay_or_asks_for_no_gate_is_not_summed() -> None:
    assert told(two(gate="off"), memory=11 * GIB) == ([], [])
    brief = {"start": "demand", "keep_alive": "5m"}
    assert told(llama(gpus=[], **brief) + llama("two", gpus=[], **brief), memory=16 * GIB) == ([], [])
    assert told(two(**brief), memory=16 * GIB)[0], "beside the one that stays it finds no room"


def test_one_that_is_refused_takes_nothing_from_those_behind_it() -> None:
    plans = box(two(context_length=40960) + llama("three", gpus=[]), memory=12 * GIB, gpus=())[0].services
    assert [bool(plans[name].refusals) for name in ("chat", "two", "three")] == [False, True, False]


def test_the_sum_is_shown() -> None:
    text = show.text(box(two(), gpus=())[0])
    assert text.rstrip().endswith("= 22.4 GiB of 64.0 GiB")
    assert "host: 1.0 GiB more for prompts that it keeps (cache_ram), as they come" in text
    assert "\nhost: chat" not in show.text(box(llama(gpus=[]))[0]), "nothing to add up"


def test_prompts_that_are_kept() -> None:
    """The engine's own default where nothing is said; nothing for embeddings."""
    assert cache_ram("chat", None) == 8 * GIB and cache_ram("chat", 0) == cache_ram("embed", None) == 0
    assert at(one(llama()), None).cache_ram == GIB, "our default"
    assert at(one(llama(cache_ram="3GiB")), None).cache_ram == 3 * GIB
    assert sums(one(llama())).places[0].cache_ram == 0, "not on a GPU"
