from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsupervisor.spec.near import distance, near


@pytest.mark.parametrize(
    ("left", "right", "edits"),
    [
        ("", "", 0),
        ("a", "", 1),
        ("", "ab", 2),
        ("abc", "abc", 0),
        ("abc", "abd", 1),
        ("abc", "acb", 1),
        ("kitten", "sitting", 3),
        ("ca", "abc", 3),
    ],
)
def test_edits(left: str, right: str, edits: int) -> None:
    assert distance(left, right) == edits == distance(right, left)


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edits_of_any_two_words(left: str, right: str) -> None:
    edits = distance(left, right)
    assert edits == distance(right, left) == distance(left[::-1], right[::-1])
    assert abs(len(left) - len(right)) <= edits <= max(len(left), len(right))
    assert (edits == 0) == (left == right)


@pytest.mark.parametrize(
    ("word", "names", "meant"),
    [
        ("paralel", ["parallel", "priority"], "parallel"),
        ("Parallel", ["parallel"], "parallel"),
        ("context_lenght", ["context_length"], "context_length"),
        ("gpu", ["gpus", "gpu_layers"], "gpus"),
        ("bot", ["boot", "demand"], "boot"),
        ("q8", ["q8_0", "f16"], ""),
        ("ab", ["cd"], ""),
        ("port", [], ""),
        ("", ["a"], "a"),
        ("evn", ["env", "even"], "env"),
    ],
)
def test_the_name_that_was_meant(word: str, names: list[str], meant: str) -> None:
    assert near(word, names) == meant
