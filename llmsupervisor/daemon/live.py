"""Requests that have not ended. The gateway is asked to tell them only while somebody looks: it costs its engines a little."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from llmsupervisor.link.requests import Live

Tell = Callable[[Mapping[str, Any]], None]


class LiveRequests:
    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._watchers = 0
        self._news = asyncio.Event()
        self._requests: list[Live] = []

    async def watch(self) -> AsyncGenerator[list[Live], None]:
        """Each second, as the gateway tells them; nothing while it is away."""
        self._watchers += 1
        self._ask()
        try:
            if self._watchers == 1:
                await self._news.wait()  # may have been on its way before the gateway was asked
            while True:
                await self._news.wait()
                yield self._requests
        finally:
            self._watchers -= 1
            self._ask()

    def hello(self) -> None:
        """A gateway that has just been connected knows of nobody who looks."""
        if self._watchers:
            self._ask()

    def told(self, requests: list[Live]) -> None:
        self._requests = requests
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _ask(self) -> None:
        self._tell({"type": "watch", "on": self._watchers > 0})
