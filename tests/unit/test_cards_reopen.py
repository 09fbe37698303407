"""When closed cards are back: what a refused client is told to wait for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmsupervisor.daemon.box import Box
from llmsupervisor.daemon.cards import Cards
from llmsupervisor.daemon.desired import GpuWish

BOOT, NOW = "this-boot", 1_790_000_000.0


def lent(until: float | None, **more: Any) -> GpuWish:
    return GpuWish(lent={"by": "ann", "since": NOW, "until": until}, **{"boot": BOOT, **more})


@pytest.mark.parametrize(
    ("wishes", "asked", "back"),
    [
        ({}, "ab", None),
        ({"a": lent(NOW + 600)}, "ab", NOW + 600),
        ({"a": lent(NOW + 600), "b": lent(NOW + 60)}, "ab", NOW + 600),
        ({"a": lent(NOW + 600), "b": lent(NOW + 60)}, "b", NOW + 60),
        ({"a": lent(NOW + 600), "b": lent(None)}, "ab", None),
        ({"a": lent(NOW + 600), "b": lent(NOW - 1)}, "ab", NOW + 600),
        ({"a": lent(NOW + 600, boot="another")}, "ab", None),
        ({"a": lent(NOW + 600, quarantine={"reason": "XID 79", "since": NOW, "lost": True})}, "ab", None),
    ],
    ids=[
        "none is closed",
        "one",
        "the last of two",
        "only those asked for",
        "one for good",
        "one is over",
        "before the boot",
        "quarantined too",
    ],
)
def test_when_the_last_of_the_closed_cards_is_back(wishes: dict[str, GpuWish], asked: str, back: float | None) -> None:
    clock = SimpleNamespace(monotonic=lambda: 0.0, wall=lambda: NOW)
    desired = SimpleNamespace(gpus=wishes)
    cards = Cards(cast(Box, SimpleNamespace(clock=clock, desired=desired, boot=BOOT)))
    assert cards.reopen(list(asked)) == back
