"""The gateway's end of the link: a Unix socket that daemons connect to. The data plane depends on nobody."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmsupervisor.gateway.hub import Hub
from llmsupervisor.link.frames import LIMIT, FrameError, decode, encode

QUEUE = 1024 * 1024
"""Bytes that a daemon which does not read may be behind before it is dropped; it connects again and gets all anew."""


class Link:
    """`path` is relative to the working folder, so that no length of a folder's name matters."""

    def __init__(self, path: Path, hub: Hub) -> None:
        self._path = path
        self._hub = hub
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        hub.board.tell = self.tell
        hub.told = lambda: bool(self._writers)

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self._path, limit=LIMIT)
        finally:
            os.umask(before)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.close()
        self._path.unlink(missing_ok=True)

    def tell(self, message: Mapping[str, Any]) -> None:
        if self._writers:
            line = encode(message)
            for writer in list(self._writers):
                self._write(writer, line)

    def _write(self, writer: asyncio.StreamWriter, line: bytes) -> None:
        if writer.transport.get_write_buffer_size() > QUEUE:
            writer.transport.abort()
        else:
            writer.write(line)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._write(writer, encode(self._hub.board.hello()))
        self._writers.add(writer)
        try:
            while line := await reader.readline():
                self._hub.hear(decode(line))
        except (ConnectionError, FrameError, ValueError, KeyError) as error:
            print(f"gateway: link: {error}", file=sys.stderr)
        except asyncio.CancelledError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def report(self, interval: float = 1.0) -> None:
        while True:
            await asyncio.sleep(interval)
            if self._writers:
                self.tell(self._hub.stats(asyncio.get_running_loop().time()))
