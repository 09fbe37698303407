"""Shared memory that ended runs left because somebody else still mapped it: looked at until nobody does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from llmsupervisor.host.leavings import clear_left

if TYPE_CHECKING:
    from llmsupervisor.daemon.box import Box

LOOK = 30.0


async def watch_leftovers(box: Box) -> None:
    """Until it is cancelled. Also of services that have left the spec, and of daemons before."""
    while True:
        for path in Path(box.layout.run / "services").glob("*/left"):
            await asyncio.to_thread(clear_left, box.layout.service(path.parent.name))
        await asyncio.sleep(LOOK)
