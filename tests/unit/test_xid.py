"""Whose fault an XID is decides what happens to the card."""

from __future__ import annotations

import pytest

from llmsupervisor.service.xid import meaning


@pytest.mark.parametrize(
    ("code", "kind", "lost"),
    [(31, "application", False), (48, "gpu", False), (79, "gpu", True), (9999, "unknown", False)],
)
def test_whose_fault_it_is(code: int, kind: str, lost: bool) -> None:
    found = meaning(code)
    assert (found.kind, found.lost) == (kind, lost) and found.text


def test_a_number_that_nobody_knows_says_where_to_look() -> None:
    assert "NVIDIA's list" in meaning(9999).text
