"""The command palette, holding what is shown, and how often a picture is taken."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.pilot import Pilot
from tui.driving import PLACES, drive, until
from tui.samples import event, live, record, service
from tui.stand_in import StandIn


@pytest.fixture
def stand_in(short_folder: Path) -> Iterator[StandIn]:
    daemon = StandIn(short_folder / "s", [service("chat"), service("embed")])
    daemon.ended(*(record(f"01abc{n:02}") for n in range(30)))
    yield daemon
    daemon.die()


async def command(pilot: Pilot[None], words: str, opening: str = "ctrl+p") -> None:
    """Opens the palette, and types until the first hit is that."""
    await pilot.press(opening)
    await until(pilot, lambda s: "a page, an order" in s, "the palette")
    await pilot.press(*("space" if letter == " " else letter for letter in words))
    await until(pilot, lambda s: re.search(rf"> {words}.*\n +{words}", s), f"the hit {words!r}")
    await pilot.press("enter")


@pytest.mark.parametrize(("size", "lang"), PLACES[:2], ids=str)
def test_it_leads_to_pages_services_and_requests(stand_in: StandIn, size: tuple[int, int], lang: str) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await command(pilot, "service embed", ":")
        await until(pilot, lambda s: "embed" in s and "chat" not in s, "the page of that service")
        await command(pilot, "logs chat")
        await until(pilot, lambda s: "LOG chat" in s, "its log")
        await command(pilot, "requests")
        await until(pilot, lambda s: "30 ended" in s, "requests")
        await command(pilot, "request 01abc07")
        shown = await until(pilot, lambda s: "REQUEST 01abc07" in s, "the request")
        assert lang != "C" or shown.isascii()

    drive(stand_in, size, play, lang)
    assert stand_in.orders == []


def test_its_orders_ask_first(stand_in: StandIn) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await command(pilot, "requests")
        await until(pilot, lambda s: "REQUESTS" in s, "a page without orders of its own")
        await command(pilot, "stop embed")
        await until(pilot, lambda s: "stop embed?" in s, "the question")
        await pilot.press("n")
        await until(pilot, lambda s: "stop embed?" not in s, "no")
        assert stand_in.orders == []
        await command(pilot, "stop embed")
        await until(pilot, lambda s: "stop embed?" in s, "the question again")
        await pilot.press("y")
        await until(pilot, lambda s: "stop embed: under way" in s, "the answer")

    drive(stand_in, (80, 24), play)
    assert [(order["call"], order["service"]) for order in stand_in.orders] == [("stop", "embed")]


def test_it_has_no_orders_where_only_reading_is_allowed(stand_in: StandIn) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("ctrl+p")
        shown = await until(pilot, lambda s: "logs chat" in s, "the palette")
        assert "restart" not in shown
        await pilot.press(*"restart")
        await until(pilot, lambda s: "No matches found" in s, "nothing of the kind")

    drive(stand_in, (80, 24), play, readonly=True)


@pytest.mark.parametrize(("page", "fresh"), [("1", " 77 "), ("2", "31 of 31"), ("5", "2 of 2"), ("4", "new line")])
def test_what_is_held_does_not_change_until_it_goes_on(stand_in: StandIn, page: str, fresh: str) -> None:
    stand_in.events = [event("chat", "state", time.time() - 5, **{"from": "STARTING", "to": "READY"})]
    stand_in.live = [live("a", "decode", time.time() - 3, time.time() - 2, tokens=40)]
    stand_in.log("chat", "old line")
    seen = {"1": "chat", "2": "30 of 30", "5": "1 of 1", "4": "old line"}

    async def play(pilot: Pilot[None]) -> None:
        await pilot.press(page)
        await until(pilot, lambda s: seen[page] in s and (page != "2" or "1 run" in s), "the page")
        await pilot.press("space")
        await until(pilot, lambda s: "PAUSED" in s, "the mark")
        stand_in.say(service("chat", restarts=77), service("embed"))
        stand_in.ended(record("01abc99"))
        stand_in.happened(event("chat", "state", time.time(), **{"from": "READY", "to": "STOPPING"}))
        stand_in.log("chat", "new line")
        stand_in.live = []
        shown = await until(pilot, lambda s: re.search(r"PAUSED ([3-9]|\d\d|\dm\d+)s", s), "its age")
        assert fresh not in shown
        assert page != "2" or "1 run" in shown
        await pilot.press("space")
        await until(pilot, lambda s: "PAUSED" not in s and fresh in s and "1 run" not in s, "what came meanwhile")

    drive(stand_in, (80, 24), play)


def test_pictures_come_as_often_as_asked_for_within_bounds(stand_in: StandIn) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("minus")
        await until(pilot, lambda s: "a picture each 2 s" in s and "LIVE each 2 s" in s, "less often")
        for _ in range(9):
            await pilot.press("minus")
        await until(pilot, lambda s: "LIVE each 15 s" in s, "the least")
        for _ in range(9):
            await pilot.press("plus")
        await until(pilot, lambda s: "LIVE each 0.5 s" in s, "the most")
        assert "STALE" not in await until(pilot, lambda s: "LIVE" in s, "no alarm by it")

    drive(stand_in, (80, 24), play)
