"""What happened, and the time lines made of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from tui.driving import PLACES, drive, until
from tui.samples import event, service
from tui.stand_in import StandIn

from llmsupervisor.cli.views import text_of
from llmsupervisor.tui import timeline

NOW = 1_790_000_000.0


def became(state: str, at: float, before: str = "STOPPED", name: str = "chat") -> Any:
    return event(name, "state", at, **{"from": before, "to": state, "reason": ""})


def cells(events: list[Any], window: float = 100.0, room: int = 25) -> str:
    [_, row] = timeline.rows(events, ["chat"], NOW, window, room)
    return text_of(row)[5:]


def test_a_cell_is_what_lasted_longest_in_it() -> None:
    events = [
        became("STARTING", NOW - 80),
        became("READY", NOW - 40, "STARTING"),
        became("DRAINING", NOW - 10, "READY"),
    ]
    assert cells(events) == "." * 4 + "L" * 8 + "=" * 6 + "d" * 2


def test_an_end_by_itself_is_never_lost_in_a_long_stretch() -> None:
    events = [became("READY", NOW - 90, "STARTING"), event("chat", "exit", NOW - 50.5, exit={"cause": "signal", "text": "x", "advice": ""}),
              became("BACKOFF", NOW - 50.5, "READY"), became("READY", NOW - 49.9, "BACKOFF")]  # fmt: skip
    assert cells(events).count("x") == 1 and set(cells(events)) == {"L", "=", "x"}


def test_what_is_not_known_is_empty() -> None:
    assert cells([]).strip() == "" and cells([became("READY", NOW - 10, name="other")]).strip() == ""


@pytest.mark.parametrize("room", [20, 80, 200])
def test_a_row_keeps_to_its_room_and_moves_by_whole_cells(room: int) -> None:
    events = [became("READY", NOW - 30, "STARTING")]
    window = 3600.0
    rows = [timeline.rows(events, ["chat"], NOW + n * 0.01, window, room) for n in range(3)]
    assert all(len(text_of(line)) <= room for line in rows[0])
    assert len({text_of(row[1]) for row in rows}) <= 2


@pytest.fixture
def stand_in(short_folder: Path) -> Iterator[StandIn]:
    daemon = StandIn(short_folder / "s", [service("chat"), service("embed")])
    now = time.time()
    daemon.events = [became("READY", now - 1800 + n, "STARTING") for n in range(40)]
    daemon.events.append(
        event("embed", "exit", now - 60, exit={"cause": "oom", "text": "out of memory", "advice": "less"})
    )
    yield daemon
    daemon.die()


@pytest.mark.parametrize(("size", "lang"), PLACES, ids=str)
def test_events_come_in_are_filtered_and_have_a_time_line(stand_in: StandIn, size: tuple[int, int], lang: str) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("5")
        shown = await until(pilot, lambda s: "41 of 41" in s and "====" in s and "embed" in s, "events and time lines")
        assert shown.isascii() or lang == "C.UTF-8"
        stand_in.happened(event("chat", "condition", time.time(), id="not-as-asked", text="f16", on=True))
        await until(pilot, lambda s: "42 of 42" in s and "not-as-asked"[:4] in s, "one that happens meanwhile")
        await pilot.press("slash", *"memory", "enter")
        await until(pilot, lambda s: "1 of 42" in s, "those with the word")
        await pilot.press("enter")
        await until(pilot, lambda s: "memory; less" in s, "all of it")
        await pilot.press("escape", "escape")
        await until(pilot, lambda s: "42 of 42" in s, "all again")
        await pilot.press("escape")
        await until(pilot, lambda s: "LOG chat" in s, "the overview")

    drive(stand_in, size, play, lang)
