"""The gateway killed under 200 streams and 500 connections a second: nobody is refused, and it is back at once."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from gateway.box import Box
from support.daemon import clean_environ
from support.wait import Spent, wait_until

STREAMS, RATE = 200, 500
BACK = 1.0
"""Seconds, the goal."""
KILLS = 3


class Crowd:
    """`crowd.py` and what it said."""

    def __init__(self, port: str) -> None:
        command = [sys.executable, str(Path(__file__).with_name("crowd.py")), port, str(STREAMS), str(RATE)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.how: collections.Counter[str] = collections.Counter()
        self.streams = 0
        """Those that have begun and not ended."""
        self.answers: list[tuple[float, float]] = []
        """Of the short connections: when each was begun and ended, `time.monotonic`."""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            said: dict[str, Any] = json.loads(line)
            if "stream" in said:
                self.streams += 1 if said["stream"] == "began" else -1
                continue
            self.how[said["how"]] += 1
            if said["how"] == "answered":
                self.answers.append((said["began"], said["ended"]))

    def first_after(self, when: float) -> float | None:
        """When the first answer came to a connection that was begun after it."""
        return min((ended for began, ended in self.answers[-20_000:] if began > when), default=None)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.process.kill()
        self._reader.join()


def start() -> float:
    """Seconds that Python needs here and now to have a gateway's code loaded, and to end."""
    began = time.monotonic()
    command = [sys.executable, "-P", "-m", "llmsupervisor.gateway"]
    subprocess.run(command, env=clean_environ(), stderr=subprocess.DEVNULL, check=False)
    return time.monotonic() - began


def test_kill_9_under_streams_and_connections(box: Box) -> None:
    """Where the machine is slow, "at once" is some times what the start of the process takes beside the same crowd."""
    box.write({"chat": box.service(token_ms=1000) | {"parallel": STREAMS, "context_length": 1024}})
    box.daemon.up()
    box.ready()
    gaps: list[tuple[float, float]] = []
    with Crowd(box.listen.rpartition(":")[2]) as crowd:
        for _ in range(KILLS):
            wait_until(lambda: crowd.streams >= STREAMS, 60, lambda: f"{crowd.streams} streams, {crowd.how}")
            since, seen = time.monotonic(), len(crowd.answers)
            floor = start()
            rate = (len(crowd.answers) - seen) / (time.monotonic() - since)
            os.kill(box.gateway()["pid"], signal.SIGKILL)
            killed, spent = time.monotonic(), Spent()
            back = wait_until(lambda killed=killed: crowd.first_after(killed), 60, "an answer of the next gateway")
            gaps.append((min(back - killed, spent()), max(BACK, 4 * floor)))
            print(f"back after {gaps[-1][0]:.2f} s; a start {floor:.2f} s; {rate:.0f} answers/s before")
            if gaps[-1][0] <= gaps[-1][1]:
                break
        wait_until(lambda: crowd.streams >= STREAMS, 60, lambda: f"{crowd.streams} streams, {crowd.how}")
    assert crowd.how["refused"] == 0, crowd.how
    assert any(gap <= most for gap, most in gaps), gaps
    assert crowd.how["answered"] > 100, crowd.how
