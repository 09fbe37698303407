"""A page of rows of which one is selected, as many as there is room for; `/` keeps those with certain words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from textual import on
from textual.binding import Binding
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
        self.rows: list[Any] = []
        self.words = ""
        self._key: str | None = None
        """Of the selected row; None: the first, whichever that is."""
        self._first = 0

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
    def at(self) -> int:
        if self._key is None:
            return 0
        return next((n for n, row in enumerate(self.rows) if self.key_of(row) == self._key), 0)

    def window(self, titles: int = 1) -> tuple[list[Any], int]:
        """The rows that there is room for under so many lines of titles, and which of them is selected."""
        height = max(self.query_one("#rows", Static).size.height - titles, 1)
        at = self.at
        self._first = first_row(len(self.rows), at, self._first, height)
        return self.rows[self._first : self._first + height], at - self._first

    # --- keys ---------------------------------------------------------------------------------------------------

    def action_move(self, by: int) -> None:
        self.action_edge(min(max(self.at + by, 0), len(self.rows) - 1))

    def action_edge(self, row: int) -> None:
        if self.rows:
            self._key = self.key_of(self.rows[row]) if row else None
        self.tick()

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
