"""One request at one engine, on a connection of its own, and its answer on the way to the client. Sent once, whatever
happens.

*Pass*: the answer's bytes go on unchanged and as they come; a parser beside them reads. *Filter*: head and framing are
ours, the content goes through a `Filter`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import httptools

from llmsupervisor.gateway.filter import Filter
from llmsupervisor.gateway.route import Refusal, event
from llmsupervisor.gateway.timing import Reader
from llmsupervisor.gateway.view import Target

CONNECT = 5.0
"""Seconds."""
WHOLE = 32 * 1024**2
"""Bytes of an answer that is no stream, held for its filter; a longer one passes unfiltered."""
HOP = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"trailer", b"upgrade"})


@dataclass(frozen=True, slots=True)
class Ending:
    """`unsent`: not a byte of the request was written. `failed`: not a byte of an answer was passed on. `broken`: the
    answer breaks off, and the client must see it: by a reset where its framing would look complete."""

    how: Literal["complete", "unsent", "failed", "broken"]
    reusable: bool = False
    """The client's connection."""
    reset: bool = False
    kind: str = ""
    """For the daemon: `connect-refused`, `closed` … Empty: it was not the engine."""
    text: str = ""


class Sink(Protocol):
    """The client's side of the connection."""

    def write(self, data: bytes) -> None: ...


class Relay(asyncio.Protocol):
    """`filter` makes the one for an answer that is a stream (True) or is not, and for one of JSON lines; None: pass. `headers` are added to a
    head of ours. `started`: our own head of an event stream has been sent already, so errors are events."""

    def __init__(
        self, sink: Sink, target: Target, api: str, request: bytes, filter: Callable[[bool, bool], Filter] | None,
        headers: Iterable[tuple[str, str]] = (), started: bool = False,
    ) -> None:  # fmt: skip
        self._loop = asyncio.get_running_loop()
        self._sink = sink
        self._target = target
        self._request = request
        self._api = api
        self._make = filter
        self._filter: Filter | None = None
        """None before the head of the answer, and in pass mode."""
        self.reader: Reader | None = None
        """Of the answer, once its head is here."""
        self._more = [f"{name}: {value}".encode("latin-1") for name, value in headers]
        self._started = started
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._over = self._paused = self._begun = False
        self._complete = self._reusable = False
        self._headed = self._events = self._lines = False
        """Events: also JSON lines, which are a stream like them."""
        self._sized = self._chunked = self._in_chunk = self._steady = False
        self._tail = b""
        """The last two bytes of the body."""
        self.passed = started
        """A byte of an answer, or of a head of our own, has gone to the client."""
        self._headers: list[tuple[bytes, bytes]] = []
        self._own = b""
        """Filter: our head of a stream, until it is sent …"""
        self._out: list[bytes] = []
        """… and content of this read."""
        self._unread: list[bytes] = []
        """By `reader`, which waits until the client has been served."""
        self._whole = bytearray()
        """Filter: what it gave of an answer that is no stream."""
        self._bytes = 0
        self._phrase = b""
        self.status = 0
        self.sent: float | None = None
        """When the request was written …"""
        self.head: float | None = None
        """… and when the first byte of an answer came."""
        self.moved = self._loop.time()
        self._done: asyncio.Future[Ending] = self._loop.create_future()

    # --- orders ---------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        self._paused = True
        if self._transport is not None and not self._over:
            self._transport.pause_reading()

    def resume(self) -> None:
        self._paused = False
        if self._transport is not None and not self._over:
            self.moved = self._loop.time()
            self._transport.resume_reading()

    def check(self, now: float, silence: float) -> None:
        """Ends an answer whose content has begun and does not go on. Some engines send a head before they read a prompt,
        which may take long."""
        if self._begun and not self._paused and not self._over and now - self.moved > silence:
            self._died("silent", f"said nothing for {silence:g} s")

    def stop(self) -> bool:
        """Whether it had begun, and breaks off now: by no fault of the engine."""
        if self.sent is None:
            return False
        if not self._over:
            self._died("", "was cut off by the gateway, which is ending,")
        return True

    # --- the connection -------------------------------------------------------------------------------------------

    async def run(self) -> Ending:
        """Cancelled: the client is gone, and the engine sees it at once."""
        try:
            await self._connect()
            return await self._done
        except asyncio.CancelledError:
            self._end(None)
            raise

    async def _connect(self) -> None:
        """On this machine a connection is there at once, or refused at once; `connect` is not told so."""
        host, port = self._target.host, self._target.port
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, 0)
        try:
            sock.setblocking(False)
            code = sock.connect_ex((host, port))
            if code == errno.EINPROGRESS:
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not code and not _connected(sock):
                    async with asyncio.timeout(CONNECT):
                        await self._loop.sock_connect(sock, (host, port))
            if code:
                raise OSError(code, os.strerror(code))
            await self._loop.create_connection(lambda: self, sock=sock)
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError):
                raise
            kind = "connect-refused" if isinstance(error, ConnectionRefusedError) else "connect-failed"
            text = f"{self._target.service} does not take connections: {error or 'timeout'}"
            self._end(Ending("unsent", kind=kind, text=text))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._over:
            self._transport.abort()
            return
        if self._paused:  # before reading has begun, uvloop does not hear it
            self._loop.call_soon(lambda: self.pause() if self._paused else None)
        self.sent = self._loop.time()
        self._transport.write(self._request)
        self._request = b""

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        self.moved = self._loop.time()
        if self._steady and (content := _content(data)):
            self._pass_on(data, content)
            return
        if self.head is None:
            self.head = self.moved
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._died("bad-answer", f"sent what is no HTTP answer ({error})")
            return
        if self._headed and self._chunked and not self._in_chunk:
            self._in_chunk = not data.endswith(b"\n")  # the begin of a chunk's size
        if self._make is None:
            self.passed = True
            self._sink.write(data)
        elif not self._complete and (framed := self._framed()):
            self._sink.write(framed)
        if self._complete:
            self._finish()
        else:
            self._catch_up()
            self._steady = self._events and self._begun and self._chunked and not self._in_chunk

    def _pass_on(self, data: bytes, content: bytes) -> None:
        """Of an event stream, one chunk, between two: nearly all that engines send. What the parser would do with it takes
        as long as all the rest."""
        if self._filter is None:
            self._tail = (self._tail + content[-2:])[-2:]
            self._sink.write(data)
        elif filtered := self._filter.feed(content):
            self._tail = filtered[-2:]
            self._sink.write(chunk(filtered))
        if self.reader is not None:
            self.reader.feed(content, self.moved)

    def connection_lost(self, error: Exception | None) -> None:
        if self._over:
            return
        if self._headed and not self._chunked and not self._sized and error is None:
            # Framed by its end alone: nobody can tell whether it is whole.
            self._reusable = self._make is not None
            self._finish()
        else:
            self._died(
                "reset" if self.head is not None else "closed", f"closed the connection ({error or 'no reason given'})"
            )

    # --- the parser -----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Of a second message, after a 1xx or (`_complete`) where none is due."""
        self._reusable = False
        self._headed = self._events = self._lines = self._sized = self._chunked = False
        self._headers.clear()
        self._phrase = b""

    def on_status(self, phrase: bytes) -> None:
        self._phrase += phrase

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        name = name.lower()
        if name == b"content-type":
            kind = value.lstrip().lower()
            self._lines = kind.startswith(b"application/x-ndjson")
            self._events = self._lines or kind.startswith(b"text/event-stream")
        self._chunked |= name == b"transfer-encoding" and b"chunked" in value.lower()
        self._sized |= name == b"content-length"

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200:
            return
        self._headed = True
        self.reader = Reader(self._api, self._events, self._target.traits.timing, self._lines)
        if self._make is None:
            return
        good = self.status == 200
        self._filter = self._make(self._events, self._lines) if good else Filter(self._events, None, (), False, False)
        if self._events and not self._started:
            self._own = self._own_head(None)
            self._started = self.passed = True

    def on_chunk_header(self) -> None:
        self._in_chunk = True

    def on_chunk_complete(self) -> None:
        self._in_chunk = False

    def on_body(self, data: bytes) -> None:
        if self.reader is None:
            return
        self._begun = True
        self._unread.append(data)
        if self._filter is None:
            if self._events:
                self._tail = (self._tail + data[-2:])[-2:]
        elif self._events:
            self._out.append(self._filter.feed(data))
        else:
            self._whole += self._filter.feed(data)
            self._bytes += len(data)
            if self._bytes > WHOLE:
                self._died("bad-answer", f"sent an answer of more than {WHOLE} bytes")

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            self._reusable = self._parser.should_keep_alive() and not self._complete
            self._complete = True

    def _catch_up(self) -> None:
        if self.reader is not None and self._unread:
            for data in self._unread:
                self.reader.feed(data, self.moved)
            self._unread.clear()

    # --- filter: head and framing of our own ----------------------------------------------------------------------

    def _own_head(self, length: int | None) -> bytes:
        lines = [b"HTTP/1.1 %d %b" % (self.status, self._phrase)]
        lines += [b"%b: %b" % pair for pair in self._headers if pair[0].lower() not in HOP]
        lines += self._more
        lines.append(b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length)
        return b"\r\n".join([*lines, b"", b""])

    def _framed(self) -> bytes:
        """What this read made: one write of it, since each costs as much as all else that is done for an event."""
        own, content = self._own, b"".join(self._out)
        self._own = b""
        self._out.clear()
        if not content:
            return own
        self._tail = content[-2:]
        return own + chunk(content)

    def _rest(self) -> bytes:
        """What the filter still holds: the end of a stream, or all of another answer. After comments a refusal is an
        event, and no end follows: a failure never looks like one."""
        assert self._filter is not None
        rest = bytes(self._whole) + self._filter.end()
        if self._events:
            return (chunk(rest) if rest else b"") + LAST
        if self._started:
            text = f"{self._target.service} answered {self.status}: {rest[:2000].decode(errors='replace')}"
            return chunk(event(Refusal(502, text, "upstream_failed")))
        return self._own_head(len(rest)) + rest

    # --- ends -----------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        if self._ended_silently():
            self._died("no-end", "ended its stream")
            return
        if self._filter is not None:
            self._reusable = self._events or not self._started
            self._sink.write(self._framed() + self._rest())
        self._end(Ending("complete", reusable=self._reusable))

    def _ended_silently(self) -> bool:
        """Some engines end a stream like any other when the process behind them dies."""
        reader = self.reader
        if not self._target.traits.enrich or self._filter is None or not self._events or self.status != 200:
            return False
        self._catch_up()
        return reader is not None and not reader.complete and reader.error is None

    def _died(self, kind: str, text: str) -> None:
        text = f"{self._target.service} {text} before the end of its answer"
        if not self.passed:
            self._end(Ending("failed", kind=kind, text=text))
            return
        if self._filter is not None and self._events:
            self._out.append(self._filter.end())
            if framed := self._framed():
                self._sink.write(framed)
        delimited = self._make is None and self._headed and not self._chunked and not self._sized
        if self._started or (self._events and self._headed and not self._sized and not self._in_chunk):
            # Ends a half event first. In a chunked answer it is a chunk; the last chunk never comes.
            end = b"\n" if self._lines else b"\n\n"
            begun = b"" if not self._tail or self._tail.endswith(end) else end
            last = begun + event(Refusal(502, text, "upstream_failed"), self._lines)
            self._sink.write(chunk(last) if self._chunked or self._started else last)
        self._end(Ending("broken", reset=delimited and not self._events, kind=kind, text=text))

    def _end(self, ending: Ending | None) -> None:
        if self._over:
            return
        self._over = True
        if self._transport is not None:
            self._transport.abort()
        self._loop.call_soon(self._forget)
        if self.reader is not None:
            self._catch_up()
            self.reader.end(self._loop.time())
        if ending is not None and not self._done.done():
            self._done.set_result(ending)

    def _forget(self) -> None:
        """The parser holds us as we hold it; it may be the one that has called."""
        del self._parser


LAST = b"0\r\n\r\n"


def _connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _content(data: bytes) -> bytes:
    """Of what is one chunk and no more; else empty."""
    at = data.find(b"\r\n", 1, 8)
    end = len(data) - 2
    whole = at > 0 and data[:at] == b"%x" % (end - at - 2) and data.endswith(b"\r\n")
    return data[at + 2 : end] if whole else b""


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
