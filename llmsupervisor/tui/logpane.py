"""The log of the selected service."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Log, Static

from llmsupervisor.base.text import cut, printable
from llmsupervisor.cli.views import Line, Span
from llmsupervisor.tui.paint import Paint

KEPT_LINES = 5000
LINE_CELLS = 4096


class FollowingLog(Log):
    """Scrolling up stops the following, reaching the end resumes it."""

    following = True

    def append(self, lines: Sequence[str]) -> None:
        self.write_lines(lines, scroll_end=False)
        if self.following:
            self.scroll_end(animate=False, immediate=True, x_axis=False)

    def follow(self) -> None:
        self.following = True
        self.scroll_end(animate=False, x_axis=False)

    def on_resize(self) -> None:
        if self.following:
            self.scroll_end(animate=False, immediate=True, x_axis=False)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if new_value >= self.max_scroll_y:
            self.following = True

    def _stop(self) -> None:
        self.following = self.max_scroll_y == 0

    def on_mouse_scroll_up(self) -> None:
        self._stop()

    def action_scroll_up(self) -> None:
        self._stop()
        super().action_scroll_up()

    def action_page_up(self) -> None:
        self._stop()
        super().action_page_up()

    def action_scroll_home(self) -> None:
        self._stop()
        super().action_scroll_home()

    def action_scroll_end(self) -> None:
        self.follow()


class LogPane(Vertical):
    def __init__(self, paint: Paint) -> None:
        super().__init__(id="logpane")
        self._paint = paint
        self._title = ""

    def compose(self) -> ComposeResult:
        yield Static(id="logtitle")
        yield FollowingLog(id="log", max_lines=KEPT_LINES)

    @property
    def body(self) -> FollowingLog:
        return self.query_one(FollowingLog)

    def clear(self) -> None:
        self.body.clear()
        self.body.following = True

    def write(self, lines: Sequence[str]) -> None:
        if lines:
            self.body.append([self._paint.plain(cut(printable(line), LINE_CELLS)) or " " for line in lines])

    def name_it(self, service: str | None, trouble: str) -> None:
        line: Line = [Span("LOG ", "bold"), Span(printable(service or "–"), "bold")]
        if trouble:
            line.append(Span(printable(f"  {trouble}"), "warn"))
        elif not self.body.following:
            line.append(Span("  not following: G resumes", "warn"))
        title = self._paint.lines([line])
        if title.markup != self._title:
            self._title = title.markup
            self.query_one("#logtitle", Static).update(title)
