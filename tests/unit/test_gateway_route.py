"""What is said to clients and to engines: refusals, the list of models, header blocks."""

from __future__ import annotations

from typing import Any

from llmsupervisor.gateway import route
from llmsupervisor.gateway.view import Table, Target, table


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
