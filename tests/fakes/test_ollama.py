"""The stand-in by itself: on questions that no capture holds, from a copy that reaches no capture."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import engines, ollama, process
from support.http import get_json, request
from support.ollama import STAND_IN, Serve, post
from support.wait import wait_until

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(ollama.REAL), reason="of the stand-in only"),
]
CHECK = 'msg="evaluating already loaded"'
STORY = "Tell a very long story about a fox."
"""It is one, at temperature 0."""
PROMPT = "Name a river, a mountain and a lake."


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A copy of the program, and a registry with two models of different bytes."""
    home = tmp_path_factory.mktemp("home")
    (home / "bin").mkdir()
    (home / "lib").mkdir()
    shutil.copy(STAND_IN, home / "bin" / "ollama")
    shutil.copytree(STAND_IN.with_name("ollamafake"), home / "bin" / "ollamafake")
    (home / "lib" / "ollama").symlink_to(engines.llama_server().parent)
    (home / "registry").mkdir()
    (home / "registry" / "small.gguf").symlink_to(model)
    other = home / "registry" / "other.gguf"
    shutil.copy(model, other)
    with other.open("ab") as file:
        file.write(bytes(32))
    return home


@pytest.fixture
def serve(home: Path) -> Iterator[Serve]:
    served = Serve(home, process.free_ports(1)[0])
    served.stderr.unlink(missing_ok=True)
    try:
        yield served
    finally:
        if served.child and served.child.poll() is None:
            served.stop()


def ready(serve: Serve, **env: str) -> Serve:
    """With `small` and `other`, pulled once for all tests."""
    serve.start(OLLAMA_FAKE_REGISTRY=str(serve.folder / "registry"), **env)
    for name in {"small", "other"} - {row["name"].split(":")[0] for row in get_json(f"{serve.url}/api/tags")["models"]}:
        assert post(serve.url, "/api/pull", {"model": name}) == {"status": "success"}
    return serve


def generate(serve: Serve, prompt: str = PROMPT, model: str = "small", n: int = 8, **more: Any) -> Any:
    options = {"num_predict": n, "temperature": 0, **more.pop("options", {})}
    return post(
        serve.url, "/api/generate", {"model": model, "prompt": prompt, "stream": False, "options": options, **more}
    )


def stream(serve: Serve, path: str, body: Any) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", serve.port, timeout=60)
    connection.request("POST", path, json.dumps(body))
    return connection.getresponse()


def test_answers_are_the_runners_own(serve: Serve) -> None:
    ready(serve)
    got = generate(serve)
    (pid,) = serve.runners()
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    runner = f"http://127.0.0.1:{words[words.index('--port') + 1]}"
    prompt = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    tokens = json.loads(request(f"{runner}/tokenize", {"content": prompt})[1])["tokens"]
    assert got["prompt_eval_count"] == len(tokens) and got["context"][: len(tokens)] == tokens
    assert (got["eval_count"], got["done_reason"]) == (8, "length")
    answer = stream(serve, "/api/chat", {"model": "small", "messages": [{"role": "user", "content": PROMPT}],
                                         "options": {"num_predict": 8, "temperature": 0}})  # fmt: skip
    rows = [json.loads(line) for line in answer.read().splitlines()]
    assert "".join(row["message"]["content"] for row in rows) == got["response"]
    assert [row["done"] for row in rows] == [False] * (len(rows) - 1) + [True] and rows[-1]["eval_count"] == 8
    spoken = {"model": "small", "messages": [{"role": "user", "content": PROMPT}], "temperature": 0, "top_p": 0.9}
    made = post(serve.url, "/v1/chat/completions", {**spoken, "max_tokens": 8, "num_ctx": 64, "keep_alive": 0})
    assert made["choices"][0]["message"]["content"] == got["response"]
    assert made["usage"] == {"prompt_tokens": len(tokens), "completion_tokens": 8, "total_tokens": len(tokens) + 8}
    events = stream(
        serve, "/v1/responses", {"model": "small", "input": PROMPT, "max_output_tokens": 4, "stream": True}
    ).read()
    assert events.startswith(b"event: response.created") and b"event: response.completed" in events
    assert serve.runners() == [pid], "/v1 neither reloads nor unloads"


def test_what_is_too_long_is_cut_in_silence_or_refused(serve: Serve) -> None:
    ready(serve, OLLAMA_CONTEXT_LENGTH="512")
    long = "tree " * 600
    assert generate(serve, long, n=1)["prompt_eval_count"] == 512 - (512 - 4) // 2
    assert 'msg="truncating input prompt" limit=258 prompt=' in serve.log()
    turns = [{"role": "user", "content": f"Turn {i}: " + "tree " * 60} for i in range(20)]
    body = {"model": "small", "messages": turns, "stream": False, "options": {"num_predict": 1}}
    kept = post(serve.url, "/api/chat", body)["prompt_eval_count"]
    assert 512 - 80 < kept <= 512
    status, data = request(f"{serve.url}/api/chat", {**body, "truncate": False})
    said = json.loads(json.loads(data)["error"])["error"]
    assert status == 400 and (said["type"], said["n_ctx"]) == ("exceed_context_size_error", 512)
    wait_until(lambda: serve.ps(), 60, "the model")
    post(serve.url, "/api/generate", {"model": "small", "keep_alive": 0})
    unloaded = 'level=ERROR source=llama_server.go:1023 msg="llama-server terminated" error="signal: killed"'
    wait_until(lambda: unloaded in serve.log(), 60, "the unload that looks like a crash")


def test_who_is_loaded_and_for_how_long(serve: Serve) -> None:
    ready(serve, OLLAMA_MAX_LOADED_MODELS="1", OLLAMA_KEEP_ALIVE="-1")
    generate(serve, n=1)
    (first,) = serve.runners()
    assert serve.ps()[0]["expires_at"].startswith("23"), "for ever"
    generate(serve, n=1, options={"num_ctx": 300})
    (second,) = serve.runners()
    assert second != first and serve.ps()[0]["context_length"] == 300
    generate(serve, n=1, options={"num_ctx": -5})
    assert serve.ps()[0]["context_length"] == 4
    generate(serve, model="other", n=1, keep_alive=0.3)
    assert [row["name"] for row in serve.ps()] in (["other:latest"], []), "the first was for ever, and is gone"
    wait_until(lambda: not serve.ps() and not serve.runners(), 10, "the end of keep_alive")
    post(serve.url, "/api/create", {"model": "small-1k", "from": "small", "parameters": {"num_ctx": 1024}})
    assert post(serve.url, "/api/generate", {"model": "small-1k"})["done_reason"] == "load"
    assert [(row["name"], row["context_length"]) for row in serve.ps()] == [("small-1k:latest", 1024)]
    busy = stream(serve, "/api/generate", {"model": "small-1k", "prompt": PROMPT, "options": {"num_predict": 60}})
    assert post(serve.url, "/api/generate", {"model": "small-1k", "keep_alive": 0})["done_reason"] == "unload"
    assert json.loads(busy.read().splitlines()[-1])["done"], "an unload waits for what runs"
    wait_until(lambda: not serve.ps(), 60, "the unload")


def test_a_dead_runner_and_a_hung_one(serve: Serve) -> None:
    ready(serve, OLLAMA_FAKE_PING="4", OLLAMA_DEBUG="1")
    generate(serve, n=1)
    (pid,) = serve.runners()
    os.kill(pid, signal.SIGSTOP)
    checks = serve.log().count(CHECK)
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(generate(serve, n=1)))
    asking.start()
    wait_until(lambda: serve.log().count(CHECK) > checks, 20, "the first health check")
    assert request(f"{serve.url}/api/version", timeout=60)[0] == 200, "it never waits"
    took = []
    while serve.log().count(CHECK) < checks + 2:
        began = time.monotonic()
        serve.ps()
        took.append(time.monotonic() - began)
    assert max(took) > 0.3, "/api/ps waits for the second check, which lasts four"
    asking.join(60)
    (second,) = serve.runners()
    assert answers[0]["done"] and second != pid
    spoken = {
        "model": "small",
        "messages": [{"role": "user", "content": STORY}],
        "max_tokens": 600,
        "stream": True,
        "temperature": 0,
        "options": {"temperature": 0, "num_predict": 600},
    }
    for path in ("/v1/chat/completions", "/api/chat"):
        answer = stream(serve, path, spoken)
        answer.readline()
        os.kill(serve.runners()[0], signal.SIGKILL)
        rest = answer.read()
        assert b"[DONE]" not in rest
        assert (b'{"error":"an error was encountered' in rest) == (path == "/api/chat")
        assert [row["name"] for row in serve.ps()] == ["small:latest"]
        generate(serve, n=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_signals(serve: Serve, number: signal.Signals) -> None:
    """SIGTERM cuts what runs and ends the runners; the other two leave them behind."""
    ready(serve)
    options = {"num_predict": 600, "temperature": 0}
    answer = stream(serve, "/api/generate", {"model": "small", "prompt": STORY, "options": options})
    answer.readline()
    (pid,) = serve.runners()
    assert serve.child
    serve.child.send_signal(number)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        answer.read()
    assert serve.child.wait(20) == (0 if number == signal.SIGTERM else -number)
    left = process.alive(pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(serve.child.pid, signal.SIGKILL)
    assert left == (number != signal.SIGTERM)


def test_starts_that_fail(serve: Serve, tmp_path: Path) -> None:
    done = subprocess.run([STAND_IN, "serve"], env={"PATH": os.environ["PATH"]}, capture_output=True, timeout=100)
    assert done.returncode == 2 and b"HOME" in done.stderr
    bare = tmp_path / "bin" / "ollama"
    bare.parent.mkdir()
    bare.symlink_to(STAND_IN)
    serve.models.mkdir(exist_ok=True)
    ready(serve).stop()
    lone = Serve(tmp_path, serve.port, serve.models)
    (tmp_path / "lib").mkdir()
    try:
        lone.start()
        status, data = request(f"{lone.url}/api/generate", {"model": "small"})
        assert status == 500 and json.loads(data)["error"].startswith(
            "error starting llama-server: llama-server binary not found"
        )
    finally:
        lone.stop()


def test_embeddings(serve: Serve, model: Path) -> None:
    ready(serve, OLLAMA_CONTEXT_LENGTH="512", OLLAMA_NUM_PARALLEL="2")
    serve.create("embed", ollama.embedding_model(model, serve.folder / "embed.gguf"))
    assert post(serve.url, "/api/embed", {"model": "embed"}) == {"model": "embed", "embeddings": []}
    made = post(serve.url, "/api/embed", {"model": "embed", "input": ["a river", "a mountain"]})
    assert [len(row) for row in made["embeddings"]] == [576, 576] and made["embeddings"][0] != made["embeddings"][1]
    assert all(abs(sum(value**2 for value in row) - 1) < 1e-3 for row in made["embeddings"])
    assert made["prompt_eval_count"] == 4 and made["total_duration"] > made["load_duration"] > 0
    spoken = post(serve.url, "/v1/embeddings", {"model": "embed", "input": "a river"})
    assert spoken["usage"] == {"prompt_tokens": 2, "total_tokens": 2} and len(spoken["data"][0]["embedding"]) == 576
    long = {"model": "embed", "input": "tree " * 600}
    assert post(serve.url, "/api/embed", long)["prompt_eval_count"] == 510
    status, data = request(f"{serve.url}/api/embed", long | {"truncate": False})
    assert (status, json.loads(data)) == (400, {"error": "the input length exceeds the context length"})
    status, data = request(f"{serve.url}/api/generate", {"model": "embed", "prompt": "x"})
    assert (status, json.loads(data)) == (400, {"error": '"embed" does not support generate'})
    assert "does not currently support parallel requests" in serve.log()
