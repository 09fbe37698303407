"""What else clients say: W16 and W21 of the catalogue."""

from __future__ import annotations

import pytest
from gateway.standalone import Answer, Standalone, drain, post

BODY = b'{"model": "chat"}'

# --- what else clients say ----------------------------------------------------------------------------------------


def test_W16_expect_100_continue(gateway: Standalone) -> None:
    with gateway.client() as sock:
        sock.sendall(post(headers="Expect: 100-continue\r\nConnection: close\r\n").removesuffix(BODY))
        assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(BODY)
        assert Answer(drain(sock)).status == 200


def test_W16_head_has_no_body(gateway: Standalone) -> None:
    with gateway.client() as sock:
        sock.sendall(b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        head = sock.recv(65536)
        assert head.endswith(b"\r\n\r\n") and head.split()[1] in (b"200", b"405")
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert Answer(drain(sock)).status == 200


PREFLIGHT = (
    "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: x\r\nOrigin: {}\r\nAccess-Control-Request-Method: POST\r\n"
    "Access-Control-Request-Headers: authorization,content-type\r\nConnection: close\r\n\r\n"
)


def test_W16_preflight(gateway: Standalone) -> None:
    gateway.apply(limits={"origins": ["https://page.example"]})
    allowed = Answer(gateway.say(PREFLIGHT.format("https://page.example").encode()))
    assert allowed.status in (200, 204)
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://page.example"
    assert "POST" in allowed.headers["Access-Control-Allow-Methods"]
    assert "authorization" in allowed.headers["Access-Control-Allow-Headers"].lower()
    refused = Answer(gateway.say(PREFLIGHT.format("https://evil.example").encode()))
    assert refused.status >= 400 and "Access-Control-Allow-Origin" not in refused.headers


def test_W16_upgrade_is_not_implemented(gateway: Standalone) -> None:
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
    with gateway.client() as sock:
        sock.sendall(f"GET /v1/models HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n".encode())
        assert Answer(drain(sock)).status == 501


ADMIN = [
    "/slots",
    "/slots/0?action=save",
    "/props",
    "/metrics/../slots",
    "/lora-adapters",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/sleep",
    "/wake_up",
    "/reset_prefix_cache",
    "/shutdown",
    "/models/load",
    "/api/delete",
    "/api/pull",
    "/tokenize",
    "/completion",
    "/health",
    "/v1/chat/completions/../../slots",
    "/v1/chat/completions/",
    "//v1/chat/completions",
    "/v1/chat/completions%2f..%2f..%2fslots",
    "/V1/chat/completions",
    "http://127.0.0.1/slots",
    "*",
]


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT"])
def test_W21_nothing_else_of_an_engine_is_reachable(shared: Standalone, method: str) -> None:
    with shared.client() as sock:
        for path in ADMIN:
            sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
            answer = sock.recv(65536)
            assert answer.split()[1] in (b"404", b"405", b"400"), path
            if answer.split()[1] == b"400":
                break
    assert shared.engine.requests == []


def test_W21_an_unknown_model_and_the_known_ones(gateway: Standalone) -> None:
    answer = gateway.ask({"model": "gpt-4"})
    assert answer.status == 404 and answer.code == "model_not_found"
    assert "chat" in answer.error["message"] and "smollm2" in answer.error["message"]
    assert gateway.ask(path="/v1/images").code == "unknown_route"


def test_W21_a_route_that_a_definition_adds(gateway: Standalone) -> None:
    """Only where the service's own definition has it."""
    routes = {"/v1/chat/completions": "chat.completions", "/pooling": "pooling"}
    gateway.apply(traits={"routes": routes}, more=[{"service": "b", "endpoint": "b@1", "names": ["b"]}])
    assert gateway.ask(path="/pooling").status == 200
    assert gateway.ask({"model": "b"}, "/pooling").status in (400, 404)
    assert gateway.ask(path="/v1/rerank").status in (400, 404)
    assert len(gateway.engine.requests) == 1


def test_W21_clients_of_ollama_ask_whether_it_runs(gateway: Standalone) -> None:
    """Only where one is behind."""
    head = b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert gateway.get("/").status == 404 and Answer(gateway.say(head)).status == 404
    gateway.apply(traits={"routes": {"/api/chat": "api.chat"}})
    answer = gateway.get("/")
    assert (answer.status, answer.body) == (200, b"Ollama is running")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    said = gateway.say(head)
    assert Answer(said).status == 200 and said.endswith(b"\r\n\r\n") and b"Content-Length: 17" in said
    assert gateway.ask(path="/").status == 404 and gateway.get("/x").status == 404
    assert not gateway.engine.requests
