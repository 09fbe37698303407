"""What a service runs as: its command line and environment with the origin of each item, asked for once per start."""

from __future__ import annotations

import threading
import time
from typing import Any

from llmsupervisor.base.errors import LlmsupervisorError
from llmsupervisor.link.client import connect
from llmsupervisor.tui.feed import FindSocket

Start = tuple[str, int, int | None]
"""Service, generation and pid: what a plan is of."""
RETRY = 2.0
"""Seconds after which a plan that did not come is asked for again."""


class PlanFeed:
    """The last plan that was asked for. `get` never waits."""

    def __init__(self, find_socket: FindSocket) -> None:
        self._find_socket = find_socket
        self._lock = threading.Lock()
        self._asked: Start | None = None
        self._plan: dict[str, Any] | None = None
        self._trouble = ""
        self._failed = 0.0

    def get(self, start: Start) -> tuple[dict[str, Any] | None, str]:
        """The plan, or why there is none; neither while it is asked for."""
        with self._lock:
            anew = start != self._asked
            if anew or (self._trouble and time.monotonic() - self._failed > RETRY):
                if self._asked is None or self._asked[0] != start[0]:
                    self._plan = None
                self._asked, self._failed = start, time.monotonic()
                self._trouble = "" if anew else self._trouble
                threading.Thread(target=self._ask, args=(start,), name="plan", daemon=True).start()
            return self._plan, self._trouble

    def _ask(self, start: Start) -> None:
        plan, trouble = None, ""
        try:
            with connect(self._find_socket()) as client:
                plan = client.call("plan", service=start[0])["services"][0]
        except LlmsupervisorError as error:
            trouble = str(error)
        with self._lock:
            if start == self._asked:
                self._plan, self._trouble = plan or self._plan, trouble
