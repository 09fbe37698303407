"""The board under everything at once: requests that come, end, leave and are not sent, views, and time. Never more than
`parallel` run, none waits where there is room for it, and none is forgotten."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.board import Known, target, ticket

from llmsupervisor.gateway.board import Lease, Refused
from llmsupervisor.gateway.queue import Ticket
from llmsupervisor.gateway.view import Target

NAMES = ("a", "b")
PLACES = {name: {"address": f"http://127.0.0.1:{port}"} for name, port in zip(NAMES, (18400, 18401), strict=True)}
STATES = st.sampled_from(["open"] * 7 + ["hold", "drain", "gone"])
PICK = st.integers(0, 10**6)


class Unkept(Known):
    """Its views are written nowhere."""

    def _keep(self, view: Mapping[str, Any]) -> None:
        pass


class Turns(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.board = Unkept(Path())
        self.tasks: dict[Ticket, asyncio.Task[Lease]] = {}
        """Of those that wait."""
        self.held: list[Lease] = []
        self.doubted: list[Target] = []
        self.ends: Counter[str] = Counter()
        self.asked = 0
        self.board.see(*(target(name, **PLACES[name]) for name in NAMES))

    def _settle(self) -> None:
        """What is due in the loop is done."""

        async def main() -> None:
            for _ in range(5):
                await asyncio.sleep(0)

        self.runner.run(main())
        for asked, task in list(self.tasks.items()):
            if not task.done():
                continue
            del self.tasks[asked]
            if task.cancelled():
                self.ends["left"] += 1
            elif isinstance(error := task.exception(), Refused):
                assert error.refusal.status == 503
                self.ends["refused"] += 1
            else:
                lease = task.result()
                self.held.append(lease)
                told = self.board.table.target(lease.target.name)
                assert told is not None and told.open and told.endpoint == lease.target.endpoint
                assert told.address not in {each.address for each in self.doubted}
                room = self._room(lease)
                assert told.parallel is None or room <= told.parallel, "more than it takes"

    def _room(self, lease: Lease) -> int:
        place = (lease.target.endpoint, lease.target.name)
        return sum((each.target.endpoint, each.target.name) == place for each in self.held)

    def _begin(self, asked: Ticket, again: str | None = None) -> None:
        board = self.board
        turn = board.admitted(asked) if again is None else board.again(asked, again)
        self.tasks[asked] = self.runner.get_loop().create_task(turn)

    @rule(
        services=st.sampled_from([("a",), ("a",), ("b",), ("a", "b"), ("b", "a")]),
        client=st.sampled_from(["", "x", "y"]),
        patience=st.integers(1, 30),
        at_once=st.booleans(),
    )
    def ask(self, services: tuple[str, ...], client: str, patience: int, at_once: bool) -> None:
        self.asked += 1
        self._begin(ticket(*services, client=client, since=self.board.now, deadline=self.board.now + patience))
        if at_once:
            self._settle()

    @precondition(lambda self: self.held)
    @rule(pick=PICK, took=st.none() | st.floats(0.1, 50), leaving=st.booleans())
    def end(self, pick: int, took: float | None, leaving: bool) -> None:
        """`leaving`: whoever gets its turn by it goes in the same moment."""
        self.held.pop(pick % len(self.held)).release(took)
        self.ends["served"] += 1
        if leaving:
            for task in [self.tasks[each] for each, turn in self.board._waiting.items() if turn.done()]:
                task.cancel()
        self._settle()

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def unsent(self, pick: int) -> None:
        """Its engine took no connection."""
        lease = self.held.pop(pick % len(self.held))
        lease.release()
        self._begin(lease.ticket, lease.target.endpoint)
        self._settle()

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def broken(self, pick: int) -> None:
        """Its engine broke off: in doubt, until it has answered or not."""
        lease = self.held.pop(pick % len(self.held))
        if self.board.doubt(lease.target):
            self.doubted.append(lease.target)
        lease.release()
        self.ends["served"] += 1
        self._settle()

    @precondition(lambda self: self.doubted)
    @rule(lives=st.booleans())
    def looked(self, lives: bool) -> None:
        self.board.settle(self.doubted.pop(), lives)
        self._settle()

    @precondition(lambda self: self.tasks)
    @rule(pick=PICK)
    def leave(self, pick: int) -> None:
        list(self.tasks.values())[pick % len(self.tasks)].cancel()
        self._settle()

    @rule(
        states=st.tuples(STATES, STATES),
        parallel=st.tuples(*[st.none() | st.integers(1, 4)] * 2),
        attempt=st.sampled_from([1, 1, 1, 1, 2]),
        size=st.sampled_from([0, 2, 1000, 1000]),
    )
    def view(self, states: tuple[str, str], parallel: tuple[int | None, int | None], attempt: int, size: int) -> None:
        said = zip(NAMES, states, parallel, strict=True)
        self.board.see(
            *(target(name, state, attempt, parallel=most, **PLACES[name]) for name, state, most in said),
            limits={"queue_size": size},
        )
        self._settle()

    @rule(seconds=st.floats(0, 12))
    def wait(self, seconds: float) -> None:
        self.board.now += seconds
        self.board.look()
        self._settle()
        assert all(each.deadline > self.board.now for each in self.tasks)

    @invariant()
    def all_are_accounted_for(self) -> None:
        self._settle()
        board = self.board
        assert self.asked == len(self.tasks) + len(self.held) + self.ends.total(), self.ends
        assert {*board._waiting} == {*self.tasks}
        here = Counter(lease.target.endpoint for lease in self.held)
        assert board.hello()["leases"] == dict(here)

    @invariant()
    def none_waits_where_there_is_room(self) -> None:
        board = self.board
        for told in board.table.targets:
            waiting = [each for each in self.tasks if told.name in each.services]
            assert board.queue.waiting(told.name) == len(waiting)
            if waiting and board._usable(told):
                assert board._rooms[told.endpoint, told.name].running >= (told.parallel or 10**9), (
                    f"{told.name} has room"
                )
        for each in self.tasks:
            assert any(not told.gone for told in board.table.targets if told.name in each.services)

    def teardown(self) -> None:
        try:
            self._come_to_an_end()
        finally:
            self.runner.close()

    def _come_to_an_end(self) -> None:
        """All are served, and nothing is left of them."""
        while self.doubted:
            self.board.settle(self.doubted.pop(), True)
        self._settle()
        self.board.see(*(target(name, attempt=9, parallel=1) for name in NAMES))
        self._settle()
        for _ in range(self.asked + 1):
            while self.held:
                self.held.pop().release()
                self.ends["served"] += 1
            self._settle()
        assert self.asked == self.ends.total() and not self.tasks and not self.board._waiting
        assert self.board.hello()["leases"] == {} and not self.board.queue._lines


TestTurns = Turns.TestCase
TestTurns.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
