"""What is wrong with a service that works: one text per id, told once when it comes and once when it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Tell = Callable[[str, str, bool], None]
"""(id, text, on)"""


@dataclass(frozen=True, slots=True)
class Condition:
    id: str
    text: str
    since: float


class Conditions:
    def __init__(self, wall: Callable[[], float], tell: Tell) -> None:
        self._wall = wall
        self._tell = tell
        self._on: dict[str, Condition] = {}

    def set(self, id: str, text: str) -> None:
        """Empty text ends the condition."""
        old = self._on.get(id)
        if not text:
            if old is not None:
                del self._on[id]
                self._tell(id, old.text, False)
        elif old is None or old.text != text:
            self._on[id] = Condition(id, text, old.since if old else self._wall())
            self._tell(id, text, True)

    def clear(self, *ids: str) -> None:
        for id in ids:
            self.set(id, "")

    def has(self, id: str) -> bool:
        return id in self._on

    def all(self) -> list[Condition]:
        return list(self._on.values())
