"""The pages of requests: what each shows, and what it shows where a figure is not known."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from tui.driving import PLACES, drive, until
from tui.samples import live, record, service
from tui.stand_in import StandIn

from llmsupervisor.cli.views import text_of
from llmsupervisor.tui import livedetail, liverows, requestdetail, requestview, waterfall
from llmsupervisor.tui.listpage import first_row
from llmsupervisor.tui.livefeed import Looks, Running
from llmsupervisor.tui.sorting import Sort

NOW = 1_790_000_000.0


@pytest.fixture
def stand_in(short_folder: Path) -> Iterator[StandIn]:
    daemon = StandIn(
        short_folder / "s", [service("chat", asked={"context_length": 2048}, got={"context_length": 2048})]
    )
    yield daemon
    daemon.die()


def bar(cells: int = 20, whole: float = 1000.0, **changes: Any) -> str:
    return text_of(waterfall.bar(record("r", **changes), whole, cells))  # type: ignore[arg-type]


# --- the bar --------------------------------------------------------------------------------------------------------


def test_a_bar_has_the_parts_in_their_order_and_measure() -> None:
    shown = bar(101, load_ms=100.0, queue_ms=50.0, engine_queue_ms=50.0, prefill_ms=200.0, decode_ms=400.0, other_ms=50.0, total_ms=850.0)  # fmt: skip
    assert shown == "L" * 10 + "." * 10 + "#" * 20 + ">" * 40 + "-" * 5 + "|"


def test_what_no_figure_covers_is_unknown_not_rest() -> None:
    shown = bar(
        101, queue_ms=100.0, engine_queue_ms=None, prefill_ms=None, decode_ms=None, other_ms=None, total_ms=500.0
    )
    assert shown == "." * 10 + "?" * 40 + "|"


@pytest.mark.parametrize(
    "changes", [{"status": 503, "finish_reason": "rejected"}, {"finish_reason": "client_gone"}, {"status": 502}]
)
def test_a_failure_ends_with_a_sign_of_its_own(changes: dict[str, Any]) -> None:
    assert bar(**changes).endswith("x") and bar().endswith("|")


def test_one_long_request_does_not_flatten_the_others() -> None:
    records = [record(f"{n}", total_ms=720.0) for n in range(9)] + [
        record("long", total_ms=60_000.0, decode_ms=59_000.0)
    ]
    whole = waterfall.scale(records)  # type: ignore[arg-type]
    assert whole == 1000.0
    assert bar(30, whole, total_ms=60_000.0, decode_ms=59_000.0).endswith("+")
    assert len(bar(30, whole, total_ms=60_000.0, decode_ms=59_000.0)) == 30


@pytest.mark.parametrize("cells", range(1, 60))
def test_bars_and_axes_keep_to_their_room(cells: int) -> None:
    assert 1 <= len(bar(cells)) <= cells
    assert len(waterfall.axis(5000.0, cells)) <= max(cells, len("5s") + 1)


# --- the table ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [40, 60, 80, 100, 140, 250])
def test_rows_keep_to_the_width_and_leave_room_for_the_bar(room: int) -> None:
    long = record("r", model="m" * 40, client="c" * 40, prompt_tokens=131072, cached_tokens=131000, time=NOW - 90_000)
    lines = requestview.table([long, record("s", time=NOW)], 0, room, NOW)  # type: ignore[list-item]
    assert all(len(text_of(line)) <= room for line in lines)
    assert any(sign in text_of(lines[2])[-room // 5 :] for sign in "#>")
    assert text_of(lines[1]).startswith(">")


def test_eighty_columns_tell_when_who_how_much_and_how_fast() -> None:
    titles, row = requestview.table([record("r", time=NOW)], -1, 80, NOW)  # type: ignore[list-item]
    assert text_of(titles).split()[:7] == ["TIME", "MODEL", "PROMPT", "OUT", "TTFT", "TOK/S", "END"]
    assert text_of(row).split()[1:7] == ["chat", "600", "51", "215ms", "100.0", "stop"]


def test_the_filter_takes_every_word() -> None:
    records: Any = [record("a"), record("b", client="cron"), record("c", finish_reason="length")]

    def ids(words: str) -> str:
        return "".join(r["id"] for r in requestview.ordered(records, Sort(requestview.SORTS), words))

    assert ids("") == "cba" and ids("CRON chat") == "b" and ids("length") == "c" and ids("nobody") == ""


def test_the_95th_percentile_is_said_of_enough_requests_only() -> None:
    few: Any = [record(f"{n}", time=NOW - 10, ttft_ms=100.0 + n) for n in range(19)]
    old = record("old", time=NOW - 1000, ttft_ms=9000.0)
    assert "p50 109ms p95 – n=19" in text_of(requestview.summary([old, *few], [], NOW))
    enough: Any = [*few, record("x", time=NOW - 10, ttft_ms=500.0, status=502)]
    shown = text_of(requestview.summary(enough, [], NOW))
    assert "20 ended  1 failed" in shown and "p50 109ms p95 118ms n=20" in shown
    assert "run – wait – queue –" in shown, "unknown is not none"


@pytest.mark.parametrize(("selected", "first", "expected"), [(0, 5, 0), (9, 0, 5), (7, 5, 5), (3, 9, 3), (19, 0, 15)])
def test_the_window_moves_no_more_than_it_must(selected: int, first: int, expected: int) -> None:
    assert first_row(20, selected, first, 5) == expected


# --- one request ----------------------------------------------------------------------------------------------------


def detail(one: dict[str, Any], others: list[dict[str, Any]] = [], room: int = 78) -> str:  # noqa: B006
    got: Any = service("chat", asked={"context_length": 2048}, got={"context_length": 1024})
    beside = requestdetail.compared(one, others)  # type: ignore[arg-type]
    return "\n".join(map(text_of, requestdetail.lines(one, beside, got, room, NOW)))  # type: ignore[arg-type]


def test_one_request_says_where_its_time_went_and_who_says_so() -> None:
    shown = detail(record("01J", time=NOW))
    words = [line.split() for line in shown.splitlines()]
    assert ["#", "prefill", "200.0", "ms", "28%", "engine", "500", "tokens", "2500.0", "tok/s"] in words
    assert [">", "decode", "500.0", "ms", "69%", "engine", "51", "tokens", "100.0", "tok/s", "TPOT", "10ms"] in words
    assert "600 + 51 of 1024 (64%)" in shown, "of what the engine got, not of what was asked"
    assert "100 of 600 tokens of the prompt were there (17%)" in shown
    assert "load" not in shown


def test_a_request_says_how_it_compares_with_those_before() -> None:
    others = [record(f"{n}", prefill_ms=float(n), total_ms=1000.0, ttft_ms=None) for n in range(250)]
    others += [record("other", model="another", prefill_ms=1.0)] * 30
    one = record("01J", prefill_ms=225.5, total_ms=1.0)
    shown = detail(one, [*others, one], 120)
    assert "RANK     of the last 200 it exceeds: total 0%  prefill 88%  decode 0%  prompt 0%" in shown
    few = detail(one, [*others[:19], one])
    assert "RANK     –" in few and "19 are known" in few


def test_one_request_of_which_little_is_known() -> None:
    nothing = dict.fromkeys(
        ("prompt_tokens", "cached_tokens", "completion_tokens", "engine_queue_ms", "prefill_ms", "decode_ms", "ttft_ms",
         "other_ms", "decode_tokens_per_s", "itl_p50_ms", "itl_p95_ms", "finish_reason", "client", "max_tokens")
    )  # fmt: skip
    impossible = detail(record("01J", prompt_tokens=100, cached_tokens=200))
    assert "–" in impossible and "-100" not in impossible and "-" not in impossible.split("CACHE")[1]
    shown = detail(record("01J", time=NOW, **nothing, sources={}))
    assert ["#", "prefill", "–", "–", "–", "tokens", "–", "tok/s"] in [line.split() for line in shown.splitlines()]
    assert "– of – tokens" in shown and "– + – of 1024 (–)" in shown


def test_engine_and_gateway_that_differ_are_both_told() -> None:
    sources = {"prefill_ms": "both", "prefill_ms_gateway": "900.000", "decode_ms_engine": "1e+09"}
    shown = detail(record("01J", sources=sources))
    assert "the gateway measured 900.000 ms of prefill" in shown and "differ" in shown
    assert "the engine told 1e+09 ms of decode, which cannot be" in shown


def test_what_an_earlier_prompt_had_in_common() -> None:
    one = record("c", time=NOW, hash_ids=["1", "2", "3"])
    others = [
        record("a", time=NOW - 60, hash_ids=["1", "2", "9"]),
        record("b", time=NOW - 30, hash_ids=["1", "8", "3"]),
        record("other", time=NOW - 5, service="embed", hash_ids=["1", "2", "3"]),
        record("later", time=NOW + 5, hash_ids=["1", "2", "3"]),
    ]
    assert "3 blocks of 2048 bytes, the first 2 as a had them 1m00s before" in detail(one, others)
    assert "none of which an earlier request" in detail(one, others[2:])


# --- those that run -------------------------------------------------------------------------------------------------


def running(*looks: tuple[float, Any]) -> list[Running]:
    found = Looks()
    for at, told in looks:
        found.look([told], at)
    return found.running


def test_what_was_seen_of_a_request_is_a_part_and_what_was_not_is_unknown() -> None:
    steady = running(
        (NOW + 1, live("a", "queue", NOW, NOW)), (NOW + 2, live("a", "prefill", NOW, NOW + 1.5)), (NOW + 4, live("a", "decode", NOW, NOW + 3))
    )  # fmt: skip
    assert [(p.name, round(p.seconds, 1)) for p in steady[0].past] == [("queue", 1.5), ("prefill", 1.5)]
    late = running((NOW + 4, live("a", "decode", NOW, NOW + 3)))
    assert [(p.name, p.seconds) for p in late[0].past] == [("unknown", 3.0)]
    skipped = running((NOW + 1, live("a", "queue", NOW, NOW)), (NOW + 4, live("a", "decode", NOW, NOW + 3)))
    assert [p.name for p in skipped[0].past] == ["unknown"]


@pytest.mark.parametrize("room", [40, 80, 140])
def test_rows_of_those_that_run(room: int) -> None:
    told = [
        *running((NOW + 2, live("a", "prefill", NOW, NOW, prompt_done=426))),
        *running((NOW + 6, live("b", "decode", NOW, NOW + 2, tokens=80))),
    ]
    lines = [text_of(line) for line in liverows.rows(told, False, room, 10)]
    assert "2 run, 0 wait" in lines[0] and all(len(line) <= room for line in lines[1:])
    assert any("prefill 71%" in line and "#" in line for line in lines) and any("decode 20/s" in line for line in lines)
    assert "1 to 1" in text_of(liverows.rows(told, False, room, 1)[0])
    assert "nobody tells" in text_of(liverows.rows(None, False, room, 1)[0])


def test_the_gateway_is_asked_only_while_somebody_looks(stand_in: StandIn) -> None:
    stand_in.live = [live("a", "decode", time.time() - 3, time.time() - 2, tokens=40)]

    async def play(pilot: Pilot[None]) -> None:

        await pilot.press("2")
        await until(pilot, lambda s: "LIVE 1 run, 0 wait" in s and ">>>" in s, "the one that runs")
        await pilot.press("5")
        await until(pilot, lambda s: "EVENTS" in s and stand_in.looking == 0, "nobody asks any more")
        await pilot.press("2")
        await until(pilot, lambda s: "LIVE 1 run" in s and stand_in.looking == 1, "asked again")

    drive(stand_in, (80, 24), play)


def test_one_that_runs_is_opened_and_becomes_its_record(stand_in: StandIn) -> None:
    came = time.time() - 40
    stand_in.ended(record("old", model="ended"))
    stand_in.runs(live("01A", "prefill", came, came + 4, prompt_done=150), live("01B", "queue", came + 20, came + 20))

    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("2")
        await until(pilot, lambda s: "LIVE 1 run, 1 wait" in s and "1 of 1" in s, "both kinds")
        await pilot.press("up", "up", "enter")
        shown = await until(pilot, lambda s: "REQUEST 01A" in s, "the oldest that runs")
        assert "prefill so far" in shown and "150 of 600 tokens (25%)" in shown and "unknown" in shown
        assert "600 + ~0 of 2048 (29%)" in shown and "model chat  client alice" in shown
        stand_in.runs(live("01A", "decode", came, came + 30, tokens=77))
        shown = await until(pilot, lambda s: "decode so far" in s and "~77 tokens" in s, "the same one, later")
        assert "#" in shown and ">>" in shown, "what it has behind it stays"
        stand_in.runs()
        await until(pilot, lambda s: "its record is not there yet" in s and "01A" in s, "it ended")
        stand_in.ended(record("01A", time=came, total_ms=31000.0, prefill_ms=26000.0))
        await until(pilot, lambda s: "REQUEST 01A  200 stop" in s and "26 000.0 ms" in s, "its record")
        await pilot.press("escape")
        shown = await until(pilot, lambda s: "2 of 2" in s, "the list")
        [row] = [line for line in shown.splitlines() if line.startswith(">")]
        assert "31.0s" in row or "##" in row, "the one that was opened stays under the cursor"
        await pilot.press("down")
        await until(pilot, lambda s: any(r.startswith(">") and "ended" in r for r in s.splitlines()), "the next row")

    drive(stand_in, (80, 24), play)


def test_the_cursor_goes_over_more_that_run_than_there_are_rows_for(stand_in: StandIn) -> None:
    now = time.time()
    stand_in.runs(*(live(f"{n}", "decode", now - 60 + n, now - 50 + n, model=f"model-{n}") for n in range(30)))

    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("2")
        await until(pilot, lambda s: "1 to 5, the oldest first" in s and "model-0" in s, "the first of them")
        await pilot.press("end")
        await until(pilot, lambda s: "26 to 30" in s and ">model-29" in s, "the last")
        await pilot.press("slash", *"model-17", "enter")
        await until(pilot, lambda s: ">model-17" in s and "model-29" not in s, "those with the words")
        await pilot.press("enter")
        await until(pilot, lambda s: "REQUEST 17" in s, "its page")

    drive(stand_in, (80, 24), play)


def test_a_live_request_of_which_little_is_known() -> None:
    [one] = running((NOW + 1, live("a", "count", NOW, NOW, service=None, client=None, prompt_tokens=None)))
    shown = "\n".join(map(text_of, livedetail.lines(one, "", None, 78, NOW + 1)))
    assert "–  model chat  client –" in shown and "CONTEXT  – + ~0" in shown and "counted" in shown
    narrow = livedetail.lines(one, "", None, 38, NOW + 1)
    assert all(len(text_of(line)) <= 38 for line in narrow[:4])
    assert "nobody tells" in livedetail.doubt(one, None) and livedetail.doubt(one, [one]) == ""


# --- the pages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "lang"), PLACES, ids=str)
def test_requests_come_in_and_one_is_opened(stand_in: StandIn, size: tuple[int, int], lang: str) -> None:
    stand_in.ended(*(record(f"01J{n:03}", model=f"m{n}", hash_ids=["1"]) for n in range(60)))

    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("2")
        shown = await until(pilot, lambda s: "m59" in s and "##" in s and ">>" in s, "the newest, with its bar")
        assert "q detach" in shown and (shown.isascii() or lang == "C.UTF-8")
        stand_in.ended(record("01J060", model="fresh", finish_reason="client_gone", status=499))
        await until(pilot, lambda s: "fresh" in s and "x" in s, "one that ends meanwhile")
        await pilot.press("end")
        await until(pilot, lambda s: "m0 " in s and "fresh" not in s, "the oldest")
        await pilot.press("home", "down")
        await pilot.press("enter")
        shown = await until(pilot, lambda s: "REQUEST 01J059" in s, "the one under the cursor")
        assert shown.isascii() or lang == "C.UTF-8"
        if size[1] >= 24:
            assert "CONTEXT" in shown and "CACHE" in shown and "prefill" in shown
        await pilot.press("left_square_bracket")
        await until(pilot, lambda s: "REQUEST 01J060" in s and "499 client gone" in s, "the one above")
        await pilot.press("escape")
        await until(pilot, lambda s: "TTFT" in s and "m58" in s, "the table")
        await pilot.press("escape")
        await until(pilot, lambda s: "LOG chat" in s, "the overview")

    drive(stand_in, size, play, lang)


def test_all_that_are_known_are_looked_at_only_where_something_changed(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    summed: list[tuple[int, float]] = []
    compared: list[str] = []
    summary, compare = requestview.summary, requestdetail.compared
    monkeypatch.setattr(requestview, "summary", lambda r, s, now: (summed.append((len(r), now)), summary(r, s, now))[1])
    monkeypatch.setattr(requestdetail, "compared", lambda one, r: (compared.append(one["id"]), compare(one, r))[1])
    stand_in.ended(record("a"), record("b"))

    async def play(pilot: Pilot[None]) -> None:
        requests = pilot.app.feeds.requests  # type: ignore[attr-defined]
        await pilot.press("2")
        await until(pilot, lambda s: "2 of 2" in s and requests.kept().complete, "both")
        page: Any = pilot.app.screen
        page.tick()
        summed.clear()
        for _ in range(20):
            page.tick()
        assert len(summed) == len(set(summed)), "once for each picture of the daemon"
        await pilot.press("enter")
        await until(pilot, lambda s: "REQUEST b" in s, "one of them")
        page = pilot.app.screen
        for _ in range(20):
            page.tick()
        assert compared == ["b"]
        stand_in.ended(record("c"))
        await until(pilot, lambda s: compared[1:], "again, beside one more")

    drive(stand_in, (80, 24), play)


def test_the_filter_is_typed_and_taken_back(stand_in: StandIn) -> None:
    stand_in.ended(record("a", client="cron"), record("b", client="ide", model="other"))

    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("2")
        await until(pilot, lambda s: "2 of 2" in s, "both")
        await pilot.press("slash", *"cron", "enter")
        shown = await until(pilot, lambda s: "1 of 2" in s and "filter cron" in s, "one")
        assert "other" not in shown
        await pilot.press("s")
        await until(pilot, lambda s: "sort total" in s, "keys are keys again")
        await pilot.press("escape")
        await until(pilot, lambda s: "2 of 2" in s and "filter cron" not in s, "both again")

    drive(stand_in, (80, 24), play)


def test_what_was_read_stays_while_the_daemon_is_away_and_is_not_read_twice(stand_in: StandIn) -> None:
    stand_in.ended(record("a"), record("b"))

    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("2")
        await until(pilot, lambda s: "2 of 2" in s, "both")
        stand_in.die()
        await until(pilot, lambda s: "STALE" in s and "2 of 2" in s, "they stay")
        stand_in.ended(record("c"))
        stand_in.start()
        await until(pilot, lambda s: "LIVE" in s and "3 of 3" in s, "the one that ended meanwhile")

    drive(stand_in, (80, 24), play)


def test_a_box_without_requests_says_so(stand_in: StandIn) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("2")
        await until(pilot, lambda s: "no request is recorded" in s, "why it is empty")
        await pilot.press("enter", "down", "end")
        stand_in.ended(record("a", time=time.time() - 1))
        await until(pilot, lambda s: "1 of 1" in s, "the first one")

    drive(stand_in, (80, 24), play)
