"""The mouse: left to the terminal, unless it is asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.events import MouseScrollDown, MouseScrollUp
from textual.pilot import Pilot
from textual.widget import Widget
from tui.driving import drive, until
from tui.samples import record, service
from tui.stand_in import StandIn
from tui.terminal import Terminal

TRACKING = (b"?1000h", b"?1002h", b"?1003h", b"?1006h", b"?1015h")


@pytest.fixture
def stand_in(short_folder: Path) -> Iterator[StandIn]:
    busy = service("embed")
    busy["targets"][0].update(kv_cache_usage=0.75)
    daemon = StandIn(short_folder / "s", [service("chat"), busy])
    daemon.log("chat", *(f"row {n}." for n in range(100)))
    daemon.log("embed", *(f"word {n}." for n in range(100)))
    yield daemon
    daemon.die()


async def wheel(pilot: Pilot[None], selector: str, up: bool = False) -> None:
    widget = pilot.app.screen.query_one(selector, Widget)
    kind = MouseScrollUp if up else MouseScrollDown
    x, y = widget.region.x + 1, widget.region.y + 1
    pilot.app.screen._forward_event(kind(widget, x, y, 0, 0, 0, False, False, False, x, y))
    await pilot.pause()


def test_a_click_selects_a_service_and_a_title_sorts(stand_in: StandIn) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await until(pilot, lambda s: "LOG chat" in s, "the first")
        await pilot.click("#services", offset=(3, 2))
        shown = await until(pilot, lambda s: "LOG embed" in s and "word 99." in s, "the second row")
        titles = next(line for line in shown.splitlines() if "NAME" in line and "KV" in line)
        await pilot.click("#services", offset=(titles.index("KV"), 0))
        shown = await until(pilot, lambda s: "sorted by KV, greatest first" in s, "its title")
        await until(pilot, lambda s: s.index(" embed ") < s.index(" chat "), "the fullest first")
        await pilot.click("#services", offset=(titles.index("KV"), 0))
        await until(pilot, lambda s: "sorted by KV, smallest first" in s, "the other way round")

    drive(stand_in, (80, 24), play)


def test_the_wheel_leaves_the_end_of_a_log_and_comes_back_to_it(stand_in: StandIn) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await until(pilot, lambda s: "row 99." in s, "the end")
        await wheel(pilot, "#log", up=True)
        stand_in.log("chat", "row 100.")
        await until(pilot, lambda s: "not following" in s and "row 100." not in s, "it stays where it is")
        for _ in range(10):
            await wheel(pilot, "#log")
        await until(pilot, lambda s: "row 100." in s and "not following" not in s, "the end again")
        await pilot.press("4")
        await until(pilot, lambda s: "row 100." in s and "follows" in s, "the page of logs")
        await wheel(pilot, "#rows", up=True)
        await until(pilot, lambda s: "not following" in s and "row 100." not in s, "three lines up")
        await wheel(pilot, "#rows")
        await until(pilot, lambda s: "row 100." in s and "not following" not in s, "and down")

    drive(stand_in, (80, 24), play)


def test_a_click_selects_a_request_and_the_next_opens_it(stand_in: StandIn) -> None:
    began = time.time() - 60
    stand_in.ended(*(record(f"{n:026}", time=began + n, prompt_tokens=1000 + n) for n in range(9)))

    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("2")
        shown = await until(pilot, lambda s: "9 of 9" in s, "all of them")
        rows = pilot.app.screen.query_one("#rows", Widget)
        third = shown.splitlines()[rows.region.y + 3]
        await pilot.click("#rows", offset=(5, 3))
        await until(pilot, lambda s: f">{third[1:30]}" in s, "the third is selected")
        await pilot.click("#rows", offset=(5, 3))
        await until(pilot, lambda s: "REQUEST " in s and "1006" in s, "and opened")
        await pilot.press("escape")
        await until(pilot, lambda s: "9 of 9" in s, "back")
        await wheel(pilot, "#rows")
        await until(pilot, lambda s: s.splitlines()[rows.region.y + 6].startswith(">"), "three below")

    drive(stand_in, (80, 24), play)


@pytest.mark.parametrize("asked", [False, True], ids=["left", "asked"])
def test_a_terminal_tells_of_its_mouse_only_where_it_was_asked_to(stand_in: StandIn, asked: bool) -> None:
    words = [sys.executable, "-m", "llmsupervisor", "tui", "--socket", str(stand_in.path)]
    with Terminal([*words, *(["--mouse"] if asked else [])], (80, 24)) as terminal:
        for shown in ("LOG chat", " embed ", "ready 2/2", "row 99."):  # the first picture has fewer lines above
            terminal.wait(shown)
        line = next(n for n, text in enumerate(terminal.text.splitlines()) if " embed " in text)
        if asked:
            terminal.press(f"\x1b[<0;4;{line + 1}M\x1b[<0;4;{line + 1}m")
            terminal.wait("LOG embed")
        terminal.press("q")
        terminal.read(30, lambda: terminal.child.poll() is not None)
        terminal.read(1, lambda: b"detached" in terminal.chunks[-1][1])
        sent = b"".join(data for _, data in terminal.chunks)
        on = [sequence for sequence in TRACKING if sequence in sent]
        assert bool(on) is asked, on
        for sequence in on:
            assert sent.rindex(sequence) < sent.rindex(sequence[:-1] + b"l"), "switched off at the end"
