"""Curves of the last minutes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.pilot import Pilot
from tui.driving import drive, until
from tui.samples import gpu, service
from tui.stand_in import StandIn

from llmsupervisor.cli.views import text_of
from llmsupervisor.tui import gpuview, trend

SERIES = {
    "v": 1, "start": 1790000000, "step_s": 3, "count": 6, "events": [], "reason": None,
    "series": {
        "services.chat.tokens_per_s": {"mean": [None, 0, 10, 50, 100, 100], "max": [None, 0, 20, 60, 231, 100]},
        "services.chat.kv_cache_usage": {"mean": [0.0, 0.25, 0.5, 0.5, 1.0, 0.5], "max": None},
        "services.chat.vram_bytes": {"mean": [None] * 6, "max": None},
    },
}  # fmt: skip


def test_a_curve_has_gaps_where_nothing_is_known_and_shows_what_is_above_nothing() -> None:
    assert trend.signs([None, 0, 0.001, 0.5, 1.0, 9.0], 1.0, " .:-=+*#@") == "  .=@@"


@pytest.mark.parametrize(("room", "ascii"), [(30, True), (60, False), (120, True)])
def test_lines_keep_to_their_room_and_name_the_greatest(room: int, ascii: bool) -> None:
    _title, speed, kv = [text_of(line) for line in trend.lines(SERIES, "chat", room, ascii)]
    assert "max 231" in speed and "now 100" in speed and "max 100%" in kv and "now 50%" in kv
    assert len(speed) <= max(room, 34) and (speed.isascii() or not ascii)
    assert trend.lines(SERIES, "other", room, ascii) == trend.lines(None, "chat", room, ascii) == []


def test_the_page_of_cards_tells_what_they_did() -> None:
    said = {"series": {"gpus.GPU-5d1c-0.memory_bandwidth": {"mean": [0.1, 0.5, 0.9], "max": None}}}
    curves = trend.card_lines(said, "GPU-5d1c-0", 60, True)
    assert "BW" in text_of(curves[1]) and "now 90%  max 90%" in text_of(curves[1])
    shown = gpuview.page({"gpus": [gpu(0)]}, [], 60, lambda uuid: trend.card_lines(said, uuid, 60, True))
    assert text_of(curves[1]) in map(text_of, shown)
    assert trend.card_lines(said, "GPU-other", 60, True) == []


def test_many_points_lose_no_peak() -> None:
    values: list[float | None] = [1.0] * 300
    values[137] = 100.0
    assert "@" in trend.signs(trend._fitted(values, 20), 100.0, " .:-=+*#@")


@pytest.fixture
def stand_in(short_folder: Path) -> Iterator[StandIn]:
    daemon = StandIn(short_folder / "s", [service("chat"), service("embed")])
    daemon.answers["series"] = SERIES
    yield daemon
    daemon.die()


def test_a_wide_overview_and_the_page_of_a_service_have_them(stand_in: StandIn) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await until(pilot, lambda s: "LAST 15 MINUTES" in s and "max 231" in s, "the curves")
        await pilot.press("7")
        await until(pilot, lambda s: "LAST 15 MINUTES" in s and "ASKED" in s, "on the page too")

    drive(stand_in, (140, 40), play)


def test_a_small_overview_asks_for_none(stand_in: StandIn) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await until(pilot, lambda s: "running 2" in s, "the detail")
        assert "series" not in stand_in.asked

    drive(stand_in, (80, 24), play)
