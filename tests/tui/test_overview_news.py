"""Requests and events on the overview: as many as there is room for, and quiet where nothing runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from tui.driving import drive, until
from tui.samples import event, live, service
from tui.stand_in import StandIn
from tui.terminal import Terminal

from llmsupervisor.cli.views import text_of
from llmsupervisor.tui import news
from llmsupervisor.tui.livefeed import Running


@pytest.fixture
def stand_in(short_folder: Path) -> Iterator[StandIn]:
    daemon = StandIn(short_folder / "s", [service("chat", since=time.time() - 615)])
    now = time.time()
    daemon.events = [
        event("chat", "state", now - 60 + n, **{"from": "STARTING", "to": "READY", "reason": f"number {n}"})
        for n in range(30)
    ]
    daemon.log("chat", "words of chat")
    yield daemon
    daemon.die()


def those(count: int, now: float | None = None) -> list[Any]:
    now = time.time() if now is None else now
    return [live(f"{n}", "decode", now - 60 + n, now - 50 + n, model=f"model-{n}", tokens=40) for n in range(count)]


# --- how many ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height", [8, 18, 24, 30, 40, 60])
def test_detail_and_log_keep_their_lines(height: int) -> None:
    for left in range(height):
        leave(height, left)


def leave(height: int, left: int) -> None:
    rows = news.rows(100, height, left)
    taken = (rows.live + 1 if rows.live else 0) + (rows.events + 1 if rows.events else 0)
    assert taken == 0 or left - taken >= news.PANES
    assert rows.live >= 0 and rows.events >= 0 and (rows.live or not rows.events), "events go first"


def test_there_is_more_of_both_where_there_is_more_room() -> None:
    assert news.rows(80, 24, 13) == (0, 0, False)
    assert news.rows(80, 24, 16) == (2, 0, False)
    assert news.rows(100, 30, 23) == (4, 2, True)
    assert news.rows(140, 40, 33) == (7, 6, True)


def test_lines_do_not_move_with_each_request_that_comes_and_goes() -> None:
    rows, places = news.Rows(4, 2, False), news.Places()

    def lines(count: int, now: float) -> int:
        running = [Running(each, (), 1000.0) for each in those(count, 1000.0)]
        return len(news.live(running, False, 80, rows, places.for_(count, now)))

    assert [lines(0, 0.0), lines(2, 1.0), lines(1, 2.0), lines(0, 30.0)] == [0, 3, 3, 3]
    assert [lines(9, 31.0), lines(1, 60.0), lines(1, 62.0), lines(0, 100.0)] == [5, 5, 2, 0]
    always = rows._replace(always=True)
    assert text_of(news.live([], False, 80, always, 0)[0]) == "LIVE 0 run, 0 wait"
    assert "nobody tells" in text_of(news.live(None, False, 80, always, 0)[0])
    assert news.live(None, False, 80, rows, 0) == []


# --- on the screen ----------------------------------------------------------------------------------------------------


def test_a_screen_with_room_shows_what_runs_and_what_happened(stand_in: StandIn) -> None:
    stand_in.runs(*those(9))

    async def play(pilot: Pilot[None]) -> None:
        shown = await until(pilot, lambda s: "LIVE 9 run" in s and "model-3" in s and "number 29" in s, "both")
        assert "1 to 4, the oldest first" in shown and "model-4" not in shown
        assert "number 28" in shown and "number 27" not in shown and "words of chat" in shown
        lines = shown.splitlines()
        live_at, events_at = (next(n for n, line in enumerate(lines) if line.startswith(w)) for w in ("LIVE", "EVENTS"))
        assert live_at < events_at < next(n for n, line in enumerate(lines) if "LOG chat" in line)
        await pilot.press("l")
        await until(pilot, lambda s: "EVENTS" not in s and "LIVE 9" not in s and "words of chat" in s, "the log alone")

    drive(stand_in, (100, 30), play)


def test_eighty_columns_show_what_runs_while_something_does(stand_in: StandIn) -> None:
    stand_in.runs()

    async def play(pilot: Pilot[None]) -> None:
        await until(pilot, lambda s: "words of chat" in s and stand_in.looking, "the overview")
        stand_in.runs(*those(3))
        shown = await until(pilot, lambda s: "LIVE 3 run" in s and "model-1" in s, "the oldest two")
        assert "model-2" not in shown and "words of chat" in shown

    drive(stand_in, (80, 24), play)


def test_nobody_is_asked_where_there_is_no_room(stand_in: StandIn) -> None:
    stand_in.runs(*those(3))

    async def play(pilot: Pilot[None]) -> None:
        await until(pilot, lambda s: "words of chat" in s, "the overview")
        await pilot.pause(0.5)
        assert "live" not in stand_in.asked and "events" not in stand_in.asked

    drive(stand_in, (40, 10), play)


def test_they_cost_nothing_at_rest_and_little_under_load(stand_in: StandIn) -> None:
    stand_in.runs()
    command = [sys.executable, "-m", "llmsupervisor", "tui", "--socket", str(stand_in.path)]
    with Terminal(command, (100, 30)) as terminal:
        terminal.wait("number 29")
        terminal.wait("LIVE 0 run")
        deadline = time.monotonic() + 60
        while terminal.read(1.5) != 0:
            assert time.monotonic() < deadline, "bytes are sent though nothing changes"
        began, count, n = time.monotonic(), 0, 0
        while (took := time.monotonic() - began) < 4.0:
            n += 1
            stand_in.runs(*(dict(each, tokens=40 + 20 * n) for each in those(6, time.time())))
            count += terminal.read(min(1.0, max(4.0 - took, 0.0)))
        assert 0 < count / took <= 2000
