"""A hung llama-server under an Ollama that goes on answering for itself: found within the bound that the definition says,
though Ollama's own word on its models comes only after 20 s."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from gateway.box import Answer
from support import process
from support.http import get_json, request
from support.ollamabox import HI, STORY, WAIT, Box, ollama_box
from support.wait import Spent, wait_until

from llmsupervisor.gateway.native import ANSWERS
from llmsupervisor.host.files import read_definitions

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

RUNNER = read_definitions()[0]["ollama"].runner
assert RUNNER
BOUND = RUNNER.hang
SLACK = 4.0
"""Seconds for the machine, beside the stalls that are not counted."""


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    """With the definition's own bound: no `stall_timeout` of the spec shortens it."""
    with ollama_box(probe={}) as box:
        yield box


@pytest.fixture
def stopped(box: Box) -> Iterator[tuple[int, Answer, Spent]]:
    """A stream whose runner stands still after its first token: its pid, the stream, the time since."""
    pid = box.pid()
    body = {"model": "smol", "messages": STORY, "stream": True, "max_tokens": 900}
    with Answer(box.listen, body) as answer:
        answer.first()
        os.kill(pid, signal.SIGSTOP)
        spent = Spent()
        yield pid, answer, spent
    if process.alive(pid):
        os.kill(pid, signal.SIGCONT)


def test_it_is_found_within_the_bound_while_its_ollama_is_mute(box: Box, stopped: tuple[int, Answer, Spent]) -> None:
    before, answer, spent = stopped
    service = box.daemon.service("box")
    endpoint, serve = service["endpoint"], service["pid"]
    ps_answered: list[float] = []

    def ask() -> None:
        """Another request has Ollama look after the runner; from then on it says nothing of its models."""
        body = {"model": box.target()["tag"], "messages": HI, "stream": False, "options": {"num_predict": 1}}
        with contextlib.suppress(OSError, http.client.HTTPException):
            request(f"{endpoint}/api/chat", body, timeout=120)

    def ps() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            request(f"{endpoint}/api/ps", timeout=120)
        ps_answered.append(time.monotonic())

    def mute() -> bool:
        try:
            request(f"{endpoint}/api/ps", timeout=4)
        except OSError:
            return True
        return False

    threads = [threading.Thread(target=ask, daemon=True)]
    threads[0].start()
    wait_until(mute, 10, "an Ollama that waits for its runner")
    threads.append(threading.Thread(target=ps, daemon=True))
    threads[1].start()
    assert request(f"{endpoint}/")[0] == 200 and get_json(f"{endpoint}/api/version")["version"]
    asked = Spent()
    rows = {row["name"]: row for row in get_json(f"{box.url}/api/ps", timeout=30)["models"]}
    assert asked() < ANSWERS + SLACK and rows["smol"]["context_length"] == 1024, "the gateway's own word"

    wait_until(lambda: not process.alive(before), BOUND + 60, "the end of the hung runner")
    ended = time.monotonic()
    assert spent() < BOUND + SLACK
    try:
        rest = answer.rest()
    except http.client.IncompleteRead as cut:
        rest = cut.partial
    assert b"upstream_failed" in rest and b"[DONE]" not in rest, rest[-300:]
    after = box.loaded(other=before)
    (event,) = [e for e in box.daemon.events(kind="target", target="smol") if e["reason"].startswith("hung")]
    assert f"pid {before}" in event["reason"] and "no CPU time" in event["reason"]
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()
    assert ps_answered[0] > ended - 2.0, "it had no answer until the runner was ended"
    assert box.client.chat("smol", HI, options={"num_predict": 3}).done and box.pid() == after["runner"]["pid"]
    service = box.daemon.service("box")
    assert (service["state"], service["pid"], service["restarts"]) == ("READY", serve, 0)
    record = box.record(finish_reason="engine_exit")
    assert record["api"] == "chat.completions" and record["model"] == "smol"
