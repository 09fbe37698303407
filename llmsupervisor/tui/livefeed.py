"""Requests that have not ended. The gateway tells them only while somebody looks: asked for while a page shows them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from llmsupervisor.link.client import Client
from llmsupervisor.tui.feed import FindSocket, Reader

if TYPE_CHECKING:
    from llmsupervisor.link.messages import Live

OLD = 4.0
"""Seconds after which what the gateway told last is not now any more."""


class Phase(NamedTuple):
    name: str
    """`unknown`: between two looks, whatever it was."""
    seconds: float


class Running(NamedTuple):
    live: Live
    past: tuple[Phase, ...]
    """What it has behind it, as far as it was seen."""
    told: float
    """Unix seconds."""


class Looks:
    """Puts together what single looks tell."""

    def __init__(self) -> None:
        self.running: list[Running] = []

    def look(self, told: list[Live], now: float) -> None:
        before = {each.live["id"]: each for each in self.running}
        self.running = [Running(live, _past(before.get(live["id"]), live), now) for live in told]


def _past(before: Running | None, live: Live) -> tuple[Phase, ...]:
    if before is None:
        unseen = live["phase_since"] - live["since"]
        return (Phase("unknown", unseen),) if unseen > UNSEEN else ()
    old = before.live
    if STEPS.get(old["phase"]) == STEPS.get(live["phase"]):
        return before.past
    known = STEPS.get(old["phase"], 0) + 1 == STEPS.get(live["phase"])
    return (*before.past, Phase(old["phase"] if known else "unknown", live["phase_since"] - old["phase_since"]))


STEPS = {"count": 0, "queue": 1, "load": 1, "send": 2, "prefill": 2, "decode": 3}
"""Phases of one step begin at the same time. From one step to the next none can have been missed between two looks."""
UNSEEN = 0.01
"""Seconds that are not worth a sign."""


class LiveFeed(Reader):
    def __init__(self, find_socket: FindSocket) -> None:
        super().__init__(find_socket, "live")
        self._wanted = False
        self._looks = Looks()
        self._told = self._since = 0.0
        self._fresh = False

    def want(self, on: bool) -> None:
        if on == self._wanted:
            return
        self._wanted = on
        self._since = time.monotonic()
        if on and self.ident is None:
            self.start()
        else:
            self._interrupt()

    def running(self) -> tuple[list[Running] | None, bool]:
        """None: not known now; and whether it is too early to say why."""
        with self._lock:
            now = time.monotonic()
            return list(self._looks.running) if now - self._told < OLD else None, now - self._since < OLD

    def _read(self, client: Client) -> None:
        if not self._wanted:
            client.close()
            self._wake.wait()
            return
        for said in client.stream("live", timeout=None):
            with self._lock:
                self._looks.look(said["requests"], time.time())
                self._told, self._fresh = time.monotonic(), True

    def _failed(self, why: str) -> None:
        """An old daemon, one that is gone, a gateway that is away: what runs is not known, and shown so."""

    def _progressed(self) -> bool:
        fresh, self._fresh = self._fresh, False
        return fresh
