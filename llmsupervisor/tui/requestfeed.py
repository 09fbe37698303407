"""The requests that ended, newest last."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from llmsupervisor.link.client import Client
from llmsupervisor.tui.feed import FindSocket, Reader

if TYPE_CHECKING:
    from llmsupervisor.link.messages import RequestRecord

FIRST = 1000
"""Asked for at the begin, and again after a lost connection."""
KEPT = 10_000


class Kept(NamedTuple):
    records: list[RequestRecord]
    version: int
    """Grows with every change."""
    complete: bool
    """What was recorded before has come."""
    trouble: str


class RequestFeed(Reader):
    def __init__(self, find_socket: FindSocket) -> None:
        super().__init__(find_socket, "requests")
        self._records: deque[RequestRecord] = deque(maxlen=KEPT)
        self._ids: set[str] = set()
        self._kept = Kept([], 0, False, "")
        self._version = 1
        self._complete = False
        self._trouble = ""
        self._fresh = False

    def want(self) -> None:
        """Reads from now on."""
        if self.ident is None:
            self.start()

    def kept(self) -> Kept:
        """The same object as long as nothing changed."""
        with self._lock:
            if self._kept.version != self._version:
                self._kept = Kept(list(self._records), self._version, self._complete, self._trouble)
            return self._kept

    def _read(self, client: Client) -> None:
        for record in client.stream("requests", timeout=60.0, lines=FIRST, follow=False):
            self._add(record)
        with self._lock:
            self._complete, self._trouble, self._version = True, "", self._version + 1
        for record in client.stream("requests", timeout=None, lines=FIRST, follow=True):
            self._add(record)

    def _add(self, record: RequestRecord) -> None:
        self._fresh = True
        with self._lock:
            if record["id"] in self._ids:
                return
            if len(self._records) == KEPT:
                self._ids.discard(self._records[0]["id"])
            self._records.append(record)
            self._ids.add(record["id"])
            self._version += 1

    def _failed(self, why: str) -> None:
        with self._lock:
            if why != self._trouble:
                self._trouble, self._version = why, self._version + 1

    def _progressed(self) -> bool:
        fresh, self._fresh = self._fresh, False
        return fresh
