"""The fake runtime's journal: one line a start, so that tests count starts and see two at once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Spawn:
    pid: int
    time: float
    """Unix seconds."""
    argv: list[str]

    @property
    def service(self) -> str:
        """Its first alias."""
        words = iter(self.argv)
        return next((next(words) for word in words if word in ("-a", "--alias")), "").split(",")[0]


def _lines(path: Path) -> list[tuple[str, str, object]]:
    if not path.exists():
        return []
    rows = (line.split(" ", 2) for line in path.read_text().splitlines())
    return [(pid, time, json.loads(note)) for pid, time, note in rows]


def starts(path: Path, service: str | None = None) -> list[Spawn]:
    """Every start, oldest first; of one service where its name is given."""
    spawns = [Spawn(int(pid), float(time), note) for pid, time, note in _lines(path) if isinstance(note, list)]
    return [s for s in spawns if service in (None, s.service)]


def duplicates(path: Path) -> list[int]:
    """Pids that started while another start of the same service was alive."""
    return [int(pid) for pid, _, note in _lines(path) if note == "DUPLICATE"]
