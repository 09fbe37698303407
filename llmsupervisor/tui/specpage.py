"""The page of the spec: what lies on the disk against what runs, and applying it from here."""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import TYPE_CHECKING, Any

from textual.app import SuspendNotSupported
from textual.binding import Binding

from llmsupervisor.base.text import printable
from llmsupervisor.cli.views import Line, Span, text_of
from llmsupervisor.tui import specview
from llmsupervisor.tui.asked import Asked
from llmsupervisor.tui.confirm import Confirm
from llmsupervisor.tui.feeds import Feeds
from llmsupervisor.tui.paint import Paint
from llmsupervisor.tui.textpage import TextPage

if TYPE_CHECKING:
    from llmsupervisor.tui.shown import Times


class SpecPage(TextPage):
    NAME = "spec"
    HINTS = ("y copy",)
    ORDER_HINTS = ("a apply", "e edit")
    BINDINGS = [
        Binding("a", "apply", "apply the file (asks first)"),
        Binding("e", "edit", "edit the file in $EDITOR"),
    ]

    def __init__(self, feeds: Feeds, paint: Paint, service: str | None = None) -> None:
        super().__init__(feeds, paint, service)
        self._asked = Asked(feeds.find, "spec")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("apply", "edit"):
            return not self._feeds.readonly and (action == "apply" or self._feeds.host is None)
        return super().check_action(action, parameters)

    def lines(self, room: int) -> list[Line]:
        status = self.picture.status
        if status is None:
            return [[Span("no picture yet", "dim")]]
        said, trouble = self._asked.get()
        return specview.lines(said, trouble, status, self.services, self.picture.wall)

    @property
    def times(self) -> Times:
        return lambda name: self.picture.wall if name == "SPEC" else self._asked.time

    def copied(self) -> tuple[str, Any]:
        return "\n".join(map(text_of, self.lines(120))), self._asked.get()[0]

    def action_apply(self) -> None:
        said, _ = self._asked.get()
        status = self.picture.status
        if said is None or status is None or said.get("error"):
            self.tell([Span("nothing to apply: the file is not read, or not valid", "warn")])
            return
        lines: list[Line] = [
            [Span("apply the spec?   ", "bold"), Span("y", "bold"), Span(" yes  "), Span("n", "bold"), Span(" no")]
        ]
        lines += specview.changes(said, self.services)
        lines.append(
            [Span(printable(f"daemon pid {status['daemon']['pid']}, {status['daemon']['spec']['path']}"), "dim")]
        )

        def answered(yes: bool | None) -> None:
            if yes:
                self.tell([Span("reload …")])
                self._feeds.orders.reload()
                self._asked.anew()

        self.app.push_screen(Confirm(self._paint, lines), answered)

    def action_edit(self) -> None:
        """The daemon watches the file: what is saved and valid is applied by itself."""
        status = self.picture.status
        if status is None:
            return
        environ = self._feeds.environ
        words = shlex.split(environ.get("VISUAL") or environ.get("EDITOR") or "vi")
        try:
            with self.app.suspend():
                subprocess.run([*words, status["daemon"]["spec"]["path"]], check=False, env=dict(os.environ))
        except (OSError, SuspendNotSupported) as error:
            self.tell([Span(printable(f"{' '.join(words)}: {error}"), "warn")])
        self._asked.anew()
