"""A daemon with services on the fake runtime, and the questions that tests of faults ask about them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from support import control, process
from support.daemon import Daemon, Json
from support.engines import REPOSITORY
from support.http import post_json
from support.journal import Spawn, duplicates, starts
from support.spec import fake
from support.wait import wait_until

STOPS = 'steps = [["TERM", "5s"], ["TERM", "5s"]]'
QUICK_STOPS = 'steps = [["TERM", "500ms"], ["TERM", "500ms"]]'
PATIENT_STOPS = 'steps = [["TERM", "60s"]]'
"""An engine that is deaf to it goes on until the test kills it."""
QUICK = {"probe": {"timeout": "3s", "stall_timeout": "2s"}, "drain_timeout": "500ms"}
"""Settings with which a hang is seen within seconds; a machine that stands still for a moment fails no probe."""
ON_GPU: dict[str, Any] = {"gpus": [0], "gpu_memory": "4GiB", **QUICK}


class Box:
    """The runtime's definition is the product's own, with shorter stop steps."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.model = daemon.folder / "model.gguf"
        self.folder = daemon.folder
        shipped = (REPOSITORY / "runtimes" / "llama-server.toml").read_text()
        assert STOPS in shipped
        (daemon.folder / "runtimes").mkdir()
        (daemon.folder / "runtimes" / "llama-server.toml").write_text(shipped.replace(STOPS, QUICK_STOPS))

    def stops(self, steps: str) -> None:
        """The stop steps of every start to come. Before the daemon is up."""
        definition = self.folder / "runtimes" / "llama-server.toml"
        definition.write_text(definition.read_text().replace(QUICK_STOPS, steps))

    def fake(self, knobs: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
        return fake(self.model, self.daemon.journal, knobs, **settings)

    def up(self, knobs: dict[str, Any] | None = None, **settings: Any) -> Box:
        """One service, `chat`; nothing is waited for but the daemon."""
        self.daemon.write({"chat": self.fake(knobs, **settings)})
        self.daemon.up()
        return self

    def ready(self, name: str = "chat", timeout: float = 30.0) -> Json:
        """Also of a service that an edit has just brought."""
        known = lambda: name in [s["name"] for s in self.daemon.status()["services"]]  # noqa: E731
        wait_until(known, timeout, f"the service {name}")
        return self.daemon.wait_state(name, "READY", timeout)

    def again(self, restarts: int = 1, name: str = "chat", timeout: float = 40.0) -> Json:
        """READY after so many restarts."""
        return self.daemon.wait_service(
            name, lambda s: s["state"] == "READY" and s["restarts"] == restarts, timeout, f"READY, {restarts} restarts"
        )

    def items(self, name: str, **args: Any) -> Generator[Any, None, None]:
        """Of a streaming call."""
        return control.items(self.daemon.socket, name, **args)

    def starts(self, name: str = "chat") -> list[Spawn]:
        return starts(self.daemon.journal, name)

    def wait_starts(self, n: int, name: str = "chat", timeout: float = 30.0) -> Spawn:
        """The `n`th start, as soon as it is there."""
        return wait_until(lambda: self.starts(name)[n - 1 : n], timeout, lambda: f"start {n}\n{self.daemon.told()}")[0]

    def once(self, n: int, name: str = "chat") -> None:
        """Exactly `n` starts so far, never two at a time."""
        assert len(self.starts(name)) == n, [s.time for s in self.starts(name)]
        assert duplicates(self.daemon.journal) == []

    def listens(self, name: str = "chat") -> str:
        """Address of the first start, while it loads: what it does with signals and children is done."""
        wait_until(lambda: "loading model" in self.daemon.log(name), 30, lambda: f"a load\n{self.daemon.told(name)}")
        argv = self.starts(name)[0].argv
        return f"http://127.0.0.1:{argv[argv.index('--port') + 1]}"

    def inject(self, status: Json, **faults: Any) -> Json:
        """Into the running fake; what it tells of itself."""
        told: Json = post_json(f"{status['endpoint']}/fault", faults)
        return told

    def states(self, name: str = "chat") -> list[str]:
        """Every state so far, in order."""
        rows = self.daemon.events(service=name, kind="state")
        return [row["to"] for row in rows if row["from"] != row["to"]]

    def exits(self, name: str = "chat") -> list[Json]:
        """Every unrequested end so far."""
        return [row["exit"] for row in self.daemon.events(service=name, kind="exit")]

    def wait_exits(self, n: int, name: str = "chat") -> list[Json]:
        """Exactly `n`; each is on record a moment after the state that it led to, as soon as the disk has it."""
        wait_until(lambda: len(self.exits(name)) >= n, 30, lambda: f"{n} ends on record\n{self.daemon.told()}")
        ends = self.exits(name)
        assert len(ends) == n, ends
        return ends

    def told_conditions(self, name: str = "chat") -> dict[str, str]:
        """Every condition that ever came → its last text."""
        return {row["id"]: row["text"] for row in self.daemon.events(service=name, kind="condition") if row["on"]}

    def cpu_seconds(self, pid: int) -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def shim(self, name: str = "chat") -> int:
        return int(self.daemon.run_file(name, "run.json")["shim"]["pid"])

    def below_shim(self, name: str = "chat") -> list[int]:
        """Everything that lives below the shim."""
        return process.below(self.shim(name))

    def kill(self, status: Json) -> None:
        """SIGKILL to the main process, and its end."""
        os.kill(status["pid"], signal.SIGKILL)
        gone([status["pid"]])

    def down_clean(self) -> None:
        self.daemon.down()
        assert duplicates(self.daemon.journal) == []


def conditions(status: Json) -> dict[str, str]:
    return {c["id"]: c["text"] for c in status["conditions"]}


def gpu(faults: Box, uuid: str = "GPU-a") -> Json | None:
    return next((gpu for gpu in faults.daemon.status()["gpus"] or [] if gpu["uuid"] == uuid), None)


def wait_gpu(faults: Box, fits: Any, what: str, uuid: str = "GPU-a", timeout: float = 20.0) -> Json:
    """The card once `fits(it)` holds."""

    def check() -> Json | None:
        found = gpu(faults, uuid)
        return found if found is not None and fits(found) else None

    found = wait_until(check, timeout, lambda: f"{what}: {json.dumps(gpu(faults, uuid))}\n{faults.daemon.told()}")
    assert found
    return found


def pending(faults: Box, words: str, name: str = "chat") -> Json:
    return faults.daemon.wait_service(
        name, lambda s: s["state"] == "PENDING" and words in s["reason"], 30, f"PENDING: {words}"
    )


def gone(pids: list[int], timeout: float = 5.0) -> None:
    wait_until(lambda: not any(map(process.alive, pids)), timeout, f"the end of {pids}")


class Stopwatch:
    """Prints what took how long."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def lap(self, what: str) -> float:
        spent = time.monotonic() - self.began
        print(f"{what}: {spent:.2f} s")
        self.began = time.monotonic()
        return spent
