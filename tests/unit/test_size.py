from __future__ import annotations

from collections import Counter

import pytest

from llmsupervisor.plan.size import LEAST, context_for, implied, quantile, roundup


@pytest.mark.parametrize(
    ("values", "q", "expected"),
    [
        ([7], 0.5, 7),
        ([7], 0.99, 7),
        (range(1, 101), 0.5, 50),
        (range(1, 101), 0.95, 95),
        (range(1, 101), 0.99, 99),
        (range(1, 101), 1.0, 100),
        ([1] * 95 + [9] * 5, 0.95, 1),
        ([1] * 94 + [9] * 6, 0.95, 9),
        ([0.1, 0.2, 0.3], 0.5, 0.2),
        ([], 0.5, None),
    ],
)
def test_a_quantile_is_a_value_that_occurred(values: list[float], q: float, expected: float | None) -> None:
    assert quantile(Counter(values), q) == expected


def test_what_is_beyond_all_known_counts_and_has_no_value() -> None:
    known = Counter(range(1, 96))
    assert quantile(known, 0.9, longer=5) == 90
    assert quantile(known, 0.95, longer=5) == 95
    assert quantile(known, 0.95, longer=6) is None


@pytest.mark.parametrize(("tokens", "expected"), [(0, 0), (1, 256), (256, 256), (257, 512)])
def test_roundup(tokens: int, expected: int) -> None:
    assert roundup(tokens) == expected


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (4136, 4608),  # the 95th percentile of the Azure 2023 conversations
        (7343, 7936),
        (3840, 4096),  # 1.05 × 3840 + 64 = 4096 exactly
        (3841, 4352),
        (0, 256),
    ],
)
def test_the_context_that_a_length_needs(tokens: int, expected: int) -> None:
    assert context_for(tokens) == expected


def test_nothing_is_implied_by_too_few() -> None:
    lengths = Counter({4136: LEAST - 1})
    assert implied(lengths) is None
    assert implied(lengths, longer=1) == 4608
    assert implied(Counter({4136: LEAST})) == 4608
    assert implied(Counter({4136: LEAST}), longer=LEAST) is None
