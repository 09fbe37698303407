"""What the gateway knows and counts: the last view, for each endpoint how many requests run (its leases), and who waits
for which."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmsupervisor import __version__
from llmsupervisor.gateway import route
from llmsupervisor.gateway.queue import Queue, Room, Ticket
from llmsupervisor.gateway.route import Refusal
from llmsupervisor.gateway.view import Table, Target, table
from llmsupervisor.link.gateway import Hello

VERSION = 1
SUSPECT = 1.0
"""Seconds without a new try at an engine that refused a connection, unless a view says more."""
FIRST_VIEW = 5.0
"""Seconds that a request waits for the first view."""
UNKNOWN = "the gateway has just started and does not know the services yet"
LONG = 60.0
"""Seconds that a queue is said to take at most."""
SMOOTH = 0.1
"""Weight of the newest request in a service's mean duration."""

Tell = Callable[[Mapping[str, Any]], None]


class Refused(Exception):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Lease:
    """A request's right to be at an endpoint. Given back once."""

    __slots__ = ("_board", "loading", "target", "ticket")

    def __init__(self, board: Board, target: Target, ticket: Ticket, loading: float) -> None:
        self._board: Board | None = board
        self.target, self.ticket = target, ticket
        self.loading = loading
        """Seconds of its wait in which the target was not open."""

    def release(self, took: float | None = None) -> None:
        """`took`: seconds at the engine, of a request that ended by itself."""
        if self._board is not None:
            board, self._board = self._board, None
            board._release(self.target, self.ticket, took)


class Board:
    """`tell` sends to every daemon that is connected. The state of a target is read, and its lease taken, in one step:
    once a view is applied, no request goes to what is not open in it."""

    def __init__(
        self, file: Path, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self.epoch = secrets.token_hex(4)
        self.table = Table()
        self.since = int(time.time())
        self.tell: Tell = lambda message: None
        self.changed: Callable[[], None] = lambda: None
        self.queue = Queue()
        self._clock, self._wall = clock, wall
        self._file = file
        self._rooms: dict[tuple[str, str], Room] = {}
        """By endpoint and target."""
        self._names: dict[str, list[Target]] = {}
        self._waiting: dict[Ticket, asyncio.Future[Lease]] = {}
        self._opened: dict[str, float] = {}
        """Service → since when it is open."""
        self._suspects: dict[str, float] = {}
        """Endpoint → until when it is left alone."""
        self._doubted: set[tuple[str, int]] = set()
        """Addresses: of an Ollama one for all its models."""
        self._took: dict[str, float] = {}
        self._activity: dict[str, float] = {}
        self._known = asyncio.Event()

    # --- the view ------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """What an earlier gateway process was told last. Its endpoints still live: they do not depend on us."""
        try:
            self._adopt(table(json.loads(self._file.read_bytes())))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            print(f"gateway: {self._file.name} cannot be used: {error}", file=sys.stderr)

    def apply(self, view: Mapping[str, Any]) -> None:
        """An older generation is ignored. Tells the leases of what is closed first, then `applied`: who reads
        `applied` knows the leases as well."""
        new = table(view)
        if new.generation < self.table.generation:
            return
        self._keep(view)
        self._adopt(new)
        known = self.endpoints()
        self._activity = {k: v for k, v in self._activity.items() if k in known}
        closed = new.closed()
        for endpoint in sorted(closed | set(self._leases())):
            if endpoint in closed or self._orphaned(endpoint):
                self._tell_lease(endpoint)
        self.tell({"type": "applied", "generation": new.generation})

    def _adopt(self, new: Table) -> None:
        now = self._clock()
        self.table = new
        self._names = {name: new.named(name) for name in new.names()}
        self._suspects.clear()
        self._opened = {t.name: self._opened.get(t.name, now) for t in new.targets if t.open}
        self._rooms = {key: room for key, room in self._rooms.items() if room.running}
        for target in new.targets:
            room = self._rooms.get(_room(target))
            if room is None:
                self._rooms[_room(target)] = Room(target.parallel, target.kv_tokens)
            else:
                room.parallel, room.kv_tokens = target.parallel, target.kv_tokens
        if new.generation:
            self._known.set()
        for ticket, future in list(self._waiting.items()):
            if not future.done() and (refusal := self._hopeless(ticket)) is not None:
                self.queue.leave(ticket)
                future.set_exception(Refused(refusal))
        self.pump()
        self.changed()

    def _hopeless(self, ticket: Ticket) -> Refusal | None:
        targets = [t for t in (self.table.target(s) for s in ticket.services) if t is not None]
        if any(not target.gone for target in targets):
            return None
        return self.gone(ticket.services[0], targets)

    def gone(self, name: str, targets: Sequence[Target]) -> Refusal:
        return route.gone(name, targets, self._wall())

    def _keep(self, view: Mapping[str, Any]) -> None:
        """Keys of engines stand in it: 0600."""
        temporary = self._file.with_suffix(".tmp")
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
                json.dump({"v": VERSION, **view}, file)
            temporary.replace(self._file)
        except OSError as error:
            print(f"gateway: {self._file.name} cannot be written: {error}", file=sys.stderr)

    # --- who serves a name ----------------------------------------------------------------------------------------

    async def known(self) -> None:
        """Until the services are known; Refused where nobody tells them."""
        if self.table.generation:
            return
        try:
            async with asyncio.timeout(FIRST_VIEW):
                await self._known.wait()
        except TimeoutError:
            raise Refused(route.unavailable(UNKNOWN)) from None

    def named(self, name: str) -> Sequence[Target]:
        return self._names.get(name, ())

    # --- admission ------------------------------------------------------------------------------------------------

    async def admitted(self, ticket: Ticket) -> Lease:
        """The lease of the first target of the ticket that has room for it, when it is its turn. Refused where it
        cannot come to one."""
        if (lease := self.at_once(ticket)) is not None:
            return lease
        if not self.queue.enter(ticket, self._size(ticket)):
            text = f"no more requests may wait ({self._stand(ticket)})"
            raise Refused(route.unavailable(text, "queue_full", self._estimate(ticket)))
        self._first_demand(ticket)
        return await self._turn(ticket)

    def _size(self, ticket: Ticket) -> int:
        """A quarter more is kept for keys that have few in the queue: nobody can fill it for all."""
        size, keys = self.table.limits.queue_size, len(self.table.keys)
        own = max(1, size // (4 * keys)) if keys > 1 else 0
        few = any(self.queue.of(service, ticket.client) < own for service in ticket.services)
        return size + own * keys if few else size

    async def again(self, ticket: Ticket, endpoint: str) -> Lease:
        """Not a byte of it reached the engine: first in the queue once more."""
        self._suspects[endpoint] = self._clock() + SUSPECT
        if (refusal := self._hopeless(ticket)) is not None:
            raise Refused(refusal)
        self.queue.back(ticket)
        return await self._turn(ticket)

    def doubt(self, target: Target) -> bool:
        """Nobody is sent to its address until `settle`. False: it was in doubt already."""
        new = target.address not in self._doubted
        self._doubted.add(target.address)
        return new

    def settle(self, target: Target, lives: bool) -> None:
        self._doubted.discard(target.address)
        if not lives:
            for each in self.table.targets:
                if each.address == target.address:
                    self._suspects[each.endpoint] = self._clock() + SUSPECT
        self.pump()

    async def _turn(self, ticket: Ticket) -> Lease:
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = future
        self.pump()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().release()
            raise
        finally:
            self.queue.leave(ticket)
            self._waiting.pop(ticket, None)

    def at_once(self, ticket: Ticket) -> Lease | None:
        """None: it has to wait for its turn. Refused where it cannot come to one."""
        if (refusal := self._hopeless(ticket)) is not None:
            raise Refused(refusal)
        free = [
            target
            for name in ticket.services
            if (target := self.table.target(name)) is not None
            and self._usable(target)
            and not self.queue.waiting(name)
            and self._rooms[_room(target)].takes(ticket)
        ]
        return self._take(min(free, key=self._load), ticket) if free else None

    def _load(self, target: Target) -> float:
        room = self._rooms[_room(target)]
        return room.running / target.parallel if target.parallel else float(room.running)

    def _usable(self, target: Target) -> bool:
        suspect = self._suspects.get(target.endpoint, 0.0) > self._clock()
        return target.open and not suspect and target.address not in self._doubted

    def _take(self, target: Target, ticket: Ticket) -> Lease:
        self._rooms[_room(target)].take(ticket, self._clock())
        self.moved(target.endpoint)
        return Lease(self, target, ticket, max(0.0, self._opened.get(target.name, 0.0) - ticket.since))

    def _release(self, target: Target, ticket: Ticket, took: float | None) -> None:
        endpoint = target.endpoint
        room = self._rooms[_room(target)]
        room.give(ticket)
        self.moved(endpoint)
        if took is not None:
            mean = self._took.get(target.name, took)
            self._took[target.name] = mean + SMOOTH * (took - mean)
        orphaned = self._orphaned(endpoint)
        if orphaned or endpoint in self.table.closed():
            self._tell_lease(endpoint)
        if orphaned and not room.running:
            del self._rooms[_room(target)]
        self.pump(target.name)

    def pump(self, service: str | None = None) -> None:
        """Lets in who may come in: of one service, or everywhere."""
        for target in self.table.targets if service is None else filter(None, (self.table.target(service),)):
            if not self._usable(target):
                continue
            room = self._rooms[_room(target)]
            while self.queue.waiting(target.name):
                ticket = self.queue.next(target.name, room.takes)
                if ticket is None:
                    break
                future = self._waiting[ticket]
                if not future.done():
                    future.set_result(self._take(target, ticket))

    def end(self) -> None:
        """Nobody who waits comes to a turn here any more."""
        for ticket, future in list(self._waiting.items()):
            if not future.done():
                self.queue.leave(ticket)
                future.set_exception(Refused(route.unavailable("the gateway is ending; the next one takes over")))

    def look(self) -> None:
        """Those whose time is up, and engines that may be tried again."""
        now = self._clock()
        estimates: dict[tuple[tuple[str, ...], int], float] = {}
        for ticket in self.queue.late(now):
            future = self._waiting.get(ticket)
            if future is not None and not future.done():
                alike = ticket.services, ticket.kv
                if alike not in estimates:
                    estimates[alike] = self._estimate(ticket)
                future.set_exception(Refused(self._late(ticket, now, estimates[alike])))
        self.pump()

    def demand(self) -> None:
        """What is asked for and not there."""
        for target in self.table.targets:
            if not target.open and (oldest := self.queue.oldest(target.name)) is not None:
                self._tell_demand(target.name, oldest)

    def _late(self, ticket: Ticket, now: float, after: float) -> Refusal:
        text = f"waited {now - ticket.since:.0f} s without its turn ({self._stand(ticket)})"
        return route.unavailable(text, "queue_timeout", after)

    def _stand(self, ticket: Ticket) -> str:
        """Who runs and waits at its services now."""
        told = []
        for target in filter(None, map(self.table.target, ticket.services)):
            room, waiting = self._rooms[_room(target)], self.queue.waiting(target.name)
            running = f"{room.running} of {target.parallel or 'any'} running"
            told.append(
                f"{target.name}: {running if target.open else target.reason or target.state}, {waiting} waiting"
            )
        return "; ".join(told)

    def _estimate(self, ticket: Ticket) -> float:
        """Seconds until its turn would come at one of its services if it came back now (60 at most: requests leave a queue in
        other ways, too), and not before that is open. Where no request has ended yet, nobody knows what one takes: a second."""
        now = self._wall()
        targets = [t for t in map(self.table.target, ticket.services) if t is not None and not t.gone]
        return min((max(self._work(t, ticket), t.opens(now) - now) for t in targets), default=route.AGAIN)

    def _work(self, target: Target, ticket: Ticket) -> float:
        waiting, took = self.queue.waiting(target.name), self._took.get(target.name, 1.0)
        return min(LONG, self._rooms[_room(target)].turn_in(ticket, waiting, took, self._clock()))

    def _first_demand(self, ticket: Ticket) -> None:
        for target in filter(None, map(self.table.target, ticket.services)):
            if not target.open and self.queue.waiting(target.name) == 1:
                self._tell_demand(target.name, ticket.since)

    def _tell_demand(self, service: str, oldest: float) -> None:
        waited = round(1000 * (self._clock() - oldest), 3)
        self.tell({"type": "demand", "target": service, "queued": self.queue.waiting(service), "oldest_ms": waited})

    # --- what others read -----------------------------------------------------------------------------------------

    def moved(self, endpoint: str) -> None:
        self._activity[endpoint] = time.time()

    def activity(self, endpoint: str) -> float | None:
        return self._activity.get(endpoint)

    def running(self, endpoint: str) -> int:
        return sum(room.running for key, room in self._rooms.items() if key[0] == endpoint)

    def endpoints(self) -> dict[str, list[str]]:
        """Endpoint → its targets, none where no view names it any more."""
        found: dict[str, list[str]] = {endpoint: [] for endpoint, _ in self._rooms}
        for target in self.table.targets:
            found.setdefault(target.endpoint, []).append(target.name)
        return found

    def bad(self, endpoint: str, kind: str) -> None:
        self.tell({"type": "bad", "endpoint": endpoint, "kind": kind})

    def hello(self) -> Hello:
        return {
            "type": "hello",
            "v": VERSION,
            "pid": os.getpid(),
            "version": __version__,
            "epoch": self.epoch,
            "generation": self.table.generation,
            "leases": self._leases(),
        }

    def _leases(self) -> dict[str, int]:
        return {endpoint: n for endpoint in self.endpoints() if (n := self.running(endpoint))}

    def _tell_lease(self, endpoint: str) -> None:
        self.tell({"type": "lease", "endpoint": endpoint, "n": self.running(endpoint)})

    def _orphaned(self, endpoint: str) -> bool:
        return all(target.endpoint != endpoint for target in self.table.targets)


def _room(target: Target) -> tuple[str, str]:
    return target.endpoint, target.name
