"""The board: what a view changes for who waits and runs, and the leases."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from support.board import NOW, Known, after, refused, run, target, ticket, waiting

from llmsupervisor.gateway import board as module
from llmsupervisor.gateway.board import SUSPECT, Refused


@pytest.fixture
def board(tmp_path: Path) -> Known:
    return Known(tmp_path)


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


@pytest.mark.parametrize("lives", [True, False])
def test_nobody_is_sent_where_an_answer_broke_off_before_it_is_known_to_live(board: Known, lives: bool) -> None:
    """Nor to another model at the same address."""
    other = target("other", address="http://127.0.0.1:18401")

    async def main() -> None:
        board.see(target(), target("second"), other)
        lease = await board.admitted(ticket())
        assert board.doubt(lease.target) and not board.doubt(lease.target)
        lease.release()
        tasks = [await waiting(board, ticket(name)) for name in ("chat", "second")]
        assert (await board.admitted(ticket("other"))).target.name == "other"
        board.look()
        assert not any(task.done() for task in tasks)
        board.settle(lease.target, lives)
        if not lives:
            board.look()
            assert not any(task.done() for task in tasks)
            board.now += SUSPECT
            board.look()
        assert [(await task).target.name for task in tasks] == ["chat", "second"]

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
