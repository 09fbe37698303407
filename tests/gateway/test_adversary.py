"""What an adversary found: places where two things happen at once, or a side does what nobody sensible does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvloop
from gateway.standalone import CHUNKED, LAST, Answer, Standalone, chunk, drain, post, whole
from support.wait import undisturbed, wait_until

from llmsupervisor.gateway import bodies
from llmsupervisor.gateway.board import Board
from llmsupervisor.gateway.bodies import Parser
from llmsupervisor.gateway.exchange import Arrived, Exchange
from llmsupervisor.gateway.fetch import Fetch
from llmsupervisor.gateway.guard import Client
from llmsupervisor.gateway.history import History
from llmsupervisor.gateway.hub import Hub
from llmsupervisor.gateway.metrics import Metrics, Moment
from llmsupervisor.gateway.reaper import Reaper
from llmsupervisor.gateway.route import Refusal

ALIAS = {"model": "smollm2", "messages": []}
"""Its answer is held for the filter, and then written at once."""
HOLD: dict[str, Any] = {"state": "hold", "reason": "STARTING"}
MIB = 1024**2


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


# --- slow clients ----------------------------------------------------------------------------------------------------


def test_a_stalled_client_holds_the_engine_of_its_next_request_back(gateway: Standalone) -> None:
    """It begins when the first answer is taken."""
    done = threading.Event()

    def act(sock: socket.socket, request: bytes) -> None:
        if len(gateway.engine.requests) == 1:
            sock.sendall(whole(b'{"model": "chat", "x": "' + b"x" * 12 * MIB + b'"}'))
            return
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (24 * MIB))
        for _ in range(24):
            sock.sendall(bytes(MIB))
        done.set()

    gateway.engine.act = act
    gateway.apply(model="chat")
    with gateway.client() as sock:
        sock.sendall(post(ALIAS) + post(headers="Connection: close\r\n"))
        assert not done.wait(1), "24 MiB are in the gateway"
        assert sum(map(len, iter(lambda: sock.recv(MIB), b""))) > 36 * MIB and done.wait(60)


def test_a_slow_reader_that_goes_on_reading_is_not_dropped(gateway: Standalone) -> None:
    long = whole(b'{"model": "chat", "x": "' + b"x" * 10 * MIB + b'"}')
    gateway.engine.act = lambda sock, request: sock.sendall(long)
    gateway.apply(model="chat", limits={"write_stall_s": 4})
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * 1024)
        sock.settimeout(60)
        sock.connect(("127.0.0.1", gateway.port))
        sock.sendall(post(ALIAS, headers="Connection: close\r\n"))
        data = bytearray()
        while piece := sock.recv(MIB, socket.MSG_WAITALL):
            data += piece
            time.sleep(0.3)
    assert data.endswith(b'"}') and len(data) > 10 * MIB


def test_requests_ahead_of_their_answers_are_bounded(gateway: Standalone) -> None:
    """By number while one runs, and by what their client takes where they are answered at once."""
    before, ask = gateway.resident(), b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    with gateway.client() as sock:
        sock.settimeout(1)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(3000):
                sock.sendall(ask * 50)
        assert gateway.resident() - before < 24 * MIB


def test_writing_to_who_has_gone_is_no_error(gateway: Standalone) -> None:
    gone = threading.Event()

    def act(sock: socket.socket, request: bytes) -> None:
        sock.sendall(CHUNKED)
        while not gone.is_set():
            sock.sendall(chunk(b"data: 1\n\n"))

    gateway.engine.act = act
    gateway.apply(parallel=None)
    for _ in range(20):
        with gateway.client() as sock:
            sock.sendall(post({"model": "chat", "stream": True}))
            sock.recv(65536)
    gone.set()
    wait_until(lambda: gateway.running() == 0, 5, "no leases")
    assert "Error" not in gateway.output.read_text()


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/chat/completions"])
def test_a_refused_head_has_no_body(gateway: Standalone, path: str) -> None:
    """Its bytes would be read as the next answer."""
    with gateway.client() as sock:
        sock.sendall(
            f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        )
        head, _, rest = drain(sock).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 40") and rest.startswith(b"HTTP/1.1 200 OK\r\n")


def test_an_offer_of_http_2_is_ignored(gateway: Standalone) -> None:
    """Java's client makes it by default; its body is the body of this request, whatever stands in it."""
    offer = "Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAA\r\nUpgrade: h2c\r\n"
    with gateway.client() as sock:
        sock.sendall(post({"model": "chat", "prompt": "\r\nUpgrade: h2c\r\n"}, headers=offer))
        assert sock.recv(65536).endswith(b"ok")
        text = b'{"model": "chat"}\r\nUpgrade: h2c\r\n'
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
            % len(text)
        )
        sock.sendall(head + text)
        assert Answer(drain(sock)).code == "invalid_json", "as it came"
    assert gateway.engine.said()[0]["prompt"] == "\r\nUpgrade: h2c\r\n"


def test_headers_within_the_limit_that_come_in_pieces(gateway: Standalone) -> None:
    headers = "".join(f"X-{i}: {'v' * 1000}\r\n" for i in range(50))
    request = f"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n".encode()
    with gateway.client() as sock:
        for start in range(0, len(request), 8192):
            sock.sendall(request[start : start + 8192])
            time.sleep(0.01)
        assert Answer(drain(sock)).status == 200


def test_an_endless_trailer(gateway: Standalone) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    before = gateway.resident()
    with gateway.client() as sock:
        sock.sendall(head + b"2\r\n{}\r\n0\r\nX-Trailer: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                sock.sendall(b"x" * MIB)
        assert gateway.resident() - before < 24 * MIB


def test_http_1_0_is_closed_after_its_answer(gateway: Standalone) -> None:
    """Nothing in our answer says that the connection stays."""
    with gateway.client() as sock:
        sock.sendall(b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert Answer(drain(sock)).status == 200


# --- waiting ---------------------------------------------------------------------------------------------------------


def test_a_page_whose_stream_waits_may_read_it(gateway: Standalone) -> None:
    gateway.engine.act = lambda sock, request: sock.sendall(CHUNKED + chunk(b"data: 1\n\n") + LAST)
    limits = {"comment_s": 0.05, "origins": ["https://page.example"]}
    gateway.apply(**HOLD, limits=limits)
    with gateway.client() as sock:
        sock.sendall(
            post({"model": "chat", "stream": True}, headers="Origin: https://page.example\r\nConnection: close\r\n")
        )
        head = sock.recv(65536)
        gateway.apply(limits=limits)
        answer = Answer(head + drain(sock))
    assert answer.headers["Access-Control-Allow-Origin"] == "https://page.example" and b"data: 1\n\n" in answer.body


def test_what_is_removed_is_refused_at_once(gateway: Standalone) -> None:
    gateway.apply(**HOLD)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(gateway.ask)
        wait_until(lambda: gateway.queued() == 1, 5, "one waits")
        gateway.apply(target="other", service="other", endpoint="other@1", names=["other"])
        answer = waiting.result(60)
    assert answer.status == 503 and answer.code == "unavailable"


def test_a_slow_upload_has_its_time_in_the_queue(gateway: Standalone) -> None:
    limits = {"queue_deadline_s": 5}
    gateway.apply(**HOLD, limits=limits)
    request = post(headers="Connection: close\r\n")
    with gateway.client() as sock:
        sock.sendall(request[:-1])
        time.sleep(5.1)
        sock.sendall(request[-1:])
        wait_until(lambda: gateway.queued() == 1, 5, "it waits")
        time.sleep(0.3)
        gateway.apply(limits=limits)
        assert Answer(drain(sock)).status == 200


def test_a_head_that_comes_long_before_the_first_token(gateway: Standalone) -> None:
    """vLLM sends it at once, and then reads a long prompt."""

    def act(sock: socket.socket, request: bytes) -> None:
        sock.sendall(CHUNKED)
        time.sleep(2.2)
        sock.sendall(chunk(b"data: 1\n\n") + LAST)

    gateway.engine.act = act
    gateway.apply(limits={"silence_s": 0.5})
    answer = gateway.ask({"model": "chat", "stream": True})
    assert answer.complete and answer.body == b"data: 1\n\n"


def test_a_terminate_while_requests_wait_and_run(gateway: Standalone) -> None:
    """Who waited hears why, who ran too, and both are on record."""
    hang = threading.Event()
    gateway.engine.act = lambda sock, request: (hang.wait(100), None)[1]
    gateway.apply(parallel=1)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(gateway.say, post())
        wait_until(lambda: gateway.running() == 1, 5, "one runs")
        waiting = pool.submit(gateway.ask)
        wait_until(lambda: gateway.queued() == 1, 5, "one waits")
        gateway.process.send_signal(signal.SIGTERM)
        answer = waiting.result(60)
        assert answer.status == 503 and answer.headers["Retry-After"]
        cut = Answer(running.result(60))
        assert cut.status == 502 and "cut off by the gateway, which is ending" in cut.error["message"]
        gateway.process.wait(60)
        hang.set()
    assert sorted(record["finish_reason"] for record in gateway.records(2)) == ["engine_exit", "rejected"]


# --- records ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{"max_tokens": 10**30}, {"user": "\ud800"}], ids=["number", "surrogate"])
def test_nothing_that_a_client_says_keeps_it_out_of_the_records(gateway: Standalone, more: dict[str, Any]) -> None:
    assert gateway.ask({"model": "chat", **more}).status == 200
    assert gateway.records(1)


def test_no_record_is_as_long_as_the_name_that_was_asked_for(gateway: Standalone) -> None:
    assert gateway.ask({"model": "m" * 500_000}).status == 404
    assert len(gateway.records(1)[0]["model"]) < 1000


# --- the parser of large bodies --------------------------------------------------------------------------------------

LARGE = json.dumps({"model": "chat", "prompt": "x" * 2 * MIB}).encode()


async def read(parser: Parser) -> float:
    """Seconds that the loop was held up by one large body at most."""
    worst, last, task = 0.0, time.monotonic(), asyncio.ensure_future(parser.body(LARGE).read("completions", None))
    while not task.done():
        await asyncio.sleep(0.001)
        worst, last = max(worst, time.monotonic() - last), time.monotonic()
    found = task.result()
    assert not isinstance(found, Refusal) and found.model == "chat"
    return worst


def test_a_parser_is_not_ended_while_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "IDLE", 1.0)

    async def main() -> None:
        parser = Parser()
        await read(parser)
        process = parser._process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        asyncio.get_running_loop().call_later(1.5, os.kill, process.pid, signal.SIGCONT)
        await read(parser)
        kept = parser._process
        parser.end()
        await process.wait()
        assert kept is process

    undisturbed(lambda: run(main))


def test_a_parser_that_died_is_started_anew_and_one_that_hangs_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        parser = Parser()
        await read(parser)
        first = parser._process
        assert first is not None
        first.kill()
        await first.wait()
        await read(parser)
        assert parser._process is not None and parser._process is not first
        os.kill(parser._process.pid, signal.SIGSTOP)
        second = parser._process
        monkeypatch.setattr(bodies, "LONGEST", 1.0)
        async with asyncio.timeout(60):
            await read(parser)
        await second.wait()

    run(main)


def test_a_terminate_ends_the_parser(gateway: Standalone) -> None:
    assert gateway.ask({"model": "chat", "prompt": "x" * 2 * MIB}).status == 200
    children = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children")
    (child,) = children.read_text().split()
    gateway.process.terminate()
    assert gateway.process.wait(60) == 0 and gateway.output.read_text() == ""
    wait_until(lambda: not Path(f"/proc/{child}").exists(), 5, "the end of its child")


# --- ends ------------------------------------------------------------------------------------------------------------


def test_a_client_that_goes_before_its_request_has_begun(tmp_path: Path) -> None:
    """A task that is cancelled before its first step never runs: its record and its place are seen to all the same."""

    class Nobody:
        def write(self, data: bytes) -> None: ...
        def refused(self, refusal: Refusal, headers: object = ()) -> None: ...
        def ended(self, reusable: bool) -> None: ...
        def cut(self, reset: bool) -> None: ...

    async def main() -> None:
        board, fetch, history = Board(tmp_path / "view"), Fetch(), History(tmp_path / "db")
        hub = Hub(board, fetch, Reaper(board, fetch), history, Metrics(Moment))
        came = Arrived(Client("", None, 1.0, ""), "", "completions", "/v1/completions", {}, (), b"{}", 0.0)
        exchange = Exchange(hub, Nobody(), came)
        exchange.cancel()
        await asyncio.wait([exchange.task])
        assert not hub.exchanges and exchange.gone == "client_gone"
        history.close()

    run(main)
