"""The engine client against real sockets: what an engine or the network may do, as an Answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from support.wait import PATIENCE, Spent

from llmsupervisor.host.http import MAX_ANSWER, Answer, Engine

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def response(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@contextlib.asynccontextmanager
async def engine(serve: Serve, key: tuple[str, str] | None = None) -> AsyncIterator[Engine]:
    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    client = Engine(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", key)
    try:
        yield client
    finally:
        await client.aclose()
        server.close()


def answering(*bodies: bytes, requests: list[bytes] | None = None, connections: list[int] | None = None) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if connections is not None:
            connections.append(1)
        for body in bodies:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0
            )
            content = await reader.readexactly(length)
            if requests is not None:
                requests.append(head + content)
            writer.write(body)
            await writer.drain()

    return serve


def ask(serve: Serve, seconds: float = PATIENCE) -> Answer:
    async def case() -> Answer:
        async with engine(serve) as client:
            return await client.get_json("/health", seconds)

    return asyncio.run(case())


def test_json_key_and_body_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    requests: list[bytes] = []
    connections: list[int] = []

    async def case() -> None:
        serve = answering(
            response(b'{"n": 1}'), response(b"x 1\n"), response(b"{}"), requests=requests, connections=connections
        )
        async with engine(serve, ("Authorization", "Bearer k")) as client:
            answer = await client.get_json("/props", PATIENCE)
            assert (answer.status, answer.json, answer.error, answer.ok) == (200, {"n": 1}, None, True)
            assert (await client.get_text("/metrics", PATIENCE)).text == "x 1\n"
            assert (await client.call("POST", "/completion", {"prompt": "é"}, PATIENCE)).json == {}

    asyncio.run(case())
    assert [request.split(b" HTTP")[0] for request in requests] == [b"GET /props", b"GET /metrics", b"POST /completion"]
    assert all(b"authorization: bearer k" in request.lower() for request in requests)
    assert requests[2].endswith('{"prompt":"é"}'.encode())
    assert len(connections) == 1


def test_loading_engine_is_an_answer_and_no_error() -> None:
    answer = ask(answering(response(b'{"error":{"message":"Loading model","code":503}}', "503 Service Unavailable")))
    assert (answer.status, answer.error, answer.ok) == (503, None, False)
    assert answer.json == {"error": {"message": "Loading model", "code": 503}}


def test_redirects_are_not_followed() -> None:
    answer = ask(answering(response(b"", "302 Found", "Location: http://127.0.0.1:9/")))
    assert (answer.status, answer.error) == (302, None)


def test_nobody_listens() -> None:
    async def case() -> Answer:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            return await Engine(f"http://127.0.0.1:{unused.getsockname()[1]}").get_json("/health", PATIENCE)

    assert asyncio.run(case()) == Answer(None, error="connection refused")


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("serve", [silent, dripping])
def test_the_time_is_for_the_whole_exchange(serve: Serve) -> None:
    began, spent = time.monotonic(), Spent()
    assert ask(serve, 0.5) == Answer(None, error="timed out after 0.5 s")
    assert time.monotonic() - began > 0.4 and spent() < 15, "what drips would take 50"


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"", "disconnected before the answer was complete"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", "disconnected before the answer was complete"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "illegal status line: bytearray(b'SSH-2.0-OpenSSH_9.2')"),
    ],
)
def test_what_is_no_answer(sent: bytes, error: str) -> None:
    assert ask(answering(sent)) == Answer(None, error=error)


def test_reset() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        writer.transport.abort()

    assert ask(serve) == Answer(None, error="connection reset by peer")


def test_text_where_json_was_due() -> None:
    answer = ask(answering(response(b"<html>")))
    assert (answer.status, answer.text, answer.error) == (200, "<html>", "answer is not JSON: '<html>'")


def test_an_endless_answer_is_cut() -> None:
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            sent += 65536
            await writer.drain()

    answer = ask(serve)
    assert (answer.status, answer.error, answer.text) == (200, "answer is larger than 8 MiB", "")
    assert sent < 4 * MAX_ANSWER


def test_cancelling_the_asker_is_no_answer() -> None:
    async def case() -> None:
        async with engine(silent) as client:
            asking = asyncio.create_task(client.get_json("/health", PATIENCE))
            await asyncio.sleep(0.1)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    asyncio.run(case())


def test_nothing_stays_open_after_close() -> None:
    async def case() -> None:
        before = len(os.listdir("/proc/self/fd"))
        async with engine(answering(response(b"{}"))) as client:
            assert (await client.get_json("/", PATIENCE)).ok
        async with asyncio.timeout(PATIENCE):
            while len(os.listdir("/proc/self/fd")) > before:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    asyncio.run(case())
