"""The gateway by itself, byte by byte: what it takes, what reaches an engine, and the link. Faults: `test_faults_*.py`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from gateway.standalone import CHUNKED, Json, Standalone, chunk, drain, post
from support import process
from support.wait import Spent, undisturbed, wait_until

CLOSE = "Connection: close\r\n"


def status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer.split(b" ")[1])


def error(answer: bytes) -> str:
    message: str = json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["message"]
    return message


# --- a request that is in order -----------------------------------------------------------------------------------


def test_the_answer_is_unchanged_and_the_request_is_rebuilt(gateway: Standalone) -> None:
    answer = b"HTTP/1.1 200 Fine\r\nX-odd:  spaced \r\nContent-Length: 3\r\nConnection: close\r\n\r\na\xffb"
    gateway.engine.act = lambda sock, request: sock.sendall(answer)
    headers = "Authorization: Bearer client-key\r\nCookie: secret\r\nX-Request-Id: 7\r\nAccept-Encoding: gzip\r\n"
    body = {"model": "chat", "messages": []}
    assert gateway.say(post(body, headers=headers + CLOSE)) == answer

    head, _, sent = gateway.engine.requests[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /v1/chat/completions HTTP/1.1"
    assert sorted(line.split(":")[0] for line in lines[1:]) == sorted(
        ["x-request-id", "host", "content-length", "content-type", "accept-encoding", "authorization"]
    )
    assert {"authorization: Bearer engine-key", "accept-encoding: identity", "content-type: application/json"} < set(
        lines
    )
    assert json.loads(sent) == body


def test_the_history_gets_hashes_of_the_prompt_unless_told_not_to(gateway: Standalone) -> None:
    body = {"model": "chat", "messages": [{"role": "user", "content": "the same words " * 500}]}
    gateway.ask(body)
    gateway.ask(body)
    gateway.apply(limits={"prefix_hashes": False})
    gateway.ask(body)
    first, second, without = (record["hash_ids"] for record in gateway.records(3))
    assert len(first) > 1 and first == second and without is None


def test_one_connection_many_requests(gateway: Standalone) -> None:
    """Also sent before the first is answered: in order."""
    with gateway.client() as sock:
        sock.sendall(post() + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + post(headers=CLOSE))
        answers = drain(sock)
    assert answers.count(b"HTTP/1.1 200 OK") == 3 and answers.index(b"ok") < answers.index(b'"status"')
    assert len(gateway.engine.requests) == 2


def test_a_chunked_request(gateway: Standalone) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    assert status(gateway.say(head, chunk(b'{"model":'), chunk(b' "chat"}'), b"0\r\n\r\n")) == 200
    assert gateway.engine.requests[0].endswith(b'\r\n\r\n{"model": "chat"}')


def test_bytes_pass_as_they_come(gateway: Standalone) -> None:
    steps = [CHUNKED, chunk(b"data: 1\n\n"), chunk(b"data: 2\n\n"), b"0\r\n\r\n"]
    turn: list[int] = []

    def act(sock: socket.socket, request: bytes) -> None:
        for i, step in enumerate(steps):
            wait_until(lambda i=i: len(turn) >= i, 10, "the client's turn")
            sock.sendall(step)

    gateway.engine.act = act
    with gateway.client() as sock:
        sock.sendall(post())
        for step in steps:
            assert sock.recv(65536) == step
            turn.append(1)
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status(sock.recv(65536)) == 200, "the connection goes on"


def test_a_large_body_holds_up_nobody(gateway: Standalone) -> None:
    """Its parsing would hold the loop for most of a second."""
    body = json.dumps({"model": "chat", "x": [{"a": i, "b": [str(i)]} for i in range(200_000)]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{CLOSE}\r\n".encode()

    def beside() -> None:
        began = time.monotonic()
        json.loads(body)
        parsing = time.monotonic() - began
        worst = 0.0
        with ThreadPoolExecutor() as pool:
            large = pool.submit(gateway.say, head, body)
            while not large.done():
                began, spent = time.monotonic(), Spent()
                assert status(gateway.say(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")) == 200
                if (took := time.monotonic() - began) > worst:
                    worst = max(worst, min(took, spent()))
        assert status(large.result()) == 200 and gateway.engine.requests[-1].endswith(body)
        assert worst < parsing / 2, f"{worst:.2f} s, its parsing takes {parsing:.2f} s"

    undisturbed(beside)


# --- requests that are not ----------------------------------------------------------------------------------------

CASES = {
    "no such route": (
        b"POST /slots/0?action=save HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        404,
        "/v1/chat/completions",
    ),
    "wrong method": (b"GET /v1/chat/completions HTTP/1.1\r\nHost: x\r\n\r\n", 405, "POST"),
    "upgrade": (b"GET /healthz HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", 501, "HTTP/1.1"),
    "old version": (b'POST /infill HTTP/1.0\r\nContent-Length: 17\r\n\r\n{"model": "chat"}', 505, "1.0"),
    "no JSON": (b"POST /infill HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nConnection: close\r\n\r\n{", 400, "JSON"),
    "no model": (b"POST /infill HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", 400, "model"),
    "unknown model": (post({"model": "gpt"}), 404, "chat, smollm2"),
    "huge body": (b"POST /infill HTTP/1.1\r\nHost: x\r\nContent-Length: 33554433\r\n\r\n", 413, "33554432"),
    "huge head": (b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 70000, 431, "65536"),
}


@pytest.mark.parametrize(("request_", "code", "told"), CASES.values(), ids=CASES)
def test_refusals_tell_what_is_wrong(gateway: Standalone, request_: bytes, code: int, told: str) -> None:
    with gateway.client() as sock:
        sock.sendall(request_)
        answer = sock.recv(65536)
    assert status(answer) == code and told in error(answer)
    assert gateway.engine.requests == []


# --- ends ---------------------------------------------------------------------------------------------------------


def test_an_engine_that_is_not_there(gateway: Standalone) -> None:
    """Nothing was sent: the request waits for what the daemon says next."""
    address = gateway.engine.address
    gateway.apply(address=f"http://127.0.0.1:{process.free_ports(1)[0]}")
    with gateway.client() as sock:
        sock.sendall(post(headers=CLOSE))
        assert gateway.hear("bad") == {"type": "bad", "endpoint": "chat@1", "kind": "connect-refused"}
        gateway.apply(endpoint="chat@2", address=address)
        assert status(drain(sock)) == 200
    wait_until(lambda: gateway.running() == 0, 5, "the lease to be given back")
    assert len(gateway.engine.requests) == 1


# --- the link -----------------------------------------------------------------------------------------------------


def test_leases_of_a_drained_endpoint(gateway: Standalone) -> None:
    gate: list[int] = []

    def act(sock: socket.socket, request: bytes) -> None:
        wait_until(lambda: gate, 10, "the end")
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    gateway.engine.act = act
    with gateway.client() as sock:
        sock.sendall(post())
        wait_until(lambda: gateway.engine.requests, 5, "the request")
        gateway.send(gateway.view(state="drain", reason="DRAINING"))
        assert gateway.hear("lease") == {"type": "lease", "endpoint": "chat@1", "n": 1}
        assert gateway.hear("applied") == {"type": "applied", "generation": 2}
        gate.append(1)
        assert gateway.hear("lease") == {"type": "lease", "endpoint": "chat@1", "n": 0}
        assert status(sock.recv(65536)) == 200


def test_stats_each_second(gateway: Standalone) -> None:
    """And live requests while someone watches."""
    gateway.engine.act = lambda sock, request: sock.sendall(CHUNKED + chunk(b"data: 1\n\n"))
    with gateway.client() as sock:
        sock.sendall(post({"model": "smollm2", "stream": True, "user": "u"}))
        assert sock.recv(65536)

        def stats() -> Json:
            (figures,) = (said := gateway.hear("stats"))["endpoints"].values()
            return {**figures, "live": said["live"]}

        figures = wait_until(lambda: found if (found := stats())["running"] else None, 10, "what runs")
        assert figures and (figures["running"], figures["queued"], figures["live"]) == (1, 0, [])
        assert abs(figures["last_activity"] - time.time()) < 30
        gateway.send({"type": "watch", "on": True})
        (live,) = wait_until(lambda: gateway.hear("stats")["live"], 10, "a live request")
        assert (live["service"], live["model"], live["stream"], live["client"]) == ("chat", "smollm2", True, None)
        assert abs(live["since"] - time.time()) < 30 and live["phase"] in ("prefill", "decode")


def test_an_older_view_is_ignored(gateway: Standalone) -> None:
    gateway.generation = 4
    gateway.apply(names=["new"])
    gateway.send({**gateway.view(names=["old"]), "generation": 3})
    gateway.apply(names=["newest"])
    assert "newest" in error(gateway.say(post({"model": "old"}, headers=CLOSE)))


def test_the_next_process_has_the_last_view(gateway: Standalone) -> None:
    path = gateway.folder / "view.json"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((gateway.folder / "gateway.sock").stat().st_mode) == 0o600
    first = gateway.hello
    gateway.process.send_signal(signal.SIGKILL)
    gateway.process.wait()
    with gateway.client() as waiting:
        waiting.sendall(post(headers=CLOSE))
        gateway.start()
        assert gateway.hello["generation"] == 1 and gateway.hello["epoch"] != first["epoch"]
        assert status(drain(waiting)) == 200, "it waited in the backlog"


def test_before_the_first_view_nothing_is_unknown(gateway: Standalone) -> None:
    gateway.process.kill()
    gateway.process.wait()
    (gateway.folder / "view.json").unlink()
    gateway.start()
    with gateway.client() as sock:
        sock.sendall(post(headers=CLOSE))
        assert status(gateway.say(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")) == 503
        gateway.apply()
        assert status(drain(sock)) == 200


def test_a_stream_outlives_a_terminate(gateway: Standalone) -> None:
    gate: list[int] = []

    def act(sock: socket.socket, request: bytes) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
        wait_until(lambda: gate, 10, "the end")
        sock.sendall(b"cd")

    gateway.engine.act = act
    with gateway.client() as sock:
        sock.sendall(post())
        assert sock.recv(65536)
        gateway.process.terminate()
        with contextlib.suppress(OSError):
            assert gateway.process.poll() is None
        gate.append(1)
        assert drain(sock).endswith(b"cd")
    assert gateway.process.wait(20) == 0


def test_nothing_leaks(gateway: Standalone) -> None:
    """Answered, refused, aborted: descriptors and leases are as before, and nothing is inherited."""
    gateway.say(post(headers=CLOSE))
    before = gateway.descriptors()
    for i in range(30):
        with gateway.client() as sock:
            sock.sendall([post(), post({"model": "no"}), b"junk\r\n\r\n"][i % 3])
            if i % 2:
                sock.recv(65536)
    wait_until(lambda: gateway.descriptors() <= before, 30, lambda: f"{before}, now {gateway.descriptors()}")
    wait_until(lambda: gateway.running() == 0, 30, "no leases")
    for fd in os.listdir(f"/proc/{gateway.process.pid}/fdinfo"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if int(fd) > 2:
                with open(f"/proc/{gateway.process.pid}/fdinfo/{fd}") as info:
                    flags = next(int(line.split()[1], 8) for line in info if line.startswith("flags"))
                assert flags & os.O_CLOEXEC, os.readlink(f"/proc/{gateway.process.pid}/fd/{fd}")
