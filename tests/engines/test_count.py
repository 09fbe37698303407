"""The questions about prompt lengths in its definition, put to a real llama-server beside the requests themselves."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import engines, process
from support.http import post_json, request
from support.wait import wait_until

from llmsupervisor.gateway.call import Call, read, rewrite
from llmsupervisor.gateway.fit import certain, exact, fits, needs, read_answer
from llmsupervisor.gateway.fit import request as question
from llmsupervisor.gateway.view import Count
from llmsupervisor.runtime.load import parse

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]
DEFINITION = parse((engines.REPOSITORY / "runtimes" / "llama-server.toml").read_text(), "llama-server.toml")
PATHS = {api: path for path, api in DEFINITION.routes.items()}
CONTEXT = 256
TEXT = "Grüße aus Köln: 価格は３０００円です 🙂\n\n\tdef f(x): return x ** 2  # <|im_start|>\x00\x01 aaaaaaaaaaaaaaaaaaaaaaa"
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
USER = [{"role": "user", "content": TEXT}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Adds a BOS token, which this model's own does not: a question that forgets it is off by one."""
    port = process.free_ports(1)[0]
    argv = [str(engines.llama_server()), "--model", str(engines.smollm2()), "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--ctx-size", str(CONTEXT), "--parallel", "1", "--threads", "2", "--jinja", "--embeddings"]
    argv += ["--pooling", "mean", "--override-kv", "tokenizer.ggml.add_bos_token=bool:true"]
    log: Path = tmp_path_factory.mktemp("count") / "log"
    with log.open("wb") as out, subprocess.Popen(argv, stdout=out, stderr=out) as running:
        try:
            wait_until(lambda: _ready(port, running), 200, lambda: f"llama-server\n{log.read_text(errors='replace')}")
            yield f"http://127.0.0.1:{port}"
        finally:
            running.kill()


def _ready(port: int, running: subprocess.Popen[bytes]) -> bool:
    assert running.poll() is None
    try:
        return request(f"http://127.0.0.1:{port}/health")[0] == 200
    except OSError:
        return False


def asked(server: str, api: str, said: dict[str, Any]) -> tuple[Call, int]:
    body = json.dumps(said).encode()
    call = read(api, said, body)
    assert isinstance(call, Call)
    how = Count(**DEFINITION.count[api].model_dump())
    answer = post_json(server + how.path, json.loads(question(how, call, said)))
    tokens = read_answer(how, answer)
    assert tokens is not None
    return call, tokens


@pytest.mark.parametrize(
    "api, keys",
    [
        ("chat.completions", {"messages": USER, "max_tokens": 1}),
        ("chat.completions", {"messages": [{"role": "system", "content": "Be."}, *USER], "max_tokens": 1}),
        ("chat.completions", {"messages": USER, "tools": [TOOL], "max_tokens": 1}),
        ("completions", {"prompt": TEXT, "max_tokens": 1}),
        ("completions", {"prompt": [TEXT], "max_tokens": 1}),
        ("completions", {"prompt": [5, TEXT, 6], "max_tokens": 1}),
        ("completions", {"prompt": [5, 6, 7], "max_tokens": 1}),
        ("embeddings", {"input": TEXT}),
        ("embeddings", {"input": [5, 6, 7]}),
        ("responses", {"input": TEXT, "instructions": "Be.", "max_output_tokens": 1}),
        ("messages", {"messages": USER, "system": "Be.", "max_tokens": 1}),
    ],
)
def test_the_engine_counts_what_it_then_computes(server: str, api: str, keys: dict[str, Any]) -> None:
    said = {"model": "chat", **keys}
    call, tokens = asked(server, api, said)
    usage = post_json(server + PATHS[api], said)["usage"]
    computed = usage.get("prompt_tokens", usage.get("input_tokens", 0) + usage.get("cache_read_input_tokens", 0))
    assert tokens == computed
    most = needs(call)
    assert most is not None and tokens <= most
    assert exact(call) in (None, tokens)


def test_what_fits_is_what_the_engine_takes(server: str) -> None:
    for length, taken in ((CONTEXT - 1, True), (CONTEXT, False)):
        said = {"model": "chat", "prompt": [5] * length, "max_tokens": 1}
        call = read("completions", said, b"")
        assert isinstance(call, Call)
        assert certain(call, CONTEXT) is fits(call, length, CONTEXT) is taken
        assert (request(server + "/v1/completions", said)[0] == 200) is taken


def test_which_limit_of_the_output_counts(server: str) -> None:
    for limits in (
        {"max_tokens": 1, "max_completion_tokens": 3},
        {"max_tokens": 3, "max_completion_tokens": 1},
        {"max_completion_tokens": 1, "n_predict": 3},
        {"max_tokens": 3, "n_predict": 1},
    ):
        said = {"model": "chat", "messages": USER, "ignore_eos": True, **limits}
        call = read("chat.completions", said, b"")
        assert isinstance(call, Call)
        answer = post_json(server + "/v1/chat/completions", said)
        assert answer["usage"]["completion_tokens"] == call.max_tokens, limits


def test_a_rewritten_body_is_the_same_to_the_engine(server: str) -> None:
    said = {"model": "chat", "messages": USER, "max_tokens": 4, "temperature": 0}
    body = rewrite(said, json.dumps(said).encode(), "other", None, {})
    answers = [post_json(f"{server}/v1/chat/completions", each) for each in (said, json.loads(body))]
    texts = [each["choices"][0]["message"]["content"] for each in answers]
    assert texts[0] == texts[1] and answers[0]["usage"]["prompt_tokens"] == answers[1]["usage"]["prompt_tokens"]
