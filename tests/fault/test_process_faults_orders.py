"""P26: orders that meet a start, an end or each other, against a real daemon. Numbers: README.md beside this file."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from support import process
from support.control import Refused
from support.daemon import Json
from support.faults import PATIENT_STOPS, Box, gone
from support.journal import duplicates
from support.wait import wait_until

OPERATIONS = 60
SETTLED = 20
"""Operations between two looks at where everything came to rest."""


def order(box: Box, call: str, name: str = "chat", **args: object) -> None:
    """Given, and not waited for."""
    with contextlib.suppress(Refused):
        box.daemon.call(call, service=name, by="test", wait=False, **args)


def end(box: Box, status: Json) -> None:
    """Of one that is deaf to a TERM."""
    order(box, "stop")
    box.kill(status)
    box.daemon.wait_state("chat", "STOPPED")


def test_P26_stop_during_the_start(faults: Box) -> None:
    faults.up({"ready_after": 60})
    pid = faults.wait_starts(1).pid
    order(faults, "stop")
    status = faults.daemon.wait_state("chat", "STOPPED")
    assert (status["goal"], status["stopped_by"], status["restarts"]) == ("down", "test", 0)
    gone([pid])
    assert "DRAINING" not in faults.states() and faults.exits() == []
    faults.once(1)


def test_P26_start_during_the_stop(faults: Box) -> None:
    """The old one ends first; then exactly one new one."""
    faults.stops(PATIENT_STOPS)
    before = faults.up({"ignore_term": 1}).ready()
    order(faults, "stop")
    wait_until(lambda: "STOPPING" in faults.states(), 20, "STOPPING")
    for _ in range(3):
        order(faults, "start")
    faults.kill(before)
    after = faults.again(1)
    assert after["goal"] == "up" and after["stopped_by"] is None and not process.alive(before["pid"])
    faults.once(2)
    end(faults, after)


def test_P26_stop_after_start_during_the_stop(faults: Box) -> None:
    """The last word counts."""
    faults.stops(PATIENT_STOPS)
    before = faults.up({"ignore_term": 1}).ready()
    for call in ("stop", "start", "restart", "stop"):
        order(faults, call)
    wait_until(lambda: "STOPPING" in faults.states(), 20, "STOPPING")
    faults.kill(before)
    status = faults.daemon.wait_state("chat", "STOPPED")
    assert status["goal"] == "down"
    faults.once(1)


def test_P26_two_restarts_at_once(faults: Box) -> None:
    faults.stops(PATIENT_STOPS)
    before = faults.up({"ignore_term": 1}).ready()
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(order, faults, "restart") for _ in range(4)]:
            done.result()
    wait_until(lambda: "STOPPING" in faults.states(), 20, "STOPPING")
    faults.kill(before)
    after = faults.again(1)
    assert after["pid"] != before["pid"]
    faults.once(2)
    assert faults.exits() == []
    end(faults, after)


def test_P26_stop_during_the_backoff(faults: Box) -> None:
    faults.up({"exit_after": 0, "ready_after": 60, "code": 1}, restart={"max_delay": "1s"})
    faults.daemon.wait_state("chat", "BACKOFF")
    order(faults, "stop")
    faults.daemon.wait_state("chat", "STOPPED")
    count, until = len(faults.starts()), time.monotonic() + 1.3
    wait_until(lambda: time.monotonic() > until, 5, "more than the backoff")
    assert faults.daemon.service("chat")["state"] == "STOPPED"
    faults.once(count)


@pytest.mark.parametrize("who", ["main", "shim"])
def test_P26_a_kill_during_the_stop_is_no_crash(faults: Box, who: str) -> None:
    """What was ordered to end, ended: nothing starts again."""
    before = faults.up({"ignore_term": 1, "children": 1}).ready()
    tree, shim = faults.below_shim(), faults.shim()
    order(faults, "stop")
    wait_until(lambda: "STOPPING" in faults.states(), 20, "STOPPING")
    with contextlib.suppress(ProcessLookupError):  # it was just killed as the steps say
        os.kill(shim if who == "shim" else before["pid"], signal.SIGKILL)
    status = faults.daemon.wait_state("chat", "STOPPED")
    assert status["goal"] == "down" and faults.exits() == []
    gone([*tree, shim])
    faults.once(1)


@pytest.fixture
def ending(faults: Box) -> Iterator[int]:
    """A `down` that waits for the end of this process, which takes a minute."""
    faults.stops(PATIENT_STOPS)
    pid: int = faults.up({"ignore_term": 1}).ready()["pid"]
    yield pid
    os.kill(pid, signal.SIGKILL)
    assert faults.daemon.wait_exit(40) == 0
    assert faults.daemon.leftovers() == [] and len(faults.starts()) == 1 and faults.starts("late") == []


def test_P26_orders_during_a_down_are_refused(faults: Box, ending: int) -> None:
    """What they began, the down would wait for, and nobody would end."""
    faults.daemon.signal(signal.SIGTERM)
    wait_until(lambda: "STOPPING" in faults.states(), 20, "STOPPING")
    for call in ("start", "restart", "reload"):
        with pytest.raises(Refused, match="the daemon goes down, ordered by a signal"):
            faults.daemon.call(call, **({} if call == "reload" else {"service": "chat"}))


def test_P26_an_edit_that_meets_a_down(faults: Box, ending: int) -> None:
    """It is being read and planned when the order comes."""
    faults.daemon.write({"chat": faults.fake({"ignore_term": 1}), "late": faults.fake()})
    faults.daemon.signal(signal.SIGTERM)
    wait_until(lambda: "STOPPING" in faults.states(), 20, "STOPPING")
    until = time.monotonic() + 2.0
    wait_until(lambda: time.monotonic() > until, 5, "more than a reload takes")


# --- random orders ------------------------------------------------------------------------------------------------


class Fuzz:
    """Orders and kills at random; beside them the one thing that a person relies on: the last word."""

    def __init__(self, box: Box, seed: int) -> None:
        self.box, self.random = box, random.Random(seed)
        self.last_word = {"one": "up", "two": "up"}
        self.threads = 3
        self.done: list[str] = []
        self.write()

    def write(self) -> None:
        common = {"restart": {"burst": 1000, "max_delay": "100ms"}, "drain_timeout": "200ms"}
        self.box.daemon.write(
            {
                "one": self.box.fake({"children": 1, "ready_after": 0.1}, threads=self.threads, **common),
                "two": self.box.fake({"term_after": 0.2}, **common),
            }
        )

    def step(self) -> None:
        name = self.random.choice(list(self.last_word))
        moves: list[tuple[int, Callable[[str], None]]] = [
            (4, self.start),
            (4, self.stop),
            (4, self.restart),
            (2, self.reload),
            (3, self.kill_main),
            (2, self.kill_shim),
        ]
        weights, actions = zip(*moves, strict=True)
        (action,) = self.random.choices(actions, weights)
        self.done.append(f"{action.__name__} {name}")
        action(name)
        time.sleep(self.random.choice((0, 0, 0.02, 0.1, 0.4)))  # so that operations meet every state

    def start(self, name: str) -> None:
        self.last_word[name] = "up"
        order(self.box, "start", name)

    def stop(self, name: str) -> None:
        self.last_word[name] = "down"
        order(self.box, "stop", name, now=self.random.random() < 0.3)

    def restart(self, name: str) -> None:
        self.last_word[name] = "up"
        order(self.box, "restart", name)

    def reload(self, name: str) -> None:
        """Changes `one` so that it must restart where it runs, and only there."""
        self.threads = 5 - self.threads
        self.write()
        self.box.daemon.call("reload")

    def kill_main(self, name: str) -> None:
        self.kill(name, "main")

    def kill_shim(self, name: str) -> None:
        self.kill(name, "shim")

    def kill(self, name: str, who: str) -> None:
        """Whoever the record names, if it still is that one."""
        with contextlib.suppress(OSError, ValueError):
            found = self.box.daemon.run_file(name, "run.json")[who]
            if process.start_time(found["pid"]) == found["start"]:
                os.kill(found["pid"], signal.SIGKILL)

    def settle(self) -> None:
        """Everything comes to rest where the last word said."""
        for name, goal in self.last_word.items():
            state = "READY" if goal == "up" else "STOPPED"

            def rests(status: Json, name: str = name, state: str = state) -> bool:
                """It may be dead, and the daemon has not heard of it."""
                running = sorted(pid for pid, words in self.running().items() if f"--alias {name} " in words)
                expected = [status["pid"]] if state == "READY" else []
                return status["state"] == state and [pid for pid in running if pid in self.mains(name)] == expected

            assert self.box.daemon.wait_service(name, rests, 30, f"{state}, and what runs")["goal"] == goal
        assert duplicates(self.box.daemon.journal) == []

    def running(self) -> dict[int, str]:
        return {pid: words for pid, words in process.inside(self.box.daemon.state).items() if "/shim." not in words}

    def mains(self, name: str) -> set[int]:
        return {start.pid for start in self.box.starts(name)}


def check_history(rows: list[Json], names: set[str]) -> None:
    """Each state follows from the one before; attempts count up by one; a stop holds until somebody says otherwise."""
    for name in names:
        mine = [row for row in rows if row["service"] == name]
        states = [row for row in mine if row["kind"] == "state"]
        for before, after in pairwise(states):
            assert before["to"] == after["from"], (name, before, after)
            assert after["attempt"] - before["attempt"] in (0, 1), (before, after)
            assert after["to"] != "STARTING" or before["to"] in ("PENDING", "STARTING"), (before, after)
        stopped = False
        for row in mine:
            if row["kind"] == "operator":
                stopped = row["call"] == "stop"
            started = row["kind"] == "state" and row["to"] == "STARTING" and row["from"] != "STARTING"
            assert not (stopped and started), ("a lost stop", name, row)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [int(n) for n in os.environ.get("LLMSUPERVISOR_SEEDS", "1").split()])
def test_P26_random_orders_and_kills(faults: Box, seed: int) -> None:
    fuzz = Fuzz(faults, seed)
    faults.daemon.up()
    try:
        for n in range(1, OPERATIONS + 1):
            fuzz.step()
            if n % SETTLED == 0:
                fuzz.settle()
    except BaseException:
        print(f"seed {seed}:", *fuzz.done, sep="\n  ")
        raise
    rows = faults.daemon.events()
    check_history(rows, set(fuzz.last_word))
    starts = {name: len(faults.starts(name)) for name in fuzz.last_word}
    spawned = {
        name: sum(r["kind"] == "state" and r["to"] == "STARTING" != r["from"] for r in rows if r["service"] == name)
        for name in fuzz.last_word
    }
    print(f"seed {seed}: {starts} starts seen by the fakes, {spawned} by the daemon")
    assert all(starts[name] <= spawned[name] for name in starts), "never one that the daemon does not know of"
    assert not [line for line in faults.daemon.output.read_text().splitlines() if "cannot come in" in line]
    assert "Traceback" not in faults.daemon.output.read_text()
    faults.down_clean()
