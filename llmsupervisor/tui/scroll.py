"""A text to scroll in: each key moves it, however fast they come."""

from __future__ import annotations

from textual.binding import Binding
from textual.containers import VerticalScroll


class Scroll(VerticalScroll):
    BINDINGS = [
        Binding("up,k", "by(-1)", "up", show=False),
        Binding("down,j", "by(1)", "down", show=False),
        Binding("pageup", "page(-1)", "page up", show=False),
        Binding("pagedown", "page(1)", "page down", show=False),
        Binding("home,g", "edge(0)", "to the begin", show=False),
        Binding("end,G", "edge(1)", "to the end", show=False),
    ]

    def action_by(self, lines: int) -> None:
        self.scroll_relative(y=lines, animate=False, immediate=True)

    def action_page(self, by: int) -> None:
        self.action_by(by * max(self.size.height - 1, 1))

    def action_edge(self, end: bool) -> None:
        self.scroll_to(y=self.max_scroll_y if end else 0, animate=False, immediate=True)
