"""A search beyond the lines that were read: counted by the daemon, and walked through with n and N."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from tui.driving import drive, until
from tui.samples import service
from tui.stand_in import StandIn

from llmsupervisor.tui.logfind import Told, beyond


@pytest.fixture
def stand_in(short_folder: Path) -> Iterator[StandIn]:
    daemon = StandIn(short_folder / "s", [service("chat"), service("embed")])
    daemon.old_log = [f"old {n} {'needle' if n % 100 == 0 else 'hay'}" for n in range(1000)]
    daemon.old_log += [f"row {n} {'needle' if n % 40 == 0 else 'hay'}" for n in range(100)]
    daemon.log("chat", *daemon.old_log[1000:])
    yield daemon
    daemon.searching.set()
    daemon.die()


async def searched(pilot: Pilot[None], words: str) -> None:
    await pilot.press("4")
    await until(pilot, lambda s: "row 99" in s, "the log")
    await pilot.press("slash", *words, "enter")


def test_hits_go_on_where_the_lines_that_were_read_end(stand_in: StandIn) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await searched(pilot, "needle")
        await until(pilot, lambda s: "/needle 3 of 3, 13 in all 2.0 KiB" in s and "row 80 needle" in s, "both counts")
        await pilot.press("N")
        await until(pilot, lambda s: "/needle 2 of 3" in s, "the one before")
        await pilot.press("N")
        await until(pilot, lambda s: "/needle 1 of 3" in s, "the first that was read")
        await pilot.press("N")
        shown = await until(
            pilot, lambda s: "hit 4 from the end, of 13 in all" in s and "old 900 needle" in s, "an older one"
        )
        assert "old 899 hay" in shown and "old 901 hay" in shown, "with what stands around it"
        await pilot.press("N")
        await until(pilot, lambda s: "hit 5 from the end" in s and "old 800 needle" in s, "and one more")
        await pilot.press(*"NNNNNNNN")
        await until(pilot, lambda s: "hit 13 from the end" in s and "old 0 needle" in s, "the oldest")
        await pilot.press("N")
        await until(pilot, lambda s: "no older hit" in s, "the end of it")
        await pilot.press(*"nnnnnnnnnn")
        await until(pilot, lambda s: "/needle 1 of 3" in s, "the page before has the newer ones")
        await pilot.press("n")
        await until(pilot, lambda s: "/needle 2 of 3" in s and "row 40 needle" in s, "as ever")
        await pilot.press("escape")
        await until(pilot, lambda s: "needle " not in s.splitlines()[2] and "in all" not in s, "without the search")

    drive(stand_in, (80, 24), play)


@pytest.mark.parametrize("again", ["right_square_bracket", "p", ""], ids=["service", "earlier", "reconnect"])
def test_they_do_so_too_where_the_log_was_read_again(stand_in: StandIn, again: str) -> None:
    stand_in.log("embed", *stand_in.old_log[1000:])

    async def play(pilot: Pilot[None]) -> None:
        await searched(pilot, "needle")
        await until(pilot, lambda s: "/needle 3 of 3, 13 in all" in s, "both counts")
        if again:
            await pilot.press(again)
        else:
            stand_in.die()
            stand_in.start()
        await until(pilot, lambda s: "/needle 0 of 3, 13 in all" in s and "LIVE" in s, "the log read again")
        for at in (3, 2, 1):
            await pilot.press("N")
            await until(pilot, lambda s, at=at: f"/needle {at} of 3" in s, f"hit {at}")
        await pilot.press("N")
        await until(pilot, lambda s: "hit 4 from the end" in s and "old 900 needle" in s, "none twice")

    drive(stand_in, (120, 24), play)


def test_one_that_goes_on_says_so_and_is_ended_with_its_page(stand_in: StandIn) -> None:
    stand_in.searching.clear()

    async def play(pilot: Pilot[None]) -> None:
        await searched(pilot, "old [1-9]00")
        await until(pilot, lambda s: "9 so far, 50% searched" in s, "how far it is")
        await pilot.press("n")
        await until(pilot, lambda s: "hit 1 from the end" in s and "old 900 needle" in s, "none was read here")
        await pilot.press("N")
        await until(pilot, lambda s: "the search goes on" in s, "not told yet")
        stand_in.searching.set()
        await until(pilot, lambda s: "9 in all" in s, "its end")
        await pilot.press("N")
        await until(pilot, lambda s: "old 800 needle" in s, "the next")
        await pilot.press("escape", "right_square_bracket")
        await until(pilot, lambda s: "LOG embed" in s, "another service")

    drive(stand_in, (100, 30), play)


def test_a_daemon_that_knows_no_such_search(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError

    monkeypatch.setattr(stand_in, "_search", refuse)

    async def play(pilot: Pilot[None]) -> None:
        await searched(pilot, "needle")
        await until(pilot, lambda s: "3 of 3, the whole log:" in s, "why it is not searched")
        await pilot.press(*"NNN")
        await until(pilot, lambda s: "/needle 3 of 3" in s, "round, as far as was read")

    drive(stand_in, (140, 40), play)


def test_what_was_seen_is_not_shown_again_and_nothing_is_left_out() -> None:
    def hits(*texts: str) -> Any:
        return [{"file": 1, "offset": 0, "text": text} for text in texts]

    assert beyond(hits("c", "b", "a", "old"), ["a", "b", "c"]) == 3
    assert beyond(hits("new", "c", "b", "a"), ["b", "c"]) == 3, "one that came meanwhile"
    assert beyond(hits("x", "x", "x", "x"), ["x", "x"]) == 2
    assert beyond(hits("c", "b", "a"), ["a", "b", "c", "d"]) == 3, "one that came after the search"
    assert beyond(hits("c", "z", "a"), ["a", "b", "c"]) == 1, "rather once more"
    assert beyond(hits("c"), []) == beyond([], ["c"]) == beyond(hits("z"), ["c"]) == 0


def test_words_about_a_search() -> None:
    assert Told((), 3, 512, 2048).words == "3 so far, 25% searched"
    assert Told((), 3, 2048, 2048, True).words == "3 in all 2.0 KiB"
    assert "took too long" in Told((), 3, 512, 2048, False).words
    assert Told(trouble="no call").words == "the whole log: no call"
