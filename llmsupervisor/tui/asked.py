"""An answer that is asked for again now and then while somebody looks: in a thread, so that the screen never waits."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

from llmsupervisor.base.errors import LlmsupervisorError
from llmsupervisor.link.client import connect
from llmsupervisor.tui.feed import FindSocket

EVERY = 5.0
"""Seconds from an answer to the next question."""
ONCE = 1e9
RETRY = 3.0
"""Seconds after which what was not answered is asked again."""


class Asked:
    def __init__(
        self, find_socket: FindSocket, call: str, stream: bool = False, every: float = EVERY, **args: Any
    ) -> None:
        self._find_socket, self._call, self._args, self._stream, self._every = find_socket, call, args, stream, every
        self._lock = threading.Lock()
        self._asking = False
        self._answered = -math.inf
        self._answer: Any = None
        self.time: float | None = None
        """Unix seconds of the last answer."""
        self._trouble = ""

    def get(self, anew: bool = True) -> tuple[Any, str]:
        """The last answer (None: not yet), and why there is no newer one. Not `anew`: one answer is enough."""
        with self._lock:
            if (
                (anew or self._answer is None)
                and not self._asking
                and time.monotonic() - self._answered > (RETRY if self._trouble else self._every)
            ):
                self._asking = True
                threading.Thread(target=self._ask, name=self._call, daemon=True).start()
            return self._answer, self._trouble

    def anew(self) -> None:
        """The next `get` asks again."""
        with self._lock:
            self._answered = -math.inf

    def _ask(self) -> None:
        answer, trouble = None, ""
        try:
            with connect(self._find_socket()) as client:
                if self._stream:
                    answer = list(client.stream(self._call, **self._args))
                else:
                    answer = client.call(self._call, **self._args)
        except LlmsupervisorError as error:
            trouble = str(error)
        with self._lock:
            self._answer, self._trouble = (self._answer if trouble else answer), trouble
            self.time = self.time if trouble else time.time()
            self._asking, self._answered = False, time.monotonic()
