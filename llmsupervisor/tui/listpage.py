"""A page of rows of which one is selected, as many as there is room for; `/` keeps those with certain words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from textual import on
from textual.binding import Binding
from textual.events import Click
from textual.widget import Widget
from textual.widgets import Input, Static

from llmsupervisor.tui.feeds import Feeds
from llmsupervisor.tui.page import Page
from llmsupervisor.tui.paint import Paint


def first_row(rows: int, selected: int, first: int, height: int) -> int:
    """The first row of the window, moved no more than it takes to see the selected one."""
    first = min(max(first, selected - height + 1), selected)
    return max(0, min(first, rows - height))


class ListPage(Page):
    WORDS = ""
    """What the filter says while it is empty."""
    BINDINGS = [
        Binding("up,k", "move(-1)", "up"),
        Binding("down,j", "move(1)", "down"),
        Binding("pageup", "move(-10)", "page up"),
        Binding("pagedown", "move(10)", "page down"),
        Binding("home,g", "edge(0)", "first"),
        Binding("end,G", "edge(-1)", "last"),
        Binding("enter", "open", "open"),
        Binding("slash", "filter", "filter"),
    ]

    def __init__(self, feeds: Feeds, paint: Paint, service: str | None = None) -> None:
        super().__init__(feeds, paint, service)
        self.above: list[Any] = []
        """Rows in a window of their own, above the others."""
        self.rows: list[Any] = []
        self.words = ""
        self._key: str | None = None
        """Of the selected row; None: the first of `rows`, whichever that is."""
        self._first = self._first_above = self._titles = 0

    def key_of(self, row: Any) -> str:
        raise NotImplementedError

    def panes(self) -> Iterable[Widget]:
        """What stands above and below the rows: `#rows` is one of them."""
        raise NotImplementedError

    def action_open(self) -> None:
        raise NotImplementedError

    def body(self) -> Iterable[Widget]:
        yield from self.panes()
        yield Input(id="filter", placeholder=self.WORDS, compact=True)

    def on_mount(self) -> None:
        self.query_one(Input).disabled = True

    @property
    def everything(self) -> list[Any]:
        return [*self.above, *self.rows]

    @property
    def at(self) -> int:
        """Place of the selected one in `everything`."""
        first = len(self.above) if self.rows else 0
        if self._key is None:
            return first
        return next((n for n, row in enumerate(self.everything) if self.key_of(row) == self._key), first)

    @property
    def one(self) -> Any:
        """The selected one; None: there is no row."""
        return everything[self.at] if (everything := self.everything) else None

    def window(self, titles: int = 1) -> tuple[list[Any], int]:
        """The rows that there is room for under so many lines of titles, and which of them is selected."""
        self._titles = titles
        height = max(self.query_one("#rows", Static).size.height - titles, 1)
        at = self.at - len(self.above)
        self._first = first_row(len(self.rows), max(at, 0), self._first, height)
        return self.rows[self._first : self._first + height], at - self._first

    def window_above(self, height: int) -> tuple[int, int]:
        """The first of `above` that is seen, and the place of the selected one: past their end where it is none of them."""
        at, count = self.at, len(self.above)
        self._first_above = first_row(count, at, self._first_above, height) if at < count else 0
        return self._first_above, at

    # --- keys ---------------------------------------------------------------------------------------------------

    def action_move(self, by: int) -> None:
        self.action_edge(min(max(self.at + by, 0), len(self.everything) - 1))

    def action_edge(self, place: int) -> None:
        if everything := self.everything:
            self._key = None if place == len(self.above) < len(everything) else self.key_of(everything[place])
        self.tick()

    def wheel(self, lines: int) -> None:
        self.action_move(lines)

    def on_click(self, event: Click) -> None:
        """A row of the window: selected, and opened where it is already."""
        row = event.y - self._titles
        if event.widget is not self.query_one("#rows") or not 0 <= row < len(self.rows) - self._first:
            return
        place = len(self.above) + self._first + row
        self.action_open() if place == self.at else self.action_edge(place)

    def action_filter(self) -> None:
        self.add_class("filtering")
        asked = self.query_one(Input)
        asked.disabled = False
        asked.focus()

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self.words = event.value
        self.tick()

    @on(Input.Submitted)
    def _entered(self) -> None:
        self._leave_filter()

    def _leave_filter(self) -> None:
        self.remove_class("filtering")
        self.query_one(Input).disabled = True
        self.set_focus(None)

    def action_back(self) -> None:
        """Out of the filter, then without it, then back."""
        if self.has_class("filtering"):
            self._leave_filter()
        elif self.words:
            self.query_one(Input).value = ""
        else:
            super().action_back()
