"""Fault D1: the daemon is killed at random points. Each service is adopted or gone, never two, never an orphan.

`LLMSUPERVISOR_KILLS` says how often (`make soak`: 10,000); half of the kills are failpoints, half come from outside.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import process
from support.control import Refused
from support.daemon import Daemon, Json
from support.faults import Box
from support.journal import duplicates
from support.spec import FAKE
from support.wait import PATIENCE, wait_until

KILLS = int(os.environ.get("LLMSUPERVISOR_KILLS", "200"))
SERIES = 10
"""Kills between two looks at a daemon that lives."""
NAMES = ("one", "two", "three")
FAST = {
    "command": [os.path.realpath(sys.executable), "-I", "-S", str(FAKE)],
    "restart": {"burst": 1_000_000, "max_delay": "200ms"},
    "probe": {"timeout": "5s"},
    "drain_timeout": "100ms",
}


class Shaken(Box):
    """`seed` decides everything but what the machine's speed decides."""

    def __init__(self, daemon: Daemon, seed: int) -> None:
        super().__init__(daemon)
        self.rng = random.Random(seed)
        self.lengths = dict.fromkeys(NAMES, 1024)
        self.names = list(NAMES)
        self.by_failpoint = 0
        self.orders = 0

    def write(self) -> None:
        self.daemon.write({name: self.fake(context_length=self.lengths[name], **FAST) for name in self.names})

    # --- one kill ---

    def kill_once(self, quiet: bool) -> None:
        armed = self.rng.random() < 0.5
        point = f"random:{self.rng.random()}:{self.rng.choice((0.03, 0.1, 0.3))}"
        self.daemon.environ = {"LLMSUPERVISOR_FAILPOINT": point} if armed else {}
        if not quiet and self.rng.random() < 0.3:
            self.edit()
        child = self.daemon.launch()
        if not armed and self.rng.random() < 0.5:
            self.die_within(self.rng.uniform(0.0, 0.35))
        elif self.answers():
            for _ in range(0 if quiet else self.rng.randrange(1, 5)):
                self.order()
            self.die_within(self.rng.uniform(0.0, 0.2))
        self.by_failpoint += child.poll() is not None
        child.kill()
        assert child.wait(20) == -signal.SIGKILL, f"it ended by itself\n{self.daemon.told()}"
        self.never_two()

    def die_within(self, seconds: float) -> None:
        assert self.daemon.process
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.daemon.process.wait(seconds)

    def answers(self) -> bool:
        """False: a failpoint was faster."""
        assert self.daemon.process
        end = time.monotonic() + PATIENCE
        while self.daemon.process.poll() is None:
            with contextlib.suppress(OSError, ConnectionError, IndexError):
                return bool(self.daemon.call("ping", timeout=1))
            assert time.monotonic() < end, f"no answer\n{self.daemon.told()}"
            time.sleep(0.01)
        return False

    def order(self) -> None:
        """A person, an editor, or the fate of a server; the daemon may be dead already."""
        self.orders += 1
        kind = self.rng.choice(("stop", "start", "restart", "edit", "crash"))
        name = self.rng.choice(NAMES)
        if kind == "edit":
            self.edit()
        elif kind == "crash":
            process.kill(dict.fromkeys(self.living()[name], ""))
        else:
            with contextlib.suppress(OSError, IndexError, Refused):
                self.daemon.call(kind, timeout=2, service=name, by="test", wait=False)

    def edit(self) -> None:
        if self.rng.random() < 0.3:
            self.names = list(NAMES[:2]) if len(self.names) == 3 else list(NAMES)
        else:
            self.lengths[self.rng.choice(NAMES)] = self.rng.choice((1024, 2048))
        self.write()

    # --- looks ---

    def living(self) -> dict[str, list[int]]:
        """Servers by their working directory, whoever started them."""
        found: dict[str, list[int]] = {name: [] for name in NAMES}
        for pid in process.inside(self.daemon.run / "services"):
            with contextlib.suppress(OSError):
                found[Path(os.readlink(f"/proc/{pid}/cwd")).name].append(pid)
        return found

    def never_two(self) -> None:
        for name, pids in self.living().items():
            assert len(pids) <= 1, f"{name} lives {len(pids)} times: {pids}\n{self.daemon.told()}"
            wait_until(lambda pids=pids: all(map(has_shim, pids)), 3, f"{name}: orphaned")

    def settle(self) -> dict[str, int]:
        """A daemon that nobody kills: every service READY, as the one server that lives. It goes by SIGKILL."""
        self.daemon.environ = {}
        self.daemon.up()
        for name in self.names:
            self.daemon.call("start", service=name, by="test", wait=False)
        pids = {}
        for name in self.names:
            length = str(2 * self.lengths[name])
            status = self.daemon.wait_service(name, lambda s, n=length: self.runs(s, n), 30, f"READY with {length}")
            pids[name] = int(status["pid"])
        only = {name: [pids[name]] if name in pids else [] for name in NAMES}
        wait_until(lambda: self.living() == only, 10, lambda: f"{only}, found {self.living()}")
        assert duplicates(self.daemon.journal) == []
        return pids

    def runs(self, status: Json, length: str) -> bool:
        """A crash order that met the start of an edit has rolled it back: a person's restart tries it again."""
        if status["state"] != "READY":
            return False
        if length in self.argv(status["pid"]):
            return True
        if "rolled-back" in {condition["id"] for condition in status["conditions"]}:
            self.daemon.call("restart", service=status["name"], by="test", wait=False)
        return False

    def argv(self, pid: int) -> list[str]:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        return []


def has_shim(pid: int) -> bool:
    """True for a process that is gone meanwhile too."""
    with contextlib.suppress(OSError, IndexError):
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        return "/shim." in Path(f"/proc/{parent}/cmdline").read_text() or not process.alive(pid)
    return True


@pytest.mark.slow
@pytest.mark.timeout(600 + 6 * KILLS)
def test_random_kills(daemon: Daemon) -> None:
    seed = int(os.environ.get("LLMSUPERVISOR_SEED", random.randrange(10**6)))
    print(f"LLMSUPERVISOR_SEED={seed}")
    box, began = Shaken(daemon, seed), time.monotonic()
    box.write()
    pids = box.settle()
    box.daemon.kill9()
    for number in range(0, KILLS, SERIES):
        quiet = number // SERIES % 3 == 0
        for _ in range(min(SERIES, KILLS - number)):
            box.kill_once(quiet)
        now = box.settle()
        assert not quiet or now == pids, f"restarted for nothing: {pids} → {now}\n{box.daemon.told()}"
        pids = now
        box.daemon.kill9()
    box.daemon.up()
    box.daemon.down()
    assert not any(box.living().values()) and duplicates(box.daemon.journal) == []
    print(
        f"{KILLS} kills in {time.monotonic() - began:.0f} s, {box.by_failpoint} by a failpoint; {box.orders} orders, "
        f"{len(box.daemon.journal.read_text().splitlines())} starts"
    )
