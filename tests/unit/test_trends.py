"""Leaks and planned restarts: a real process that grows when told, the daemon's other parts as little as needed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from llmsupervisor.daemon.conditions import Conditions
from llmsupervisor.daemon.trends import AGAIN, Trends
from llmsupervisor.host import resident
from llmsupervisor.service.states import Restart, State
from llmsupervisor.spec.model import Service

MIB = 1024**2
GROWS = """
import sys
held = []
for line in sys.stdin:
    held.append(b"x" * int(line))
    print(len(held), flush=True)
"""


class Grower:
    """A child of this process, as a runtime is one of its shim."""

    def __init__(self) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-c", GROWS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.grow(0)

    def grow(self, size: int) -> None:
        assert self.child.stdin and self.child.stdout
        print(size, file=self.child.stdin, flush=True)
        self.child.stdout.readline()


@pytest.fixture
def grower() -> Iterator[Grower]:
    grower = Grower()
    yield grower
    grower.child.kill()
    grower.child.wait()
    for pipe in (grower.child.stdin, grower.child.stdout):
        if pipe:
            pipe.close()


class World:
    """One service, READY, whose shim is this test."""

    def __init__(self, tmp_path: Any, leak: dict[str, Any]) -> None:
        service = Service.model_validate({"runtime": "x", "leak": {"rise": "16MiB", **leak}})
        plan = SimpleNamespace(service=service, definition=SimpleNamespace(settings={}))
        process = SimpleNamespace(attempt=1, plan=plan, run=SimpleNamespace(shim=SimpleNamespace(pid=os.getpid())))
        self.now, self.posted, self.idle = 1000.0, list[Any](), True
        self.runner = SimpleNamespace(
            name="chat", plan=plan, process=process, conditions=Conditions(lambda: self.now, lambda *_: None)
        )
        self.runners = {"chat": self.runner}
        self.status = SimpleNamespace(state=State.READY)
        traffic = SimpleNamespace(of=lambda name: SimpleNamespace(idle=self.idle), used=lambda name: self.now - 90)
        daemon: Any = SimpleNamespace(
            clock=SimpleNamespace(wall=lambda: self.now, monotonic=lambda: self.now),
            layout=SimpleNamespace(requests=tmp_path / "requests.db"),
            loop=SimpleNamespace(statuses={"chat": self.status}, post=lambda name, event: self.posted.append(event)),
            box=SimpleNamespace(
                runners=self.runners, memory=SimpleNamespace(held=lambda name: {"GPU-0": MIB}), traffic=traffic
            ),
        )
        self.trends = Trends(daemon)

    def look(self, requests: int) -> None:
        self.trends.recent._count["chat"] = requests
        self.trends._memory()
        self.trends._leaks("chat", self.runner)  # type: ignore[arg-type]

    def leaking(self, grower: Grower) -> None:
        for number in range(14):
            self.look(number * 20)
            grower.grow(3 * MIB)


def test_memory_that_grows_is_a_condition_and_is_recycled_once(tmp_path: Any, grower: Grower) -> None:
    world = World(tmp_path, {"recycle": True})
    world.leaking(grower)
    (condition,) = world.runner.conditions.all()
    assert condition.id == "leak" and condition.text.startswith("memory rose by") and "GPU" not in condition.text
    trend = world.trends.of["chat"]
    slope = trend.slope("memory")
    assert slope is not None and 0.1 * MIB < slope < 0.2 * MIB and trend.slope("GPU memory") == 0
    (event,) = world.posted
    assert isinstance(event, Restart) and event.reason.startswith("recycled while idle: memory rose")
    world.look(400)
    world.now += AGAIN / 2
    world.look(420)
    assert len(world.posted) == 1, "not again within the hour"
    world.runner.process.attempt = 2
    world.look(440)
    assert world.runner.conditions.all() == [] and world.trends.of["chat"].slope("memory") is None


@pytest.mark.parametrize("why", ["busy", "forbidden", "not ready"])
def test_when_nothing_is_recycled(tmp_path: Any, grower: Grower, why: str) -> None:
    world = World(tmp_path, {"recycle": why != "forbidden"})
    world.idle = why != "busy"
    if why == "not ready":
        world.trends._may_recycle = lambda name, idle: False  # type: ignore[method-assign]
    world.leaking(grower)
    assert world.runner.conditions.has("leak") and world.posted == []


def test_what_ended_is_forgotten(tmp_path: Any, grower: Grower) -> None:
    world = World(tmp_path, {})
    world.leaking(grower)
    assert world.runner.conditions.has("leak") and world.trends.of["chat"].rss
    world.runner.process = None
    world.look(500)
    assert world.trends.of == {} and not world.runner.conditions.has("leak")


def test_what_left_the_spec_is_forgotten(tmp_path: Any, grower: Grower) -> None:
    """And only that: of a service that is not there yet its requests of before are kept."""
    world = World(tmp_path, {"recycle": True})
    world.leaking(grower)
    trends, recent = world.trends, world.trends.recent
    trends._objectives(world.runner)  # type: ignore[arg-type]
    recent._ended |= {"chat": deque(), "later": deque()}
    trends._forget()
    assert trends.of.keys() == trends.objectives.keys() == trends.context.keys() == trends._recycled.keys() == {"chat"}
    del world.runners["chat"]
    trends._memory()
    trends._forget()
    assert trends.of == trends.objectives == trends.context == trends._recycled == {}
    assert recent._ended.keys() == {"later"} and recent._count == {}


def test_memory_of_trees(grower: Grower) -> None:
    tree = resident.trees([os.getpid(), 2**22 + 1])
    assert grower.child.pid in tree[os.getpid()] and tree[2**22 + 1] == []
    before = resident.memory([grower.child.pid])
    grower.grow(20 * MIB)
    after = resident.memory([grower.child.pid, 2**22 + 1])
    assert before and after and 19 * MIB < after[0] - before[0] < 22 * MIB
    assert resident.memory([2**22 + 1]) is None
