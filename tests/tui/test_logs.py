"""The page of a log, what it searches, and the crash records behind it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.pilot import Pilot
from tui.driving import PLACES, drive, until
from tui.samples import service
from tui.stand_in import StandIn

from llmsupervisor.cli.views import text_of
from llmsupervisor.tui.logtext import KEPT, Entry, LogText

CRASH = {
    "record": "20260901T120000-chat-f3a9.json", "service": "chat", "run": "f3a9", "attempt": 2,
    "exit": {"cause": "oom_load", "text": "cudaMalloc failed: out of memory", "advice": "lower context_length", "time": time.time() - 60},
    "rendered": {"argv": ["/usr/bin/llama-server", "-m", "m.gguf"], "env": {"PATH": "/usr/bin"}},
    "log": ["loading", "its last words"],
}  # fmt: skip


def text(*lines: str) -> LogText:
    log = LogText()
    log.add(Entry(line) for line in lines)
    return log


def shown(log: LogText, height: int = 5, room: int = 40) -> list[str]:
    return [text_of(line) for line in log.window(height, room)]


def test_the_end_is_followed_until_it_is_left_and_again_when_it_is_reached() -> None:
    log = text(*(f"line {n}" for n in range(20)))
    assert shown(log) == [f"line {n}" for n in range(15, 20)]
    log.move(-3, 5, 40)
    log.add([Entry("new")])
    assert shown(log)[0] == "line 12" and log.unseen == 1
    log.move(100, 5, 40)
    assert log.top is None and shown(log)[-1] == "new" and log.unseen == 0


def test_a_search_goes_round_and_begins_at_the_last_hit() -> None:
    log = text(*("hit" if n % 7 == 0 else "no" for n in range(30)))
    log.search("h.t")
    seen = []
    for by in (-1, -1, 1, 1, 1):
        log.step(by, 5, 40)
        seen.append(log.hit)
    assert seen == [28, 21, 28, 0, 7] and len(log.hits()) == 5
    assert "hit" in shown(log)
    log.search("[")
    log.step(1, 5, 40)
    assert log.hits() == [], "what is no expression is searched as it stands"


ENDLESS = "row " + "a" * 60 + "!"


def test_an_expression_that_takes_for_ever_is_given_up() -> None:
    log = LogText()
    log.add(Entry(text) for text in ["aaa", ENDLESS, "aaa"])
    log.search("(a+)+$")
    spent = time.process_time()
    assert log.hits() == [] and log.too_long
    assert log.hits() == [] and text_of(log.window(3, 80)[1]) == ENDLESS
    assert time.process_time() - spent < 10, "once, not at each look"
    log.search("a!")
    assert log.hits() == [1] and not log.too_long


def test_one_that_only_drawing_finds_endless_is_given_up_too() -> None:
    log = LogText()
    log.add([Entry(ENDLESS)])
    log.search("(a+)+$")
    assert text_of(log.window(3, 80)[0]) == ENDLESS and log.too_long


def test_the_screen_goes_on_and_says_so(stand_in: StandIn) -> None:
    stand_in.log("chat", ENDLESS, "the last")

    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("4")
        await until(pilot, lambda s: "the last" in s, "the log")
        await pilot.press("slash", *"(a+)+$", "enter")
        await until(pilot, lambda s: "/(a+)+$ takes too long: not searched here" in s, "what became of it")
        stand_in.log("chat", ENDLESS, "and more")
        await until(pilot, lambda s: "and more" in s, "what comes is shown")
        await pilot.press("n", "N", "escape")
        await until(pilot, lambda s: "takes too long" not in s and "and more" in s, "without the search")

    drive(stand_in, (80, 24), play)


def test_a_line_is_searched_once() -> None:
    class Counting:
        seen: list[str]

        def search(self, line: str) -> bool:
            self.seen.append(line)
            return "hit" in line

    counting = Counting()
    counting.seen = []
    log = text(*("hit" if n % 7 == 0 else "no" for n in range(KEPT)))
    log.pattern = counting  # type: ignore[assignment]
    assert len(log.hits()) == -(-KEPT // 7)
    counting.seen.clear()
    log.add([Entry("hit new"), Entry("W hit")])
    assert log.hits()[-2:] == [KEPT, KEPT + 1] and log.hits()[0] == 7, "what was dropped is none any more"
    assert counting.seen == ["hit new", "W hit"]
    log.filter_bad(True)
    assert log.hits() == [KEPT + 1]
    log.clear()
    assert log.hits() == []


def test_only_what_looks_wrong_and_the_marks() -> None:
    log = text("I fine", "W slot: n_past", "ERROR out", "0 errors", "CUDA error: out of memory")
    log.add([Entry("mark 12:00", "mark")])
    log.filter_bad(True)
    log.add([Entry("fine again"), Entry("Traceback (most recent call last):")])
    assert [line[:8] for line in shown(log, 9)] == ["W slot: ", "ERROR ou", "CUDA err", "── mark ", "Tracebac"]


def test_wrapped_lines_fill_the_window_from_its_end() -> None:
    log = text("a" * 25, "b" * 25, "c")
    log.wrap = True
    assert shown(log, 4, 10) == ["b" * 10, "b" * 10, "b" * 5, "c"]
    wide = text("日" * 7)
    wide.wrap = True
    assert shown(wide, 4, 10) == ["日" * 5, "日" * 2]


def test_old_lines_go_and_places_stay() -> None:
    log = text(*(f"{n}" for n in range(KEPT)))
    log.move(-10, 5, 40)
    top = shown(log)[0]
    log.add(Entry(f"new {n}") for n in range(20))
    assert shown(log)[0] == top and log.length == KEPT
    log.move(-10 * KEPT, 5, 40)
    assert shown(log)[0] == "20"
    log.add(Entry(f"more {n}") for n in range(KEPT))
    assert shown(log)[0] == "more 0"


@pytest.fixture
def stand_in(short_folder: Path) -> Iterator[StandIn]:
    daemon = StandIn(short_folder / "s", [service("chat"), service("embed")])
    daemon.log("chat", *(f"earlier {n}" for n in range(3)), *(f"row {n}" for n in range(100)), "W slot: bad", "after")
    daemon.crashes = [CRASH]
    yield daemon
    daemon.die()


@pytest.mark.parametrize(("size", "lang"), PLACES, ids=str)
def test_the_page_of_a_log(stand_in: StandIn, size: tuple[int, int], lang: str) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("4")
        seen = await until(pilot, lambda s: "LOG chat  102 lines" in s and "after" in s, "the log")
        assert seen.isascii() or lang == "C.UTF-8"
        await pilot.press("slash", *"row 4\\d", "enter")
        await until(pilot, lambda s: "row 49" in s and "row 9" not in s.replace("row 49", ""), "the last hit")
        if size[0] > 60:
            await until(pilot, lambda s: "10 of 10" in s, "how many")
        await pilot.press("N", "escape", "m", "e")
        await until(
            pilot, lambda s: "W slot: bad" in s and "mark" in s and "row" not in s, "what looks wrong, and the mark"
        )
        await pilot.press("e", "p")
        await until(pilot, lambda s: "105 lines" in s, "with earlier starts")
        await pilot.press("g")
        await until(pilot, lambda s: "earlier 0" in s, "what the start before wrote")
        await pilot.press("f")
        stand_in.log("chat", "news")
        await until(pilot, lambda s: "news" in s, "the end again")
        await pilot.press("right_square_bracket")
        await until(pilot, lambda s: "LOG embed  0 lines" in s, "the next service")
        await pilot.press("c")
        await until(pilot, lambda s: "CRASH RECORDS 1 of 1" in s, "the records")
        await pilot.press("enter")
        seen = await until(pilot, lambda s: "cudaMalloc" in s, "one of them")
        await pilot.press("G")
        await until(pilot, lambda s: "its last words" in s, "its end")

    drive(stand_in, size, play, lang)


def test_what_is_copied_is_in_a_file_and_goes_to_the_terminal(stand_in: StandIn) -> None:
    file = stand_in.path.parent / "llmsupervisor" / "copied.txt"

    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("y")
        await until(pilot, lambda s: "copied to" in s, "that it was copied")
        assert "127.0.0.1:18400" in file.read_text() and "127.0.0.1:18400" in pilot.app.clipboard
        assert file.stat().st_mode & 0o077 == 0
        await pilot.press("Y")
        await until(pilot, lambda s: file.read_text().startswith("{"), "as JSON")
        file.unlink()
        file.mkdir()
        await pilot.press("y")
        await until(pilot, lambda s: "not to a file" in s, "why there is no file")

    drive(stand_in, (120, 40), play)


def test_keys_say_what_they_do(stand_in: StandIn) -> None:
    async def play(pilot: Pilot[None]) -> None:
        for page in "132":
            await pilot.press(page, "question_mark")
            await until(pilot, lambda s: "keys of the page" in s, "its keys")
            await pilot.press("q")
            await until(pilot, lambda s: "keys of the page" not in s, "and back")

    drive(stand_in, (120, 60), play)


@pytest.mark.parametrize("size", [(80, 24), (40, 10)], ids=str)
def test_read_only_gives_no_order_on_any_page(stand_in: StandIn, size: tuple[int, int]) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await until(pilot, lambda s: "READ-ONLY" in s, "the mark")
        for key in "12345678":
            await pilot.press(key)
            for order in "uxrdaR":
                await pilot.press(order)
            seen = await until(pilot, lambda s: "LIVE" in s, "the page")
            assert "yes" not in seen
        await pilot.press("1", "question_mark")
        seen = await until(pilot, lambda s: "keys of" in s, "the keys")
        assert "restart" not in seen

    drive(stand_in, size, play, readonly=True)
    assert stand_in.orders == []
