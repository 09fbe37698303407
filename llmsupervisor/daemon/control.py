"""The control socket (`docs/contracts.md` §2): who is there, may he, one call a line, an answer a line."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import resource
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmsupervisor.base.errors import Exit, LlmsupervisorError
from llmsupervisor.link.frames import LIMIT, FrameError, decode, encode

ADMIN_GROUP = "llmsupervisor-admin"
WRITE_TIMEOUT = 10.0
LAST_WORDS = 0.3
"""Seconds that answers under way get at the end."""
CLIENTS = 128
"""At most, and a quarter of the descriptors we may open: the rest is for services and their probes."""
ACCEPTS, BACKLOG = 4, 100
"""asyncio accepts as many in one turn of the loop as its backlog says, before anybody can send one of them away."""
QUEUE = 1024 * 1024
_PEERGROUPS = getattr(socket, "SO_PEERGROUPS", 59)

Args = dict[str, Any]
Call = Callable[[Args, "Peer"], Awaitable[Any]]
Stream = Callable[[Args, "Peer"], AsyncIterator[Any]]


class Denied(LlmsupervisorError):
    pass


@dataclass(frozen=True, slots=True)
class Peer:
    uid: int
    gids: frozenset[int]

    @property
    def may_write(self) -> bool:
        if self.uid in (0, os.geteuid()):
            return True
        try:
            return grp.getgrnam(ADMIN_GROUP).gr_gid in self.gids
        except KeyError:
            return False

    @property
    def may_read(self) -> bool:
        return self.may_write or os.getegid() in self.gids


def peer_of(sock: socket.socket) -> Peer:
    """Credentials at connect time (`SO_PEERCRED`) and the supplementary groups (`SO_PEERGROUPS`)."""
    _, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _PEERGROUPS, 4 * 1024)
        gids = struct.unpack(f"{len(raw) // 4}I", raw)
    except OSError:
        gids = ()
    return Peer(uid, frozenset({gid, *gids}))


class Control:
    """`calls` answer once, `streams` send items first; names in `reads` need no right to write."""

    def __init__(self, path: Path, calls: Mapping[str, Call], streams: Mapping[str, Stream], reads: frozenset[str]):
        self._path = path
        self._calls = calls
        self._streams = streams
        self._reads = reads
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._most = min(CLIENTS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)

    async def start(self) -> None:
        """The caller holds the daemon lock: a socket file that lies here is stale."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        if len(os.fsencode(self._path)) > 107:
            raise LlmsupervisorError(f"{self._path}: a socket path has at most 107 bytes; choose a shorter --state-dir")
        mode = 0o117 if "RUNTIME_DIRECTORY" in os.environ else 0o177
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(mode)
        try:
            listener.bind(os.fspath(self._path))
        finally:
            os.umask(before)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, backlog=ACCEPTS, limit=LIMIT)
        listener.listen(BACKLOG)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._clients:
            await asyncio.wait(self._clients, timeout=LAST_WORDS)
        for task in list(self._clients):
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._clients) >= self._most:
            writer.close()
            return
        self._clients.add(task)
        writer.transport.set_write_buffer_limits(high=QUEUE)
        try:
            await self._converse(reader, writer)
        except (ConnectionError, TimeoutError, FrameError, asyncio.LimitOverrunError, ValueError):
            pass
        except asyncio.CancelledError:
            pass
        finally:
            self._clients.discard(task)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = peer_of(writer.get_extra_info("socket"))
        while line := await reader.readline():
            request = decode(line)
            answer = asyncio.ensure_future(self._answer(request, peer, writer))
            gone = asyncio.ensure_future(self._hung_up(reader)) if request.get("call") in self._streams else None
            try:
                await asyncio.wait({answer, *([gone] if gone else [])}, return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    return
                answer.result()
            finally:
                for future in (answer, gone):
                    if future is not None and not future.done():
                        future.cancel()
                        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                            await future

    async def _hung_up(self, reader: asyncio.StreamReader) -> None:
        """Ends when the client closes; during a stream a client says nothing else."""
        await reader.read(1)

    async def _answer(self, request: dict[str, Any], peer: Peer, writer: asyncio.StreamWriter) -> None:
        number, name, args = request.get("id"), request.get("call"), request.get("args") or {}
        try:
            self._allow(peer, name)
            result = None
            if isinstance(name, str) and name in self._streams:
                async for item in self._streams[name](args, peer):
                    await self._send(writer, {"id": number, "item": item})
            elif isinstance(name, str) and name in self._calls:
                result = await self._calls[name](args, peer)
            else:
                raise LlmsupervisorError(
                    f"no call {name!r}; known: {', '.join(sorted({*self._calls, *self._streams}))}"
                )
            await self._send(writer, {"id": number, "ok": True, "result": result})
        except LlmsupervisorError as error:
            await self._send(
                writer, {"id": number, "ok": False, "error": {"code": int(error.code), "text": str(error)}}
            )
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            raise
        except Exception as error:
            text = f"internal error in {name}: {type(error).__name__}: {error}"
            await self._send(writer, {"id": number, "ok": False, "error": {"code": int(Exit.FAILURE), "text": text}})
            raise

    def _allow(self, peer: Peer, name: object) -> None:
        if not (peer.may_write or (name in self._reads and peer.may_read)):
            raise Denied(
                f"user {peer.uid} may not {name}: the daemon's user, root and the group {ADMIN_GROUP} may; "
                "members of the daemon's group may read"
            )

    async def _send(self, writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
        writer.write(encode(message))
        async with asyncio.timeout(WRITE_TIMEOUT):
            await writer.drain()
