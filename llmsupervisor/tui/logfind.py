"""Hits in the whole log, found by the daemon: told as they come, the newest first."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import dropwhile
from typing import TYPE_CHECKING, NamedTuple

from llmsupervisor.base.errors import LlmsupervisorError
from llmsupervisor.base.text import cut, printable
from llmsupervisor.base.units import format_size
from llmsupervisor.cli.views import percent
from llmsupervisor.link.client import Client, connect
from llmsupervisor.tui.feed import FindSocket
from llmsupervisor.tui.logtext import CELLS

if TYPE_CHECKING:
    from llmsupervisor.link.calls import Hit


class Told(NamedTuple):
    hits: Sequence[Hit] = ()
    matches: int = 0
    read: int = 0
    of: int = 0
    complete: bool | None = None
    """None: it goes on; False: its time was over."""
    trouble: str = ""

    @property
    def words(self) -> str:
        if self.trouble:
            return f"the whole log: {self.trouble}"
        if self.complete:
            return f"{self.matches} in all {format_size(self.of)}"
        so_far = percent(self.read / self.of) if self.of else "0%"
        return f"{self.matches} so far, {so_far} searched" + ("" if self.complete is None else ": it took too long")


class LogFind(threading.Thread):
    def __init__(self, find_socket: FindSocket, service: str, words: str) -> None:
        super().__init__(name="log_search", daemon=True)
        self.service, self.words = service, words
        self.told = Told()
        self._find_socket = find_socket
        self._client: Client | None = None
        self._closed = False
        self.start()

    def close(self) -> None:
        """The daemon ends the search."""
        self._closed = True
        if self._client is not None:
            self._client.close()

    def run(self) -> None:
        hits: list[Hit] = []
        try:
            with connect(self._find_socket()) as client:
                self._client = client
                if self._closed:
                    return
                for said in client.stream("log_search", timeout=60.0, service=self.service, words=self.words):
                    hits = [*hits, *said["hits"]]
                    self.told = Told(hits, said["count"], said["read"], said["of"], said["complete"])
        except LlmsupervisorError as error:
            self.told = self.told._replace(trouble=str(error))


def beyond(hits: Sequence[Hit], seen: Sequence[str]) -> int:
    """How many of the newest hits are lines that were `seen`, the oldest first. Rather too few than too many."""
    texts = [cut(printable(hit["text"]), CELLS) for hit in hits]
    told = set(texts)
    # What came after the search is no hit of it.
    known = list(dropwhile(lambda text: text not in told, reversed(seen)))
    if not known:
        return 0
    newer = texts.index(known[0])
    same = 0
    for ours, theirs in zip(known, texts[newer:], strict=False):
        if ours != theirs:
            break
        same += 1
    return newer + same
