"""Weights on the host against its memory: a warning with the sum, and a refusal where the gate is strict."""

from __future__ import annotations

from typing import Any

import pytest
from support.planned import GIB, llama, one


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
