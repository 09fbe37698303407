"""vLLM's KV pool: as planned in tokens, and what its figures say of it when prompts repeat and when it is too small.

Started as a module: the other way to start a vLLM, of installations whose `vllm` command lacks its metadata."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import engines, process
from support.daemon import Daemon, Json
from support.http import request
from support.kinds import vllm

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]
MODULE = ["-m", "vllm.entrypoints.openai.api_server"]
BLOCK = 128
"""Tokens, of the CPU's attention."""
BYTES = 512
"""Of a token in the tiny model: 2 layers, 2 heads, keys and values of 32 in 2 bytes."""
POOL, PARALLEL = 1400, 8
BLOCKS = -(-POOL // BLOCK) + 1
"""And the one that it keeps empty."""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    folder = Path(tempfile.mkdtemp(prefix="ls-"))
    daemon = Daemon(folder, process.free_ports(10))
    table = vllm(kv_tokens=POOL, parallel=PARALLEL)
    venv = table.pop("venv")
    daemon.write({"chat": table | {"command": [f"{venv}/bin/python", *MODULE]}})
    daemon.up(timeout=180)
    daemon.wait_service("chat", lambda s: s["state"] == "READY" and s["got"], 300, "READY")
    yield daemon
    left = daemon.close()
    shutil.rmtree(folder, ignore_errors=True)
    assert not left, f"left after the cases: {left}"


def target(daemon: Daemon) -> Json:
    (found,) = daemon.service("chat")["targets"]
    return dict(found)


def ask(daemon: Daemon, text: str, tokens: int) -> int:
    body = {"model": "chat", "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "ignore_eos": True}
    return request(f"{daemon.service('chat')['endpoint']}/v1/chat/completions", body, daemon.key("chat"))[0]


def test_the_module_is_what_runs(daemon: Daemon) -> None:
    status = daemon.service("chat")
    words = Path(f"/proc/{status['pid']}/cmdline").read_text().split("\0")
    assert words[1:3] == MODULE and "serve" not in words
    assert words[words.index("--model") + 1] == str(engines.vllm().parent / "tiny")
    assert status["restarts"] == 0 and ask(daemon, "Hi", 8) == 200


def test_the_pool_is_the_planned_one(daemon: Daemon) -> None:
    (plan,) = daemon.call("plan", service="chat")["services"]
    words = [word for arg in plan["argv"] for word in arg["words"]]
    assert words[words.index("--kv-cache-memory-bytes") + 1] == str(BLOCKS * BLOCK * BYTES)
    got = daemon.service("chat")["got"]
    assert got["kv_tokens"] == plan["memory"]["kv_tokens"] == BLOCKS * BLOCK
    daemon.wait_service("chat", lambda s: s["targets"][0]["preemptions"] == 0, 30, "figures of a rest")
    assert target(daemon)["kv_tokens_capacity"] == got["kv_tokens"]


def test_a_prompt_that_comes_again_is_read_from_the_cache(daemon: Daemon) -> None:
    text = "It was a dark and stormy night. " * 12  # over two blocks
    for _ in range(2):
        assert ask(daemon, text, 8) == 200
    status = daemon.wait_service("chat", lambda s: s["targets"][0]["prefix_hit_ratio"], 30, "a hit")
    assert 0 < status["targets"][0]["prefix_hit_ratio"] < 1 and status["targets"][0]["preemptions"] == 0


def test_a_pool_that_is_too_small_throws_requests_out(daemon: Daemon) -> None:
    """Each is answered in full, and each of the texts begins otherwise."""
    answers: list[int] = []
    clients = [
        threading.Thread(target=lambda n=n: answers.append(ask(daemon, f"{n} is a number", 240)))
        for n in range(PARALLEL)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join(300)
    assert answers == [200] * PARALLEL
    daemon.wait_service("chat", lambda s: s["targets"][0]["preemptions"] > 0, 30, "preemptions")
    metrics = request(f"{daemon.service('chat')['endpoint']}/metrics", key=daemon.key("chat"))[1].decode()
    (line,) = [row for row in metrics.splitlines() if row.startswith("vllm:num_preemptions_total{")]
    told = float(line.split()[-1])
    daemon.wait_service("chat", lambda s: s["targets"][0]["preemptions"] == told, 30, f"{told} preemptions")
    daemon.down()
