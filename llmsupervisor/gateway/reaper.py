"""Leases of requests whose client has gone. Some engines notice that late: until a slot is idle again, its lease is held,
so that no more requests are sent than there are slots."""

from __future__ import annotations

import asyncio

from llmsupervisor.gateway.board import Board, Lease
from llmsupervisor.gateway.fetch import Fetch, FetchError

FIRST, EACH = 0.5, 2.0
"""Seconds to the first look, and between two. More often would keep llama-server from noticing (its wait for results
restarts at each of these questions)."""
LONGEST = 120.0
"""Seconds that a lease is held."""


class Reaper:
    def __init__(self, board: Board, fetch: Fetch) -> None:
        self._board, self._fetch = board, fetch
        self._held: dict[str, list[tuple[float, Lease]]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def hold(self, lease: Lease) -> None:
        target = lease.target
        if target.traits.slots is None:
            lease.release()
            return
        loop = asyncio.get_running_loop()
        self._held.setdefault(target.endpoint, []).append((loop.time() + LONGEST, lease))
        if target.endpoint not in self._tasks:
            self._tasks[target.endpoint] = loop.create_task(self._watch(lease))

    async def _watch(self, first: Lease) -> None:
        target = first.target
        held, endpoint = self._held[target.endpoint], target.endpoint
        try:
            await asyncio.sleep(FIRST)
            while True:
                busy = await self._busy(first)
                now = asyncio.get_running_loop().time()
                working = self._board.running(endpoint) - len(held)
                keep = 0 if busy is None else max(0, busy - working)
                while held and (len(held) > keep or held[0][0] < now):
                    held.pop(0)[1].release()
                if not held:
                    return
                await asyncio.sleep(EACH)
        finally:
            for _, lease in held:
                lease.release()
            self._tasks.pop(endpoint, None)
            self._held.pop(endpoint, None)

    async def _busy(self, lease: Lease) -> int | None:
        """Slots at work; None: it cannot say, or is gone."""
        target = lease.target
        assert target.traits.slots is not None
        try:
            slots = await self._fetch.get(target, target.traits.slots)
        except FetchError:
            return None
        if not isinstance(slots, list):
            return None
        return sum(1 for slot in slots if isinstance(slot, dict) and slot.get("is_processing"))
