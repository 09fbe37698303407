"""One client connection: requests parsed strictly, one after the other, and answered here or by an exchange."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
from collections import deque
from typing import cast

import httptools

from llmsupervisor.gateway import native, route
from llmsupervisor.gateway.board import UNKNOWN
from llmsupervisor.gateway.exchange import Arrived, Exchange
from llmsupervisor.gateway.guard import Headers
from llmsupervisor.gateway.hub import Hub
from llmsupervisor.gateway.request import Request
from llmsupervisor.gateway.route import Refusal

HEAD = 64 * 1024
FIELDS = 100
"""Headers of one request."""
AHEAD = 100
"""Requests that may come before the one ahead of them is answered."""
FIRST = 1.0
"""Seconds that a new connection has for its first request when the gateway ends."""
LINGER = 1.0
"""Seconds in which a client may read why it was refused before the connection is closed for good."""
HIGH, LOW = 256 * 1024, 64 * 1024
"""Bytes waiting for a slow client above which the engine is not read, and below which it is again."""
BUFFER = memoryview(bytearray(64 * 1024))
"""What one read brings, of whichever connection: it is used up before the next."""
SLOWEST = 1024
"""Bytes per second at which a body must come."""
H2C = re.compile(rb"[^\r]*(?:\r\n[^\r\n]+)*?\r\n(upgrade):[ \t]*h2c[ \t]*\r\n", re.IGNORECASE)
"""In the head of a request: an offer of HTTP/2, which Java's client makes by default. It may be ignored (RFC 9110, 7.8),
but the parser would take the body for HTTP/2."""
TOO_LARGE = Refusal(431, f"the request's headers pass {HEAD} bytes", "headers_too_large")
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


class Connection(asyncio.BufferedProtocol):
    """`clients` holds all that are open. A client that closes its side while it waits for an answer has gone: that it
    may have closed only one direction cannot be seen, and an engine that works for nobody costs more."""

    __slots__ = (
        "_body_bytes",
        "_clients",
        "_drained_at",
        "_ending",
        "_exchange",
        "_head_bytes",
        "_hub",
        "_in_head",
        "_kept",
        "_last",
        "_loop",
        "_parser",
        "_peer",
        "_quiet_since",
        "_reading",
        "_refusal",
        "_request",
        "_stalled_since",
        "_told",
        "_transport",
        "_unsent",
        "_waiting",
    )

    def __init__(self, hub: Hub, clients: set[Connection]) -> None:
        self._hub = hub
        self._clients = clients
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._reading: Request | None = None
        self._in_head = False
        self._head_bytes = 0
        self._told, self._kept = False, 0
        """Whether the parser called, and the bytes that it may keep since, of what is not complete."""
        self._body_bytes = 0
        self._waiting: deque[Request] | None = None
        """Complete, and not begun: the client did not wait for an answer."""
        self._exchange: Exchange | native.Question | None = None
        self._request: Request | None = None
        self._refusal: Refusal | None = None
        """The end of this connection, after what is waiting."""
        self._ending = False
        self._last = False
        """The next request is the last one."""
        self._quiet_since = self._loop.time()
        self._stalled_since: float | None = None
        """Since when an engine, and the next request, wait for it to take an answer."""
        self._unsent, self._drained_at = 0, self._quiet_since
        """Bytes that it has not taken, at the last look, and when they were others."""
        self._peer = ""
        self._transport: asyncio.Transport

    @property
    def busy(self) -> bool:
        return self._exchange is not None or (self._last and not self._ending)

    def end(self) -> None:
        """No further request: one that runs, or comes, is answered to its end. Who has not asked yet has connected to ask."""
        self._waiting = None
        if self._exchange is None and (self._reading is not None or self._request is None):
            self._last = True
            self._loop.call_later(FIRST, self._unasked)
            return
        self._ending = True
        if self._exchange is None:
            self._transport.close()

    def _unasked(self) -> None:
        if self._reading is None and self._request is None and not self._ending:
            self._ending = True
            self._transport.close()

    def check(self, now: float) -> None:
        """Once a second: is this client too slow, or idle for too long?"""
        limits = self._hub.board.table.limits
        reading, unsent = self._reading, self._transport.get_write_buffer_size()
        if not unsent or unsent != self._unsent:
            self._unsent, self._drained_at = unsent, now
        if now - self._drained_at > limits.write_stall:
            self._transport.abort()
        elif self._exchange is not None:
            self._exchange.check(now, limits.silence)
        elif self._ending or self._refusal is not None:
            return
        elif reading is None:
            if now - self._quiet_since > limits.idle:
                self._ending = True
                self._transport.close()
        elif self._in_head and now - reading.came > limits.header:
            self._too_slow(f"the headers did not come within {limits.header:g} s")
        elif not self._in_head and len(reading.body) < SLOWEST * (now - reading.came - limits.body_grace):
            self._too_slow(f"the body comes at less than {SLOWEST} bytes per second")

    def _too_slow(self, text: str) -> None:
        self._refusal = Refusal(408, text, "too_slow")
        self._next()

    # --- the connection ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
        self._transport.set_write_buffer_limits(high=HIGH, low=LOW)
        self._clients.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._clients.discard(self)
        self._ending = True
        if self._exchange is not None:
            self._exchange.cancel()
            self._exchange = None
        self._loop.call_soon(self._forget)

    def _forget(self) -> None:
        """The parser holds us as we hold it; it may be the one that has called."""
        del self._parser

    def eof_received(self) -> None:
        if self._exchange is not None:
            self._transport.abort()

    def pause_writing(self) -> None:
        self._stalled_since = self._loop.time()
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self._stalled_since = None
        if self._exchange is not None:
            self._exchange.resume()
        else:
            self._next()

    def get_buffer(self, sizehint: int) -> memoryview:
        return BUFFER

    def buffer_updated(self, n: int) -> None:
        if self._ending or self._refusal is not None:
            return
        self._told = False
        if self._reading is None and (offer := H2C.match(BUFFER[:n])) is not None:
            BUFFER[offer.start(1) : offer.end(1)] = b"x-offer"
        try:
            self._parser.feed_data(BUFFER[:n])
            rest = len(bytes(BUFFER[:n]).rpartition(b"\r\n")[2]) if self._in_head else 0
            self._kept = rest if self._told else self._kept + n
            if self._kept > HEAD:
                raise _Refused(TOO_LARGE)
        except _Refused as refused:
            self._refusal = refused.refusal
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refusal = (
                cause.refusal
                if isinstance(cause, _Refused)
                else Refusal(400, f"not a valid HTTP request: {error}", "bad_request")
            )
        self._next()

    # --- the parser ----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._reading = Request(self._loop.time())
        self._in_head, self._head_bytes = True, 0

    def on_url(self, url: bytes) -> None:
        assert self._reading is not None
        self._count_head(len(url))
        self._reading.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self._reading is not None
        self._count_head(len(name) + len(value))
        if self._in_head:
            if name.lower() == b"transfer-encoding" and value.strip().lower() != b"chunked":
                raise _Refused(Refusal(501, "no transfer coding but chunked is understood", "not_implemented"))
            if self._reading.fields >= FIELDS:
                raise _Refused(Refusal(431, f"more than {FIELDS} headers", "headers_too_large"))
            self._reading.add(name.decode("latin-1").lower(), value.decode("latin-1"))

    def _count_head(self, n: int) -> None:
        self._told = True
        self._head_bytes += n
        if self._head_bytes > HEAD:
            raise _Refused(TOO_LARGE)

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._parser.should_upgrade():
            raise _Refused(Refusal(501, "protocols other than HTTP/1.1 are not spoken here", "not_implemented"))
        request = self._reading
        assert request is not None
        request.method, request.version = self._parser.get_method().decode(), self._parser.get_http_version()
        if wrong := request.settle():
            raise _Refused(Refusal(400, wrong, "bad_request"))
        length = request.headers.get("content-length", "0")
        self._count_body(int(length) if length.isdigit() else 0, keep=False)
        if request.headers.get("expect", "").lower() == "100-continue" and self._exchange is None and not self._waiting:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _count_body(self, n: int, keep: bool = True) -> None:
        most = self._hub.board.table.limits.body
        if self._body_bytes + n > most:
            raise _Refused(Refusal(413, f"a request may have {most} bytes", "body_too_large"))
        self._body_bytes += n if keep else 0

    def on_body(self, data: bytes) -> None:
        assert self._reading is not None
        self._told = True
        self._count_body(len(data))
        self._reading.body += data

    def on_message_complete(self) -> None:
        request, self._reading = self._reading, None
        assert request is not None
        self._told = True
        request.keep_alive = self._parser.should_keep_alive() and request.version == "1.1"
        if self._waiting is None:
            self._waiting = deque()
        if len(self._waiting) >= AHEAD:
            text = f"more than {AHEAD} requests came before the one ahead of them was answered"
            raise _Refused(Refusal(400, text, "bad_request"))
        self._waiting.append(request)

    # --- one request ---------------------------------------------------------------------------------------------

    def _next(self) -> None:
        """The next request that waits; none: the refusal that ends the connection, if there is one. While the client
        takes no answers, none is made."""
        while self._exchange is None and not self._ending and self._stalled_since is None:
            if self._waiting:
                request = self._request = self._waiting.popleft()
                self._body_bytes -= len(request.body)
                request.keep_alive &= not self._last
                self._start(request)
                request.body = bytearray()
            elif self._refusal is not None:
                self._ending, self._request = True, None
                self.refused(self._refusal)
            else:
                return

    def _start(self, request: Request) -> None:
        guard, table, method, path = self._hub.guard, self._hub.board.table, request.method, request.path
        cors = guard.cors(request.headers)
        if method == "OPTIONS":
            allowed = guard.preflight(request.headers)
            self.refused(allowed) if isinstance(allowed, Refusal) else self._answer(204, b"", allowed)
        elif method in ("GET", "HEAD") and (local := route.local(path, table)):
            self._local(local, request, cors)
        elif isinstance(asker := guard.admit(request.headers, self._peer), Refusal):
            self.refused(asker, cors)
        elif native.ASKED.get(path) == method:
            self._exchange = native.Question(self._hub, self, path, bytes(request.body), asker, cors)
        elif method != "POST" or (api := table.routes.get(path)) is None:
            self.refused(route.refused_route(method, path, table), cors)
        elif request.version != "1.1":
            self.refused(Refusal(505, f"this route needs HTTP/1.1, not {request.version}", "http_version"), cors)
        else:
            came = Arrived(asker, self._peer, api, path, request.headers, cors, bytes(request.body), request.came)
            self._exchange = Exchange(self._hub, self, came)

    def _local(self, name: str, request: Request, cors: Headers) -> None:
        """Whether it lives and is ready may be asked without a key."""
        guard, table, kind, status = self._hub.guard, self._hub.board.table, "application/json", 200
        body: object = {"status": "ok"}
        refusal = guard.reaches(request.headers)
        match name:
            case "models":
                asker = guard.admit(request.headers, self._peer)
                if isinstance(asker, Refusal):
                    refusal = asker
                else:
                    body = route.models(table, self._hub.board.since, asker.models)
                if table.generation == 0:
                    refusal = route.unavailable(UNKNOWN)
            case "ollama":
                kind, body = "text/plain; charset=utf-8", route.RUNNING
            case "readyz":
                states = {target.endpoint: target.state for target in table.targets}
                status, body = (200 if table.ready() else 503), {"ready": table.ready(), "endpoints": states}
            case "metrics":
                refusal = guard.may_scrape(request.headers, self._peer)
                kind, body = EXPOSITION, self._hub.exposition() if refusal is None else b""
        if refusal is not None:
            self.refused(refusal, cors)
            return
        self._answer(status, body if isinstance(body, bytes) else json.dumps(body).encode(), cors, kind)

    def _answer(self, status: int, body: bytes, headers: Headers = (), kind: str = "application/json") -> None:
        request = self._request
        close = self._ending or (request is not None and not request.keep_alive)
        more = (("Connection", "close"),) if close else ()
        head_only = request is not None and request.method == "HEAD"
        self._transport.write(route.answer(status, body, (*headers, *more), kind, head_only))
        self._quiet_since = self._loop.time()
        if close:
            self._hang_up()

    def _hang_up(self) -> None:
        """What the client still sends is read and thrown away: closing at once could take the answer from it."""
        self._ending = True
        with contextlib.suppress(OSError):
            self._transport.write_eof()
        self._loop.call_later(LINGER, self._transport.abort)

    # --- the exchange's side --------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """After the connection is lost uvloop would raise."""
        if self._exchange is not None:
            self._transport.write(data)

    def refused(self, refusal: Refusal, headers: Headers = ()) -> None:
        ollama = self._request is not None and self._request.path.startswith("/api/")
        self.answered(json.dumps(refusal.body(ollama)).encode(), (*headers, *refusal.headers), refusal.status)

    def answered(self, body: bytes, headers: Headers = (), status: int = 200) -> None:
        self._exchange = None
        self._answer(status, body, headers)
        if not self._ending:
            self._loop.call_soon(self._next)

    def ended(self, reusable: bool) -> None:
        self._exchange = None
        self._quiet_since = self._loop.time()
        if reusable and not self._ending and self._request is not None and self._request.keep_alive:
            self._next()
        else:
            self._ending = True
            self._transport.close()

    def cut(self, reset: bool) -> None:
        self._exchange = None
        self._ending = True
        if reset:
            linger = struct.pack("ii", 1, 0)
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._transport.abort()
        else:
            self._transport.close()


class _Refused(Exception):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
