"""The crash records: which there are, and one of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from textual.widget import Widget
from textual.widgets import Static

from llmsupervisor.base.text import printable
from llmsupervisor.cli.requestviews import moment
from llmsupervisor.cli.views import UNKNOWN, Line, Span, clip, exit_lines, text_of
from llmsupervisor.tui.asked import ONCE, Asked
from llmsupervisor.tui.feeds import Feeds
from llmsupervisor.tui.listpage import ListPage
from llmsupervisor.tui.paint import Paint
from llmsupervisor.tui.textpage import TextPage

if TYPE_CHECKING:
    from llmsupervisor.tui.shown import Shown, Times


class CrashList(ListPage):
    NAME = "crashes"
    HINTS = ("enter one", "/ filter", "esc back")
    WORDS = "words that a crash has: a service, a cause"

    def __init__(self, feeds: Feeds, paint: Paint, service: str | None = None) -> None:
        super().__init__(feeds, paint, service)
        self._asked = Asked(feeds.find, "crashes", stream=True)

    def panes(self) -> Iterable[Widget]:
        yield Static(id="summary")
        yield Static(id="rows")

    def key_of(self, row: Any) -> str:
        return str(row["record"])

    def draw(self) -> None:
        found, trouble = self._asked.get()
        now, room = self.picture.wall, self.room.width
        wanted = self.words.lower().split()
        self.rows = [each for each in found or [] if all(word in _row(each, now).lower() for word in wanted)]
        self.put(
            "summary",
            [
                clip(
                    [
                        Span("CRASH RECORDS ", "bold"),
                        Span(
                            f"{len(self.rows)} of {len(found or [])}  ends that nobody asked for, of all services",
                            "dim",
                        ),
                    ],
                    room,
                )
            ],
        )
        window, at = self.window(titles=0)
        lines: list[Line] = [
            clip([Span((">" if n == at else " ") + _row(each, now), "cursor" if n == at else "")], room)
            for n, each in enumerate(window)
        ]
        nothing = trouble or ("asking …" if found is None else "no crash is recorded")
        self.put("rows", lines or [clip([Span(printable(nothing), "warn" if trouble else "dim")], room)])

    def figures(self) -> list[Shown]:
        from llmsupervisor.tui import shown

        return [shown.Shown("CRASH RECORDS", f"{len(self.rows)}", self._asked.time)]

    def copied(self) -> tuple[str, Any]:
        return (_row(self.rows[self.at], self.picture.wall), self.rows[self.at]) if self.rows else ("", None)

    def action_open(self) -> None:
        if self.rows:
            self.app.push_screen(CrashPage(self._feeds, self._paint, self.rows[self.at]["record"]))


class CrashPage(TextPage):
    NAME = "crash"
    HINTS = ("up/down scroll", "y copy", "esc back")

    def __init__(self, feeds: Feeds, paint: Paint, record: str) -> None:
        super().__init__(feeds, paint)
        self._record = record
        self._asked = Asked(feeds.find, "crashes", stream=True, every=ONCE, record=record)

    def lines(self, room: int) -> list[Line]:
        found, trouble = self._asked.get()
        if not found:
            return [[Span(printable(trouble or "asking …"), "warn" if trouble else "dim")]]
        return crash_lines(found[0], self.picture.wall)

    @property
    def times(self) -> Times:
        found, _ = self._asked.get()
        return lambda name: (found[0].get("exit") or {}).get("time") if found else None

    def copied(self) -> tuple[str, Any]:
        found, _ = self._asked.get()
        return "\n".join(map(text_of, self.lines(100))), found[0] if found else None


def _row(record: Any, now: float) -> str:
    exit = record.get("exit") or {}
    when = UNKNOWN if exit.get("time") is None else moment(exit["time"], now)
    return printable(
        f"{when:<12} {record.get('service') or UNKNOWN:<14} start {record.get('attempt') or UNKNOWN}  {exit.get('text') or exit.get('cause') or UNKNOWN}"
    )


def crash_lines(record: Any, now: float) -> list[Line]:
    """What it was, what to do, what it was started with, and its last words."""
    exit = record.get("exit") or {}
    lines: list[Line] = [[Span("CRASH ", "bold"), Span(_row(record, now))]]
    lines += exit_lines(
        {"cause": "", "text": "", "code": None, "signal": None, "advice": "", "time": None, **exit}, now
    )
    rendered = record.get("rendered") or {}
    lines += [[], [Span("ARGV ", "bold")]]
    lines += [[Span(f"  {printable(str(word))}")] for word in rendered.get("argv") or []]
    lines += [[], [Span("ENVIRONMENT ", "bold"), Span("without secrets", "dim")]]
    lines += [
        [Span(f"  {printable(f'{name}={value}')}")] for name, value in sorted((rendered.get("env") or {}).items())
    ]
    log = record.get("log") or []
    lines += [[], [Span("LAST WORDS ", "bold"), Span(f"{len(log)} lines", "dim")]]
    return lines + [[Span(printable(str(line)))] for line in log]
