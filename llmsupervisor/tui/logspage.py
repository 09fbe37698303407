"""The page of one service's log: search, marks, earlier starts, only what looks wrong; and the way to its crash records."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from textual import on
from textual.app import SuspendNotSupported
from textual.binding import Binding
from textual.widget import Widget
from textual.widgets import Input, Static

from llmsupervisor.base.text import printable
from llmsupervisor.cli.views import Line, Span, clip
from llmsupervisor.tui.feeds import Feeds
from llmsupervisor.tui.logfind import LogFind, beyond
from llmsupervisor.tui.logtext import Entry, LogText
from llmsupervisor.tui.page import Page
from llmsupervisor.tui.paint import Paint

if TYPE_CHECKING:
    from llmsupervisor.tui.shown import Shown


class LogsPage(Page):
    NAME = "logs"
    HINTS = ("/ search", "n N", "f follow", "e errors", "w wrap", "m mark", "p earlier", "c crashes", "[ ] service")
    BINDINGS = [
        Binding("slash", "search", "search (a regular expression)"),
        Binding("n", "step(1)", "next hit"),
        Binding("N", "step(-1)", "hit before"),
        Binding("f,end,G", "follow", "follow the end"),
        Binding("e", "bad", "only warnings and errors"),
        Binding("w", "wrap", "wrap long lines"),
        Binding("m", "mark", "set a mark"),
        Binding("p", "earlier", "also what earlier starts wrote"),
        Binding("c", "crashes", "crash records"),
        Binding("vertical_line", "pager", "in $PAGER"),
        Binding("left_square_bracket", "other(-1)", "the service before"),
        Binding("right_square_bracket", "other(1)", "the service after"),
        Binding("up,k", "move(-1)", "up"),
        Binding("down,j", "move(1)", "down"),
        Binding("pageup", "page(-1)", "page up"),
        Binding("pagedown", "page(1)", "page down"),
        Binding("home,g", "begin", "first line"),
        Binding("left", "aside(-20)", "left"),
        Binding("right", "aside(20)", "right"),
    ]

    def __init__(self, feeds: Feeds, paint: Paint, service: str | None = None) -> None:
        super().__init__(feeds, paint, service)
        self._log = LogText()
        self._earlier = False
        self._trouble = ""
        self._find: LogFind | None = None
        """The search in what was not read here."""
        self._searched = 0
        """Number of the line that came first after it began, or after the log was read anew."""
        self._reading = False
        """The log is being read anew."""

    def body(self) -> Iterable[Widget]:
        yield Static(id="summary")
        yield Static(id="rows")
        yield Input(id="filter", placeholder="search: words or a regular expression", compact=True)

    def on_mount(self) -> None:
        self.query_one(Input).disabled = True

    def on_unmount(self) -> None:
        self._feeds.long_log.select(None)
        self._search("")

    @property
    def _space(self) -> tuple[int, int]:
        """Rows and cells of the text."""
        return max(self.query_one("#rows", Static).size.height, 1), self.room.width

    def draw(self) -> None:
        feed = self._feeds.long_log
        feed.select(self.selected, self._earlier)
        news = feed.take()
        if news.anew:
            self._log.clear()
            self._reading = True
        self._log.add(Entry(text, "earlier" if earlier else "") for text, earlier in news.lines)
        if self._reading:
            self._searched = self._log.end
            self._reading = bool(news.lines) or not self._log.length
        self._trouble = news.trouble
        self.put("summary", [clip(self._title(), self.room.width)])
        lines = self._log.window(*self._space)
        self.put("rows", lines or [[Span("no line", "dim")]])

    def figures(self) -> list[Shown]:
        from llmsupervisor.tui import shown

        found = [shown.Shown("LOG", f"{self._log.length} lines, {self._log.unseen} of them new")]
        if self._log.pattern is not None:
            in_all = f", {self._find.told.words}" if self._find else ""
            found.append(shown.Shown("HITS", f"{len(self._log.hits())} of {self._log.pattern.pattern}{in_all}"))
        return found

    def _title(self) -> Line:
        log = self._log
        line: Line = [Span("LOG ", "bold"), Span(printable(self.selected or "–"), "bold")]
        line.append(Span(f"  {log.length} lines{' of this and earlier starts' if self._earlier else ''}", "dim"))
        line.append(
            Span("  follows", "good")
            if log.top is None
            else Span(f"  not following{f', {log.unseen} new' if log.unseen else ''}: G", "warn")
        )
        if log.only_bad:
            line.append(Span("  only warnings and errors", "warn"))
        if log.pattern is not None:
            hits = log.hits()
            at = hits.index(log.hit) + 1 if log.hit in hits else 0
            found = "takes too long: not searched here" if log.too_long else f"{at} of {len(hits)}"
            line.append(Span(printable(f"  /{log.pattern.pattern} {found}"), "warn" if not hits else ""))
            line.append(Span(printable(f", {self._find.told.words}" if self._find else ""), "dim"))
        if self._trouble:
            line.append(Span(printable(f"  {self._trouble}"), "warn"))
        return line

    # --- keys ---------------------------------------------------------------------------------------------------

    def action_move(self, by: int) -> None:
        self._log.move(by, *self._space)
        self.tick()

    def wheel(self, lines: int) -> None:
        self.action_move(lines)

    def action_page(self, by: int) -> None:
        self.action_move(by * max(self._space[0] - 1, 1))

    def action_begin(self) -> None:
        self.action_move(-self._log.length)

    def action_aside(self, by: int) -> None:
        self._log.left = max(self._log.left + by, 0)
        self.tick()

    def action_follow(self) -> None:
        self._log.follow()
        self.tick()

    def action_wrap(self) -> None:
        self._log.wrap = not self._log.wrap
        self.tick()

    def action_bad(self) -> None:
        self._log.filter_bad(not self._log.only_bad)
        self.tick()

    def action_mark(self) -> None:
        self._log.add([Entry(f"mark {time.strftime('%H:%M:%S')}", "mark")])
        self.tick()

    def action_earlier(self) -> None:
        self._earlier = not self._earlier
        self.tick()

    def action_other(self, by: int) -> None:
        names = [service["name"] for service in self.services]
        if names:
            at = names.index(self.selected) if self.selected in names else 0
            self._chosen = names[(at + by) % len(names)]
            self._search(self._find.words if self._find else "")
            self.tick()

    def action_crashes(self) -> None:
        from llmsupervisor.tui.crashpage import CrashList

        self.app.push_screen(CrashList(self._feeds, self._paint, self.selected))

    def action_search(self) -> None:
        self.add_class("filtering")
        asked = self.query_one(Input)
        asked.disabled = False
        asked.focus()

    def action_step(self, by: int) -> None:
        """Older than what was read here: on a page of its own."""
        hits = self._log.hits()
        at_the_first = not hits or (by < 0 and self._log.hit == hits[0])
        if not (at_the_first and self._older()):
            self._log.step(by, *self._space)
        self.tick()

    def _older(self) -> bool:
        find, log = self._find, self._log
        if find is None or find.told.trouble:
            return False
        first = beyond(find.told.hits, [log.entry(n).text for n in log.hits() if n < self._searched])
        if first < len(find.told.hits):
            from llmsupervisor.tui.hitpage import HitPage

            self.app.push_screen(HitPage(self._feeds, self._paint, find, first))
            return True
        if find.told.complete is None:
            self.tell([Span("older lines are still being searched …")])
        return find.told.complete is None

    def _search(self, words: str) -> None:
        """In the whole log, by the daemon."""
        if self._find is not None:
            self._find.close()
        name = self.selected
        self._find = LogFind(self._feeds.find, name, words) if words and name else None
        self._searched = self._log.end

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        self._leave_search()
        self._log.search(event.value)
        self._log.hit = None
        self._search(event.value)
        self._log.step(-1, *self._space)
        self.tick()

    def _leave_search(self) -> None:
        self.remove_class("filtering")
        self.query_one(Input).disabled = True
        self.set_focus(None)

    def action_back(self) -> None:
        """Out of the search, then without it, then back."""
        if self.has_class("filtering"):
            self._leave_search()
        elif self._log.pattern is not None:
            self._log.search("")
            self._search("")
            self.query_one(Input).value = ""
            self.tick()
        else:
            super().action_back()

    def action_pager(self) -> None:
        words = shlex.split(self._feeds.environ.get("PAGER") or "less")
        try:
            with self.app.suspend():
                subprocess.run(
                    words, input=self._log.text().encode(), check=False, env={**os.environ, "LESSSECURE": "1"}
                )
        except (OSError, SuspendNotSupported) as error:
            self.tell([Span(printable(f"{' '.join(words)}: {error}"), "warn")])

    def copied(self) -> tuple[str, Any]:
        """What is seen, or the line that the search stands on."""
        seen = list(self._log.seen(*self._space)) if self._log.hit is None else [self._log.entry(self._log.hit).text]
        return "\n".join(seen), seen
