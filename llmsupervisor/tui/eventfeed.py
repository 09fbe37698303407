"""What happened, newest last."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from llmsupervisor.link.client import Client
from llmsupervisor.tui.feed import FindSocket, Reader

if TYPE_CHECKING:
    from llmsupervisor.link.messages import Event

FIRST = 1000
"""Asked for at the begin, and again after a lost connection."""
KEPT = 5000


class Happened(NamedTuple):
    events: list[Event]
    version: int
    """Grows with every change."""
    trouble: str


class EventFeed(Reader):
    def __init__(self, find_socket: FindSocket) -> None:
        super().__init__(find_socket, "events")
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._kept = Happened([], 0, "")
        self._version = 1
        self._trouble = ""
        self._fresh = False

    def want(self) -> None:
        """Reads from now on."""
        if self.ident is None:
            self.start()

    def kept(self) -> Happened:
        """The same object as long as nothing changed."""
        with self._lock:
            if self._kept.version != self._version:
                self._kept = Happened(list(self._events), self._version, self._trouble)
            return self._kept

    def _read(self, client: Client) -> None:
        first = True
        for event in client.stream("events", timeout=None, lines=FIRST, follow=True):
            with self._lock:
                if first:
                    self._events.clear()
                first, self._trouble, self._fresh = False, "", True
                self._events.append(event)
                self._version += 1

    def _failed(self, why: str) -> None:
        with self._lock:
            if why != self._trouble:
                self._trouble, self._version = why, self._version + 1

    def _progressed(self) -> bool:
        fresh, self._fresh = self._fresh, False
        return fresh
