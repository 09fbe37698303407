"""The page of advice: what the linter finds in what runs and in its traffic, with the change staged and applied from here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from textual.binding import Binding
from textual.widget import Widget
from textual.widgets import Static

from llmsupervisor.base.text import printable
from llmsupervisor.cli.views import Line, Span, clip, text_of
from llmsupervisor.tui import adviceview, specview
from llmsupervisor.tui.asked import ONCE, Asked
from llmsupervisor.tui.confirm import Confirm
from llmsupervisor.tui.feeds import Feeds
from llmsupervisor.tui.listpage import ListPage
from llmsupervisor.tui.paint import Paint
from llmsupervisor.tui.textpage import TextPage

if TYPE_CHECKING:
    from llmsupervisor.tui.shown import Shown, Times

EVERY = 30.0
"""Seconds; a week of requests is looked through for it."""


class AdvicePage(ListPage):
    NAME = "advice"
    HINTS = ("enter why", "/ filter", "y copy", "i meaning")
    WORDS = "words that a finding has: a service, a key, a rule"

    def __init__(self, feeds: Feeds, paint: Paint, service: str | None = None) -> None:
        super().__init__(feeds, paint, service)
        self._asked = Asked(feeds.find, "advice", every=EVERY)

    def panes(self) -> Iterable[Widget]:
        yield Static(id="summary")
        yield Static(id="live")
        yield Static(id="rows")

    def key_of(self, row: Any) -> str:
        return str(row["id"])

    def draw(self) -> None:
        said, trouble = self._asked.get()
        room = self.room.width
        findings = said["findings"] if said else []
        self.rows = adviceview.rows(findings, self.words)
        title: Line = [Span("ADVICE ", "bold"), Span(f"{len(self.rows)} of {len(findings)}")]
        reason = trouble or (said or {}).get("reason")
        if reason:
            title.append(Span(printable(f"  {reason}"), "warn"))
        self.put("summary", [clip(title, room)])
        wrong = adviceview.conditions(self.services, findings, self.picture.wall)
        self.put("live", [clip(line, room) for line in wrong[: max(self.room.height // 4, 1)]])
        window, at = self.window(titles=0)
        lines = [adviceview.row(finding, n == at, room) for n, finding in enumerate(window)]
        nothing = "asking …" if said is None and not trouble else "nothing to advise: no rule found anything"
        self.put("rows", lines or [[Span(nothing if not trouble else "", "dim")]])

    def figures(self) -> list[Shown]:
        from llmsupervisor.tui import shown

        said, _ = self._asked.get()
        findings = said["findings"] if said else []
        found = [shown.Shown("ADVICE", f"{len(self.rows)} of {len(findings)}", self._asked.time)]
        wrong = adviceview.conditions(self.services, findings, self.picture.wall)
        return found + [shown.Shown("CONDITION", text_of(line), self.picture.wall) for line in wrong]

    def copied(self) -> tuple[str, Any]:
        if not self.rows:
            return "", None
        finding = self.rows[self.at]
        return "\n".join(map(text_of, adviceview.finding_lines(finding))), finding

    def action_open(self) -> None:
        said, _ = self._asked.get()
        if self.rows and said:
            self.app.push_screen(FindingPage(self._feeds, self._paint, self.rows[self.at], said.get("sha256")))


class FindingPage(TextPage):
    NAME = "finding"
    HINTS = ("y copy", "esc back")
    ORDER_HINTS = ("a apply",)
    BINDINGS = [Binding("a", "apply", "change the spec so (asks first)")]

    def __init__(self, feeds: Feeds, paint: Paint, finding: Any, base: str | None) -> None:
        """`base`: SHA-256 of the spec that it is about."""
        super().__init__(feeds, paint)
        self._finding = finding
        self._base = base
        self._staged = Asked(feeds.find, "fix", every=ONCE, ids=[finding["id"]], sha256=base, dry_run=True, by="tui")

    @property
    def selected(self) -> str | None:
        return self._finding["service"] or None

    @property
    def _can(self) -> bool:
        return bool(self._finding.get("changes")) and not self._feeds.readonly

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self._can if action == "apply" else super().check_action(action, parameters)

    def lines(self, room: int) -> list[Line]:
        found = adviceview.finding_lines(self._finding)
        if not self._can:
            return [*found, [], [Span("no edit of the spec can be staged for it here", "dim")]]
        staged, trouble = self._staged.get()
        if trouble:
            return [*found, [], [Span(printable(trouble), "warn")]]
        if staged is None:
            return [*found, [], [Span("staging the change …", "dim")]]
        found += [[], *specview.changes(staged, self.services)]
        found += [[Span("cannot start ", "bad"), Span(printable(r["text"]))] for r in staged.get("refusals") or []]
        return [*found, [], *specview.difference(staged["diff"].splitlines())]

    def copied(self) -> tuple[str, Any]:
        return "\n".join(map(text_of, self.lines(120))), self._finding

    @property
    def times(self) -> Times:
        return lambda name: self._staged.time if self._can else None

    def action_apply(self) -> None:
        staged, trouble = self._staged.get()
        if staged is None or trouble:
            self.tell([Span("the change is not staged yet" if not trouble else printable(trouble), "warn")])
            return
        lines: list[Line] = [
            [
                Span("write this into the spec and apply it?   ", "bold"),
                Span("y", "bold"),
                Span(" yes  "),
                Span("n", "bold"),
                Span(" no"),
            ]
        ]
        lines += [*specview.changes(staged, self.services), *specview.difference(staged["diff"].splitlines())]
        lines.append([Span(printable(str(staged["path"])), "dim")])

        def answered(yes: bool | None) -> None:
            if yes:
                self.tell([Span("fix …")])
                self._feeds.orders.fix([self._finding["id"]], staged["base"])

        self.app.push_screen(Confirm(self._paint, lines), answered)
