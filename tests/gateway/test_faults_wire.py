"""Faults of clients on the wire: W1–W9 of the catalogue. W16 and W21: `test_faults_routes.py`, engines: `test_faults_engine.py`."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time

import pytest
from gateway.standalone import CHUNKED, Answer, Standalone, chunk, drain, post, reset, whole
from support.wait import Spent, wait_until

STREAM = {"model": "chat", "messages": [], "stream": True}


def begin(gateway: Standalone, sent: bytes = CHUNKED + chunk(b"data: 1\n\n")) -> None:
    """The engine answers so much, and then nothing."""
    gateway.engine.act = lambda sock, request: sock.sendall(sent)


def standing(value: list[int]) -> int:
    """What it comes to where it goes on no more: the same at several looks, of which a stall of the machine takes one."""
    looks = [-1] * 5
    while len({*looks[-5:]}) > 1 or looks[-1] <= 0:
        time.sleep(0.1)
        looks.append(value[0])
    return looks[-1]


# --- clients that go ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["close", "reset"])
def test_W1_a_client_that_leaves_mid_stream(gateway: Standalone, leave: object) -> None:
    begin(gateway)
    sock = gateway.client()
    sock.sendall(post(STREAM))
    assert sock.recv(65536)
    spent = Spent()
    leave(sock)  # type: ignore[operator]
    assert gateway.engine.hung_up.wait(20)
    assert spent() < 0.5
    wait_until(lambda: gateway.running() == 0, 5, "the lease to be given back")
    counted = [value for labels, value in gateway.samples("llmsupervisor_requests_total") if "client_gone" in labels]
    assert counted == [1]


def test_W1_a_client_that_leaves_before_the_first_byte(gateway: Standalone) -> None:
    begin(gateway, b"")
    with gateway.client() as sock:
        sock.sendall(post())
        wait_until(lambda: gateway.engine.requests, 5, "the request")
        spent = Spent()
    assert gateway.engine.hung_up.wait(20)
    assert spent() < 0.5
    wait_until(lambda: gateway.running() == 0, 5, "the lease to be given back")


def test_W2_a_client_that_leaves_while_queued(gateway: Standalone) -> None:
    gate = threading.Event()

    def act(sock: socket.socket, request: bytes) -> None:
        assert gate.wait(100)
        sock.sendall(whole(b"{}"))

    gateway.engine.act = act
    gateway.apply(parallel=1, limits={"comment_s": 0.05})
    with gateway.client() as first, gateway.client() as third:
        first.sendall(post({**STREAM, "user": "first"}))
        wait_until(lambda: gateway.engine.requests, 5, "the first request")
        with gateway.client() as second:
            second.sendall(post({**STREAM, "user": "second"}))
            assert b": waiting\n\n" in second.recv(65536) + second.recv(65536)
        third.sendall(post({**STREAM, "user": "third"}))
        assert b": waiting\n\n" in third.recv(65536) + third.recv(65536)
        gate.set()
        wait_until(lambda: len(gateway.engine.requests) == 2, 5, "the third request")
    wait_until(lambda: gateway.queued() == 0 == gateway.running(), 5, "an empty queue")
    assert [said["user"] for said in gateway.engine.said()] == ["first", "third"]


def test_W3_a_slow_client_holds_the_engine_back(gateway: Standalone) -> None:
    total, sent = 64 * 1024**2, [0]

    def act(sock: socket.socket, request: bytes) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while sent[0] < total:
            sent[0] += sock.send(b"x" * min(65536, total - sent[0]))

    gateway.engine.act = act
    with gateway.client() as sock:
        sock.sendall(post())
        assert standing(sent) < total // 2, "the engine waits"
        got = 0
        while got < total:
            piece = sock.recv(1 << 20)
            assert piece, (got, sent)
            got += len(piece)
        wait_until(lambda: sent[0] == total, 5, "the whole answer")


def test_W3_a_client_that_does_not_read_is_dropped(gateway: Standalone) -> None:
    """The others notice nothing."""
    gateway.apply(limits={"write_stall_s": 0.5})

    dropped = threading.Event()

    def act(sock: socket.socket, request: bytes) -> None:
        if b"slow" not in request:
            sock.sendall(whole(b"{}"))
            return
        try:
            sock.sendall(CHUNKED)
            while True:
                sock.sendall(chunk(b"data: " + b"x" * 65536 + b"\n\n"))
        except OSError:
            dropped.set()
            raise

    gateway.engine.act = act
    with gateway.client() as sock:
        began, held = time.monotonic(), Spent()
        sock.sendall(post({**STREAM, "user": "slow"}))
        while not dropped.is_set():
            spent = Spent()
            assert gateway.ask().status == 200
            assert spent() < 0.4
            assert held() < 20, "it still holds its engine"
        assert time.monotonic() - began > 0.4
    wait_until(lambda: gateway.running() == 0, 5, "the lease to be given back")


def test_W4_half_a_close(gateway: Standalone) -> None:
    """After a request that is answered here: it is answered. After one that waits for an engine: the client has gone."""
    with gateway.client() as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        assert Answer(drain(sock)).status == 200
    begin(gateway, b"")
    with gateway.client() as sock:
        sock.sendall(post())
        sock.shutdown(socket.SHUT_WR)
        assert drain(sock) == b""
    assert not gateway.engine.requests or gateway.engine.hung_up.wait(20)


# --- too much, too slow -------------------------------------------------------------------------------------------


def test_W5_a_body_that_never_ends(gateway: Standalone) -> None:
    """413 at the limit, and no more than that was kept."""
    gateway.apply(limits={"body_bytes": 4 * 1024**2})
    before = gateway.resident()
    piece = chunk(b" " * 65536)
    with gateway.client() as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(1024):
                sock.sendall(piece)
        answer = Answer(drain(sock))
    assert answer.status == 413 and str(4 * 1024**2) in answer.error["message"]
    assert gateway.resident() - before < 16 * 1024**2
    assert gateway.engine.requests == []


def test_W5_a_length_of_a_gibibyte_is_refused_before_a_byte_of_it(gateway: Standalone) -> None:
    with gateway.client() as sock:
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1073741824\r\n\r\n"
        )
        answer = Answer(drain(sock))
    assert answer.status == 413 and answer.code == "body_too_large"
    assert b"100 Continue" not in answer.data


POST = b"POST /v1/chat/completions HTTP/1.1\r\n"
BODY = b'{"model": "chat"}'
SMUGGLED = {
    "length and chunked": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "list of lengths": b"Content-Length: 5, 6\r\n\r\nhello",
    "unknown coding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coding after chunked": b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "coding before chunked": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "two codings": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "two codings in two lines": b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "length is no number": b"Content-Length: +5\r\n\r\nhello",
    "length with a gap": b"Content-Length: 1 7\r\n\r\n" + BODY,
    "negative length": b"Content-Length: -1\r\n\r\n",
    "endless length": b"Content-Length: 99999999999999999999999\r\n\r\n",
    "space before colon": b"Content-Length : 5\r\n\r\nhello",
    "folded header": b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "bare line feed": b"X: a\nContent-Length: 0\r\n\r\n",
    "bare carriage return": b"X: a\rContent-Length: 0\r\n\r\n",
    "NUL": b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
    "NUL in a name": b"X\0Y: a\r\nContent-Length: 0\r\n\r\n",
    "header without a name": b": a\r\nContent-Length: 0\r\n\r\n",
    "chunk size": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "chunk size overflow": b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "chunk size with a sign": b"Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
    "chunk longer than said": b"Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
    "chunk extension with a line feed": b"Transfer-Encoding: chunked\r\n\r\n5;a\nb\r\nhello\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("rest", SMUGGLED.values(), ids=SMUGGLED)
def test_W6_bad_framing_is_refused_and_the_connection_closed(shared: Standalone, rest: bytes) -> None:
    """Also what follows on the connection is never read as a request."""
    answer = Answer(shared.say(POST + b"Host: x\r\n" + rest, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"))
    assert answer.status in (400, 413, 501) and answer.headers["Connection"] == "close"
    assert answer.data.count(b"HTTP/1.1 ") == 1
    assert shared.engine.requests == []


def test_W6_endless_chunk_extensions(gateway: Standalone) -> None:
    gateway.apply(limits={"body_s": 0.5})
    head = POST + b"Host: x\r\nTransfer-Encoding: chunked\r\n\r\n11;"
    answer = Answer(gateway.say(head, *[b"x" * 65536] * 64))
    assert answer.status in (400, 408, 413, 431) and gateway.engine.requests == []


def test_W6_no_byte_of_a_header_block_is_passed_on(gateway: Standalone) -> None:
    odd = "X-Forwarded-For: 1.2.3.4\r\nConnection: x-secret\r\nX-Secret: 1\r\nTE: trailers\r\naccept:  \t a\r\n"
    head = f"POST /v1/chat/completions?a=1%0d%0ab HTTP/1.1\r\nHost: evil\r\nContent-Length: {len(BODY)}\r\n{odd}\r\n"
    assert Answer(gateway.say(head.encode() + BODY + b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
    sent = gateway.engine.requests[0].partition(b"\r\n\r\n")[0].lower()
    assert b"evil" not in sent and b"x-secret" not in sent and b"x-forwarded" not in sent and b"\nte:" not in sent
    assert b"\r\naccept: a\r\n" in sent + b"\r\n"


@pytest.mark.parametrize(
    "headers",
    [b"X: " + b"x" * 70000, b"".join(b"X-%03d: %s\r\n" % (i, b"x" * 80) for i in range(1000)), b"X: y\r\n" * 1000],
    ids=["one long line", "a thousand", "a thousand of one name"],
)
def test_W7_header_flood(gateway: Standalone, headers: bytes) -> None:
    for pieces in ([headers], [headers[i : i + 1000] for i in range(0, len(headers), 1000)]):
        answer = Answer(gateway.say(POST + b"Host: x\r\n", *pieces, b"\r\n\r\n"))
        assert answer.status == 431 and answer.code == "headers_too_large"


def test_W8_headers_that_come_byte_by_byte(gateway: Standalone) -> None:
    """Hundreds of them; who behaves is served meanwhile."""
    gateway.apply(limits={"header_s": 0.6})
    slow = [gateway.client() for _ in range(300)]
    began = time.monotonic()
    head = iter(POST + b"X: " + b"x" * 1000)
    while time.monotonic() - began < 0.9:
        byte = bytes([next(head)])
        for sock in slow:
            with contextlib.suppress(ConnectionError):
                sock.send(byte)
        spent = Spent()
        assert gateway.get("/healthz").status == 200
        assert spent() < 2
    for sock in slow:
        with sock:
            assert (data := drain(sock)) == b"" or Answer(data).status == 408


def test_W8_a_body_that_comes_byte_by_byte(gateway: Standalone) -> None:
    """One that takes as long, but moves, is answered."""
    gateway.apply(limits={"body_s": 1.5})
    body = json.dumps({"model": "chat", "prompt": "x" * 60000}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    with gateway.client() as steady, gateway.client() as slow:
        steady.sendall(head)
        slow.sendall(head)
        for i in range(0, len(body), len(body) // 9):
            steady.sendall(body[i : i + len(body) // 9])
            with contextlib.suppress(ConnectionError):
                slow.sendall(b" ")
            time.sleep(0.2)
        assert Answer(drain(steady)).status == 200
        assert Answer(drain(slow)).status == 408
    assert len(gateway.engine.requests) == 1


def test_W9_idle_connections_are_closed_and_small(gateway: Standalone) -> None:
    """One that waits for its answer is not idle."""
    gateway.ask()
    count, before = 500, gateway.resident()
    with contextlib.ExitStack() as held:
        idle = [held.enter_context(gateway.client()) for _ in range(count)]
        for sock in idle:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        for sock in idle:
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        assert (gateway.resident() - before) / count < 20 * 1024
        begin(gateway)
        stream = held.enter_context(gateway.client())
        stream.sendall(post(STREAM))
        assert stream.recv(65536)
        gateway.apply(limits={"idle_s": 1.0})
        began, spent = time.monotonic(), Spent()
        fresh = held.enter_context(gateway.client())
        fresh.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        drain(fresh)
        assert time.monotonic() - began > 0.9 and spent() < 10
        stream.settimeout(1)
        with pytest.raises(TimeoutError):
            drain(stream)
