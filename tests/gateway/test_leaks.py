"""An engine that keeps memory of every request: real daemon, real gateway, and requests while it is recycled."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from gateway.box import Box
from support.daemon import Daemon
from support.faults import conditions
from support.journal import duplicates, starts
from support.spec import fake
from support.wait import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
QUICK = "import llmsupervisor.daemon.trends as trends\ntrends.LOOK = 0.3\n"
"""Memory is looked at each second instead of each 15 s: what a leak is takes 12 looks."""
MIB = 1024**2
LEAK = {"rise": "16MiB", "recycle": True, "idle": "2s"}


@pytest.fixture
def box(daemon: Daemon) -> Iterator[Box]:
    (daemon.folder / "quick").mkdir()
    (daemon.folder / "quick" / "sitecustomize.py").write_text(QUICK)
    daemon.environ["PYTHONPATH"] = str(daemon.folder / "quick")
    yield Box(daemon)
    daemon.down()


class Clients:
    """Four of them, one request after the other until the end of the block; every answer is counted."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.ended = threading.Event()
        self.pool = ThreadPoolExecutor(4)
        self.work: list[Future[int]] = []

    def _ask(self) -> int:
        done = 0
        while not self.ended.is_set():
            assert self.box.post(max_tokens=2)[0] == 200
            done += 1
        return done

    def __enter__(self) -> None:
        self.work = [self.pool.submit(self._ask) for _ in range(4)]

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.pool.shutdown()
        self.answered = sum(each.result() for each in self.work)


def test_a_leak_is_told_and_recycled_once_while_nobody_asks(box: Box) -> None:
    daemon = box.daemon
    knobs = {"token_ms": 20, "leak": 512, "term_after": 0.5}
    chat = fake(daemon.folder / "model.gguf", daemon.journal, knobs, parallel=4, cache_ram="0B", leak=LEAK)
    box.write({"chat": chat})
    daemon.up()
    first = box.ready()["pid"]
    leaks = lambda s: "leak" in conditions(s)  # noqa: E731
    with Clients(box):
        told = daemon.wait_service("chat", leaks, 90, "the condition")
        text = conditions(told)["leak"]
        assert text == "memory rose by more than 16.0 MiB with its requests and never came back"
        assert 0.3 * MIB < told["growth"]["host_bytes_per_request"] < 0.8 * MIB
        looked = lambda: daemon.service("chat")["growth"]["requests"]  # noqa: E731
        seen = looked()
        wait_until(lambda: looked() > seen + 50, 30, "more looks at the memory of a busy service")
        assert daemon.service("chat")["pid"] == first, "recycled under its requests"

    daemon.wait_service("chat", lambda s: s["pid"] != first, 20, "the recycle")
    with Clients(box):  # from its very start on: they wait
        daemon.wait_service("chat", lambda s: s["state"] == "READY" and not leaks(s), 20, "a fresh one")
        second = daemon.wait_service("chat", leaks, 90, "the condition again")
    assert second["restarts"] == 1 and second["pid"] != first
    rested = time.monotonic() + 3 * 2.0
    wait_until(lambda: time.monotonic() > rested, 10, "three times `idle`, in which nothing comes")
    assert daemon.service("chat")["pid"] == second["pid"], "recycled again within the hour"
    (event,) = [e for e in daemon.events(service="chat", kind="state") if "recycled while idle" in e["reason"]][:1]
    assert event["reason"].endswith(text)
    assert len(starts(daemon.journal)) == 2 and duplicates(daemon.journal) == []
