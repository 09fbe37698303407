"""The board: what a view changes for who waits and runs, when a refused client is told to come again, and the leases."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest

from llmsupervisor.gateway import board as module
from llmsupervisor.gateway.board import SUSPECT, Board, Lease, Refused
from llmsupervisor.gateway.queue import Ticket
from llmsupervisor.gateway.route import LONGEST, SOMEBODY, Refusal

NOW, UNIX = 1000.0, 1_790_000_000.0


class Known(Board):
    """A board whose time is the test's, and which keeps what it tells."""

    def __init__(self, folder: Path) -> None:
        self.now = NOW
        super().__init__(folder / "view.json", lambda: self.now, lambda: UNIX + self.now - NOW)
        self.told: list[Mapping[str, Any]] = []
        self.tell = self.told.append
        self.generation = 0

    def see(self, *targets: dict[str, Any], **more: Any) -> None:
        self.generation += 1
        self.apply({"generation": self.generation, "targets": targets, **more})

    def heard(self, kind: str) -> list[Mapping[str, Any]]:
        return [message for message in self.told if message["type"] == kind]


@pytest.fixture
def board(tmp_path: Path) -> Known:
    return Known(tmp_path)


def target(name: str = "chat", state: str = "open", attempt: int = 1, **more: Any) -> dict[str, Any]:
    place = {"target": name, "service": name, "endpoint": f"{name}@{attempt}", "address": "http://127.0.0.1:18400"}
    return {**place, "state": state, "reason": "", "names": [name], "inject": {}, "parallel": 1, **more}


def ticket(*services: str, since: float = NOW, client: str = "", deadline: float = NOW + 60) -> Ticket:
    return Ticket(client, 1.0, 100, 100, services or ("chat",), since, deadline)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


async def waiting(board: Board, ticket: Ticket) -> asyncio.Task[Lease]:
    task = asyncio.ensure_future(board.admitted(ticket))
    await asyncio.sleep(0)
    return task


async def refused(task: asyncio.Task[Lease]) -> Refusal:
    with pytest.raises(Refused) as caught:
        await task
    return caught.value.refusal


def after(refusal: Refusal) -> int:
    assert refusal.status == 503
    return int(dict(refusal.headers)["Retry-After"])


# --- when to come again -----------------------------------------------------------------------------------------------


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
        ([target(state="hold", parallel=4)], 8),
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
        assert (refusal.code, after(refusal)) == ("queue_full", 60) and "1 requests wait for chat" in refusal.message
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


# --- turns ------------------------------------------------------------------------------------------------------------


def test_a_lease_is_given_back_once(board: Known) -> None:
    async def main() -> None:
        board.see(target())
        lease = await board.admitted(ticket())
        assert board.running("chat@1") == 1 and board.hello()["leases"] == {"chat@1": 1}
        next_one = await waiting(board, ticket())
        assert not next_one.done()
        lease.release()
        lease.release()
        assert (await next_one).loading == 0 and board.running("chat@1") == 1

    run(main())


def test_the_emptier_replica_comes_first(board: Known) -> None:
    async def main() -> None:
        board.see(target(parallel=2), target("other", parallel=4))
        both = ticket("chat", "other")
        await board.admitted(ticket("chat"))
        await board.admitted(ticket("other"))
        assert (await board.admitted(both)).target.name == "other"
        board.see(target(parallel=None), target("other", parallel=None))
        assert (await board.admitted(ticket("chat", "other"))).target.name == "chat"

    run(main())


def test_one_key_cannot_fill_the_queue_for_all(board: Known) -> None:
    keys = [{"name": name, "sha256": name, "models": None} for name in "ab"]

    async def main() -> None:
        board.see(target(state="hold"), keys=keys, limits={"queue_size": 8})
        tasks = [await waiting(board, ticket(client="a")) for _ in range(8)]
        assert (await refused(await waiting(board, ticket(client="a")))).code == "queue_full"
        tasks.append(await waiting(board, ticket(client="b")))
        assert not any(task.done() for task in tasks)
        board.end()
        assert {after(await refused(task)) for task in tasks} == {1}

    run(main())


def test_an_engine_that_took_no_connection_is_left_alone_for_a_while(board: Known) -> None:
    async def main() -> None:
        board.see(target())
        mine = ticket()
        lease = await board.admitted(mine)
        lease.release()
        task = asyncio.ensure_future(board.again(mine, "chat@1"))
        await asyncio.sleep(0)
        board.look()
        assert not task.done()
        board.now += SUSPECT
        board.look()
        assert (await task).ticket is mine
        (await task).release()
        board.see(target(state="gone"))
        with pytest.raises(Refused):
            await board.again(mine, "chat@1")

    run(main())


def test_who_leaves_as_its_turn_comes_gives_it_back(board: Known) -> None:
    async def main() -> None:
        board.see(target())
        lease = await board.admitted(ticket())
        leaving, staying = await waiting(board, ticket()), await waiting(board, ticket())
        lease.release()
        leaving.cancel()
        assert (await staying).target.name == "chat" and board.running("chat@1") == 1

    run(main())


def test_whose_turn_comes_as_it_has_left(board: Known) -> None:
    """Both in one step of the loop: nobody is told twice, and no place is lost."""

    async def main() -> None:
        board.see(target())
        lease = await board.admitted(ticket())
        leaving = await waiting(board, ticket(deadline=NOW))
        leaving.cancel()
        lease.release()
        board.look()
        board.end()
        board.see(target(state="gone"))
        await asyncio.gather(leaving, return_exceptions=True)
        assert leaving.cancelled() and not board.running("chat@1")

    run(main())


def test_a_demand_is_told_at_once_and_again(board: Known) -> None:
    async def main() -> None:
        board.see(target(state="hold"), target("other"))
        task = await waiting(board, ticket(since=NOW - 2))
        another = await waiting(board, ticket())
        board.demand()
        first, second = board.heard("demand")
        assert first == {"type": "demand", "target": "chat", "queued": 1, "oldest_ms": 2000.0}
        assert second["queued"] == 2
        for each in (task, another):
            each.cancel()
        await asyncio.gather(task, another, return_exceptions=True)

    run(main())


def test_the_time_of_a_load_is_told_with_the_lease(board: Known) -> None:
    async def main() -> None:
        board.see(target(state="hold"))
        task = await waiting(board, ticket())
        board.now += 7
        board.see(target())
        assert (await task).loading == 7

    run(main())


# --- the view -----------------------------------------------------------------------------------------------------------


def test_nothing_is_told_of_a_view_that_is_older(board: Known) -> None:
    board.generation = 4
    board.see(target())
    board.apply({"generation": 4, "targets": []})
    assert board.named("chat") and [said["generation"] for said in board.heard("applied")] == [5]


def test_leases_of_what_is_closed_or_no_longer_there_are_told(board: Known) -> None:
    async def main() -> None:
        board.see(target(parallel=2))
        first, second = await board.admitted(ticket()), await board.admitted(ticket())
        board.moved("chat@1")
        assert board.activity("chat@1") and board.activity("nobody@1") is None
        board.see(target(state="drain", parallel=2))
        first.release()
        board.see(target(attempt=2), target("other", "hold"))
        assert board.endpoints() == {"chat@1": [], "chat@2": ["chat"], "other@1": ["other"]}
        second.release()
        said = [(message["endpoint"], message["n"]) for message in board.heard("lease")]
        assert said == [("chat@1", 2), ("chat@1", 1), ("chat@1", 1), ("other@1", 0), ("chat@1", 0)]
        assert "chat@1" not in board.endpoints()
        board.bad("chat@2", "closed")
        assert board.heard("bad") == [{"type": "bad", "endpoint": "chat@2", "kind": "closed"}]

    run(main())


def test_the_next_process_begins_with_the_last_view(board: Known, tmp_path: Path) -> None:
    board.see(target())
    after_it = Known(tmp_path)
    after_it.load()
    assert after_it.table == board.table and after_it.epoch != board.epoch
    asyncio.run(after_it.known())


@pytest.mark.parametrize("content", [b"{", json.dumps({"generation": 1}).encode()], ids=["half", "another kind"])
def test_a_view_on_disk_that_cannot_be_used_is_told(
    board: Known, tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    board.load()
    (tmp_path / "view.json").write_bytes(content)
    board.load()
    assert board.table.generation == 0 and "view.json cannot be used" in capsys.readouterr().err


def test_a_view_that_cannot_be_written_counts_all_the_same(
    board: Known, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "view.tmp").mkdir()
    board.see(target())
    assert board.named("chat") and "view.json cannot be written" in capsys.readouterr().err


def test_where_nobody_tells_the_services(board: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_VIEW", 0.01)

    async def main() -> None:
        with pytest.raises(Refused) as caught:
            await board.known()
        assert after(caught.value.refusal) == 1

    run(main())


def test_who_waits_for_the_first_view_goes_on_with_it(board: Known) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(board.known())
        await asyncio.sleep(0)
        board.see(target())
        await task

    run(main())


def test_a_view_of_generation_zero_is_no_view(board: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_VIEW", 0.0)
    board.apply({"generation": 0, "targets": []})

    async def main() -> None:
        with pytest.raises(Refused, match="does not know the services yet"):
            await board.known()

    run(main())


def test_who_has_just_gone_is_not_late_as_well(board: Known) -> None:
    async def main() -> None:
        board.see(target(state="hold"))
        task = await waiting(board, ticket(deadline=NOW))
        task.cancel()
        board.look()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not board.queue.waiting("chat")

    run(main())
