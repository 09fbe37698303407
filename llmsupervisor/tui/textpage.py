"""A page that is a text to scroll in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from textual.binding import Binding
from textual.widget import Widget
from textual.widgets import Static

from llmsupervisor.cli.views import Line
from llmsupervisor.tui.page import MARGIN, Page
from llmsupervisor.tui.scroll import Scroll

if TYPE_CHECKING:
    from llmsupervisor.tui.shown import Shown

_LONG = 160
"""Cells of a line that has room for all of its figures."""


class TextPage(Page):
    BINDINGS = [
        Binding("escape", "back", "back"),
    ]

    def lines(self, room: int) -> list[Line]:
        """`room`: cells of a line."""
        raise NotImplementedError

    def figures(self) -> list[Shown]:
        from llmsupervisor.tui import shown

        return shown.titled(self.NAME, self.lines(_LONG), self.times)

    def body(self) -> Iterable[Widget]:
        with Scroll(id="scroll"):
            yield Static(id="facts")

    def draw(self) -> None:
        self.put("facts", self.lines(max(self.room.width - MARGIN, 1)))

    def to_the_top(self) -> None:
        self.query_one(Scroll).action_edge(False)
