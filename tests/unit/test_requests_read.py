"""What the gateway recorded, as the daemon reads it: which records, in which order, and the summary of them."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.records import record, write
from support.wait import PATIENCE, undisturbed

from llmsupervisor.base.errors import LlmsupervisorError, UsageError
from llmsupervisor.daemon.requests import PAGE, Wanted, records, summary
from llmsupervisor.gateway.history import History
from llmsupervisor.link.history import VERSION, RequestsSummary, TargetSummary
from llmsupervisor.link.requests import RequestRecord

NOW = 1_790_000_000.0
Json = dict[str, Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "requests.db"


def read(path: Path, **args: Any) -> list[RequestRecord]:
    async def run() -> list[RequestRecord]:
        return [each async for each in records(path, Wanted.read(args))]

    return asyncio.run(run())


def ids(path: Path, **args: Any) -> list[str]:
    return [each["id"] for each in read(path, **args)]


def numbers(*values: int) -> list[str]:
    return [str(value) for value in values]


# --- reading --------------------------------------------------------------------------------------------------------


def test_the_last_ones_oldest_first(path: Path) -> None:
    write(path, (record(str(n), service="chat" if n % 2 else "embed", time=NOW + n) for n in range(10)))
    assert ids(path, lines=3) == numbers(7, 8, 9)
    assert ids(path, lines=0) == []
    assert ids(path, lines=None) == ids(path) == numbers(*range(10))
    assert ids(path, lines=2, service="chat") == numbers(7, 9)
    assert ids(path, since=NOW + 6) == numbers(6, 7, 8, 9)
    assert ids(path, since=NOW + 6, service="embed") == numbers(6, 8)
    assert ids(path, since=NOW + 2, service="embed", lines=2) == numbers(6, 8)
    assert ids(path, service="other") == []


def test_more_than_a_page(path: Path) -> None:
    count = 2 * PAGE + 7
    write(path, (record(str(n), service="chat" if n % 2 else "embed", time=NOW - n) for n in range(count)))
    assert ids(path, lines=None) == numbers(*range(count))
    assert ids(path, lines=PAGE) == numbers(*range(count - PAGE, count))
    assert ids(path, lines=PAGE + 1, service="chat") == numbers(*range(1, count, 2))[-PAGE - 1 :]
    assert ids(path, lines=None, order="arrival") == numbers(*reversed(range(count)))
    assert ids(path, lines=3, order="arrival") == numbers(2, 1, 0)
    assert ids(path, lines=PAGE, order="arrival", service="chat") == numbers(*range(1, count, 2))[:PAGE][::-1]


def test_requests_that_came_at_once_come_once_each(path: Path) -> None:
    write(path, (record(str(n), time=NOW) for n in range(PAGE + 50)))
    assert ids(path, lines=None, order="arrival") == numbers(*range(PAGE + 50))


def test_a_clock_set_back_hides_nothing_new(path: Path) -> None:
    write(path, [record("a", time=NOW), record("b", time=NOW + 9e8), record("c", time=NOW + 1), record("d", time=5.0)])
    assert ids(path, lines=2) == ["c", "d"]


def test_reading_makes_no_file(path: Path) -> None:
    assert ids(path) == []
    assert not path.exists()
    path.touch()
    assert ids(path) == []
    assert path.stat().st_size == 0


def test_a_corrupt_file_says_so(path: Path) -> None:
    path.write_text("no database" * 1000)
    with pytest.raises(LlmsupervisorError, match=r"requests\.db cannot be read: file is not a database"):
        ids(path)
    assert "not a database" in str(summed(path)["reason"])


def test_a_newer_file_says_so(path: Path) -> None:
    write(path, [])
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version={VERSION + 1}")
    with pytest.raises(LlmsupervisorError, match="newer llmsupervisor"):
        ids(path)


@pytest.mark.parametrize(
    "args", [{"lines": -1}, {"lines": True}, {"since": "1h"}, {"service": 3}, {"order": "x"}, {"since": -1}]
)
def test_wrong_arguments(args: Json) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(args))} is "):
        Wanted.read(args)


def test_following(path: Path) -> None:
    """Each new record once, in order, also where the file was set aside and begun anew."""

    async def run() -> None:
        seen: list[str] = []

        async def follow() -> None:
            async for each in records(path, Wanted(lines=2, service="chat", follow=True)):
                seen.append(each["id"])

        async def until(expected: list[str]) -> None:
            async with asyncio.timeout(PATIENCE):
                while seen != expected:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

        write(path, (record(str(n)) for n in range(5)))
        task = asyncio.create_task(follow())
        await until(["3", "4"])
        history = History(path)
        history.put(record("other", service="embed"))
        history.put(record("5"))
        await until(["3", "4", "5"])
        await asyncio.to_thread(history.close)
        for each in path.parent.glob("requests.db*"):
            each.unlink()
        history = History(path)
        history.put(record("6"))
        history.put(record("7"))
        await until(["3", "4", "5", "6", "7"])
        task.cancel()
        await asyncio.to_thread(history.close)

    asyncio.run(run())


def test_a_reader_never_holds_the_writer_up(path: Path) -> None:
    """A client that stops reading between two pages has no transaction open: the WAL can be emptied."""
    write(path, (record(str(n)) for n in range(3 * PAGE)))

    async def run() -> None:
        reading = records(path, Wanted(lines=None))
        for _ in range(PAGE + 1):
            await anext(reading)
        with closing(sqlite3.connect(path)) as db:
            db.execute("INSERT INTO requests (id) VALUES ('x')")
            db.commit()
            assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)

    asyncio.run(run())


# --- summary --------------------------------------------------------------------------------------------------------


def summed(
    path: Path, limits: dict[str, Any] | None = None, service: str | None = None, since: float = NOW
) -> RequestsSummary:
    return asyncio.run(summary(path, limits or {"chat": {None: 8192}}, since, 100.0, service))


def only(path: Path, **more: Any) -> TargetSummary:
    (target,) = summed(path, **more)["targets"]
    return target


def test_lengths_and_times(path: Path) -> None:
    write(
        path,
        (
            record(str(n), time=NOW, prompt_tokens=10 * n, completion_tokens=n, max_tokens=None, ttft_ms=float(n))
            for n in range(1, 1001)
        ),
    )
    target = only(path)
    assert target["prompt"] == {"p50": 5000, "p95": 9500, "p99": 9900, "max": 10000}
    assert target["output"] == {"p50": 500, "p95": 950, "p99": 990, "max": 1000}
    assert target["total"] == {"p50": 5500, "p95": 10450, "p99": 10890, "max": 11000}
    assert target["ttft_ms"] == {"p50": 500.0, "p95": 950.0}
    assert target["decode_ms"] == {"p50": 120.0, "p95": 120.0}
    assert target["over"] == pytest.approx(256 / 1000), "11 × 745 > 8192"
    assert target["context_length_p95"] == target["context_length_p95_reserved"] == 11264
    assert (target["requests"], target["sized"], target["at_least"]) == (1000, 1000, False)


def test_what_clients_reserve(path: Path) -> None:
    """The gateway refuses prompt + max_tokens over the limit, however short the answers are."""
    write(
        path,
        (record(str(n), time=NOW, prompt_tokens=1000, completion_tokens=100, max_tokens=4096) for n in range(500)),
    )
    target = only(path)
    assert target["context_length_p95"] == 1280, "1.05 × 1100 + 64"
    assert target["context_length_p95_reserved"] == 5632, "1.05 × 5096 + 64"


def test_a_wish_beyond_all_measure(path: Path) -> None:
    write(path, (record(str(n), time=NOW, max_tokens=2**63 - 1) for n in range(500)))
    assert only(path)["context_length_p95"] == 256


def test_too_few_imply_nothing(path: Path) -> None:
    write(path, (record(str(n), time=NOW) for n in range(499)))
    target = only(path)
    assert (target["context_length_p95"], target["needed"]) == (None, 500)
    assert target["prompt"] == {"p50": 31, "p95": 31, "p99": 31, "max": 31}


def test_what_was_refused_or_cut_counts_apart(path: Path) -> None:
    """A limit that refuses every long request must not look large enough."""
    fine = [record(str(n), time=NOW, prompt_tokens=1000, completion_tokens=10, max_tokens=None) for n in range(900)]
    long = [
        record(f"r{n}", time=NOW, status=400, finish_reason="rejected", prompt_tokens=9000, completion_tokens=None)
        for n in range(60)
    ]
    cut = [
        record(f"t{n}", time=NOW, prompt_tokens=8000, completion_tokens=192, finish_reason="length", truncated=True)
        for n in range(40)
    ]
    gone = [record(f"g{n}", time=NOW, finish_reason="client_gone", prompt_tokens=7000) for n in range(50)]
    write(path, fine + long + cut + gone)
    target = only(path)
    assert [target[each] for each in ("requests", "sized", "refused", "truncated", "unfinished")] == [
        1050,
        900,
        60,
        40,
        50,
    ]
    assert target["total"] == {"p50": 1010, "p95": 1010, "p99": 1010, "max": 1010}
    assert (target["over"], target["at_least"]) == (0.1, True)
    assert target["context_length_p95"] == 9728, "of 9012, the 95th of 100"
    assert only(path, limits={"chat": {None: 10_000}})["over"] == 0.04, "the refused would fit today"


def test_lengths_that_nobody_knows_are_beyond_all_others(path: Path) -> None:
    fine = [record(str(n), time=NOW) for n in range(900)]
    unknown = [record(f"t{n}", time=NOW, finish_reason="length", truncated=True, prompt_tokens=None) for n in range(50)]
    write(path, fine + unknown)
    target = only(path)
    assert (target["context_length_p95"], target["context_length_p95_reserved"], target["at_least"]) == (
        None,
        None,
        True,
    )
    assert target["over"] == pytest.approx(50 / 950)


def test_unknown_is_not_zero(path: Path) -> None:
    write(path, [record("a", time=NOW, prompt_tokens=None, ttft_ms=None, queue_ms=None)])
    target = only(path, limits={"chat": {None: None}})
    assert [target[each] for each in ("prompt", "ttft_ms", "queue_ms", "context_length", "over")] == [None] * 5
    assert target["unfinished"] == 1


def test_embeddings_have_no_output(path: Path) -> None:
    write(path, [record("a", time=NOW, api="embeddings", completion_tokens=None, finish_reason=None)])
    assert only(path)["total"] == {"p50": 31, "p95": 31, "p99": 31, "max": 31}


def test_by_target_and_window(path: Path) -> None:
    write(
        path,
        [
            record("a", time=NOW, service="ollama", model="llama"),
            record("b", time=NOW, service="ollama", model="qwen"),
            record("c", time=NOW, service="was"),
            record("d", time=NOW - 1),
            record("e", time=NOW, service="", status=404, finish_reason="rejected"),
        ],
    )
    limits = {"chat": {None: 8192}, "ollama": {"llama": 4096, "phi": 2048}}
    found = [
        (t["service"], t["model"], t["requests"], t["context_length"]) for t in summed(path, limits=limits)["targets"]
    ]
    assert found == [
        ("chat", None, 0, 8192),
        ("ollama", "llama", 1, 4096),
        ("ollama", "qwen", 1, None),
        ("was", None, 1, None),
    ]
    assert [t["service"] for t in summed(path, limits=limits, service="was")["targets"]] == ["was"]
    assert "has not made" in str(summed(path.with_name("none.db"))["reason"])


def test_many_do_not_hold_the_loop_up(path: Path) -> None:
    write(
        path,
        (
            record(
                str(n), time=NOW + n, prompt_tokens=n % 9000, completion_tokens=n % 700, ttft_ms=(n * 7919 % 99991) / 7
            )
            for n in range(30_000)
        ),
    )

    async def run() -> tuple[float, float]:
        late = 0.0

        async def tick() -> None:
            nonlocal late
            while True:
                before = time.monotonic()
                await asyncio.sleep(0.005)
                late = max(late, time.monotonic() - before - 0.005)

        task = asyncio.create_task(tick())
        started = time.monotonic()
        said = await summary(path, {"chat": {None: 8192}}, NOW, 100.0, None)
        task.cancel()
        assert said["targets"][0]["requests"] == 30_000
        return time.monotonic() - started, late

    def measure() -> None:
        took, late = asyncio.run(run())
        assert late < max(0.25, took / 2), "the loop goes on while it is read"

    undisturbed(measure)
