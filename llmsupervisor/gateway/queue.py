"""Whose turn it is at a target: deficit round robin over clients by prompt tokens. And how much a target takes. Pure."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

QUANTUM = 2048
"""Prompt tokens of one turn of a client with share 1."""
LEAST = 256
"""What a request costs at least: its answer has to be made too, however short its prompt."""


@dataclass(eq=False, slots=True)
class Ticket:
    """A request that waits. What is said here does not change while it does."""

    client: str
    """Name of its key; empty: nobody's."""
    share: float
    tokens: int
    """Of the prompt, estimated: what it costs in the round."""
    kv: int
    """Tokens of KV cache that it may come to need."""
    services: tuple[str, ...]
    """Any of them can serve it."""
    since: float
    deadline: float
    _order: int = field(default=0, init=False, repr=False)
    _stay: int = field(default=0, init=False, repr=False)
    """0: not in the queue. Else unlike that of every other stay."""
    _paid: bool = field(default=False, init=False, repr=False)
    """It had its turn."""

    @property
    def cost(self) -> int:
        return max(LEAST, self.tokens)


class Queue:
    """A ticket waits at all its services at once. A call costs O(log n) on average, and `next` one small step more for
    each quantum that its ticket costs. Nothing is kept of a client or a service for which nothing waits."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._deadlines = _Heap()
        self._stays = 0
        self._n = 0

    def enter(self, ticket: Ticket, size: int) -> bool:
        """False: each of its services has `size` waiting already, and it is not in."""
        if all(self.waiting(service) >= size for service in ticket.services):
            return False
        assert not ticket._stay
        ticket.services = tuple(dict.fromkeys(ticket.services))
        self._put(ticket)
        ticket._order = ticket._stay
        ticket._paid = False
        for service in ticket.services:
            self._lines[service].append(ticket)
        return True

    def back(self, ticket: Ticket) -> None:
        """`next` gave it, and nothing was sent: it is the next one at all its services, and pays no second time."""
        assert not ticket._stay
        self._put(ticket)
        ticket._paid = True
        for service in ticket.services:
            self._lines[service].returned.push(ticket._order, ticket, self._n)

    def leave(self, ticket: Ticket) -> None:
        if not ticket._stay:
            return
        ticket._stay = 0
        self._n -= 1
        for service in ticket.services:
            line = self._lines[service]
            line.n -= 1
            if not ticket._paid:
                line.remove(ticket)
            if not line.n:
                del self._lines[service]

    def next(self, service: str, fits: Callable[[Ticket], bool]) -> Ticket | None:
        """Takes out the one whose turn it is. Where that one does not fit, nobody is let past it: None."""
        line = self._lines.get(service)
        if line is None:
            return None
        ticket = line.returned.first() or line.turn()
        if not fits(ticket):
            return None
        if not ticket._paid:
            line.lanes[ticket.client].deficit -= ticket.cost
        self.leave(ticket)
        return ticket

    def late(self, now: float) -> list[Ticket]:
        """Takes out those whose deadline has come, the earliest first."""
        found = []
        while (ticket := self._deadlines.first()) is not None and ticket.deadline <= now:
            self.leave(ticket)
            found.append(ticket)
        return found

    def waiting(self, service: str) -> int:
        line = self._lines.get(service)
        return line.n if line else 0

    def of(self, service: str, client: str) -> int:
        """Of `waiting`, those of one client, without any that was given back."""
        line = self._lines.get(service)
        lane = line.lanes.get(client) if line else None
        return len(lane.tickets) if lane else 0

    def oldest(self, service: str) -> float | None:
        """`since` of the one that waits longest."""
        line = self._lines.get(service)
        first = line.ages.first() if line else None
        return None if first is None else first.since

    def _put(self, ticket: Ticket) -> None:
        self._stays += 1
        ticket._stay = self._stays
        self._n += 1
        self._deadlines.push(ticket.deadline, ticket, self._n)
        for service in ticket.services:
            line = self._lines.get(service)
            if line is None:
                line = self._lines[service] = _Line()
            line.n += 1
            line.ages.push(ticket.since, ticket, line.n)


class Room:
    """What runs at a target, and whether one more may. None: the engine decides. Both limits may change at any time."""

    def __init__(self, parallel: int | None = None, kv_tokens: int | None = None) -> None:
        self.parallel = parallel
        self.kv_tokens = kv_tokens
        self.kv = 0
        self._held: dict[Ticket, float] = {}
        """Since when, in seconds of the board's clock."""

    @property
    def running(self) -> int:
        return len(self._held)

    def takes(self, ticket: Ticket) -> bool:
        """One that needs more than `kv_tokens` is taken where it is alone."""
        if self.parallel is not None and len(self._held) >= self.parallel:
            return False
        return self.kv_tokens is None or not self._held or self.kv + ticket.kv <= self.kv_tokens

    def take(self, ticket: Ticket, now: float = 0.0) -> None:
        assert ticket not in self._held
        self._held[ticket] = now
        self.kv += ticket.kv

    def give(self, ticket: Ticket) -> None:
        """Of one that is not held: nothing happens."""
        if self._held.pop(ticket, None) is not None:
            self.kv -= ticket.kv

    def turn_in(self, ticket: Ticket, ahead: int, took: float, now: float) -> float:
        """Seconds until its turn, after `ahead` others, where each takes `took` seconds; one that runs for longer already
        may end at any moment. Where the engine decides how many places there are: as many as are taken now, and one at least."""
        ends = sorted(max(0.0, took - (now - since)) for since in self._held.values())
        places = self.parallel or max(1, len(ends))
        if self.takes(ticket):
            ends = [0.0] * (places - len(ends)) + ends
        ends = ends[-places:] or [0.0]  # more run than there are places: some end before one is free
        rounds, place = divmod(ahead, len(ends))
        return ends[place] + rounds * took


class _Lane:
    """Of one client at one service, first come first served. Gone as soon as it is empty."""

    __slots__ = ("deficit", "quantum", "tickets", "visited")

    def __init__(self) -> None:
        self.tickets: OrderedDict[Ticket, None] = OrderedDict()
        self.quantum = QUANTUM
        self.deficit = 0
        self.visited = False
        """It is its turn, and it got its quantum for it."""

    @property
    def head(self) -> Ticket:
        return next(iter(self.tickets))


class _Line:
    """All that wait at one service."""

    __slots__ = ("ages", "lanes", "n", "returned")

    def __init__(self) -> None:
        self.n = 0
        self.lanes: OrderedDict[str, _Lane] = OrderedDict()
        """The first one's turn it is."""
        self.returned = _Heap()
        self.ages = _Heap()

    def append(self, ticket: Ticket) -> None:
        lane = self.lanes.get(ticket.client)
        if lane is None:
            lane = self.lanes[ticket.client] = _Lane()
        lane.quantum = max(1, round(QUANTUM * ticket.share))
        lane.tickets[ticket] = None

    def remove(self, ticket: Ticket) -> None:
        lane = self.lanes[ticket.client]
        del lane.tickets[ticket]
        if not lane.tickets:
            del self.lanes[ticket.client]

    def turn(self) -> Ticket:
        """Goes on to the client whose turn it is, and stays there until its ticket is taken or leaves."""
        poor = 0
        while True:
            client, lane = next(iter(self.lanes.items()))
            head = lane.head
            if not lane.visited:
                lane.visited = True
                lane.deficit += lane.quantum
            if head.cost <= lane.deficit:
                return head
            lane.visited = False
            self.lanes.move_to_end(client)
            poor += 1
            if poor == len(self.lanes):
                self._skip_rounds()
                poor = 0

    def _skip_rounds(self) -> None:
        """Nobody could afford its head in a whole round: the rounds in which it would be the same are given at once."""
        rounds = min((lane.head.cost - lane.deficit - 1) // lane.quantum for lane in self.lanes.values())
        for lane in self.lanes.values():
            lane.deficit += rounds * lane.quantum


class _Heap:
    """Tickets by a key, the smallest first. Those whose stay is over are dropped as they come up, or all at once where
    they are more than the others."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items: list[tuple[float, int, Ticket]] = []

    def push(self, key: float, ticket: Ticket, alive: int) -> None:
        """`alive`: no more than so many items are of a stay that goes on."""
        if len(self._items) > 2 * alive + 64:
            self._items = [item for item in self._items if item[1] == item[2]._stay]
            heapq.heapify(self._items)
        heapq.heappush(self._items, (key, ticket._stay, ticket))

    def first(self) -> Ticket | None:
        while self._items:
            _, stay, ticket = self._items[0]
            if ticket._stay == stay:
                return ticket
            heapq.heappop(self._items)
        return None
