"""What is said to clients and to engines: refusals, the list of models, header blocks."""

from __future__ import annotations

from typing import Any

import pytest

from llmsupervisor.gateway import route
from llmsupervisor.gateway.view import Table, Target, at_runner, table


def seen(*targets: dict[str, Any]) -> Table:
    place = {"target": "chat", "service": "chat", "endpoint": "chat@1", "address": "http://127.0.0.1:18400"}
    return table(
        {
            "generation": 1,
            "targets": [{**place, "state": "open", "names": ["chat"], "inject": {}} | each for each in targets],
        }
    )


def one(**more: Any) -> Target:
    return seen(more).targets[0]


def head(target: Target, kept: dict[str, str]) -> list[str]:
    return (
        route.upstream_head("/v1/completions", target, kept, 2, "id-1").decode().removesuffix("\r\n\r\n").split("\r\n")
    )


def test_an_engine_is_told_that_the_body_is_json_where_the_client_does_not_say_what_it_is() -> None:
    assert "content-type: application/json" in head(one(), {})
    for said in ("application/json; charset=utf-8", "text/plain"):
        lines = head(one(), {"content-type": said})
        assert [line for line in lines if line.startswith("content-type:")] == [f"content-type: {said}"]


def test_what_is_injected_stands_before_what_the_client_says() -> None:
    target = one(inject={"headers": {"Authorization": "Bearer own", "X-Request-ID": "ours"}})
    lines = head(target, {"x-request-id": "theirs", "accept": "*/*"})
    assert lines[0] == "POST /v1/completions HTTP/1.1"
    assert {"host: 127.0.0.1:18400", "content-length: 2", "accept: */*", "authorization: Bearer own"} < set(lines)
    assert [line for line in lines if line.startswith("x-request-id:")] == ["x-request-id: ours"]


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_what_is_not_served_is_named_beside_what_is() -> None:
    seen_table = seen({"traits": {"routes": {"/own": "own"}}})
    for method, path, status, allow in (
        ("POST", "/healthz", 405, "GET, HEAD"),
        ("GET", "/v1/completions", 405, "POST, OPTIONS"),
        ("GET", "/slots", 404, None),
    ):
        found = route.refused_route(method, path, seen_table)
        assert found.status == status and dict(found.headers).get("Allow") == allow
    assert "/v1/models" in found.message and "/own" in found.message
    assert "known: chat, other" in route.unknown_model("gpt-4", ["chat", "other"]).message
    assert "known: none" in route.unknown_model("gpt-4", []).message
    unspoken = route.unspoken("chat", "/infill", seen_table.targets)
    assert unspoken.status == 404 and unspoken.message.endswith("it has: /own")


def test_errors_have_the_shape_that_their_clients_know() -> None:
    assert route.Refusal(400, "x", "c").body()["error"]["type"] == "invalid_request_error"
    assert route.Refusal(503, "x", "c").body()["error"] == {
        "message": "x",
        "type": "server_error",
        "param": None,
        "code": "c",
    }
    assert route.Refusal(503, "x").body(native=True) == {"error": "x"}
    assert route.event(route.Refusal(502, "x"), lines=True) == b'{"error": "x"}\n'
    assert route.event(route.Refusal(502, "x")).startswith(b"event: error\ndata: {")


def test_the_root_is_ollamas_alone() -> None:
    assert route.local("/", seen({})) is None and route.local("/healthz", seen({})) == "healthz"
    assert route.local("/", seen({"traits": {"routes": {"/api/chat": "api.chat"}}})) == "ollama"


# --- the list of models -----------------------------------------------------------------------------------------------


def test_every_listed_name_once_with_its_best_target() -> None:
    place = {"names": ["chat", "both", "secret"], "context_length": 8192}
    place |= {"policies": {"secret": {"set": {}, "strip": [], "listed": False}}}
    one, two = (
        {**place, "state": "hold"},
        {**place, "target": "two", "service": "two", "names": ["both"], "state": "open"},
    )
    odd = {"target": "odd", "service": "odd", "names": ["odd"], "state": "of a later version"}
    shown = route.models(seen(one, two, odd, {"names": ["hidden"], "listed": False}), 7)
    assert [(m["id"], m["owned_by"], m["state"]) for m in shown["data"]] == [
        ("chat", "chat", "hold"),
        ("both", "two", "open"),
        ("odd", "odd", "of a later version"),
    ]
    assert shown["data"][0] == {
        "id": "chat",
        "object": "model",
        "created": 7,
        "owned_by": "chat",
        "state": "hold",
        "context_length": 8192,
    }
    assert [m["id"] for m in route.models(seen(one, two), 7, {"both"})["data"]] == ["both"]


# --- our own answers --------------------------------------------------------------------------------------------------


def test_an_answer_to_head_and_one_without_content() -> None:
    assert (
        route.answer(200, b"ok", kind="text/plain")
        == b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
    )
    assert route.answer(200, b"ok", head_only=True).endswith(b"Content-Length: 2\r\n\r\n")
    assert route.answer(204, b"", [("Vary", "Origin")]) == b"HTTP/1.1 204 No Content\r\nVary: Origin\r\n\r\n"


# --- the view ---------------------------------------------------------------------------------------------------------


def test_a_header_to_inject_has_no_line_break() -> None:
    with pytest.raises(ValueError, match="line break"):
        one(inject={"headers": {"Authorization": "a\r\nb: c"}})


def test_a_table_finds_services_and_what_is_closed() -> None:
    found = seen({}, {"target": "two", "service": "two", "endpoint": "two@1", "state": "hold"})
    assert found.service("two") is found.targets[1] and found.service("three") is None
    assert found.closed() == {"two@1"} and found.ready() and not Table().ready()


def test_the_process_that_has_the_model() -> None:
    runner = at_runner(one(runner="http://127.0.0.1:40000", inject={"headers": {"Authorization": "Bearer own"}}))
    assert (runner.host, runner.port, runner.headers) == ("127.0.0.1", 40000, ())
    assert (at_runner(one()).host, at_runner(one()).port) == ("", 0)
