"""In which order a list stands: one key goes on to the next figure, another turns it round. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")


class By(NamedTuple):
    name: str
    column: str = ""
    """Title of the column that shows it."""
    first: str = "greatest"
    turned: str = "smallest"


class Sort:
    def __init__(self, choices: Sequence[By]) -> None:
        """The first of them is the order in which things come."""
        self._choices = choices
        self._at = 0
        self._turned = False

    @property
    def by(self) -> By:
        return self._choices[self._at]

    @property
    def key(self) -> tuple[int, bool]:
        """Another one: the list is to be ordered anew."""
        return self._at, self._turned

    @property
    def words(self) -> str:
        return f"{self.by.name}, {self.by.turned if self._turned else self.by.first} first"

    def on(self) -> None:
        self._at, self._turned = (self._at + 1) % len(self._choices), False

    def by_column(self, column: str) -> None:
        """By what stands there, the other way round where it is so already; a column that no order has changes nothing."""
        at = next((n for n, each in enumerate(self._choices) if each.column == column), None)
        if at is not None:
            self._at, self._turned = at, at == self._at and not self._turned

    def turn(self) -> None:
        self._turned = not self._turned

    def ordered(self, items: Sequence[Item], figure: Callable[[Item, str], float | None]) -> list[Item]:
        """What is not known comes last, whichever way round; equal ones stay as they came."""
        if self._at == 0:
            return list(reversed(items)) if self._turned else list(items)
        figures = [(figure(item, self.by.name), item) for item in items]
        known = [(value, item) for value, item in figures if value is not None]
        known.sort(key=lambda pair: pair[0] if self._turned else -pair[0])
        return [*(item for _, item in known), *(item for value, item in figures if value is None)]
