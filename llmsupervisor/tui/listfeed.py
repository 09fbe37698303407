"""What the daemon tells one by one and keeps telling: requests that ended, events. Newest last."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, TypeVar

from llmsupervisor.link.client import Client
from llmsupervisor.tui.feed import FindSocket, Reader

FIRST = 1000
"""Asked for at the begin, and again after a lost connection."""

Item = TypeVar("Item")


class Kept(NamedTuple, Generic[Item]):
    items: list[Item]
    version: int
    """Grows with every change."""
    complete: bool
    """What was there before has come."""
    trouble: str


class ListFeed(Reader, Generic[Item]):
    def __init__(self, find_socket: FindSocket, call: str, key: Callable[[Any], Hashable], most: int) -> None:
        """`key`: by which what is told twice is known again; `most`: older ones are dropped."""
        super().__init__(find_socket, call)
        self._call, self._key, self._most = call, key, most
        self._items: dict[Hashable, Item] = {}
        self._kept: Kept[Item] = Kept([], 0, False, "")
        self._version = 1
        self._complete = False
        self._trouble = ""

    def want(self) -> None:
        """Reads from now on."""
        if self.ident is None:
            self.start()

    def kept(self) -> Kept[Item]:
        """The same object as long as nothing changed."""
        with self._lock:
            if self._kept.version != self._version and not (self.held and self._kept.complete):
                self._kept = Kept(list(self._items.values()), self._version, self._complete, self._trouble)
            return self._kept

    def find(self, key: Hashable) -> Item | None:
        with self._lock:
            return None if self.held else self._items.get(key)

    def _read(self, client: Client) -> None:
        for item in client.stream(self._call, timeout=60.0, lines=FIRST, follow=False):
            self._add(item)
        with self._lock:
            self._complete, self._trouble, self._version = True, "", self._version + 1
        for item in client.stream(self._call, timeout=None, lines=FIRST, follow=True):
            self._add(item)

    def _add(self, item: Item) -> None:
        self._fresh = True
        key = self._key(item)
        with self._lock:
            if key in self._items:
                return
            if len(self._items) == self._most:
                del self._items[next(iter(self._items))]
            self._items[key] = item
            self._version += 1

    def _failed(self, why: str) -> None:
        with self._lock:
            if why != self._trouble:
                self._trouble, self._version = why, self._version + 1
