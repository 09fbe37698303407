"""A page that is a text to scroll in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from llmsupervisor.cli.views import Line
from llmsupervisor.tui.page import MARGIN, Page

if TYPE_CHECKING:
    from llmsupervisor.tui.shown import Shown

_LONG = 160
"""Cells of a line that has room for all of its figures."""


class TextPage(Page):
    BINDINGS = [
        Binding("j", "scroll('down')", "down", show=False),
        Binding("k", "scroll('up')", "up", show=False),
        Binding("g", "scroll('home')", "to the begin", show=False),
        Binding("G", "scroll('end')", "to the end", show=False),
        Binding("escape", "back", "back"),
    ]

    def lines(self, room: int) -> list[Line]:
        """`room`: cells of a line."""
        raise NotImplementedError

    def figures(self) -> list[Shown]:
        from llmsupervisor.tui import shown

        return shown.titled(self.NAME, self.lines(_LONG), self.times)

    def body(self) -> Iterable[Widget]:
        with VerticalScroll(id="scroll"):
            yield Static(id="facts")

    def draw(self) -> None:
        self.put("facts", self.lines(max(self.room.width - MARGIN, 1)))

    def action_scroll(self, where: str) -> None:
        scroll = self.query_one(VerticalScroll)
        getattr(scroll, f"scroll_{where}")(animate=False)

    def to_the_top(self) -> None:
        self.query_one(VerticalScroll).scroll_home(animate=False)
