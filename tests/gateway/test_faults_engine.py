"""Faults of engines on the wire, and of many requests at once: W10–W12, W17–W20, W23 of the catalogue."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from gateway.standalone import CHUNKED, LAST, Answer, Engine, Standalone, chunk, drain, key, post, reset, whole
from support.wait import Spent, undisturbed, wait_until

STREAM = {"model": "chat", "messages": [], "stream": True}
FOX = 'data: {"choices":[{"delta":{"content":"né🦊日本"}}]}\n\n'.encode()
DONE = b"data: [DONE]\n\n"


def slowly(sock: socket.socket, request: bytes) -> bytes:
    time.sleep(0.002)
    return whole(b"{}")


def test_a_request_that_is_more_than_sockets_hold_comes_whole(gateway: Standalone) -> None:
    said = {"model": "chat", "messages": [{"role": "user", "content": "x" * 8 * 1024**2}]}
    answer = gateway.ask(said)
    assert answer.status == 200 and answer.body == b"ok"
    assert gateway.engine.said() == [said]


# --- engines that die ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [socket.socket.close, reset], ids=["closed", "reset"])
def test_W10_an_engine_that_dies_before_it_answers(gateway: Standalone, end: Any) -> None:
    gateway.engine.act = lambda sock, request: end(sock)
    spent = Spent()
    answer = gateway.ask()
    assert answer.status == 502 and answer.code == "upstream_failed" and "clos" in answer.error["message"]
    assert spent() < 1
    assert gateway.hear("bad")["endpoint"] == "chat@1"
    assert len(gateway.engine.requests) == 1, "a POST is sent once"
    wait_until(lambda: gateway.running() == 0, 5, "the lease to be given back")


def test_W11_an_engine_that_dies_in_a_stream(gateway: Standalone) -> None:
    def act(sock: socket.socket, request: bytes) -> None:
        sock.sendall(CHUNKED + chunk(b"data: 1\n\ndata: ha"))
        sock.close()

    gateway.engine.act = act
    answer = gateway.ask(STREAM)
    assert answer.body.startswith(b"data: 1\n\ndata: ha\n\nevent: error\ndata: {")
    assert answer.error["type"] == "server_error" and answer.body.endswith(b"}\n\n")
    assert not answer.complete, "it never looks complete"
    assert gateway.hear("bad") == {"type": "bad", "endpoint": "chat@1", "kind": "reset"}


def test_W11_an_engine_that_dies_inside_a_chunk(gateway: Standalone) -> None:
    def act(sock: socket.socket, request: bytes) -> None:
        sock.sendall(CHUNKED + b"20\r\ndata: ha")
        sock.close()

    gateway.engine.act = act
    answer = gateway.ask(STREAM)
    assert answer.data == CHUNKED + b"20\r\ndata: ha" and not answer.complete


def test_W11_an_engine_that_dies_in_a_sized_answer(gateway: Standalone) -> None:
    def act(sock: socket.socket, request: bytes) -> None:
        sock.sendall(whole(b'{"a": 1}')[:-3])
        sock.close()

    gateway.engine.act = act
    answer = gateway.ask()
    assert answer.body == b'{"a":' and not answer.complete


def test_W11_a_stream_framed_by_its_end_is_reset(gateway: Standalone) -> None:
    """An engine that is reset there leaves nothing that shows the cut but a reset, or an error event."""

    def act(sock: socket.socket, request: bytes) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        time.sleep(0.05)
        reset(sock)

    gateway.engine.act = act
    answer = gateway.ask(STREAM)
    assert answer.error["code"] == "upstream_failed"


def test_W11_who_waits_is_not_sent_to_an_engine_that_is_dying(gateway: Standalone) -> None:
    """The kernel closes the connections of a killed process before the socket that takes new ones."""
    gateway.apply(parallel=1)
    dead, asked = threading.Event(), threading.Event()

    def breaks(sock: socket.socket, request: bytes) -> None:
        sock.sendall(CHUNKED + chunk(b"data: 1\n\n"))
        wait_until(lambda: gateway.queued() == 1, 20, "one that waits for the place")
        reset(sock)

    def dies(sock: socket.socket, request: bytes) -> None:
        asked.set()
        dead.wait(60)
        reset(sock)

    gateway.engine.act, gateway.engine.health = breaks, dies
    after = Engine()
    with contextlib.closing(after), ThreadPoolExecutor() as pool:
        streaming = pool.submit(gateway.ask, STREAM)
        wait_until(lambda: gateway.running() == 1, 10, "the stream at the engine")
        waiting = pool.submit(gateway.ask)
        assert streaming.result().error["code"] == "upstream_failed"
        assert asked.wait(60) and gateway.running() == 0 and not waiting.done()
        gateway.apply(endpoint="chat@2", address=after.address)
        dead.set()
        assert waiting.result().status == 200
        assert len(gateway.engine.requests) == 1 and len(after.requests) == 1


def test_an_engine_that_breaks_off_and_lives_is_asked_on(gateway: Standalone) -> None:
    """Who makes it break off holds up nobody for longer than one question takes."""

    def act(sock: socket.socket, request: bytes) -> bytes | None:
        if b"bad" not in request:
            return whole(b"{}")
        reset(sock)
        return None

    gateway.engine.act = act
    with ThreadPoolExecutor(20) as pool:
        spent = Spent()
        bad = [pool.submit(gateway.ask, {"model": "chat", "messages": [], "user": "bad"}) for _ in range(50)]
        good = [pool.submit(gateway.ask) for _ in range(50)]
        assert {each.result().status for each in good} == {200} and {each.result().status for each in bad} == {502}
        assert spent() < 20
    assert 1 <= gateway.engine.asked <= 50 and len(gateway.engine.requests) == 100


def test_W12_an_engine_that_hangs_mid_stream(gateway: Standalone) -> None:
    """One that says anything at all, be it a comment, does not hang."""
    gateway.apply(limits={"silence_s": 3})

    def act(sock: socket.socket, request: bytes) -> None:
        sock.sendall(CHUNKED + chunk(b"data: 1\n\n"))
        for _ in range(12):
            time.sleep(0.3)
            sock.sendall(chunk(b": alive\n\n"))
        sock.recv(1)

    gateway.engine.act = act
    began = time.monotonic()
    answer = gateway.ask(STREAM)
    assert time.monotonic() - began > 6.5
    assert answer.body.count(b": alive") == 12 and not answer.complete
    assert answer.error["type"] == "server_error"
    assert gateway.engine.hung_up.wait(60) and gateway.hear("bad")["endpoint"] == "chat@1"
    wait_until(lambda: gateway.running() == 0, 5, "the lease to be given back")


# --- many at once -------------------------------------------------------------------------------------------------


def test_W17_a_switch_under_load(gateway: Standalone) -> None:
    """Streams at the one end whole while it drains; what is for the other waits, as far as there is room."""
    gate = threading.Event()

    def act(sock: socket.socket, request: bytes) -> None:
        if json.loads(request.partition(b"\r\n\r\n")[2])["model"] != "a":
            sock.sendall(whole(b'{"model": "b"}'))
            return
        sock.sendall(CHUNKED + chunk(FOX))
        assert gate.wait(100)
        sock.sendall(chunk(DONE) + LAST)

    gateway.engine.act = act
    a = {"target": "a", "service": "a", "endpoint": "a@1", "names": ["a"], "model": "a", "parallel": 50}
    b = {"target": "b", "service": "b", "endpoint": "b@1", "names": ["b"], "model": "b"}
    limits = {"queue_size": 5, "queue_deadline_s": 100}
    gateway.apply(**a, more=[{**b, "state": "hold", "address": None, "reason": "IDLE"}], limits=limits)
    with ThreadPoolExecutor(50) as pool:
        streams = [pool.submit(gateway.ask, {**STREAM, "model": "a"}) for _ in range(40)]
        wait_until(lambda: gateway.engine.in_flight == 40, 10, "the streams")
        gateway.apply(**{**a, "state": "drain"}, more=[{**b, "state": "hold", "address": None}], limits=limits)
        waiting = [pool.submit(gateway.ask, {"model": "b"}) for _ in range(6)]
        wait_until(lambda: any(each.done() for each in waiting), 10, "one too many")
        full = next(each for each in waiting if each.done()).result()
        assert full.status == 503 and full.code == "queue_full" and int(full.headers["Retry-After"]) >= 1
        assert sum(each.done() for each in waiting) == 1
        gate.set()
        assert all(each.result().complete and each.result().body == FOX + DONE for each in streams)
        gateway.apply(**{**a, "state": "gone"}, more=[b], limits=limits)
        assert sorted(each.result().status for each in waiting) == [200] * 5 + [503]


def test_W18_a_herd_at_ready(gateway: Standalone) -> None:
    """Never more in flight than `parallel`, nobody forgotten, and one client cannot keep the others waiting."""
    keys = [key("many", "k-many"), key("few", "k-few")]
    gateway.engine.act = slowly
    gateway.apply(state="hold", address=None, keys=keys, parallel=3)

    def ask(name: str) -> int:
        body = {"model": "chat", "prompt": "x" * 8192, "user": name}
        return gateway.ask(body, headers=f"Authorization: Bearer k-{name}\r\n").status

    with ThreadPoolExecutor(220) as pool:
        asked = [pool.submit(ask, "many") for _ in range(200)]
        wait_until(lambda: gateway.queued() == 200, 10, "the herd")
        asked += [pool.submit(ask, "few") for _ in range(10)]
        wait_until(lambda: gateway.queued() == 210, 10, "all of it")
        gateway.apply(keys=keys, parallel=3)
        assert {each.result() for each in asked} == {200}
    assert gateway.engine.most <= 3
    assert max(i for i, said in enumerate(gateway.engine.said()) if said["user"] == "few") < 60
    assert len(gateway.engine.requests) == 210
    wait_until(lambda: gateway.running() == 0, 5, "the lease to be given back")


def test_W19_a_restart_behind_kept_connections(gateway: Standalone) -> None:
    """Not one request goes to the old process, and not one fails."""
    old, new = gateway.engine, Engine()

    def another(n: int) -> None:
        for sock in clients:
            sock.sendall(post())
        assert [sock.recv(65536).split()[1] for sock in clients] == [b"200"] * len(clients)
        assert (len(old.requests), len(new.requests)) == (10, n)

    gateway.apply(parallel=None)
    clients = [gateway.client() for _ in range(10)]
    another(0)
    gateway.apply(parallel=None, state="drain")
    old.close()
    gateway.apply(parallel=None, endpoint="chat@2", address=new.address)
    another(10)
    another(20)
    new.close()
    for sock in clients:
        sock.close()


def test_W19_W20_an_engine_that_closes_after_each_answer(gateway: Standalone) -> None:
    """Though it had promised to keep the connection: no request is lost in the race, and none is sent twice."""

    def act(sock: socket.socket, request: bytes) -> None:
        sock.sendall(whole(b"{}"))
        sock.close()

    gateway.engine.act = act
    with gateway.client() as sock:
        for i in range(100):
            sock.sendall(post({"model": "chat", "user": str(i)}))
            assert sock.recv(65536).split()[1] == b"200"
    assert [said["user"] for said in gateway.engine.said()] == [str(i) for i in range(100)]


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 O", CHUNKED, b"\0\1\2", whole(b"{}", b"HTTP/1.1 500 X")])
def test_W20_a_request_is_sent_once_whatever_happens(gateway: Standalone, sent: bytes) -> None:
    def act(sock: socket.socket, request: bytes) -> None:
        sock.sendall(sent)
        reset(sock) if len(sent) < 20 else sock.close()

    gateway.engine.act = act
    before = gateway.descriptors()
    answer = gateway.say(post(headers="Connection: close\r\n"))
    assert not answer or Answer(answer).status in (200, 500, 502)
    wait_until(lambda: gateway.descriptors() == before, 5, "its connections to be closed")
    assert len(gateway.engine.requests) == 1
    wait_until(lambda: gateway.running() == 0, 5, "the lease to be given back")


def test_W20_pipelined_requests_are_each_sent_once(gateway: Standalone) -> None:
    with gateway.client() as sock:
        last = post({"model": "chat", "user": "19"}, headers="Connection: close\r\n")
        sock.sendall(b"".join(post({"model": "chat", "user": str(i)}) for i in range(19)) + last)
        assert drain(sock).count(b"HTTP/1.1 200") == 20
    assert [said["user"] for said in gateway.engine.said()] == [str(i) for i in range(20)]


# --- figures that cannot be --------------------------------------------------------------------------------------------

TIMING = {
    "prefill_ms": "timings.prompt_ms",
    "decode_ms": "timings.predicted_ms",
    "prompt_tokens": "usage.prompt_tokens",
}
SAID = {
    "absurd": '"prompt_ms":1e12,"predicted_ms":-5',
    "endless": '"prompt_ms":1e999,"predicted_ms":99999999999999999999999999999',
    "no numbers": '"prompt_ms":"7","predicted_ms":null',
    "of other kinds": '"prompt_ms":[1],"predicted_ms":{"a":1}',
    "flags": '"prompt_ms":true,"predicted_ms":false',
}


def figures(gateway: Standalone, said: str) -> tuple[dict[str, Any], float, float]:
    """The record of an answer whose engine says something else than how long it took, and how long that was: its prefill
    and its decode in milliseconds, 300 and 600. They are put into `said`."""
    took, ends = {"prefill": 0.0, "decode": 0.0}, list[bytes]()

    def act(sock: socket.socket, request: bytes) -> None:
        for name, seconds in (("prefill", 0.3), ("decode", 0.6)):
            began = time.monotonic()
            time.sleep(seconds)
            took[name] = 1000 * (time.monotonic() - began)
            if name == "prefill":
                sock.sendall(CHUNKED + chunk(FOX))
        text = f'data: {{"choices":[{{"delta":{{}},"finish_reason":"stop"}}],"timings":{{{said % took}}}}}\n\n'
        ends.append(text.encode() + DONE)
        sock.sendall(chunk(FOX) + chunk(ends[0]) + LAST)

    gateway.engine.act = act
    assert gateway.ask(STREAM).body == FOX + FOX + ends[0]
    return gateway.records(len(gateway.engine.requests))[-1], took["prefill"], took["decode"]


def near(found: float, took: float) -> bool:
    return took - 10 < found < took + 100


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_W23_absurd_figures_are_told_and_not_believed(gateway: Standalone, said: str) -> None:
    gateway.apply(traits={"timing": TIMING})

    def ours() -> None:
        record, prefill, decode = figures(gateway, said)
        assert near(record["prefill_ms"], prefill) and near(record["decode_ms"], decode)
        assert record["sources"]["prefill_ms"] == record["sources"]["decode_ms"] == "gateway"
        if "e12" in said:
            assert float(record["sources"]["prefill_ms_engine"]) == 1e12
            assert float(record["sources"]["decode_ms_engine"]) == -5

    undisturbed(ours)


def test_W23_figures_that_differ_are_marked(gateway: Standalone) -> None:
    gateway.apply(traits={"timing": TIMING})

    def one_of_two() -> None:
        record, prefill, decode = figures(gateway, '"prompt_ms":%(prefill)d,"predicted_ms":250')
        assert record["decode_ms"] == 250 and record["sources"]["decode_ms"] == "both"
        assert near(float(record["sources"]["decode_ms_gateway"]), decode)
        assert record["prefill_ms"] == int(prefill) and record["sources"]["prefill_ms"] == "engine"

    undisturbed(one_of_two)

    def none() -> None:
        record, _, _ = figures(gateway, '"prompt_ms":%(prefill)d,"predicted_ms":%(decode)d')
        assert record["sources"]["decode_ms"] == "engine"

    undisturbed(none)
