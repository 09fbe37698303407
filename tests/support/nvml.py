"""A stand-in for NVML's library, and one card whose memory is held by the services of a daemon that run."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from pathlib import Path

from support.engines import REPOSITORY
from support.process import alive


def build(folder: Path) -> Path:
    """`folder`, with a library in it that plays the scenario in the file `$NVML_SCENARIO`."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the NVML stand-in needs a C compiler"
    target, source = folder / "libnvidia-ml.so.1", REPOSITORY / "tests" / "fixtures" / "nvml" / "nvml.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", target, source], check=True)
    return folder


class Scenario:
    """What the library plays, line by line; it is read again at each look, so it is replaced whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def play(self, *lines: str) -> None:
        new = self.path.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in lines))
        new.replace(self.path)


class Card:
    """`sizes`: service → MiB that its process holds while it lives. `listed` False: as in a container, where NVML's
    process ids are the host's."""

    def __init__(self, services: Path, scenario: Path, total: int, sizes: dict[str, int], listed: bool = True) -> None:
        self.services, self.scenario = services, scenario
        self.total, self.sizes, self.listed = total, sizes, listed
        self.other = 0
        """MiB that somebody else holds."""
        self._last = ""
        self._end = threading.Event()
        self.play()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def holders(self) -> dict[str, int]:
        """Service → pid, of those that live."""
        found = {}
        for name in self.sizes:
            try:
                pid = json.loads((self.services / name / "run.json").read_text())["main"]["pid"]
            except (OSError, ValueError, KeyError):
                continue
            if alive(pid):
                found[name] = pid
        return found

    def play(self) -> None:
        holders = self.holders()
        used = self.other + sum(self.sizes[name] for name in holders)
        lines = [f"gpu GPU-a {self.total} {used} 0"]
        lines += [f"proc {pid} {self.sizes[name]}" for name, pid in holders.items() if self.listed]
        if (text := "".join(f"{line}\n" for line in lines)) != self._last:
            new = self.scenario.with_suffix(".new")
            new.write_text(text)
            new.replace(self.scenario)
            self._last = text

    def _follow(self) -> None:
        while not self._end.wait(0.02):
            self.play()

    def close(self) -> None:
        self._end.set()
        self._thread.join()
