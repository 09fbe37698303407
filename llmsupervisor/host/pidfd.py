"""Waiting for a process without anybody's child watcher."""

from __future__ import annotations

import asyncio


async def readable(fd: int) -> None:
    """Until `fd` is readable: for a pidfd, until its process is dead."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, lambda: None if done.done() else done.set_result(None))
    try:
        await done
    finally:
        loop.remove_reader(fd)
