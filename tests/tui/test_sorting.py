"""In which order lists stand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from tui.driving import drive, until
from tui.samples import record, service
from tui.stand_in import StandIn

from llmsupervisor.tui import requestview, services
from llmsupervisor.tui.sorting import Sort


@pytest.fixture
def stand_in(short_folder: Path) -> Iterator[StandIn]:
    third = service("third", "FAILED", pid=None, targets=[])
    second = service("second", restarts=4)
    second["targets"][0].update(tokens_per_s=900.0)
    daemon = StandIn(short_folder / "s", [service("first"), second, third])
    yield daemon
    daemon.die()


def ids(sort: Sort, records: Any, words: str = "") -> str:
    return "".join(r["id"] for r in requestview.ordered(records, sort, words))


def by(name: str, turned: bool = False) -> Sort:
    sort = Sort(requestview.SORTS)
    while sort.by.name != name:
        sort.on()
    if turned:
        sort.turn()
    return sort


RECORDS = [
    record("a", total_ms=10.0, prefill_ms=None, queue_ms=None, engine_queue_ms=None, load_ms=None),
    record("b", total_ms=30.0, prefill_ms=5.0, queue_ms=1.0, client="cron"),
    record("c", total_ms=20.0, prefill_ms=9.0, queue_ms=90.0, completion_tokens=900),
]


@pytest.mark.parametrize(
    ("name", "greatest", "smallest"),
    [("end", "cba", "abc"), ("total", "bca", "acb"), ("prefill", "cba", "bca"), ("queue", "cba", "bca"), ("output", "cba", "bac")],
)  # fmt: skip
def test_what_is_not_known_comes_last_either_way(name: str, greatest: str, smallest: str) -> None:
    assert (ids(by(name), RECORDS), ids(by(name, True), RECORDS)) == (greatest, smallest)


def test_every_figure_has_its_turn_and_then_the_first_again() -> None:
    sort, seen = Sort(requestview.SORTS), []
    for _ in range(len(requestview.SORTS) + 1):
        seen.append(sort.by.name)
        assert len(ids(sort, RECORDS)) == 3
        sort.turn()
        sort.on()
    assert seen[0] == seen[-1] == "end" and len(set(seen)) == len(requestview.SORTS)


def test_services_by_what_asks_for_attention() -> None:
    told: Any = [service("a"), service("b", "FAILED", targets=[]), service("c", "STOPPED"), service("d", "BACKOFF")]
    sort = Sort(services.SORTS)
    sort.on()
    assert [s["name"] for s in sort.ordered(told, services.figure)] == ["b", "d", "a", "c"]
    sort.on()
    assert [s["name"] for s in sort.ordered(told, services.figure)][-1] == "b", "no KV is known of it"


def test_requests_are_sorted_and_filtered_at_once(stand_in: StandIn) -> None:
    stand_in.ended(*(record(f"r{n}", model=f"model-{n}", client="cron" if n % 2 else "ide", total_ms=9000.0 - n * 100, queue_ms=n * 10.0) for n in range(9)))  # fmt: skip

    async def play(pilot: Pilot[None]) -> None:
        def first(words: str) -> Any:
            return lambda s: any(line.startswith(">") and words in line for line in s.splitlines())

        await pilot.press("2")
        await until(pilot, first("model-8"), "the newest")
        await pilot.press("s")
        await until(pilot, lambda s: "sort total, greatest first" in s and first("model-0")(s), "the longest")
        await pilot.press("slash", *"cron", "enter")
        await until(pilot, lambda s: "4 of 9" in s and first("model-1")(s), "the longest of those with the word")
        await pilot.press("S")
        await until(pilot, lambda s: "sort total, smallest first" in s and first("model-7")(s), "the shortest of them")
        await pilot.press("s")
        await until(pilot, lambda s: "sort queue, greatest first" in s and "4 of 9" in s, "the next figure")
        await pilot.press("escape")
        await until(pilot, lambda s: "9 of 9" in s and "sort queue" in s, "all of them, in that order")

    drive(stand_in, (100, 30), play)


def test_services_are_sorted_and_the_cursor_stays_on_its_own(stand_in: StandIn) -> None:
    def order(shown: str) -> list[str]:
        rows = [line.split()[0] for line in shown.splitlines() if line.startswith(" ") and line.split()]
        return [name for name in rows if name in ("first", "second", "third")][:3]

    async def play(pilot: Pilot[None]) -> None:
        await until(pilot, lambda s: order(s) == ["first", "second", "third"], "the order of the spec")
        await pilot.press("down", "s")
        await until(pilot, lambda s: "sorted by state, worst first" in s and order(s)[0] == "third", "by state")
        await until(pilot, lambda s: "LOG second" in s, "the same service is selected")
        await pilot.press("S")
        await until(pilot, lambda s: order(s)[-1] == "third" and "LOG second" in s, "the other way round")
        await pilot.press("s", "s", "s")
        await until(pilot, lambda s: "by tok/s" in s and order(s) == ["second", "first", "third"], "by speed")

    drive(stand_in, (120, 40), play)
