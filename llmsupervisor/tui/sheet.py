"""A text above the page, until a key is pressed: help, and what figures mean."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.await_complete import AwaitComplete
from textual.binding import Binding
from textual.screen import ModalScreen
from textual.widgets import Static

from llmsupervisor.cli.views import Line
from llmsupervisor.tui.paint import Paint
from llmsupervisor.tui.scroll import Scroll


class Sheet(ModalScreen[None]):
    BINDINGS = [Binding("escape,enter,q,i,question_mark", "dismiss", "back")]

    def __init__(self, paint: Paint, lines: Sequence[Line]) -> None:
        super().__init__()
        self._paint = paint
        self._lines = lines

    def compose(self) -> ComposeResult:
        with Scroll(id="sheet", classes="ascii" if self._paint.ascii else ""):
            yield Static(self._paint.lines(self._lines))

    def dismiss(self, result: None = None) -> AwaitComplete:
        """Once: keys that were typed faster than it went do not take the page below away."""
        return super().dismiss(result) if self.is_active else AwaitComplete()
