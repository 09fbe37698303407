"""What waits: for a target that loads, restarts or drains, for a free place, and what a client hears meanwhile."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from gateway.standalone import CHUNKED, LAST, Answer, Engine, Standalone, chunk, drain, post, whole
from support.wait import Spent, wait_until

STREAM = {"model": "chat", "messages": [], "stream": True}
HOLD: dict[str, Any] = {"state": "hold", "reason": "STARTING: loading model"}


def slowly(sock: socket.socket, request: bytes) -> bytes:
    time.sleep(0.005)
    return whole(b"{}")


def asked(gateway: Standalone, pool: ThreadPoolExecutor, n: int, body: object = None) -> list[Future[Answer]]:
    """So many requests that wait."""
    found = [pool.submit(gateway.ask, body) for _ in range(n)]
    wait_until(lambda: gateway.queued() == n, 10, f"{n} requests in the queue")
    return found


@pytest.mark.parametrize("state", ["hold", "drain"])
def test_a_request_waits_for_what_comes_back(gateway: Standalone, state: str) -> None:
    gateway.apply(state=state, reason="RESTARTING")
    with ThreadPoolExecutor() as pool:
        waiting = asked(gateway, pool, 5)
        assert gateway.engine.requests == [] and not any(each.done() for each in waiting)
        spent = Spent()
        gateway.apply(endpoint="chat@2")
        assert [each.result().status for each in waiting] == [200] * 5
        assert spent() < 1


def test_what_is_gone_is_refused_at_once(gateway: Standalone) -> None:
    """Also what waited for it while it was not."""
    gateway.apply(**HOLD)
    with ThreadPoolExecutor() as pool:
        (waiting,) = asked(gateway, pool, 1)
        gateway.apply(state="gone", reason="STOPPED: stopped by root")
        answer = waiting.result(20)
    spent = Spent()
    for each in (answer, gateway.ask()):
        assert each.status == 503 and each.code == "unavailable" and each.headers["Retry-After"] == "60"
        assert "stopped by root" in each.error["message"]
    gateway.apply(state="gone", reason="FAILED: 5 failures", retry_at=math.ceil(time.time()) + 600)
    assert 560 <= int(gateway.ask().headers["Retry-After"]) <= 601
    assert spent() < 1
    assert gateway.get("/readyz").status == 503


def test_the_deadline_of_the_queue(gateway: Standalone) -> None:
    gateway.apply(**HOLD, limits={"queue_deadline_s": 0.5})
    began, spent = time.monotonic(), Spent()
    answer = gateway.ask()
    assert time.monotonic() - began > 0.4 and spent() < 5
    assert answer.status == 503 and answer.code == "queue_timeout" and int(answer.headers["Retry-After"]) >= 1
    assert "loading model" in answer.error["message"]
    assert gateway.engine.requests == [] and gateway.queued() == 0


def test_a_full_queue(gateway: Standalone) -> None:
    limits = {"queue_size": 3, "queue_deadline_s": 100}
    gateway.apply(**HOLD, limits=limits)
    with ThreadPoolExecutor() as pool:
        waiting = asked(gateway, pool, 3)
        answer = gateway.ask()
        assert answer.status == 503 and answer.code == "queue_full" and int(answer.headers["Retry-After"]) >= 1
        gateway.apply(limits=limits)
        assert [each.result().status for each in waiting] == [200] * 3


def test_comments_while_a_stream_waits(gateway: Standalone) -> None:
    """From the first one on it is a stream: what comes of it is its end, or an event."""
    gateway.engine.act = lambda sock, request: sock.sendall(CHUNKED + chunk(b"data: 1\n\n") + LAST)
    gateway.apply(**HOLD, limits={"comment_s": 0.05, "queue_deadline_s": 100})
    with gateway.client() as sock:
        sock.sendall(post(STREAM, headers="Connection: close\r\n"))
        head = sock.recv(65536)
        wait_until(lambda: sock.recv(65536), 5, "a comment")
        gateway.apply(limits={"comment_s": 0.05})
        answer = Answer(head + drain(sock))
    assert answer.status == 200 and answer.headers["Content-Type"].startswith("text/event-stream") and answer.complete
    waited, _, rest = answer.body.partition(b"data: 1\n\n")
    assert waited and waited.replace(b": waiting\n\n", b"") == b"" and rest == b""


def test_an_error_after_comments_is_an_event(gateway: Standalone) -> None:
    gateway.apply(**HOLD, limits={"comment_s": 0.05, "queue_deadline_s": 2})
    answer = gateway.ask(STREAM)
    assert answer.status == 200 and answer.body.startswith(b": waiting\n\n") and answer.code == "queue_timeout"
    assert not answer.complete, "a failure never looks like an end"


def test_a_refusal_of_the_engine_after_comments_is_an_event(gateway: Standalone) -> None:
    """Its body is what the event says."""
    refused = b'{"error": {"code": 400, "message": "\'messages\' is required", "type": "invalid_request_error"}}'
    gateway.engine.act = lambda sock, request: sock.sendall(whole(refused, b"HTTP/1.1 400 Bad Request"))
    gateway.apply(**HOLD, limits={"comment_s": 0.05})
    with gateway.client() as sock:
        sock.sendall(post(STREAM, headers="Connection: close\r\n"))
        head = sock.recv(65536)
        gateway.apply()
        answer = Answer(head + drain(sock))
    assert answer.status == 200 and "'messages' is required" in answer.error["message"]


def test_who_did_not_ask_for_a_stream_hears_nothing_meanwhile(gateway: Standalone) -> None:
    gateway.apply(**HOLD, limits={"comment_s": 0.05})
    with gateway.client() as sock:
        sock.sendall(post(headers="Connection: close\r\n"))
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(60)
        gateway.apply()
        assert Answer(drain(sock)).body == b"ok"


def test_never_more_in_flight_than_parallel(gateway: Standalone) -> None:
    """Replicas behind one name: each has its own bound, and both work."""
    other = Engine()
    for engine in (gateway.engine, other):
        engine.act = slowly
    twin = {"service": "twin", "target": "twin", "endpoint": "twin@1", "address": other.address, "parallel": 1}
    gateway.apply(parallel=3, more=[twin])
    with ThreadPoolExecutor(40) as pool:
        assert {answer.status for answer in pool.map(lambda _: gateway.ask(), range(120))} == {200}
    assert gateway.engine.most <= 3 and other.most == 1
    assert len(gateway.engine.requests) + len(other.requests) == 120 and len(other.requests) > 10
    other.close()


def test_never_more_tokens_in_flight_than_kv_tokens(gateway: Standalone) -> None:
    """Prompt and `max_tokens`; one that needs more than all is taken where it is alone."""
    gateway.engine.act = slowly
    gateway.apply(parallel=4, kv_tokens=1000)

    def most(max_tokens: int) -> int:
        gateway.engine.most = 0
        with ThreadPoolExecutor(12) as pool:
            bodies = [{"model": "chat", "messages": [], "max_tokens": max_tokens}] * 24
            assert {answer.status for answer in pool.map(gateway.ask, bodies)} == {200}
        return gateway.engine.most

    assert most(400) <= 2
    assert most(600) == most(5000) == 1


def test_parallel_that_shrinks_and_grows_while_requests_run(gateway: Standalone) -> None:
    gate = threading.Semaphore(0)

    def act(sock: socket.socket, request: bytes) -> bytes:
        gate.acquire()
        return whole(b"{}")

    gateway.engine.act = act
    gateway.apply(parallel=4)
    with ThreadPoolExecutor(10) as pool:
        answers = [pool.submit(gateway.ask) for _ in range(10)]
        wait_until(lambda: gateway.engine.in_flight == 4, 5, "four in flight")
        gateway.apply(parallel=1)
        for _ in range(4):
            gate.release()
        wait_until(lambda: gateway.engine.in_flight == 1 and sum(a.done() for a in answers) == 4, 5, "one in flight")
        gateway.apply(parallel=3)
        wait_until(lambda: gateway.engine.in_flight == 3, 5, "three in flight")
        for _ in range(6):
            gate.release()
        assert {answer.result().status for answer in answers} == {200}
    assert gateway.engine.most == 4


def test_a_prompt_that_does_not_fit(gateway: Standalone) -> None:
    """The same words for every runtime, both numbers in them; or it goes where there is room."""
    big = Engine()
    big.act = lambda sock, request: sock.sendall(whole(b'{"model": "big"}'))
    more = {"service": "big", "target": "big", "endpoint": "big@1", "address": big.address, "names": ["big"]}
    count = {"chat.completions": {"path": "/count", "body": None, "answer": "input_tokens"}}

    def act(sock: socket.socket, request: bytes) -> None:
        sock.sendall(whole(b'{"input_tokens": 900}' if request.startswith(b"POST /count") else b"{}"))

    gateway.engine.act = act
    limits = {"context_length": 1000, "traits": {"count": count}}
    gateway.apply(**limits, more=[{**more, "context_length": 8000, "model": "big"}])
    long = {"model": "chat", "messages": [{"role": "user", "content": "word " * 900}], "max_tokens": 200}
    answer = gateway.ask(long)
    assert answer.status == 400 and answer.code == "context_length_exceeded"
    assert all(number in answer.error["message"] for number in ("900", "200", "1000"))
    assert gateway.ask({**long, "max_tokens": 100}).status == 200
    assert gateway.ask({**long, "messages": [{"role": "user", "content": "word"}]}).status == 200
    assert [r.split()[1] for r in gateway.engine.requests].count(b"/count") == 2, "only where it is near the limit"

    gateway.apply(**limits, overflow="big", more=[{**more, "context_length": 8000, "model": "big"}])
    assert gateway.ask(long).json == {"model": "chat"} and big.said()[0]["model"] == "big"
    big.close()


def test_no_more_than_four_prompts_are_counted_at_once(gateway: Standalone) -> None:
    """The others wait for their turn, and each is counted."""

    def act(sock: socket.socket, request: bytes) -> bytes:
        time.sleep(0.02)
        return whole(b'{"input_tokens": 1200}')

    gateway.engine.act = act
    count = {"chat.completions": {"path": "/count", "body": None, "answer": "input_tokens"}}
    gateway.apply(context_length=1000, traits={"count": count})
    long = {"model": "chat", "messages": [{"role": "user", "content": "word " * 900}]}
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: gateway.ask(long), range(40)))
    assert {answer.code for answer in answers} == {"context_length_exceeded"}
    assert len(gateway.engine.requests) == 40 and gateway.engine.most == 4


@pytest.mark.parametrize(
    ("usage", "truncated", "told"),
    [(250, True, "engine"), (900, False, "engine"), (None, False, "estimate")],
    ids=["cut", "whole", "nothing said"],
)
def test_a_prompt_that_nobody_counts(gateway: Standalone, usage: int | None, truncated: bool, told: str) -> None:
    """It is neither refused nor cut in silence: sent, and the record says that it is a guess. The tokenizer is asked once."""
    said = {"choices": [], "usage": {"prompt_tokens": usage, "completion_tokens": 1}} if usage else {"choices": []}

    def act(sock: socket.socket, request: bytes) -> None:
        counts = request.startswith(b"POST /count")
        sock.sendall(whole(b"{}", b"HTTP/1.1 500 no") if counts else whole(json.dumps(said).encode()))

    gateway.engine.act = act
    count = {"chat.completions": {"path": "/count", "body": None, "answer": "input_tokens"}}
    gateway.apply(context_length=1000, traits={"count": count})
    assert gateway.ask({"model": "chat", "messages": [{"role": "user", "content": "word " * 900}]}).status == 200
    assert [r.split()[1] for r in gateway.engine.requests] == [b"/count", b"/v1/chat/completions"]
    (record,) = gateway.records(1)
    guess = 4500 // 3 + 16 + 4
    assert record["truncated"] is truncated and record["sources"]["prompt_tokens_estimate"] == str(guess)
    assert record["prompt_tokens"] == (usage or guess) and record["sources"].get("prompt_tokens", "engine") == told
