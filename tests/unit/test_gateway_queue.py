"""The queue beside a naive model of deficit round robin that goes through every round."""

from __future__ import annotations

import gc
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmsupervisor.gateway.queue import LEAST, QUANTUM, Queue, Room, Ticket

SHARES = {"": 0.25, "x": 1.0, "y": 1.0, "z": 3.0}
TOKENS = st.one_of(st.integers(0, 60), st.integers(1000, 30_000))
PARALLEL = st.none() | st.integers(1, 4)
KV = st.none() | st.integers(1, 20_000)


def ticket(client: str = "x", tokens: int = 100, services: tuple[str, ...] = ("a",), **keys: float) -> Ticket:
    said: dict[str, float] = {"share": SHARES.get(client, 1.0), "kv": tokens, "since": 0.0, "deadline": 1e9} | keys
    return Ticket(client, said["share"], tokens, int(said["kv"]), services, said["since"], said["deadline"])


def anything(ticket: Ticket) -> bool:
    return True


class Naive:
    """One service. The first of `clients` has its turn."""

    def __init__(self) -> None:
        self.clients: list[str] = []
        self.waiting: dict[str, list[Ticket]] = {}
        self.deficit: dict[str, float] = {}
        self.returned: list[Ticket] = []
        self.begun = False

    def all(self) -> list[Ticket]:
        return [*self.returned, *(each for line in self.waiting.values() for each in line)]

    def enter(self, ticket: Ticket) -> None:
        if ticket.client not in self.clients:
            self.clients.append(ticket.client)
            self.waiting[ticket.client] = []
            self.deficit[ticket.client] = 0
        self.waiting[ticket.client].append(ticket)

    def remove(self, ticket: Ticket) -> None:
        if ticket in self.returned:
            self.returned.remove(ticket)
            return
        self.waiting[ticket.client].remove(ticket)
        if not self.waiting[ticket.client]:
            self.begun &= self.clients[0] != ticket.client
            self.clients.remove(ticket.client)
            del self.waiting[ticket.client], self.deficit[ticket.client]

    def turn(self) -> Ticket | None:
        if self.returned or not self.clients:
            return self.returned[0] if self.returned else None
        while True:
            client = self.clients[0]
            if not self.begun:
                self.deficit[client] += QUANTUM * SHARES[client]
                self.begun = True
            if max(LEAST, self.waiting[client][0].tokens) <= self.deficit[client]:
                return self.waiting[client][0]
            self.clients.append(self.clients.pop(0))
            self.begun = False

    def pay(self, ticket: Ticket) -> None:
        if ticket not in self.returned:
            self.deficit[ticket.client] -= max(LEAST, ticket.tokens)


class Admission(RuleBasedStateMachine):
    tickets = Bundle("tickets")

    @initialize(parallel=PARALLEL, kv=KV)
    def begin(self, parallel: int | None, kv: int | None) -> None:
        self.queue = Queue()
        self.rooms = {"a": Room(parallel, kv), "b": Room(2, None)}
        self.model = {"a": Naive(), "b": Naive()}
        self.order: dict[Ticket, int] = {}
        self.running: list[tuple[str, Ticket]] = []
        self.served: Counter[Ticket] = Counter()
        self.gone: set[Ticket] = set()
        self.now = 0.0

    def _waits(self, ticket: Ticket) -> bool:
        return any(ticket in line.all() for line in self.model.values())

    def _remove(self, ticket: Ticket) -> None:
        for line in self.model.values():
            if ticket in line.all():
                line.remove(ticket)

    @rule(
        target=tickets,
        client=st.sampled_from(sorted(SHARES)),
        tokens=TOKENS,
        output=st.integers(0, 500),
        services=st.sampled_from([("a",), ("a",), ("b",), ("a", "b"), ("b", "a")]),
        patience=st.integers(1, 20),
        size=st.sampled_from([3, 1000, 1000]),
    )
    def enter(
        self, client: str, tokens: int, output: int, services: tuple[str, ...], patience: int, size: int
    ) -> Ticket:
        new = ticket(client, tokens, services, kv=tokens + output, since=self.now, deadline=self.now + patience)
        self.order[new] = len(self.order)
        full = all(len(self.model[service].all()) >= size for service in services)
        assert self.queue.enter(new, size) is not full
        if full:
            self.gone.add(new)
        else:
            for service in services:
                self.model[service].enter(new)
        return new

    @rule(service=st.sampled_from(["a", "b"]))
    def admit(self, service: str) -> None:
        room, line = self.rooms[service], self.model[service]
        turn = line.turn()
        due = turn if turn is not None and room.takes(turn) else None
        assert self.queue.next(service, room.takes) is due
        if due is not None:
            line.pay(due)
            self._remove(due)
            room.take(due)
            self.running.append((service, due))
            here = [ticket.kv for at, ticket in self.running if at == service]
            assert room.parallel is None or len(here) <= room.parallel
            assert room.kv_tokens is None or sum(here) <= room.kv_tokens or len(here) == 1

    @precondition(lambda self: self.running)
    @rule(data=st.data(), sent=st.booleans())
    def end(self, data: st.DataObject, sent: bool) -> None:
        service, ended = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.rooms[service].give(ended)
        self.rooms[service].give(ended)
        if sent:
            self.served[ended] += 1
            return
        self.queue.back(ended)
        for name in ended.services:
            self.model[name].returned.append(ended)
            self.model[name].returned.sort(key=self.order.__getitem__)

    @rule(left=tickets)
    def leave(self, left: Ticket) -> None:
        if self._waits(left):
            self.gone.add(left)
        self._remove(left)
        self.queue.leave(left)

    @rule(seconds=st.integers(0, 8))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        late = {each for line in self.model.values() for each in line.all() if each.deadline <= self.now}
        told = self.queue.late(self.now)
        assert len(told) == len(late) and set(told) == late
        assert told == sorted(told, key=lambda each: each.deadline)
        for each in told:
            self.gone.add(each)
            self._remove(each)

    @rule(parallel=PARALLEL, kv=KV)
    def limit(self, parallel: int | None, kv: int | None) -> None:
        self.rooms["a"].parallel, self.rooms["a"].kv_tokens = parallel, kv

    @invariant()
    def counts(self) -> None:
        for service, line in self.model.items():
            waiting = line.all()
            assert self.queue.waiting(service) == len(waiting)
            assert self.queue.oldest(service) == min((each.since for each in waiting), default=None)
            here = [each.kv for at, each in self.running if at == service]
            assert (self.rooms[service].running, self.rooms[service].kv) == (len(here), sum(here))

    def teardown(self) -> None:
        """All that still waits is served, once each, and then nothing is left."""
        if not hasattr(self, "queue"):
            return
        for _ in range(3 * len(self.order) + 3):
            while self.running:
                service, ended = self.running.pop()
                self.rooms[service].give(ended)
                self.served[ended] += 1
            self.admit("a")
            self.admit("b")
        assert set(self.served) | self.gone == set(self.order) and not set(self.served) & self.gone
        assert set(self.served.values()) <= {1}
        assert not self.queue._lines


TestAdmission = Admission.TestCase
TestAdmission.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


def drain(queue: Queue, service: str = "a") -> list[Ticket]:
    found = []
    while (each := queue.next(service, anything)) is not None:
        found.append(each)
    return found


@given(
    st.lists(
        st.tuples(st.sampled_from([0.5, 1.0, 2.0]), st.lists(st.integers(1, 9000), min_size=5)), min_size=2, max_size=4
    )
)
def test_backlogged_clients_get_tokens_by_their_share(clients: list[tuple[float, list[int]]]) -> None:
    queue = Queue()
    left = Counter[str]()
    for number, (share, sizes) in enumerate(clients):
        for tokens in sizes:
            assert queue.enter(ticket(str(number), tokens, share=share), 10_000)
            left[str(number)] += 1
    largest = max(LEAST, *(max(sizes) for _, sizes in clients))
    least = min(share for share, _ in clients)
    got = dict.fromkeys(left, 0.0)
    log = [dict(got)]
    while all(left.values()):
        served = queue.next("a", anything)
        assert served is not None
        left[served.client] -= 1
        got[served.client] += served.cost / served.share
        log.append(dict(got))
        assert max(got.values()) - min(got.values()) <= QUANTUM + largest / least
    for begin in log:
        since = [log[-1][client] - begin[client] for client in got]
        assert max(since) - min(since) <= QUANTUM + 2 * largest / least


def test_a_client_that_comes_back_at_once_does_not_starve_the_others() -> None:
    queue = Queue()
    for _ in range(100):
        queue.enter(ticket("x", QUANTUM), 1000)
    queue.enter(ticket("y", QUANTUM), 1000)
    served = []
    for _ in range(100):
        each = queue.next("a", anything)
        assert each
        served.append(each.client)
        if each.client == "y":
            queue.enter(ticket("y", QUANTUM), 1000)
    assert Counter(served) == {"x": 50, "y": 50}


def test_a_large_one_is_not_passed_by_smaller_ones() -> None:
    queue, room = Queue(), Room(kv_tokens=1000)
    running, large = ticket("x", 500), ticket("x", 900)
    room.take(running)
    queue.enter(large, 10)
    for client in ("y", "z", "x"):
        queue.enter(ticket(client, 10), 10)
        assert queue.next("a", room.takes) is None
    queue.enter(ticket("new", 1), 10)
    assert queue.next("a", room.takes) is None
    room.give(running)
    assert queue.next("a", room.takes) is large


def test_one_larger_than_the_cache_runs_alone() -> None:
    room = Room(parallel=4, kv_tokens=1000)
    huge, small = ticket(tokens=5000), ticket(tokens=10)
    assert room.takes(huge)
    room.take(huge)
    assert not room.takes(small)
    room.give(huge)
    room.take(small)
    assert not room.takes(huge)


def test_one_that_was_not_sent_comes_first_again_and_pays_once() -> None:
    queue = Queue()
    first, second, other = ticket("x", QUANTUM), ticket("x", QUANTUM), ticket("y", QUANTUM)
    for each in (first, second, other):
        queue.enter(each, 10)
    assert queue.next("a", anything) is first
    assert queue.next("a", anything) is other
    assert queue.next("a", anything) is second
    for each in (second, first):
        queue.back(each)
    queue.enter(ticket("y", 1), 10)
    assert drain(queue)[:2] == [first, second]


def test_a_ticket_that_nothing_can_serve_does_not_enter() -> None:
    assert not Queue().enter(ticket(services=()), 10)


def test_whole_rounds_in_which_nobody_can_pay_are_not_walked_through() -> None:
    """Ten thousand of a thousand clients: prompts that cost 390 times as much take their queue hardly longer."""

    def took(tokens: int) -> float:
        queue = Queue()
        tickets = [ticket(f"c{n % 1000}", tokens + n % 7, ("a", "b"), share=0.01) for n in range(10_000)]
        begin = time.process_time()
        for each in tickets:
            assert queue.enter(each, 10_000)
        assert set(drain(queue)) == set(tickets)
        spent = time.process_time() - begin
        assert queue.waiting("b") == 0
        return spent

    assert min(took(100_000) for _ in range(2)) < 10 * max(took(100) for _ in range(2))


def test_what_left_is_not_kept() -> None:
    def kept() -> int:
        gc.collect()
        return sum(isinstance(each, Ticket) for each in gc.get_objects())

    queue, others = Queue(), kept()
    stays = ticket("stays")
    queue.enter(stays, 10)
    for n in range(20_000):
        passing = ticket(f"c{n}", since=n, deadline=n)
        queue.enter(passing, 10)
        if n % 2:
            taken = queue.next("a", anything)
            assert taken is not None
            queue.back(taken)
        queue.leave(passing)
    del passing, taken
    assert kept() - others < 500
    assert drain(queue) == [stays]


@given(
    began=st.lists(st.floats(-30, 0), max_size=6),
    places=st.integers(1, 6),
    ahead=st.integers(0, 20),
    took=st.floats(0.1, 20),
)
def test_the_time_until_a_turn_is_that_of_playing_it_through(
    began: list[float], places: int, ahead: int, took: float
) -> None:
    """Each one takes the next place that is free; where more run than there are places, nobody takes the first ones."""
    room = Room(places)
    for since in began:
        room.take(ticket(), since)
    free = sorted([max(0.0, took + since) for since in began] + [0.0] * (places - len(began)))[-places:]
    for _ in range(ahead):
        free = sorted([*free[1:], free[0] + took])
    assert room.turn_in(ticket(), ahead, took, 0.0) == pytest.approx(free[0])


@pytest.mark.parametrize(
    ("parallel", "kv_tokens", "kv", "turn"),
    [(None, None, 0, 9.0), (None, 200, 100, 9.0), (9, 200, 100, 9.0), (9, 300, 100, 0.0)],
    ids=["the engine decides", "tokens", "tokens before places", "neither"],
)
def test_places_that_nobody_said(parallel: int | None, kv_tokens: int | None, kv: int, turn: float) -> None:
    """Two run since 4 and 1 seconds, each takes 10, one is ahead."""
    room = Room(parallel, kv_tokens)
    for since in (-4.0, -1.0):
        room.take(ticket(kv=100), since)
    assert room.turn_in(ticket(kv=kv), 1, 10.0, 0.0) == turn
