"""The board: when a refused client is told to come again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.board import NOW, UNIX, Known, after, refused, run, target, ticket, waiting

from llmsupervisor.gateway.route import LONGEST, SOMEBODY


@pytest.fixture
def board(tmp_path: Path) -> Known:
    return Known(tmp_path)


@pytest.mark.parametrize(
    ("replicas", "seconds"),
    [
        ([target(state="gone")], SOMEBODY),
        ([target(state="gone", retry_at=UNIX + 299.5)], 300),
        ([target(state="gone", retry_at=UNIX - 5)], 1),
        ([target(state="gone", retry_at=UNIX + 9e9)], LONGEST),
        ([target(state="gone", retry_at=UNIX + 600), target("other", "gone", retry_at=UNIX + 120)], 120),
        ([target(state="gone"), target("other", "gone", retry_at=UNIX + 120)], 120),
        ([], SOMEBODY),
    ],
    ids=["a person", "known", "due", "far", "the first of two", "one is known", "removed"],
)
def test_what_is_gone_says_when_it_comes_back(board: Known, replicas: list[dict[str, Any]], seconds: int) -> None:
    board.see(*replicas)

    async def main() -> None:
        assert after(await refused(await waiting(board, ticket("chat", "other")))) == seconds

    run(main())


def test_what_waits_hears_of_its_end_and_of_the_next_try(board: Known) -> None:
    async def main() -> None:
        board.see(target(state="hold"))
        task = await waiting(board, ticket())
        board.see(target(state="gone", reason="FAILED: bad flag", retry_at=UNIX + 250))
        refusal = await refused(task)
        assert after(refusal) == 250 and "bad flag" in refusal.message and not board.queue.waiting("chat")

    run(main())


@pytest.mark.parametrize(
    ("replicas", "seconds"),
    [
        ([target(state="hold")], 30),
        ([target(state="hold", parallel=4)], 6),
        ([target(state="hold", parallel=None)], 30),
        ([target(state="hold", retry_at=UNIX + 10)], 30),
        ([target(state="hold", retry_at=UNIX + 40)], 40),
        ([target(state="hold", retry_at=UNIX + 500)], 500),
        ([target(state="hold", retry_at=UNIX + 500), target("other", "hold")], 3),
        ([target(state="hold"), target("other", "gone")], 30),
        ([target(state="hold", load_s=90, loading_since=UNIX - 20)], 70),
        ([target(state="hold", load_s=90, loading_since=UNIX - 900, parallel=30)], 1),
        ([target(state="hold", load_s=90, retry_at=UNIX + 40)], 130),
        ([target(state="hold", load_s=90, loading_since=UNIX), target("other", "hold", load_s=20)], 20),
    ],
)
def test_a_queue_says_when_it_is_worked_off(board: Known, replicas: list[dict[str, Any]], seconds: int) -> None:
    """Ten wait, a request takes 3 seconds, and at the other one a single one waits."""

    async def main() -> None:
        board.see(target(), target("other"))
        for name in ("chat", "other"):
            (await board.admitted(ticket(name))).release(took=3.0)
        board.see(*replicas)
        others = [await waiting(board, ticket()) for _ in range(10)] + [await waiting(board, ticket("other"))]
        late = await waiting(board, ticket("chat", "other", since=NOW - 60, deadline=NOW))
        board.look()
        refusal = await refused(late)
        assert refusal.code == "queue_timeout" and "waited 60 s" in refusal.message and after(refusal) == seconds
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    run(main())


def test_a_queue_is_never_said_to_take_long(board: Known) -> None:
    async def main() -> None:
        board.see(target())
        (await board.admitted(ticket())).release(took=500.0)
        board.see(target(state="hold"), limits={"queue_size": 1})
        first = await waiting(board, ticket())
        refusal = await refused(await waiting(board, ticket()))
        assert (refusal.code, after(refusal)) == ("queue_full", 60) and "chat: hold, 1 waiting" in refusal.message
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)

    run(main())


def test_the_mean_of_what_requests_took_follows_them(board: Known) -> None:
    """One that was cut short tells nothing."""

    async def main() -> None:
        board.see(target())
        for took in (10.0, None, 20.0):
            (await board.admitted(ticket())).release(took)
        board.see(target(state="hold"))
        task = await waiting(board, ticket())
        assert board._estimate(ticket()) == pytest.approx(11.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(main())


@pytest.mark.parametrize(
    ("places", "queue_size", "waiting", "seconds"),
    [
        (target(parallel=3), 0, 0, 3),
        (target(parallel=3), 1, 1, 8),
        (target(parallel=3), 4, 4, 18),
        (target(parallel=2), 0, 0, 8),
        (target(parallel=1), 0, 0, 9),
        (target(parallel=1), 1, 1, 19),
        (target(parallel=9, kv_tokens=300), 0, 0, 3),
        (target(parallel=None, kv_tokens=300), 0, 0, 3),
        (target(parallel=3, state="drain", load_s=20), 0, 0, 20),
    ],
    ids=[
        "full",
        "one waits",
        "four wait",
        "fewer places than run",
        "one place",
        "and one waits",
        "tokens",
        "tokens alone",
        "a load",
    ],
)
def test_where_all_places_are_taken_it_is_the_next_one_to_be_free(
    board: Known, places: dict[str, Any], queue_size: int, waiting: int, seconds: int
) -> None:
    """A request takes 10 seconds; three run since 7, 2 and 1."""

    async def main() -> None:
        board.see(target(parallel=3))
        (await board.admitted(ticket())).release(took=10.0)
        for since in (7, 2, 1):
            board.now = NOW - since
            await board.admitted(ticket())
        board.now = NOW
        board.see(places, limits={"queue_size": queue_size})
        tasks = [asyncio.ensure_future(board.admitted(ticket())) for _ in range(waiting)]
        await asyncio.sleep(0)
        refusal = await refused(asyncio.ensure_future(board.admitted(ticket())))
        assert (refusal.code, after(refusal)) == ("queue_full", seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(main())


def test_what_runs_for_longer_than_the_others_may_end_at_any_moment(board: Known) -> None:
    """And where none has ended yet, nobody knows what one takes. Late is as full."""

    async def main() -> None:
        board.see(target())
        lease = await board.admitted(ticket())
        for took in (None, 10.0):
            lease.release(took)
            lease = await board.admitted(ticket())
            for runs, seconds in ((0, 10 if took else 1), (9, 1), (500, 1)):
                task = await waiting(board, ticket(since=NOW - 60, deadline=NOW))
                board.now = NOW + runs
                board.look()
                refusal = await refused(task)
                assert (refusal.code, after(refusal)) == ("queue_timeout", seconds)
            board.now = NOW

    run(main())
