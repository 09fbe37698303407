"""Statuses for who watches from within: `up` in the foreground."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

Tell = Callable[[Any], None]
EVERY = 1.0
"""Seconds between two while something is at a phase: how far it is changes without other news."""


class Telling:
    def __init__(self, tell: Tell | None, status: Callable[[], dict[str, Any]], moves: Callable[[], bool]) -> None:
        """`tell`: None where nobody watches; it must not block. `moves`: whether something is at a phase."""
        self._tell, self._status, self._moves = tell, status, moves

    def now(self) -> None:
        if self._tell is not None:
            self._tell(self._status())

    async def run(self) -> None:
        """Also once after the last phase: it is over."""
        moved = False
        while self._tell is not None:
            await asyncio.sleep(EVERY)
            moves = self._moves()
            if moves or moved:
                self.now()
            moved = moves
