"""Older hits of a search: each with the lines around it, fetched from where it lies in the log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from textual.binding import Binding
from textual.widget import Widget
from textual.widgets import Static

from llmsupervisor.base.text import printable
from llmsupervisor.cli.views import Line, Span, clip
from llmsupervisor.tui.asked import ONCE, Asked
from llmsupervisor.tui.feeds import Feeds
from llmsupervisor.tui.logfind import LogFind
from llmsupervisor.tui.logtext import Entry, LogText
from llmsupervisor.tui.page import Page
from llmsupervisor.tui.paint import Paint
from llmsupervisor.tui.shown import Shown

AROUND = 300
"""Lines before a hit and after it."""


class HitPage(Page):
    NAME = "logs"
    HINTS = ("n N newer, older hit", "w wrap", "y copy", "esc back")
    BINDINGS = [
        Binding("n", "step(-1)", "the newer hit"),
        Binding("N", "step(1)", "the older hit"),
        Binding("w", "wrap", "wrap long lines"),
        Binding("up,k", "move(-1)", "up"),
        Binding("down,j", "move(1)", "down"),
        Binding("pageup", "page(-1)", "page up"),
        Binding("pagedown", "page(1)", "page down"),
        Binding("left", "aside(-20)", "left"),
        Binding("right", "aside(20)", "right"),
    ]

    def __init__(self, feeds: Feeds, paint: Paint, find: LogFind, first: int) -> None:
        """`first`: of the hits that the page before does not have."""
        super().__init__(feeds, paint, find.service)
        self._find = find
        self._first = self._at = first
        self._log = LogText()
        self._fetch()

    def _fetch(self) -> None:
        hit = self._find.told.hits[self._at]
        args: dict[str, Any] = {"service": self._find.service, "file": hit["file"], "offset": hit["offset"]}
        self._asked = Asked(self._feeds.find, "log_at", False, ONCE, before=AROUND, after=AROUND, **args)
        self._filled = False

    def body(self) -> Iterable[Widget]:
        yield Static(id="summary")
        yield Static(id="rows")

    @property
    def _space(self) -> tuple[int, int]:
        return max(self.query_one("#rows", Static).size.height, 1), self.room.width

    def draw(self) -> None:
        answer, trouble = self._asked.get()
        if answer is not None and not self._filled:
            self._fill(answer["lines"])
        self.put("summary", [clip(self._title(), self.room.width)])
        nothing = Span(printable(trouble or "reading …"), "warn" if trouble else "dim")
        self.put("rows", self._log.window(*self._space) if self._filled else [[nothing]])

    def _fill(self, lines: list[dict[str, Any]]) -> None:
        wrap, self._log = self._log.wrap, LogText()
        self._log.wrap = wrap
        self._log.add(Entry(line["text"]) for line in lines)
        self._log.search(self._find.words)
        offset = self._find.told.hits[self._at]["offset"]
        self._log.stand_on(next((n for n, line in enumerate(lines) if line["offset"] == offset), 0), *self._space)
        self._filled = True

    def _title(self) -> Line:
        told = self._find.told
        line: Line = [Span("LOG ", "bold"), Span(printable(self._find.service), "bold")]
        line.append(Span(printable(f"  /{self._find.words}  hit {self._at + 1} from the end, of {told.words}")))
        return line

    def figures(self) -> list[Shown]:
        return [Shown("LOG", f"{self._log.length} lines"), Shown("HITS", self._find.told.words)]

    def copied(self) -> tuple[str, Any]:
        hit = self._find.told.hits[self._at]
        return hit["text"], hit

    def action_step(self, by: int) -> None:
        """Past the newest of them: the page before has those."""
        told = self._find.told
        if self._at + by < self._first:
            self.action_back()
        elif self._at + by < len(told.hits):
            self._at += by
            self._fetch()
            self.tick()
        else:
            more = "the search goes on" if told.complete is None else f"{told.matches} in all"
            self.tell([Span(f"no older hit is told ({more})", "warn")])

    def action_move(self, by: int) -> None:
        self._log.move(by, *self._space)
        self.tick()

    def wheel(self, lines: int) -> None:
        self.action_move(lines)

    def action_page(self, by: int) -> None:
        self.action_move(by * max(self._space[0] - 1, 1))

    def action_aside(self, by: int) -> None:
        self._log.left = max(self._log.left + by, 0)
        self.tick()

    def action_wrap(self) -> None:
        self._log.wrap = not self._log.wrap
        self.tick()
