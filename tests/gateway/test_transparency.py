"""Captured answers of real engines, served again in pieces: what a client gets through the gateway is what the engine
sent, byte for byte in pass mode, and in filter mode without what only the gateway asked for."""

from __future__ import annotations

import json
import random
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from gateway.standalone import LAST, Answer, Standalone, chunk, post

FIXTURES = Path(__file__).parents[1] / "fixtures" / "gateway"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nX-Accel-Buffering: no\r\nContent-Type: text/event-stream\r\n"
    b"Transfer-Encoding: chunked\r\nKeep-Alive: timeout=5, max=100\r\n\r\n"
)
APIS = {"messages": "/v1/messages", "responses": "/v1/responses", "completions": "/v1/completions"}
VLLM = {"remove": ["metrics"], "usage_forced": True, "timing": {"prefill_ms": "metrics.time_to_first_token_ms"}}
PROGRESS = {"progress": {"return_progress": True}}


def wires() -> list[str]:
    """Whole answers as they came over the wire, and bodies that get a head here."""
    names = [path.name for path in sorted(FIXTURES.iterdir()) if path.suffix in (".http", ".sse")]
    assert len(names) > 15
    return names


def wire(name: str, seed: int = 0) -> bytes:
    """Chunks of an event stream are cut anywhere: inside events, lines and characters."""
    data = (FIXTURES / name).read_bytes()
    if name.endswith(".http"):
        return data
    return STREAM_HEAD + b"".join(chunk(piece) for piece in pieces(data, seed)) + LAST


def pieces(data: bytes, seed: int) -> list[bytes]:
    rng, found = random.Random(seed), []
    while data:
        n = rng.choice((1, 2, 7, 60, 700))
        found.append(data[:n])
        data = data[n:]
    return found


def path_of(name: str) -> str:
    return next((path for word, path in APIS.items() if word in name), "/v1/chat/completions")


def serve(gateway: Standalone, data: bytes, seed: int) -> None:
    """In other pieces than those of its chunks."""

    def act(sock: socket.socket, request: bytes) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces(data, -seed):
            sock.sendall(piece)
        if b"Connection: close" in data:
            sock.close()

    gateway.engine.act = act


def ask(gateway: Standalone, name: str, model: str, **more: Any) -> bytes:
    body = {"model": model, "messages": [], "stream": ".sse" in name or "stream" in name, **more}
    return gateway.say(post(body, path_of(name), "Connection: close\r\n"))


def model_of(name: str) -> str:
    """As the engine of this capture calls it."""
    return "chat" if name.endswith(".http") else "tiny" if name.startswith("vllm") else "smol"


@pytest.mark.parametrize("name", wires())
def test_pass_mode_changes_nothing(shared: Standalone, name: str) -> None:
    """Status, head, framing and body; also while someone looks at the record."""
    shared.apply(model="chat")
    for seed in (1, 2):
        sent = wire(name, seed)
        serve(shared, sent, seed)
        assert ask(shared, name, "chat") == sent


@pytest.mark.parametrize("name", wires())
def test_an_alias_comes_back_as_it_was_asked(shared: Standalone, name: str) -> None:
    """The engine hears its own name, the client its own; nothing else differs."""
    own = model_of(name)
    shared.apply(model=own, names=["chat", "it's \u201cé\u201d"])
    said = '"model":' + json.dumps("it's \u201cé\u201d")
    for seed in (1, 2):
        sent = wire(name, seed)
        serve(shared, sent, seed)
        direct, through = Answer(sent), Answer(ask(shared, name, "it's \u201cé\u201d"))
        expected = direct.body.replace(b'"model":"%s"' % own.encode(), said.encode())
        assert json.loads(shared.engine.requests[-1].split(b"\r\n\r\n", 1)[1])["model"] == own
        assert (through.status, through.body, through.complete) == (direct.status, expected, True)
        assert own_headers(through) == own_headers(direct)
        if direct.status == 200 and b'"model":"%s"' % own.encode() in direct.body:
            assert through.body != direct.body


ARGUMENTS = {"model": "chat", "city": "chat"}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "pick", "input": ARGUMENTS}
TEXT = {"type": "function_call", "name": "pick", "arguments": json.dumps(ARGUMENTS, separators=(",", ":"))}
ASKED: dict[str, Any] = {
    "chat.completions": {
        "messages": [{"role": "assistant", "tool_calls": [{"type": "function", "function": TEXT}]}],
        "tools": [
            {"type": "function", "function": {"name": "pick", "parameters": {"properties": {"model": "my-name"}}}}
        ],
    },
    "messages": {"messages": [{"role": "assistant", "content": [{**CALL, "input": {"model": "my-name"}}]}]},
    "responses": {"input": [TEXT], "metadata": {"model": "my-name"}},
}
SAID: dict[str, list[dict[str, Any]]] = {
    "chat.completions": [
        {"model": "chat", "choices": [{"delta": {"tool_calls": [{"function": {"arguments": ARGUMENTS}}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": TEXT}]}}], "model": "chat", "object": "x"},
        {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": ARGUMENTS}}]}}], "model": "chat"},
    ],
    "messages": [
        {"type": "message_start", "message": {"model": "chat", "content": [], "usage": {"input_tokens": 5}}},
        {"type": "content_block_start", "index": 0, "content_block": CALL},
        {"type": "message_stop"},
    ],
    "responses": [
        {"type": "response.created", "response": {"model": "chat", "metadata": {"model": "chat"}, "output": []}},
        {"type": "response.output_item.done", "item": {**TEXT, "arguments": ARGUMENTS}},
        {"type": "response.completed", "response": {"model": "chat", "output": [{**TEXT, "input": ARGUMENTS}]}},
    ],
}
PATHS = {"chat.completions": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}


@pytest.mark.parametrize("api", SAID)
def test_only_the_name_of_the_model_is_rewritten(shared: Standalone, api: str) -> None:
    """Not what a tool calls by the same key and the same value: neither to the engine nor back."""
    shared.apply(names=["chat", "my-name"], model="chat")
    events = [b"data: " + json.dumps(each, separators=(",", ":")).encode() + b"\n\n" for each in SAID[api]]
    serve(shared, STREAM_HEAD + b"".join(map(chunk, events)) + LAST, 1)
    asked = {"model": "my-name", "stream": True, **ASKED[api]}
    got = Answer(shared.say(post(asked, PATHS[api], "Connection: close\r\n"))).body
    assert shared.engine.said()[-1] == {**asked, "model": "chat"}
    assert [json.loads(line.removeprefix(b"data: ")) for line in got.split(b"\n\n")[:-1]] == [
        named(each) for each in SAID[api]
    ]


def named(said: dict[str, Any]) -> dict[str, Any]:
    inner = {key: named(said[key]) for key in ("message", "response") if key in said}
    return {**said, **inner, **({"model": "my-name"} if "model" in said else {})}


def own_headers(answer: Answer) -> list[tuple[str, str]]:
    """Those of the content, not of one connection."""
    hop = {"connection", "keep-alive", "transfer-encoding", "content-length"}
    return [(name, value) for name, value in answer.headers.items() if name.lower() not in hop]


def without_metrics(body: bytes) -> bytes:
    return re.sub(rb',"metrics":\{[^{}]*\}', b"", body)


def without_usage(body: bytes) -> bytes:
    events = body.split(b"\n\n")
    return b"\n\n".join(event for event in events if b'"choices":[],"usage"' not in event)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_only_we_asked_an_engine_for_is_taken_out(gateway: Standalone, seed: int) -> None:
    """vLLM's figures; its usage only for who did not ask for it."""
    gateway.apply(model="tiny", names=["tiny"], traits=VLLM)
    asked = {"stream_options": {"include_usage": True}}
    for name, more in (
        ("vllm_chat_include_usage.sse", {}),
        ("vllm_chat_include_usage.sse", asked),
        ("vllm_chat_continuous_usage.sse", asked),
        ("vllm_chat_no_usage.sse", {}),
        ("vllm_engine_killed.sse", {}),
    ):
        serve(gateway, wire(name, seed), seed)
        body = (FIXTURES / name).read_bytes()
        expected = without_metrics(body) if more else without_usage(body)
        assert Answer(ask(gateway, name, "tiny", **more)).body == expected, name
    plain = json.dumps(json.loads((FIXTURES / "vllm_bodies.json").read_text())["chat_ok"], ensure_ascii=False).encode()
    assert b'"metrics": {' in plain
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(plain)
    serve(gateway, head + plain, seed)
    through = Answer(ask(gateway, "x", "tiny"))
    assert through.body == re.sub(rb', "metrics": \{[^{}]*\}', b"", plain)
    prefills = [record["prefill_ms"] for record in gateway.records(6)]
    assert prefills[0] == pytest.approx(2.799, abs=0.001), "it is read before it is taken out"


def test_figures_are_asked_for_while_someone_looks(gateway: Standalone) -> None:
    """The progress of a prompt: told to who looks, not to the client, unless it asked for it itself."""
    gateway.send({"type": "watch", "on": True})
    gateway.apply(model="smol", names=["smol"], traits=PROGRESS)
    body = (FIXTURES / "llama_chat_progress.sse").read_bytes()
    bare = b"\n\n".join(event for event in body.split(b"\n\n") if b"prompt_progress" not in event)
    assert bare != body
    for seed in (1, 2):
        serve(gateway, wire("llama_chat_progress.sse", seed), seed)
        assert Answer(ask(gateway, ".sse", "smol")).body == bare
        assert gateway.engine.said()[-1]["return_progress"] is True
        assert Answer(ask(gateway, ".sse", "smol", return_progress=True)).body == body
    gateway.send({"type": "watch", "on": False})
    gateway.apply(model="smol", names=["smol"], traits=PROGRESS)
    serve(gateway, wire("llama_chat.sse"), 1)
    assert ask(gateway, ".sse", "smol") == wire("llama_chat.sse")
    assert "return_progress" not in gateway.engine.said()[-1]


def test_a_policy_of_a_name(gateway: Standalone) -> None:
    """What it sets and strips is the only thing that differs; the usual request is not written anew."""
    policy = {"chat-precise": {"set": {"temperature": 0, "options": {"a": 1}}, "strip": ["seed"], "listed": False}}
    gateway.apply(names=["chat", "chat-precise"], policies=policy)
    said = {
        "model": "chat-precise",
        "seed": 7,
        "temperature": 1.5,
        "big": 12345678901234567890,
        "tiny": 1e-7,
        "é": "🦊",
    }
    gateway.ask(said)
    expected = {**said, "model": "chat", "temperature": 0, "options": {"a": 1}}
    del expected["seed"]
    assert gateway.engine.said() == [expected]
    odd = b'{ "model" : "chat", "seed":7, "x": 1.0, "x": 2.50, "y": "\\u00e9" }'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(
        odd
    )
    gateway.say(head + odd)
    assert gateway.engine.requests[-1].endswith(b"\r\n\r\n" + odd)
    listed = [model["id"] for model in gateway.get("/v1/models").json["data"]]
    assert listed == ["chat"]


def test_models(gateway: Standalone) -> None:
    more = {
        "service": "b",
        "target": "b",
        "endpoint": "b@1",
        "names": ["b", "smollm2"],
        "state": "hold",
        "address": None,
    }
    hidden = {"service": "c", "target": "c", "endpoint": "c@1", "names": ["c"], "listed": False}
    gateway.apply(context_length=2048, more=[{**more, "context_length": 4096}, hidden])
    found = {model["id"]: model for model in gateway.get("/v1/models").json["data"]}
    assert list(found) == ["chat", "smollm2", "b"]
    for model in found.values():
        assert model["object"] == "model" and isinstance(model["created"], int) and model["owned_by"]
    assert (found["chat"]["state"], found["chat"]["context_length"]) == ("open", 2048)
    assert found["smollm2"]["state"] == "open" and found["b"]["state"] == "hold"
    assert gateway.ask({"model": "c"}).status == 200
