"""How fast the memory of a GPU must have been read for the tokens that came: an estimate, where no card measures it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Decode:
    """Of one service, over the last look."""

    tokens_per_s: float
    """Of all answers together."""
    running: int
    weights: int
    """Bytes on its GPUs. All of them are read for each step: of a model whose experts are chosen by the token this is not so."""
    kv_used: int | None
    """Bytes; None: not known, and left out."""
    gpus: int


def bytes_per_s(service: Decode) -> float:
    """On each of its GPUs. A step reads the weights once and the KV of every request, and gives each one token."""
    steps = service.tokens_per_s / max(1, service.running)
    return steps * (service.weights + (service.kv_used or 0)) / service.gpus


def total(services: Iterable[Decode]) -> float | None:
    """None where nobody decodes."""
    rates = [bytes_per_s(service) for service in services]
    return sum(rates) if rates else None
