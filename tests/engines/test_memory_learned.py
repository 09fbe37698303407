"""What a real start teaches the planner: the plan of the next one against what that then holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support import engines
from support.daemon import Daemon
from support.spec import served
from support.wait import wait_until

from llmsupervisor.host import resident

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]
MIB = 1024 * 1024
Json = dict[str, Any]


@pytest.fixture
def chat(daemon: Daemon) -> Iterator[Daemon]:
    yield daemon
    daemon.down()


def service(**settings: Any) -> Json:
    return served(engines.llama_server(), engines.smollm2(), **settings)


def host(daemon: Daemon) -> Json:
    (plan,) = daemon.call("plan", service="chat")["services"]
    (place,) = plan["memory"]["places"]
    assert place["gpu"] is None
    return dict(place)


def held(daemon: Daemon) -> int:
    found = resident.held([daemon.service("chat")["pid"]])
    assert found
    return found


def lessons(daemon: Daemon) -> list[Json]:
    try:
        return list(json.loads((daemon.state / "learned.json").read_text())["entries"])
    except FileNotFoundError:
        return []


def test_the_second_plan_is_near_the_truth(chat: Daemon) -> None:
    """The first start teaches what a process takes beside its buffers; the next, with eight times the KV cache, is then
    known before it starts. KV to the byte that the engine tells, both times."""
    chat.write({"chat": service(context_length=1024)})
    chat.up()
    assert host(chat)["total"] is None and host(chat)["overhead"] is None, "nothing was learned yet"
    chat.wait_state("chat", "READY", 200)
    wait_until(lambda: lessons(chat), 60, "the first lesson")
    (first,) = lessons(chat)
    assert first["key"]["runtime"] == "llama-server" and first["key"]["place"] == "host" and first["starts"] == 1
    assert first["compute"], "as the engine's log says"
    wait_until(lambda: host_of_spec(chat)["total"] == first["held"], 20, "the plan to know it")

    chat.write({"chat": service(context_length=8192)})
    wait_until(lambda: len(lessons(chat)) == 2, 120, lambda: f"the second lesson: {lessons(chat)}\n{chat.told()}")
    second = lessons(chat)[-1]
    ours = second["held"] - second["overhead"]  # with the compute buffer that the engine tells in hundredths of a MiB
    assert abs(second["planned"] - ours) < MIB // 10
    planned, truth = host(chat), held(chat)
    assert planned["kv_cache"] == 2 * 8192 * 2 * 30 * 3 * 64 * 34 // 32
    assert "memory-formula" not in [c["id"] for c in chat.service("chat")["conditions"]]
    assert planned["total"] is not None
    assert abs(planned["total"] - truth) <= max(64 * MIB, 0.02 * truth), (planned["total"] / MIB, truth / MIB)

    out = chat.cli("plan", "--forget")
    assert out.returncode == 0 and "2 lessons forgotten" in out.stdout, out
    assert lessons(chat) == []


def host_of_spec(daemon: Daemon) -> Json:
    """By a plan of its own, as a person asks it."""
    out = daemon.cli("plan", "--json")
    (plan,) = json.loads(out.stdout)["services"]
    return dict(plan["memory"]["places"][0])
