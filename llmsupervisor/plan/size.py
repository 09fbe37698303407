"""Sizing from recorded requests: what lengths a service saw, and which `context_length` they imply."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

Number = TypeVar("Number", int, float)

MARGIN_PERCENT = 105
SLACK = 64
"""Tokens for what a chat template may add."""
STEP = 256
"""Tokens; llama.cpp rounds a context up to it."""
LEAST = 500
"""Requests below which a 95th percentile is a guess."""
CENSORED = 0.05
"""Share of requests whose true length is unknown above which a 95th percentile is a lower bound."""


def quantile(tally: Mapping[Number, int], q: float, longer: int = 0) -> Number | None:
    """The smallest value that at least the share `q` of the requests does not exceed; one that occurred. `tally` counts
    each value; `longer` requests are beyond all of them. None where there are none, or it is among those beyond.
    """
    rank = max(1, math.ceil(q * (sum(tally.values()) + longer) - 1e-9))
    for value in sorted(tally):
        rank -= tally[value]
        if rank <= 0:
            return value
    return None


def roundup(tokens: int, step: int = STEP) -> int:
    return -(-tokens // step) * step


def context_for(tokens: int) -> int:
    """The `context_length` that requests of this length need."""
    return roundup(-(-tokens * MARGIN_PERCENT // 100) + SLACK)


def implied(lengths: Mapping[int, int], longer: int = 0, q: float = 0.95) -> int | None:
    """The `context_length` that the quantile `q` of the requests' lengths implies. None under LEAST requests, and where
    it is among those of unknown length.
    """
    if sum(lengths.values()) + longer < LEAST:
        return None
    found = quantile(lengths, q, longer)
    return None if found is None else context_for(found)
