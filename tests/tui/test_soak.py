"""Left open for long: what the process holds stays bounded. `LLMSUPERVISOR_UPDATES` says for how many records, events and
lines of log, each (`make soak`: 200,000)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tui.samples import event, record, service
from tui.stand_in import StandIn
from tui.terminal import Terminal

from llmsupervisor.tui.feeds import EVENTS, REQUESTS

UPDATES = int(os.environ.get("LLMSUPERVISOR_UPDATES", "7000"))
ROUNDS = 20
KEPT = min(REQUESTS, EVENTS, UPDATES // 7)
"""Of records and of events: the lists are full long before the end."""
MIB = 1024**2


@pytest.fixture
def stand_in(short_folder: Path) -> Iterator[StandIn]:
    daemon = StandIn(short_folder / "s", [service("chat"), service("embed")])
    yield daemon
    daemon.die()


@pytest.mark.timeout(900 + UPDATES // 50)
def test_memory_does_not_grow_with_what_it_was_told(stand_in: StandIn) -> None:
    """From when its lists are full it may grow by no more than a small part of what filled them."""
    program = (
        f"import sys\nfrom llmsupervisor.tui import feeds\nfeeds.REQUESTS = feeds.EVENTS = {KEPT}\n"
        "from llmsupervisor.cli.main import main\nsys.exit(main())"
    )
    command = [sys.executable, "-c", program, "tui", "--socket", str(stand_in.path)]
    held: list[int] = []
    threads: list[int] = []
    with Terminal(command, (80, 24)) as terminal:
        terminal.wait("READY")
        for page, words in (("2", "REQUESTS"), ("5", "EVENTS"), ("4", "LOG")):
            terminal.press(page)
            terminal.wait(words)
        for number in range(ROUNDS):
            feed(stand_in, number, UPDATES // ROUNDS)
            for page, words in (("1", f" {number + 1000} "), ("4", f"end of {number}."), ("5", f"end of {number}."), ("2", f"end{number}.")):  # fmt: skip
                terminal.press(page)
                terminal.wait(words, 60)
            process = psutil.Process(terminal.child.pid)
            held.append(process.memory_info().rss)
            threads.append(process.num_threads())
        terminal.press("q")
        terminal.wait("run on")
    full = next(n for n in range(ROUNDS) if n * (UPDATES // ROUNDS) > KEPT) + 2
    grown = [round((size - held[0]) / MIB, 1) for size in held]
    print(f"MiB over the first of {ROUNDS} rounds, full after {full}: {grown}; threads {threads}")
    assert held[-1] - held[full] < max(8 * MIB, (held[full] - held[0]) // 2), f"MiB over the first round: {grown}"
    assert max(threads[full:]) <= max(threads[:full]) + 2, threads


def feed(stand_in: StandIn, number: int, count: int) -> None:
    """The last of each kind says that it is."""
    stand_in.say(service("chat", restarts=1000 + number), service("embed"))
    stand_in.log("chat", *(f"{number}.{n} of many words" for n in range(count)), f"end of {number}.")
    turns = {"from": "STARTING", "to": "READY"}
    reasons = [*(f"{number}.{n}" for n in range(count)), f"end of {number}."]
    stand_in.happened(*(event("chat", "state", time.time(), reason=reason, **turns) for reason in reasons))
    stand_in.ended(*(record(f"r{number}.{n}") for n in range(count)), record(f"r{number}", model=f"end{number}."))
