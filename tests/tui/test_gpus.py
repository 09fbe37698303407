"""GPUs: whose memory it is, and that nothing is invented where the card is silent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from tui.driving import PLACES, drive, reach, until
from tui.samples import GIB, gpu, service
from tui.stand_in import StandIn

from llmsupervisor.base.text import width
from llmsupervisor.cli.views import text_of
from llmsupervisor.tui import gpuview

CHAT: Any = service("chat")
SILENT = {
    "uuid": "GPU-1", "index": 1, "name": None, "memory_total_bytes": None, "memory_used_bytes": None, "processes": None,
}  # fmt: skip
"""What an older daemon, or a card that tells nothing, leaves."""


def page(*cards: Any, room: int = 78, **status: Any) -> str:
    return "\n".join(map(text_of, gpuview.page({"gpus": list(cards), **status}, [CHAT], room)))


def test_memory_is_told_by_whose_it_is() -> None:
    parts = gpuview.parts(gpu(), [CHAT])  # type: ignore[arg-type]
    assert [(part.sign, part.name, part.bytes / GIB) for part in parts] == [
        ("#", "chat", 9.0), (".", "not ours", 0.5), ("?", "of no process", 0.5),
    ]  # fmt: skip
    assert text_of(gpuview.bar(gpu(), [CHAT], 48)) == "#" * 18 + "." + "?" + "-" * 28  # type: ignore[arg-type]


def test_a_card_with_everything() -> None:
    shown = page(gpu(), nvml={"driver": "580.95", "error": None})
    for words in ("10.0 of 24.0 GiB, free 14.0", "~78%, 730 of 936 GB/s", "BUSY   99%   time in which any kernel ran; no load",
                  "310/350 W", "held down by: power cap", "71 C   slows down at 93 C", "31 GPU memory page fault", "580.95",
                  "Xorg of root (graphics)", "of no process     0.5  that NVML lists"):  # fmt: skip
        assert words in shown, words


def test_what_a_card_does_not_tell_is_unknown_not_nothing() -> None:
    shown = page(SILENT)
    for words in ("– of – GiB", "BW     –", "BUSY   –", "–/– W", "XID    –", "ECC    –", "does not tell whose memory"):
        assert words in shown, words
    assert "0" not in shown.replace("GPU-1", "").replace("GPU1", "")
    unread = gpuview.page({"gpus": None, "nvml": {"error": "no driver"}}, [], 78)
    assert text_of(unread[0]) == "the GPUs could not be read: no driver: unknown, not none"


def test_tokens_of_a_card_are_known_only_where_every_busy_service_tells_them() -> None:
    idle, silent = service("idle"), service("silent")
    idle["targets"][0] |= {"tokens_per_s": None, "requests_running": 0}
    silent["targets"][0] |= {"tokens_per_s": None, "requests_running": 1}

    def told(*services: Any) -> str:
        holders = [{"pid": n, "service": s["name"], "memory_used_bytes": 1} for n, s in enumerate(services)]
        return gpuview.tokens(gpu(0, processes=holders), services)  # type: ignore[arg-type]

    assert (told(CHAT), told(CHAT, idle), told(CHAT, silent), told(idle), told()) == ("180", "180", "–", "–", "–")


def test_quarantine_and_errors_come_first() -> None:
    shown = page(gpu(quarantine={"reason": "XID 79", "since": 1.0}, error="fell off the bus", lent={"by": "bob"}))
    first = shown.splitlines()[1:4]
    assert "fell off the bus" in first[0] and "quarantine" in first[1] and "lent by bob" in first[2]


@pytest.mark.parametrize("room", [30, 60, 80, 110, 140])
def test_the_strip_keeps_to_its_line_and_busy_never_stands_alone(room: int) -> None:
    lines = gpuview.strip([gpu(0), gpu(1), SILENT], [CHAT], room, 2)  # type: ignore[list-item]
    assert len(lines) == 2 and text_of(lines[1]) == "2 GPUs –/– GiB  each: 3"
    first = text_of(lines[0])
    assert width(first) <= room and "10.0/24.0 GiB" in first
    assert ("BUSY" in first) == ("BW" in first and "tok/s" in first) == (room >= 72)


def test_the_box_around_the_cards() -> None:
    host = {"cpu_count": 16, "cpu_busy": 0.12, "memory_total_bytes": 64 * GIB, "memory_available_bytes": 48 * GIB,
            "disks": [{"path": "/models", "total_bytes": 1000 * GIB, "free_bytes": 400 * GIB}],
            "weights": [{"service": "chat", "bytes": 4 * GIB, "cached_bytes": None}]}  # fmt: skip
    shown = page(host=host)
    for words in ("12% of 16", "48.0 GiB available of 64.0 GiB", "400.0 GiB free", "chat: 4.0 GiB, – of them"):
        assert words in shown, words


@pytest.fixture
def stand_in(short_folder: Path) -> Iterator[StandIn]:
    daemon = StandIn(short_folder / "s", [CHAT])
    daemon.tell(gpus=[gpu(0), gpu(1, processes=[])])
    yield daemon
    daemon.die()


@pytest.mark.parametrize(("size", "lang"), PLACES, ids=str)
def test_the_page_and_the_strip(stand_in: StandIn, size: tuple[int, int], lang: str) -> None:
    async def play(pilot: Pilot[None]) -> None:
        shown = await until(pilot, lambda s: "24.0 GiB" in s or "2 GPUs 20.0/48.0 GiB" in s, "the strip")
        assert "BUSY" not in shown or ("BW" in shown and "tok/s" in shown)
        await pilot.press("3")
        shown = await until(pilot, lambda s: "MEM" in s and "NAME" not in s, "the page")
        assert shown.isascii() or lang == "C.UTF-8"
        await pilot.press("G")
        await until(pilot, lambda s: "XID" in s, "its end")

    drive(stand_in, size, play, lang)


# --- lending ----------------------------------------------------------------------------------------------------------


def test_a_card_is_lent_and_taken_back_after_a_question(stand_in: StandIn) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("3")
        await until(pilot, lambda s: ">GPU0" in s, "the first card is selected")
        await pilot.press("l")
        shown = await until(pilot, lambda s: "lend GPU0?" in s, "the question")
        assert "chat: pid 4712 with 2 running, 1 waiting" in shown and "until it is taken back" in shown
        await pilot.press("n")
        await until(pilot, lambda s: "lend GPU0?" not in s, "no")
        assert stand_in.orders == []
        await pilot.press("right_square_bracket", "h")
        shown = await until(pilot, lambda s: "lend GPU1?" in s, "of the second card")
        assert "nothing of ours runs there" in shown and "for 1h" in shown
        await pilot.press("y")
        await until(pilot, lambda s: "lend GPU1: lent" in s, "the answer")
        await pilot.press("t")
        await until(pilot, lambda s: "GPU1 is neither lent nor in quarantine" in s, "nothing to take yet")
        lent = {"by": "alice", "since": 1.0, "until": None}
        stand_in.tell(gpus=[gpu(0), gpu(1, processes=[], lent=lent)])
        await reach(pilot, "t", lambda s: "take GPU1?" in s and "lent by alice" in s, "the question about taking")
        await pilot.press("y")
        await until(pilot, lambda s: "take GPU1: in use again" in s, "the answer")

    drive(stand_in, (100, 40), play)
    first, second = stand_in.orders
    assert (first["call"], first["gpu"], first["for_s"], first["wait"]) == ("lend", "GPU-5d1c-1", 3600.0, False)
    assert (second["call"], second["gpu"]) == ("take", "GPU-5d1c-1") and first["by"] == second["by"]


def test_what_the_daemon_refuses_is_told(stand_in: StandIn) -> None:
    stand_in.refusal = "user 1001 may not lend"

    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("3")
        await until(pilot, lambda s: ">GPU0" in s, "the page")
        await pilot.press("l", "y")
        await until(pilot, lambda s: "lend GPU0: user 1001 may not lend" in s, "why not")

    drive(stand_in, (100, 40), play)


def test_read_only_lends_nothing(stand_in: StandIn) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("3")
        await until(pilot, lambda s: "GPU0" in s and "MEM" in s, "the page")
        await pilot.press("l", "h", "t", "question_mark")
        shown = await until(pilot, lambda s: "keys of the page" in s, "its keys")
        assert "lend" not in shown and ">GPU0" not in shown

    drive(stand_in, (100, 40), play, readonly=True)
    assert stand_in.orders == []
