"""Whatever is typed: no page breaks, and nothing is ordered that nobody said yes to."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.pilot import Pilot
from tui.driving import drive, screen, until
from tui.samples import event, gpu, live, record, service
from tui.stand_in import StandIn
from tui.test_logs import CRASH
from tui.test_service_page import plan
from tui.test_spec_pages import ADVICE, FIXED, SPEC

KEYS = [
    *"12345678", *"urxdaA", *"jkgGnNfewmpcsSlyYi?[]/+-", "up", "down", "left", "right", "pageup", "pagedown", "home",
    "end", "enter", "escape", "escape", "tab", "space", "ctrl+l",
]  # fmt: skip
"""All but those that leave the program, and `y`es to a question (a `y` elsewhere copies)."""


@pytest.fixture
def stand_in(short_folder: Path) -> Iterator[StandIn]:
    daemon = StandIn(short_folder / "s", [service("chat"), service("embed", "BACKOFF", pid=None)])
    now = time.time()
    daemon.tell(gpus=[gpu(0), gpu(1)])
    daemon.live = [live("a", "decode", now - 3, now - 2, tokens=40)]
    daemon.ended(*(record(f"r{n}") for n in range(50)))
    daemon.log("chat", *(f"row {n}" for n in range(200)))
    daemon.events = [event("chat", "state", now - n, **{"from": "STARTING", "to": "READY"}) for n in range(30)]
    daemon.crashes = [CRASH]
    daemon.plans["chat"] = plan("chat")
    daemon.answers = {"spec": SPEC, "advice": ADVICE, "fix": FIXED}
    yield daemon
    daemon.die()


@pytest.mark.parametrize(("size", "seed"), [((80, 24), 1), ((40, 10), 2)], ids=str)
def test_random_keys(stand_in: StandIn, size: tuple[int, int], seed: int) -> None:
    choose = random.Random(seed)

    async def play(pilot: Pilot[None]) -> None:
        for _ in range(80):
            key = choose.choice(KEYS)
            asking = "yes  n no" in screen(pilot.app)  # type: ignore[arg-type]
            await pilot.press("n" if asking and key == "y" else key)
        for _ in range(8):
            await pilot.press("escape")
        await pilot.press("1")
        await until(pilot, lambda s: "LIVE" in s and "chat" in s, "a page as ever")

    drive(stand_in, size, play)
    assert [order for order in stand_in.orders if not order.get("dry_run")] == []
