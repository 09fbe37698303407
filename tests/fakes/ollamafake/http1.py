"""HTTP/1.1 on asyncio: a server that cancels a handler whose client has gone, and calls to a runner."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import unquote, urlsplit

REASONS = {200: "OK", 201: "Created", 204: "No Content", 400: "Bad Request", 403: "Forbidden", 404: "Not Found"}
REASONS |= {405: "Method Not Allowed", 499: "Client Closed Request", 500: "Internal Server Error"}
REASONS |= {501: "Not Implemented", 503: "Service Unavailable"}
JSON = "application/json; charset=utf-8"
BARE = "application/json"
NDJSON = "application/x-ndjson"


def dumps(value: Any) -> str:
    """As Go writes it: no blanks, and nothing that a browser could take for markup."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


class ApiError(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class Reader(asyncio.StreamReader):
    """Tells at once when the other side has ended, whatever is still unread."""

    def __init__(self) -> None:
        super().__init__(limit=1 << 20)
        self.ended: Callable[[], None] | None = None

    def feed_eof(self) -> None:
        super().feed_eof()
        if self.ended:
            self.ended()

    def set_exception(self, exc: BaseException) -> None:
        super().set_exception(exc)  # type: ignore[arg-type]
        if self.ended:
            self.ended()


class Request:
    def __init__(self, method: str, target: str, headers: dict[str, str], reader: asyncio.StreamReader) -> None:
        self.method, self.path = method, unquote(urlsplit(target).path)
        self.headers, self.reader = headers, reader
        self.read = False

    async def chunks(self) -> AsyncIterator[bytes]:
        self.read = True
        async for chunk in body_chunks(self.reader, self.headers, open_end=False):
            yield chunk

    async def body(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])


class Answer:
    """One response. `status` is what the access log shows."""

    def __init__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self.request, self.writer = request, writer
        self.status, self.started, self.error = 200, False, ""

    async def whole(self, status: int, kind: str | None, body: bytes, **headers: str) -> None:
        self._head(status, kind, {**headers, "Content-Length": str(len(body))})
        if self.request.method != "HEAD":
            self.writer.write(body)
        await self.writer.drain()

    async def json(self, value: Any, status: int = 200, kind: str = JSON, end: str = "") -> None:
        await self.whole(status, kind, (dumps(value) + end).encode())

    async def send(self, data: bytes, kind: str = NDJSON) -> None:
        if not self.started:
            self._head(200, kind, {"Transfer-Encoding": "chunked"})
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self.writer.drain()

    async def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    def _head(self, status: int, kind: str | None, headers: dict[str, str]) -> None:
        self.status, self.started = status, True
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, '')}"]
        lines += [f"Content-Type: {kind}"] if kind else []
        lines += [f"Date: {date}", *(f"{name}: {value}" for name, value in headers.items())]
        self.writer.write("\r\n".join([*lines, "", ""]).encode())


Handler = Callable[[Request, Answer], Awaitable[None]]


class Server:
    """`handle` answers one request; it is cancelled where the client goes away."""

    def __init__(self, handle: Handler) -> None:
        self.handle = handle
        self.open: set[tuple[asyncio.Future[None], asyncio.StreamWriter]] = set()

    def cut(self) -> None:
        """Everything that runs, at once."""
        for task, writer in list(self.open):
            task.cancel()
            writer.transport.abort()

    def protocol(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(Reader(), self.connection)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert isinstance(reader, Reader)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while await self._one(reader, writer):
                pass
        writer.close()

    async def _one(self, reader: Reader, writer: asyncio.StreamWriter) -> bool:
        first, headers = await head(reader)
        method, target, _ = first.split(" ", 2)
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request = Request(method, target, headers, reader)
        answer = Answer(request, writer)
        task = asyncio.ensure_future(self.handle(request, answer))
        reader.ended = task.cancel
        self.open.add((task, writer))
        if reader.at_eof():
            task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return False
        finally:
            reader.ended = None
            self.open.discard((task, writer))
        if not request.read:
            async for _ in request.chunks():
                pass
        return headers.get("connection", "").lower() != "close"


async def head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.split(":", 1) for line in lines[1:] if ":" in line)
    return lines[0], {name.strip().lower(): value.strip() for name, value in pairs}


async def body_chunks(
    reader: asyncio.StreamReader, headers: dict[str, str], open_end: bool = True
) -> AsyncIterator[bytes]:
    """The body by its framing. IncompleteReadError where it is cut."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    elif "content-length" in headers:
        left = int(headers["content-length"])
        while left:
            chunk = await reader.read(min(left, 1 << 18))
            if not chunk:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(chunk)
            yield chunk
    elif open_end:
        while chunk := await reader.read(1 << 16):
            yield chunk


class Call:
    """One request to a runner, on a connection of its own as Ollama's client makes it."""

    def __init__(self, port: int, method: str, path: str, body: Any = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: close"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
        self.port, self.data = port, "\r\n".join([*lines, "", ""]).encode() + data
        self.status, self.headers = 0, dict[str, str]()

    async def __aenter__(self) -> Call:
        """With the head of the answer read. OSError or IncompleteReadError where none comes."""
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        try:
            self.writer.write(self.data)
            await self.writer.drain()
            first, self.headers = await head(self.reader)
        except BaseException:
            self.writer.close()
            raise
        self.status = int(first.split(" ")[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def body(self) -> bytes:
        return b"".join([chunk async for chunk in body_chunks(self.reader, self.headers)])

    async def events(self) -> AsyncIterator[Any]:
        """Data of a stream of events."""
        rest = b""
        async for chunk in body_chunks(self.reader, self.headers):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                data = line.strip().removeprefix(b"data: ")
                if data and not data.startswith(b":") and data != b"[DONE]":
                    yield json.loads(data)


async def call(port: int, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    async with Call(port, method, path, body) as made:
        return made.status, await made.body()
