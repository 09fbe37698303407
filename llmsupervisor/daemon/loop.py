"""The single writer: every change of a service's Status goes through `Loop.post`, one event at a time.

It decides nothing and touches nothing: `service.lifecycle` decides, `Hands` acts. Results carry the attempt they belong
to; those of an earlier attempt are dropped before the table sees them.
"""

from __future__ import annotations

import asyncio
import random
import sys
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from llmsupervisor.base.clock import Clock
from llmsupervisor.service.lifecycle import transition
from llmsupervisor.service.states import (
    Changed,
    Deadline,
    Effect,
    Event,
    ExitInfo,
    KillTree,
    Policy,
    RecordCrash,
    Refused,
    Signal,
    Spawn,
    State,
    Status,
)


class Hands(Protocol):
    """What the loop may do to one service. Every method returns at once; results come back as events."""

    @property
    def policy(self) -> Policy: ...
    def spawn(self, attempt: int) -> None: ...
    def signal(self, step: int) -> None: ...
    def kill_tree(self) -> None: ...
    def record_crash(self, exit: ExitInfo) -> None: ...
    def ask_admission(self) -> Event: ...
    def entered(self, old: Status, new: Status) -> None:
        """After the effects: start and end what belongs to the state (probes, watches, drains)."""


Listener = Callable[[str, Event, Status, Status], None]


class Loop:
    def __init__(self, clock: Clock, on_change: Listener, rng: random.Random | None = None) -> None:
        self.statuses: dict[str, Status] = {}
        self._clock = clock
        self._on_change = on_change
        self._rng = rng or random.Random()
        self._hands: dict[str, Hands] = {}
        self._queue: deque[tuple[str, Event, int | None]] = deque()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._busy = False

    def add(self, name: str, hands: Hands, status: Status | None = None) -> None:
        self._hands[name] = hands
        self.statuses[name] = status or Status(since=self._clock.monotonic())

    def remove(self, name: str) -> None:
        """Only for a service without a process."""
        del self._hands[name], self.statuses[name]
        if timer := self._timers.pop(name, None):
            timer.cancel()

    def post(self, name: str, event: Event, attempt: int | None = None) -> None:
        self._queue.append((name, event, attempt))
        if self._busy:
            return
        self._busy = True
        try:
            while self._queue:
                self._process(*self._queue.popleft())
        finally:
            self._busy = False

    def _process(self, name: str, event: Event, attempt: int | None) -> None:
        old = self.statuses.get(name)
        if old is None or (attempt is not None and attempt != old.attempt):
            return
        hands = self._hands[name]
        drawn = replace(old, jitter=self._rng.uniform(-1, 1))
        try:
            outcome = transition(drawn, event, hands.policy, self._clock.monotonic())
        except Exception:
            traceback.print_exc(file=sys.stderr)
            return
        if outcome.impossible:
            print(f"llmsupervisor: {name}: {event} cannot come in {old.state}", file=sys.stderr)
            return
        new = self.statuses[name] = outcome.status
        if (new.state, new.reason, new.goal, new.attempt) != (old.state, old.reason, old.goal, old.attempt):
            self._on_change(name, event, old, new)
        for effect in outcome.effects:
            self._act(hands, effect, new)
        self._arm(name, new)
        hands.entered(old, new)
        if new.state is State.PENDING and (old.state is not State.PENDING or not isinstance(event, Refused)):
            self._queue.append((name, hands.ask_admission(), new.attempt))

    def _act(self, hands: Hands, effect: Effect, status: Status) -> None:
        match effect:
            case Spawn():
                hands.spawn(status.attempt)
            case Signal(step):
                hands.signal(step)
            case KillTree():
                hands.kill_tree()
            case RecordCrash(exit):
                hands.record_crash(exit)

    def _arm(self, name: str, status: Status) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()
        if status.deadline is not None:
            delay = max(0.0, status.deadline - self._clock.monotonic())
            self._timers[name] = asyncio.get_running_loop().call_later(delay, self._expired, name, status.deadline)

    def _expired(self, name: str, deadline: float) -> None:
        status = self.statuses.get(name)
        if status is not None and status.deadline == deadline:
            self.post(name, Deadline())

    def changed(self, what: str) -> None:
        """Tell every service that waits for something outside."""
        for name, status in list(self.statuses.items()):
            if status.state in (State.PENDING, State.FAILED):
                self.post(name, Changed(what))
