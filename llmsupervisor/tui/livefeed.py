"""Requests that have not ended. The gateway tells them only while somebody looks: asked for while a page shows them."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, NamedTuple

from llmsupervisor.link.client import Client
from llmsupervisor.tui.feed import FindSocket, Reader

if TYPE_CHECKING:
    from llmsupervisor.link.requests import Live

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

    @property
    def parts(self) -> list[Phase]:
        """With the one that lasts, in the order in which they came."""
        return [*self.past, Phase(self.live["phase"], max(self.told - self.live["phase_since"], 0.0))]


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


SLACK = 0.5
"""Seconds by which what is told may come earlier than a whole interval."""


class LiveFeed(Reader):
    def __init__(self, find_socket: FindSocket, interval: float) -> None:
        """`interval`: seconds between two pictures. The gateway tells each second, which is as often as phases are looked at."""
        super().__init__(find_socket, "live")
        self.interval = interval
        self._looks = Looks()
        self._shown: list[Running] = []
        self._told = self._since = self._asked = self._drawn = -math.inf
        self._idle = False
        self._last: tuple[list[Running] | None, bool] = None, True

    def running(self) -> tuple[list[Running] | None, bool]:
        """None: not known now; and whether it is too early to say why. The gateway is asked from the first call on,
        until there was none for some seconds.
        """
        now = time.monotonic()
        if self.held and self._last[0] is not None:
            self._asked = now
            return self._last
        if now - self._asked > OLD:
            self._since = now
        self._asked = now
        if self.ident is None:
            self.start()
        elif self._idle:
            self._interrupt()
        with self._lock:
            known = list(self._shown) if now - self._told < OLD else None
            self._last = known, now - self._since < OLD
            return self._last

    @property
    def _wanted(self) -> bool:
        return time.monotonic() - self._asked < OLD

    def _read(self, client: Client) -> None:
        if not self._wanted:
            client.close()
            self._idle = True
            self._wake.wait()
            self._idle = False
            return
        for said in client.stream("live", timeout=None):
            with self._lock:
                self._looks.look(said["requests"], time.time())
                self._told, self._fresh = time.monotonic(), True
                if self._told - self._drawn > self.interval - SLACK:
                    self._shown, self._drawn = self._looks.running, self._told
            if not self._wanted:
                return

    def _failed(self, why: str) -> None:
        """An old daemon, one that is gone, a gateway that is away: what runs is not known, and shown so."""
