"""What clients of Ollama ask beside their requests, of engines that do not answer: a hung runner makes one mute for 20 s."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest
from gateway.standalone import Engine, Standalone, whole
from support.wait import Spent

from llmsupervisor.gateway.fetch import TIMEOUT
from llmsupervisor.gateway.native import ANSWERS

NATIVE = {"routes": {"/api/chat": "api.chat"}}
SLACK = 4.0
assert ANSWERS + SLACK < TIMEOUT, "else the limit of every small question would be enough"


@pytest.fixture
def two(gateway: Standalone) -> Iterator[Standalone]:
    """`chat` on an engine that takes questions and answers none, `other` on one that answers."""
    other, released = Engine(), threading.Event()
    row = {"name": "o:latest-ctx512", "size": 7, "size_vram": 7, "context_length": 512}
    rows = whole(json.dumps({"models": [row]}).encode())

    def mute(sock: socket.socket, request: bytes) -> None:
        released.wait(60)

    def answers(sock: socket.socket, request: bytes) -> bytes:
        return whole(b'{"version": "0.33.0"}') if b"/api/version" in request else rows

    gateway.engine.act, other.act = mute, answers
    second = {"target": "other", "service": "b", "endpoint": "b@1", "address": other.address, "names": ["other"]}
    second |= {"model": "o:latest-ctx512", "context_length": 512, "traits": NATIVE}
    gateway.apply(traits=NATIVE, names=["chat"], context_length=1024, more=[second])
    yield gateway
    released.set()
    other.close()


@pytest.mark.parametrize("path", ["/api/ps", "/api/tags"])
def test_the_view_answers_for_an_engine_that_does_not(two: Standalone, path: str) -> None:
    """And the others are asked all the same."""
    spent = Spent()
    answer = two.get(path)
    assert spent() < ANSWERS + SLACK
    assert answer.status == 200 and len(two.engine.requests) == 1
    chat, other = answer.json["models"]
    known = {"context_length": 1024} if path == "/api/ps" else {}
    assert chat == {**known, "name": "chat", "model": "chat"}, "only what is known"
    assert (other["name"], other["model"], other["size_vram"]) == ("other", "other", 7)


def test_the_version_is_that_of_the_first_that_answers(two: Standalone) -> None:
    spent = Spent()
    answer = two.get("/api/version")
    assert spent() < ANSWERS + SLACK
    assert (answer.status, answer.json) == (200, {"version": "0.33.0"})


def test_a_version_that_nobody_tells(gateway: Standalone) -> None:
    released = threading.Event()
    gateway.engine.act = lambda sock, request: (released.wait(60), None)[1]
    gateway.apply(traits=NATIVE)
    spent = Spent()
    answer = gateway.get("/api/version")
    assert spent() < ANSWERS + SLACK
    assert answer.status == 503 and "no Ollama is there" in str(answer.json["error"])
    released.set()
