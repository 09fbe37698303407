"""What reaches the terminal, cell by cell: the difference of two pictures looks like the whole of the second."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyte
import pytest
from rich.color import ColorSystem
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.command import CommandPalette
from textual.drivers import headless_driver
from textual.geometry import Region
from textual.pilot import Pilot
from textual.strip import Strip
from tui.driving import an_app, until
from tui.samples import service
from tui.stand_in import StandIn

from llmsupervisor.tui.frame import Frame

CHAT, EMBED = service("chat"), service("embed", "BACKOFF", pid=None, reason="[bold]exit 1[/bold]")
LOOKS = [
    "",
    "bold",
    "green",
    "reverse",
    "dim",
    "bold red on blue",
    "underline",
    "on #102030",
    "default on default",
    "color(39) on color(49)",
    "color(39) on default",
]
SIGNS = ["a", "b", " ", " ", " ", "●", "–", "日", "e\u0301", "한"]
CONSOLE = Console(color_system="truecolor", force_terminal=True)


@pytest.fixture(autouse=True)
def dim_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator does not know it."""
    monkeypatch.setitem(pyte.graphics.TEXT, 2, "+strikethrough")


def cells(screen: pyte.Screen) -> list[list[Any]]:
    return [[screen.buffer[y][x] for x in range(screen.columns)] for y in range(screen.lines)]


def whole(strips: list[Strip], width: int, height: int) -> list[list[Any]]:
    """As Textual itself would show them on an empty terminal."""
    screen = pyte.Screen(width, height)
    screen.reset_mode(pyte.modes.DECAWM)
    stream = pyte.Stream(screen)
    for y, strip in enumerate(strips):
        stream.feed(f"\x1b[{y + 1}H" + strip.render(CONSOLE))
    return cells(screen)


def differing(shown: list[list[Any]], wanted: list[list[Any]]) -> list[str]:
    return [
        f"{y},{x}: {a} is shown, {b} is wanted"
        for y, (row, other) in enumerate(zip(shown, wanted, strict=True))
        for x, (a, b) in enumerate(zip(row, other, strict=True))
        if a != b
    ]


class Canvas:
    """Random pictures on one terminal."""

    def __init__(self, seed: int, width: int, height: int) -> None:
        self.random = random.Random(seed)
        self.width, self.height = width, height
        self.frame = Frame()
        self.frame.resize(width, height)
        self.screen = pyte.Screen(width, height)
        self.screen.reset_mode(pyte.modes.DECAWM)
        self._stream = pyte.Stream(self.screen)

    def strip(self, cells: int) -> Strip:
        segments, left = [], cells
        while left:
            text, room = "", self.random.randint(1, min(left, 9))
            while room:
                sign = self.random.choice(SIGNS)
                size = 2 if sign in "日한" else 1
                if size <= room:
                    text, room, left = text + sign, room - size, left - size
            segments.append(Segment(text, Style.parse(self.random.choice(LOOKS))))
        return Strip(segments, cells)

    def update(self, update: LayoutUpdate | ChopsUpdate) -> str:
        self.frame.draw(update, ColorSystem.TRUECOLOR)
        changes = self.frame.changes()
        self._stream.feed(changes)
        return changes


@pytest.mark.parametrize("seed", range(12))
def test_the_difference_shows_what_the_whole_would(seed: int) -> None:
    canvas = Canvas(seed, 31, 6)
    strips = [canvas.strip(31) for _ in range(6)]
    for _ in range(25):
        for y in canvas.random.sample(range(6), 2):
            kept = canvas.random.randint(0, 31)
            fresh = [Segment(" " * kept), *canvas.strip(31 - kept)] if kept < 31 else [Segment(" " * 31)]
            strips[y] = Strip(fresh, 31)
        canvas.update(LayoutUpdate([[strip] for strip in strips], Region(0, 0, 31, 6)))
        assert not differing(cells(canvas.screen), whole(strips, 31, 6))
    assert canvas.update(LayoutUpdate([[strip] for strip in strips], Region(0, 0, 31, 6))) == ""


def test_spans_of_lines_change_only_what_is_in_them() -> None:
    canvas = Canvas(0, 12, 2)
    before = [Strip([Segment("abcdefghijkl")]), Strip([Segment("mnopqrstuvwx")])]
    canvas.update(LayoutUpdate([[strip] for strip in before], Region(0, 0, 12, 2)))
    chops = [{0: Strip([Segment("ABCDEF")]), 6: None}, {0: None, 6: Strip([Segment("STUVWX")])}]
    changes = canvas.update(ChopsUpdate(chops, [(0, 1, 3), (1, 6, 12)], [[6, 12], [6, 12]]))
    assert canvas.screen.display == ["aBCdefghijkl", "mnopqrSTUVWX"]
    assert changes == "\x1b[1;2HBC\x1b[2;7HSTUVWX"


def test_a_digit_costs_a_move_and_a_digit() -> None:
    canvas = Canvas(0, 80, 24)
    canvas.update(LayoutUpdate([[Strip([Segment("KV 41% of it".ljust(80))])] for _ in range(24)], Region(0, 0, 80, 24)))
    changes = canvas.update(LayoutUpdate([[Strip([Segment("KV 42% of it".ljust(80))])]], Region(0, 4, 80, 1)))
    assert changes == "\x1b[5;5H2"


def test_a_line_that_got_shorter_is_cleared_not_overwritten() -> None:
    canvas = Canvas(0, 80, 1)
    canvas.update(LayoutUpdate([[Strip([Segment("x" * 80)])]], Region(0, 0, 80, 1)))
    changes = canvas.update(LayoutUpdate([[Strip([Segment("x".ljust(80))])]], Region(0, 0, 80, 1)))
    assert changes == "\x1b[1;2H\x1b[K" and canvas.screen.display == ["x".ljust(80)]


def test_a_forgotten_terminal_is_drawn_anew() -> None:
    canvas = Canvas(0, 10, 1)
    canvas.update(LayoutUpdate([[Strip([Segment("something ")])]], Region(0, 0, 10, 1)))
    canvas._stream.feed("\x1b[Hgarbage")
    canvas.frame.forget()
    canvas._stream.feed(canvas.frame.changes())
    assert canvas.screen.display == ["something "]


# --- the app --------------------------------------------------------------------------------------------------------


@pytest.fixture
def stand_in(short_folder: Path) -> Iterator[StandIn]:
    daemon = StandIn(short_folder / "s", [CHAT, EMBED])
    yield daemon
    daemon.die()


class Recorded(headless_driver.HeadlessDriver):
    """A driver whose terminal is an emulator."""

    screen = pyte.Screen(1, 1)
    stream = pyte.Stream(screen)
    count = 0

    @property
    def is_headless(self) -> bool:
        return False

    def write(self, data: str) -> None:
        type(self).count += len(data)
        self.stream.feed(data)


def test_every_page_looks_on_the_terminal_as_textual_means_it(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headless_driver, "HeadlessDriver", Recorded)
    Recorded.screen = pyte.Screen(80, 24)
    Recorded.screen.reset_mode(pyte.modes.DECAWM)
    Recorded.stream = pyte.Stream(Recorded.screen)
    stand_in.log("chat", *(f"slot {n}: 日本 über \x1b[31m {n * n}" for n in range(60)))
    app = an_app(stand_in.path)

    async def same(pilot: Pilot[None], what: str) -> None:
        deadline = time.monotonic() + 60
        while True:
            await pilot.pause(0.05)
            size = app.screen.size
            behind = app._background_screens and not CommandPalette.is_open(app)
            wanted = [] if behind else whole(app.screen._compositor.render_strips(), *size)
            found = differing(cells(Recorded.screen), wanted) if wanted else []
            if not found:
                return
            assert time.monotonic() < deadline, f"{what}: {len(found)} cells, {found[:3]}"

    async def play() -> None:
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda s: "READY" in s and "slot 59" in s, "the first picture")
            await same(pilot, "the overview")
            for keys in ("down", "up", "l", "pageup", "escape", "enter", "escape", *"2345", "w", "7", "1"):
                await pilot.press(keys)
                await same(pilot, f"after {keys}")
            await pilot.press("r")
            await until(pilot, lambda s: "restart chat?" in s, "the question")
            await pilot.press("n")
            for key in ("ctrl+p", *"resta", "down", "backspace", "escape", ":", *"theme", "escape"):
                await pilot.press(key)
                await same(pilot, f"in the palette, after {key}")
            assert not CommandPalette.is_open(app)
            stand_in.say(service("chat", restarts=5), EMBED, service("third", "STARTING", phase="loading model"))
            await until(pilot, lambda s: "third" in s, "the new status")
            await same(pilot, "after a question and a new status")
            for size in ((120, 40), (40, 10), (80, 24)):
                Recorded.screen.resize(size[1], size[0])
                await pilot.resize_terminal(*size)
                await same(pilot, f"at {size}")
            Recorded.stream.feed("\x1b[3;1Ha message of root")
            await pilot.press("ctrl+l")
            await same(pilot, "after ctrl+l")

    asyncio.run(play())
    assert Recorded.count > 0
