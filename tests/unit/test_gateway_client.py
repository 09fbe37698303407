"""Whatever a client sends, in whatever pieces: the connection answers or closes, and asks no engine a second time."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsupervisor.gateway import client, native
from llmsupervisor.gateway.client import Connection
from llmsupervisor.gateway.exchange import Arrived
from llmsupervisor.gateway.guard import Guard
from llmsupervisor.gateway.view import Table, table

HEAD, FIELDS, AHEAD, BODY = 600, 8, 6, 400
"""Smaller than those of a gateway, so that examples come to them."""
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
LATER = 1e6

VIEW = {
    "generation": 1,
    "targets": [
        {"target": "chat", "service": "chat", "endpoint": "chat@1", "address": "http://127.0.0.1:1", "state": "open"}
        | {"names": ["chat"], "inject": {}}
    ],
    "limits": {"body_bytes": BODY},
}


class Transport:
    def __init__(self) -> None:
        self.written, self.closed = bytearray(), False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def write_eof(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        pass

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 1)


class Asked:
    """In an exchange's place: what came, and an answer when the test says so."""

    def __init__(self, came: Arrived, client: Connection) -> None:
        self.came, self._client = came, client

    def answer(self) -> None:
        self._client.write(ANSWER)
        self._client.ended(True)

    def check(self, now: float, silence: float) -> None:
        pass

    def cancel(self) -> None:
        pass


class Side:
    """One connection, and the engine behind it. To be used in a running loop."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        board = SimpleNamespace(table=table(VIEW), since=0)
        hub = SimpleNamespace(board=board, guard=Guard(Table()), exposition=lambda: b"figure 1\n", side=self)
        self.connection = Connection(cast(Any, hub), set())
        self.transport = Transport()
        self.connection.connection_made(cast(asyncio.BaseTransport, self.transport))

    def feed(self, data: bytes) -> None:
        """As a loop does it: into the buffer, until it is closed. A read brings no more than a head may have, here as there."""
        for start in range(0, len(data), HEAD):
            piece = data[start : start + HEAD]
            if not self.transport.closed:
                self.connection.get_buffer(-1)[: len(piece)] = piece
                self.connection.buffer_updated(len(piece))
                self.bounded()

    def bounded(self) -> None:
        held = [request for request in (self.connection._reading, *(self.connection._waiting or ())) if request]
        assert len(held) <= AHEAD + 1
        assert sum(len(request.body) for request in held) <= BODY
        for request in held:
            heads = sum(len(name) + len(value) for name, value in request.headers.items())
            assert len(request.url) + heads <= HEAD and len(request.headers) <= FIELDS

    @property
    def pending(self) -> Asked | None:
        return cast(Asked | None, self.connection._exchange)

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in STATUS.findall(bytes(self.transport.written)) if status != b"100"]


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    def exchange(hub: Any, connection: Connection, came: Arrived) -> Asked:
        hub.side.asked.append(Asked(came, connection))
        return cast(Asked, hub.side.asked[-1])

    def question(hub: Any, connection: Connection, path: str, body: bytes, *_: object) -> Asked:
        return exchange(hub, connection, cast(Arrived, SimpleNamespace(path=path, body=body)))

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("HEAD", HEAD), ("FIELDS", FIELDS), ("AHEAD", AHEAD), ("Exchange", exchange)):
            patch.setattr(client, name, value)
        patch.setattr(native, "Question", question)
        yield


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def request(number: int, chunked: bool = False, pad: int = 0) -> bytes:
    """A POST whose body no other one has."""
    body = json.dumps({"model": "chat", "user": f"u{number}-", "pad": "x" * pad}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    if chunked:
        half = len(body) // 2
        parts = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:]))
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


FRAGMENTS = st.sampled_from(
    [b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"\r\n\r\n", b"POST ", b"GET ", b"HEAD ", b"OPTIONS ", b"CONNECT ", b"PRI * HTTP/2.0"]
    + [b"/v1/completions", b"/healthz", b"/metrics", b"/v1/models", b"/api/tags", b"/" + b"x" * HEAD, b"http://x/", b"?"]
    + [b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b" HTTP/9.9\r\n", b"Host: localhost\r\n", b"Connection: close\r\n"]
    + [b"Connection: upgrade\r\nUpgrade: h2c\r\n", b"Upgrade: websocket\r\n", b"Expect: 100-continue\r\n"]
    + [b"Content-Length: %d\r\n" % n for n in (0, 5, BODY, BODY + 1, 2**31, 2**63, 2**64, 10**30)]
    + [b"Content-Length: -1\r\n", b"Content-Length: 1, 2\r\n", b"Content-Length: 0x5\r\n", b"Content-Length:\r\n"]
    + [b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"transfer-encoding : chunked\r\n"]
    + [b"0\r\n", b"5\r\nhello\r\n", b"5\r\nhel", b"ffffffffffffffff\r\n", b"10000000000000000\r\n", b"-1\r\n", b"5;x=y\r\n", b"zz\r\n"]
    + [b"X: " + b"y" * 100 + b"\r\n", b"X-%d: 1\r\n" % 7, b"A: b\r\n" * FIELDS, b" folded\r\n", b"\xff\xfe: \x80\r\n"]
    + [b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"OPTIONS /healthz HTTP/1.1\r\n\r\n", b"x" * (2 * BODY)]
)  # fmt: skip
NOISE = FRAGMENTS | st.binary(max_size=30)


@st.composite
def conversations(draw: st.DrawFn) -> bytes:
    """Requests in order, with noise before, between and in them."""
    out = bytearray()
    for number in range(draw(st.integers(0, 4))):
        out += b"".join(draw(st.lists(NOISE, max_size=4)))
        one = bytearray(request(number, draw(st.booleans()), draw(st.integers(0, 40))))
        for _ in range(draw(st.integers(0, 2))):
            at = draw(st.integers(0, len(one)))
            one[at : at + draw(st.integers(0, 20))] = draw(NOISE)
        out += one
    return bytes(out + b"".join(draw(st.lists(NOISE, max_size=8))))


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({place % (len(data) + 1) for place in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(places)]


CUTS = st.lists(st.integers(0, 10**6), max_size=12)


def run(runner: asyncio.Runner, act: Callable[[Side], None]) -> None:
    async def main() -> None:
        side = Side()
        act(side)
        for _ in range(4 * AHEAD):  # what is left is answered, one after the other
            await asyncio.sleep(0)
            if side.pending is not None:
                side.pending.answer()
        assert side.pending is None
        if not side.transport.closed:
            before = len(side.statuses)
            side.connection.check(asyncio.get_running_loop().time() + LATER)
            assert side.transport.closed, "one that says no more is answered, or idle, and closed"
            assert len(side.statuses) <= before + 1
        side.connection.connection_lost(None)

    runner.run(main())


@settings(max_examples=600, deadline=None)
@given(data=conversations(), cuts=CUTS, prompt=st.booleans())
def test_anything_in_any_pieces(runner: asyncio.Runner, data: bytes, cuts: list[int], prompt: bool) -> None:
    """`prompt`: the engine answers between two pieces."""

    def act(side: Side) -> None:
        for piece in cut(data, cuts):
            side.feed(piece)
            if prompt and side.pending is not None:
                side.pending.answer()
        sent = [bytes(asked.came.body) for asked in side.asked]
        for number in range(4):
            mark = b"u%d-" % number
            assert sum(mark in body for body in sent) <= 1, "forwarded twice"

    run(runner, act)


@settings(max_examples=200, deadline=None)
@given(
    kinds=st.lists(st.tuples(st.booleans(), st.integers(0, 60)), min_size=1, max_size=AHEAD),
    cuts=CUTS,
    every_byte=st.booleans(),
)
def test_requests_in_order_are_each_forwarded_once_however_they_come(
    runner: asyncio.Runner, kinds: list[tuple[bool, int]], cuts: list[int], every_byte: bool
) -> None:
    kinds = [(chunked, pad // len(kinds)) for chunked, pad in kinds]
    data = b"".join(request(number, *kind) for number, kind in enumerate(kinds))
    sides: list[Side] = []

    def act(side: Side) -> None:
        sides.append(side)
        for piece in cut(data, list(range(len(data))) if every_byte else cuts):
            side.feed(piece)

    run(runner, act)
    users = [json.loads(bytes(asked.came.body))["user"] for asked in sides[0].asked]
    assert users == [f"u{number}-" for number in range(len(kinds))]
    assert sides[0].statuses == [200] * len(kinds)


@settings(max_examples=100, deadline=None)
@given(
    head=st.sampled_from([b"", b"GET /", b"POST /v1/completions HTTP/1.1\r\nX: "]),
    byte=st.binary(min_size=1, max_size=4),
)
def test_a_flood_of_the_same_is_ended(runner: asyncio.Runner, head: bytes, byte: bytes) -> None:
    """Nothing goes on for ever: neither a line, nor a header, nor a chunk's extension."""

    def act(side: Side) -> None:
        side.feed(head)
        for _ in range(20):
            side.feed(byte * 2000)
        over = side.transport.closed or side.connection._refusal is not None
        assert over or not byte.strip(b"\r\n"), "empty lines between requests alone are ignored"

    run(runner, act)


def test_a_head_that_begins_in_a_full_read_is_not_charged_with_what_was_before_it(runner: asyncio.Runner) -> None:
    """Requests ahead of their answers fill a read, the last one is cut in a header, and the rest of that comes slowly."""
    one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"y" * 180 + b"\r\n\r\n"
    last = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 200 + b"\r\n\r\n"
    n = HEAD // len(one)
    data = one * n + last
    sides: list[Side] = []

    def act(side: Side) -> None:
        sides.append(side)
        side.feed(data[:HEAD])
        assert one * n in data[:HEAD] and data[:HEAD].endswith(b"x")
        for at in range(HEAD, len(data)):
            side.feed(data[at : at + 1])

    run(runner, act)
    assert sides[0].statuses == [200] * (n + 1)
