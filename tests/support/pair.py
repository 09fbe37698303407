"""Two services of which a fault of the daemon must not touch a hair."""

from __future__ import annotations

import os
import signal
from typing import Any

from support.daemon import Json
from support.faults import Box
from support.wait import wait_until

NAMES = ("chat", "other")


class Two(Box):
    def write(self, knobs: Json | None = None, **settings: Any) -> None:
        self.daemon.write({"chat": self.fake(knobs, **settings), "other": self.fake()})

    def two_up(self, knobs: Json | None = None, **settings: Any) -> Two:
        self.write(knobs, **settings)
        self.daemon.up()
        self.before = {name: self.ready(name) for name in NAMES}
        return self

    def same(self, *names: str) -> None:
        for name in names or NAMES:
            status = self.daemon.service(name)
            assert (status["state"], status["pid"]) == ("READY", self.before[name]["pid"]), status
            self.once(1, name)

    def kill(self, name: str = "chat") -> None:
        os.kill(self.before[name]["pid"], signal.SIGKILL)

    def at_rest(self, timeout: float = 10.0) -> None:
        """The daemon has nothing to tell of itself. A machine that stood still is told for a moment."""
        wait_until(lambda: not self.own_conditions(), timeout, lambda: f"no condition: {self.own_conditions()}")

    def own_conditions(self) -> dict[str, str]:
        return {c["id"]: c["text"] for c in self.daemon.status()["daemon"]["conditions"]}
