"""The first line of a request and its Host, RFC 9112, section 3: one that is in order is served, every other is refused."""

from __future__ import annotations

import pytest
from gateway.standalone import Answer, Standalone, drain, post

BODY = b'{"model": "chat"}'
AFTER = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
"""What follows on the connection; it must not be read as a request where the one before was refused."""


def ask(target: str, host: str = "Host: localhost\r\n", method: str = "POST", version: str = "1.1") -> bytes:
    head = f"{method} {target} HTTP/{version}\r\n{host}Content-Length: {len(BODY)}\r\nConnection: close\r\n\r\n"
    return head.encode("latin-1") + BODY


@pytest.mark.parametrize(
    "host",
    [
        "",
        "Host: localhost\r\nHost: localhost\r\n",
        "Host: localhost\r\nX: y\r\nhOST: other\r\n",
        "Host: a b\r\n",
        "Host: me@localhost\r\n",
        "Host: localhost/v1\r\n",
        "Host: http://localhost\r\n",
    ],
    ids=["none", "two", "two in other letters", "a gap", "a user", "a path", "a scheme"],
)
@pytest.mark.parametrize("target", ["/v1/completions", "http://localhost/v1/completions"])
def test_one_host_and_a_valid_one(shared: Standalone, target: str, host: str) -> None:
    answer = Answer(shared.say(ask(target, host), AFTER))
    assert (answer.status, answer.code, answer.headers["Connection"]) == (400, "bad_request", "close")
    assert "Host" in answer.error["message"] and answer.data.count(b"\r\n\r\n") == 1
    assert shared.engine.requests == []


def test_http_1_0_needs_no_host(gateway: Standalone) -> None:
    assert Answer(gateway.say(b"GET /healthz HTTP/1.0\r\n\r\n")).status == 200


def test_a_target_in_absolute_form_is_its_path(gateway: Standalone) -> None:
    """As a client sends it that takes the gateway for its proxy. What else stands there is no way to anything else."""
    sent = ask("http://localhost:8088/v1/completions?a=b")
    assert Answer(gateway.say(sent)).status == 200
    assert gateway.engine.requests.pop().startswith(b"POST /v1/completions HTTP/1.1\r\n")
    for method, target, status in (
        ("GET", "http://localhost/healthz", 200),
        ("GET", "HTTPS://localhost/v1/models", 200),
        ("HEAD", "http://localhost/healthz", 200),
        ("GET", "http://localhost/slots", 404),
        ("POST", "http://localhost", 404),
        ("POST", "http://localhost//v1/completions", 404),
        ("POST", f"{gateway.engine.address}/slots", 404),
    ):
        assert Answer(gateway.say(ask(target, method=method))).status == status, target
    assert gateway.engine.requests == []


def test_the_host_is_that_of_the_target(gateway: Standalone) -> None:
    """For who is answered under which names; the engine is told neither."""
    gateway.apply(limits={"hosts": []})
    assert Answer(gateway.say(ask("http://127.0.0.1/v1/completions", "Host: evil.example\r\n"))).status == 200
    assert b"evil" not in gateway.engine.requests.pop()
    for target in ("http://evil.example/v1/completions", "http://127.0.0.1.evil.example:80/v1/completions"):
        assert Answer(gateway.say(ask(target))).code == "host_not_allowed"
    assert Answer(gateway.say(ask("http://evil.example/healthz", method="GET"))).status == 403
    assert gateway.engine.requests == []


TARGETS = {
    "asterisk": "*",
    "authority": "localhost:80",
    "no slash": "v1/completions",
    "fragment": "/v1/completions#x",
    "fragment of a query": "/v1/completions?a#x",
    "fragment of a URL": "http://localhost/v1/completions#x",
    "other scheme": "ftp://localhost/v1/completions",
    "no host": "http:///v1/completions",
    "port alone": "http://:80/v1/completions",
    "user": "http://me:secret@localhost/v1/completions",
    "backslash": "http://evil.example\\@localhost/v1/completions",
    "gap": "/v1/completions /x",
    "tab": "/v1/completions\t",
    "control": "/v1/\x01completions",
    "delete": "/v1/\x7fcompletions",
    "high": "/v1/\xffcompletions",
    "NUL": "/v1/completions\0",
    "nothing": "",
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_what_is_no_target_is_refused_and_the_connection_closed(shared: Standalone, method: str, target: str) -> None:
    answer = Answer(shared.say(ask(target, method=method), AFTER))
    assert (answer.status, answer.code, answer.headers["Connection"]) == (400, "bad_request", "close")
    assert answer.data.count(b"\r\n\r\n") == 1 and shared.engine.requests == []


WAYS = [
    "//v1/completions",
    "/v1//completions",
    "/v1/completions/",
    "/v1/completions/.",
    "/./v1/completions",
    "/x/../v1/completions",
    "/v1/completions/../../slots",
    "/v1/completions/%2e%2e/%2e%2e/slots",
    "/v1%2Fcompletions",
    "/v1/completions%00",
    "/v1/completions%3Fa",
    "/v1/completions;a=b",
    "/v1\\completions",
    "/%76%31/completions",
    "/v1/Completions",
]


@pytest.mark.parametrize("way", WAYS)
def test_no_other_way_of_writing_a_path_is_that_path(shared: Standalone, way: str) -> None:
    """Nothing is decoded, joined or shortened: what is not a route by its bytes is none."""
    for target in (way, f"http://localhost{way}"):
        answer = Answer(shared.say(ask(target)))
        assert (answer.status, answer.code) == (404, "unknown_route"), target
    assert shared.engine.requests == []


def test_a_question_about_the_server_itself(gateway: Standalone) -> None:
    """`OPTIONS *`; and CONNECT, which would make a proxy of it."""
    answer = Answer(gateway.say(b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
    assert answer.status == 405 and answer.headers["Allow"] == "GET, POST"
    for target in ("localhost:80", gateway.engine.address.removeprefix("http://")):
        with gateway.client() as sock:
            sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode() + post())
            assert Answer(data := drain(sock)).status == 501 and data.count(b"\r\n\r\n") == 1
    assert gateway.engine.requests == []
