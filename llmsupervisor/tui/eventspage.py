"""The page of what happened, with a time line of each service."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from textual.binding import Binding
from textual.widget import Widget
from textual.widgets import Static

from llmsupervisor.base.text import printable, width
from llmsupervisor.base.units import format_duration
from llmsupervisor.cli.views import Line, Span, clip, event_line, text_of
from llmsupervisor.tui import timeline
from llmsupervisor.tui.feeds import Feeds
from llmsupervisor.tui.listpage import ListPage
from llmsupervisor.tui.paint import Paint
from llmsupervisor.tui.sheet import Sheet

if TYPE_CHECKING:
    from llmsupervisor.link.events import Event
    from llmsupervisor.tui.shown import Shown


class EventsPage(ListPage):
    NAME = "events"
    HINTS = ("/ filter", "< > time", "enter whole", "y copy")
    WORDS = "words that an event has: a service, a state, a kind"
    BINDINGS = [
        Binding("greater_than_sign", "zoom(1)", "a longer time line"),
        Binding("less_than_sign", "zoom(-1)", "a shorter time line"),
    ]

    def __init__(self, feeds: Feeds, paint: Paint, service: str | None = None) -> None:
        super().__init__(feeds, paint, service)
        self._window = 1
        self._made_of: object = None
        self._drawn_of: object = None

    def panes(self) -> Iterable[Widget]:
        yield Static(id="summary")
        yield Static(id="rows")
        yield Static(id="live")
        yield Static(id="legend")

    def key_of(self, row: Event) -> str:
        return str(id(row))

    def on_mount(self) -> None:
        self._feeds.events.want()

    def draw(self) -> None:
        happened, now, room = self._feeds.events.kept(), self.picture.wall, self.room.width
        if self._made_of != (happened.version, self.words):
            self._made_of = (happened.version, self.words)
            wanted = self.words.lower().split()
            self.rows = [e for e in reversed(happened.items) if all(w in _text(e, now).lower() for w in wanted)]
        title: Line = [Span("EVENTS ", "bold"), Span(f"{len(self.rows)} of {len(happened.items)}")]
        if self.words:
            title.append(Span(printable(f"  filter {self.words}"), "warn"))
        if happened.trouble:
            title.append(Span(printable(f"  {happened.trouble}"), "warn"))
        self.put("summary", [clip(title, room)])
        window, at = self.window(titles=0)
        lines = []
        for n, event in enumerate(window):
            line = clip([Span(">" if n == at else " "), *event_line(event, now)], room)
            if n == at:
                text = text_of(line)
                line = [Span(text + " " * (room - width(text)), "cursor")]
            lines.append(line)
        self.put("rows", lines or [[Span(_nothing(happened.complete, self.words), "dim")]])
        most = 2 if self.short else max(self.room.height // 3, 3)
        names = [service["name"] for service in self.services][:most]
        window_s = timeline.WINDOWS[self._window]
        drawn_of = (happened.version, names, room, window_s, now * room // window_s)
        if drawn_of != self._drawn_of:
            self._drawn_of = drawn_of
            self.put("live", timeline.rows(happened.items, names, now, window_s, room))
        self.put("legend", [clip([Span(timeline.LEGEND, "dim")], room)])

    def figures(self) -> list[Shown]:
        from llmsupervisor.tui import shown

        happened = self._feeds.events.kept().items
        found = [shown.Shown("EVENTS", f"{len(self.rows)} of {len(happened)}")]
        if self.rows:
            event = self.rows[self.at]
            found.append(shown.Shown("EVENTS", text_of(event_line(event, self.picture.wall)), event["time"]))
        window = format_duration(timeline.WINDOWS[self._window])
        return [*found, shown.Shown("TIME LINE", f"{len(self.services)} services over {window}", self.picture.wall)]

    def copied(self) -> tuple[str, Any]:
        if not self.rows:
            return "", None
        event = self.rows[self.at]
        return _text(event, self.picture.wall), event

    def action_open(self) -> None:
        """All of an event that is longer than its line."""
        if self.rows:
            self.app.push_screen(Sheet(self._paint, [event_line(self.rows[self.at], self.picture.wall)]))

    def action_zoom(self, by: int) -> None:
        self._window = min(max(self._window + by, 0), len(timeline.WINDOWS) - 1)
        self.tick()


def _nothing(complete: bool, words: str) -> str:
    if not complete:
        return "reading what happened …"
    return "nothing happened that matches" if words else "no event is known"


def _text(event: Event, now: float) -> str:
    return f"{text_of(event_line(event, now))} {event['kind']}"
