"""Threads that read the daemon's streams and connect again by themselves. The interface polls what they hold: it
never waits for a socket.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from llmsupervisor.base.errors import LlmsupervisorError
from llmsupervisor.link.client import Client, connect

if TYPE_CHECKING:
    from llmsupervisor.link.status import Status

FindSocket = Callable[[], str]
SILENCE = 4.0
"""Seconds without a status, beyond the interval, after which the connection counts as dead."""
FIRST_DELAY, LAST_DELAY = 0.2, 2.0
LOG_LINES = 500
"""Asked for at the begin; at most ten times as many wait for the screen, older ones are dropped."""


class Reader(threading.Thread):
    """Connects, reads, and after an end waits a little longer each time, up to `LAST_DELAY` seconds."""

    def __init__(self, find_socket: FindSocket, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._find_socket = find_socket
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ended = self._fresh = False
        self._client: Client | None = None
        self.held = False
        """What was told already is told again, until this is over; reading goes on."""

    def close(self) -> None:
        self._ended = True
        self._interrupt()

    def run(self) -> None:
        delay = FIRST_DELAY
        while not self._ended:
            self._wake.clear()
            try:
                with connect(self._find_socket()) as client:
                    with self._lock:
                        self._client = client
                    if not (self._ended or self._wake.is_set()):
                        self._read(client)
                        delay = FIRST_DELAY
            except LlmsupervisorError as error:
                self._failed(str(error))
            finally:
                with self._lock:
                    self._client = None
            if self._progressed():
                delay = FIRST_DELAY
            self._wake.wait(delay)
            delay = min(delay * 2, LAST_DELAY)

    def _interrupt(self) -> None:
        with self._lock:
            self._wake.set()
            if self._client is not None:
                self._client.close()

    def _read(self, client: Client) -> None:
        raise NotImplementedError

    def _failed(self, why: str) -> None:
        raise NotImplementedError

    def _progressed(self) -> bool:
        """Whether this connection brought anything; asked once after it."""
        fresh, self._fresh = self._fresh, False
        return fresh


class Picture(NamedTuple):
    """The last status, when it came (monotonic and Unix seconds), and why there is no newer one."""

    status: Status | None = None
    received: float = 0.0
    wall: float = 0.0
    lost: str = ""
    interval: float = 1.0
    """Seconds between two of them."""


class StatusFeed(Reader):
    def __init__(self, find_socket: FindSocket, interval: float) -> None:
        super().__init__(find_socket, "status")
        self.interval = interval
        self.picture = Picture(interval=interval)

    def _read(self, client: Client) -> None:
        interval = self.interval
        for status in client.stream("watch", timeout=interval + SILENCE, interval=interval):
            self.picture = Picture(status, time.monotonic(), time.time(), interval=interval)
            self._fresh = True
        self._failed("the daemon ended the stream")

    def pace(self, interval: float) -> None:
        """Seconds between two pictures from now on."""
        self.interval = interval
        self._interrupt()

    def _failed(self, why: str) -> None:
        if not self._wake.is_set():
            self.picture = self.picture._replace(lost=why)


class News(NamedTuple):
    lines: list[tuple[str, bool]]
    """Each with whether a start before the present one wrote it."""
    anew: bool
    """The lines begin the log anew: what is shown is replaced."""
    trouble: str


class LogFeed(Reader):
    """Follows the log of one service, the selected one."""

    def __init__(self, find_socket: FindSocket, first: int = LOG_LINES) -> None:
        """`first`: lines asked for at the begin; at most 5000 wait for the screen."""
        super().__init__(find_socket, "log")
        self._first = first
        self._service: str | None = None
        self._previous = False
        self._lines: deque[tuple[str, bool]] = deque(maxlen=10 * LOG_LINES)
        self._anew = False
        self._trouble = ""

    def select(self, service: str | None, previous: bool = False) -> None:
        """`previous`: also what earlier starts wrote."""
        if service is not None and self.ident is None:
            self.start()
        with self._lock:
            if (service, previous) == (self._service, self._previous):
                return
            self._service, self._previous, self._anew, self._trouble = service, previous, True, ""
            self._lines.clear()
        self._interrupt()

    def take(self) -> News:
        """What came since the last call. Of another service also while it is held."""
        with self._lock:
            if self.held and not self._anew:
                return News([], False, self._trouble)
            news = News(list(self._lines), self._anew, self._trouble)
            self._lines.clear()
            self._anew = False
        return news

    def _read(self, client: Client) -> None:
        with self._lock:
            wanted = service, previous = self._service, self._previous
        if service is None:
            client.close()
            self._wake.wait()
            return
        first = True
        asked = {"service": service, "lines": self._first, "follow": True, "previous": previous}
        for item in client.stream("logs", timeout=None, **asked):
            with self._lock:
                if wanted != (self._service, self._previous):
                    return
                if first:
                    self._lines.clear()
                    self._anew = True
                first = False
                self._trouble = ""
                self._lines.append((item["text"], bool(item.get("earlier"))))
                self._fresh = True

    def _failed(self, why: str) -> None:
        with self._lock:
            if not self._wake.is_set():
                self._trouble = why
