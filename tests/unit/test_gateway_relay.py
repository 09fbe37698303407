"""An answer is the same to the client and in the record, in whatever pieces it comes, and wherever it breaks off."""

from __future__ import annotations

import asyncio
import itertools
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsupervisor.gateway.filter import Filter
from llmsupervisor.gateway.relay import Relay, chunk
from llmsupervisor.gateway.view import Target

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
TARGET = cast(Target, SimpleNamespace(service="chat", traits=SimpleNamespace(timing={}, enrich=False)))


class Client:
    def __init__(self) -> None:
        self.got = b""

    def write(self, data: bytes) -> None:
        self.got += data


class Engine:
    """The connection to it."""

    def abort(self) -> None:
        pass

    def write(self, data: bytes) -> None:
        pass


def event(text: str) -> bytes:
    said = {"id": "1", "model": "own", "choices": [{"index": 0, "delta": {"content": text}}], "metrics": {"a": 1}}
    return b"data: " + json.dumps(said, separators=(",", ":")).encode() + b"\n\n"


def relayed(pieces: list[bytes], filtered: bool) -> tuple[Any, ...]:
    """What the client got (filter: its content), how it ended, and what the record knows."""

    async def run() -> tuple[Any, ...]:
        client = Client()
        make = (
            (lambda stream, lines: Filter(stream, ("own", "alias"), ("metrics",), False, False, lines))
            if filtered
            else None
        )
        relay = Relay(client, TARGET, "chat.completions", b"", make)
        relay.connection_made(cast(asyncio.BaseTransport, Engine()))
        for piece in pieces:
            relay.data_received(piece)
        relay.connection_lost(None)
        ending, reader = await relay._done, relay.reader
        await asyncio.sleep(0)
        body = client.got.partition(b"\r\n\r\n")[2]
        known = None if reader is None else (reader.chunks, reader.complete, len(reader.gaps))
        return content(body) if filtered else client.got, ending.how, ending.kind, ending.reusable, known

    return asyncio.run(run())


def content(body: bytes) -> bytes:
    """Of chunks, the last of which may be half."""
    found = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        found, body = found + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return found


def cut(data: bytes, at: set[int]) -> list[bytes]:
    edges = [0, *sorted(each for each in at if 0 < each < len(data)), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def edges(chunks: list[bytes]) -> list[int]:
    found, at = [], len(HEAD)
    for each in chunks:
        found.append(at)
        at += len(each)
    return [*found, at]


FRAMES = st.sampled_from(
    [
        chunk(event("a")),
        chunk(event("5\r\nhello\r\n")),
        chunk(event("ä") + event("b")),
        chunk(b": a comment\n\n"),
        chunk(b"\r\n"),
        chunk(b"data: [DONE]\n\n"),
        chunk(event("c")).replace(b"\r\n", b";x=y\r\n", 1),
        chunk(event("d")).upper(),
        b"0" + chunk(event("e")),
    ]
)


@pytest.mark.parametrize("filtered", [False, True], ids=["pass", "filter"])
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_pieces_make_no_difference(filtered: bool, data: st.DataObject) -> None:
    """Byte by byte everything goes through the parser."""
    chunks = data.draw(st.lists(FRAMES, max_size=6))
    end = data.draw(st.sampled_from([LAST, b"0\r\nA: b\r\n\r\n", b""]))
    whole = HEAD + b"".join(chunks) + end
    whole = whole[: data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))]
    at = {edge for edge in edges(chunks) if data.draw(st.booleans())}
    at |= data.draw(st.sets(st.integers(0, len(whole)), max_size=4))
    assert relayed(cut(whole, at), filtered) == relayed(cut(whole, set(range(len(whole)))), filtered)


@pytest.mark.parametrize("filtered", [False, True], ids=["pass", "filter"])
def test_a_chunk_at_a_time(filtered: bool) -> None:
    chunks = [chunk(event(str(n))) for n in range(5)]
    got, how, _, _, known = relayed([HEAD, *chunks, LAST], filtered)
    assert (how, known) == ("complete", (5, False, 4))
    if filtered:
        assert got == b"".join(event(str(n)) for n in range(5)).replace(b'"own"', b'"alias"').replace(
            b',"metrics":{"a":1}', b""
        )
    else:
        assert got == HEAD + b"".join(chunks) + LAST
