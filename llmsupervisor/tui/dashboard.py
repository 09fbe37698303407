"""The overview: services, the detail and the log of the selected one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from textual import on
from textual.binding import Binding
from textual.containers import Container
from textual.widget import Widget
from textual.widgets import DataTable, Static

from llmsupervisor.base.text import cut, printable
from llmsupervisor.cli import views
from llmsupervisor.cli.views import Line, Span, event_line, text_of
from llmsupervisor.tui import gpuview, news, trend
from llmsupervisor.tui.ages import settled
from llmsupervisor.tui.feeds import Feeds
from llmsupervisor.tui.logpane import LogPane
from llmsupervisor.tui.page import MARGIN, Page
from llmsupervisor.tui.paint import Paint
from llmsupervisor.tui.scroll import Scroll
from llmsupervisor.tui.services import SORTS, ServiceTable, figure
from llmsupervisor.tui.sorting import Sort

if TYPE_CHECKING:
    from llmsupervisor.link.services import Service
    from llmsupervisor.tui.shown import Shown

TREND = (110, 30)
"""Columns and lines from which on there is room for curves."""
TABLE = 10
"""Lines of the table of services, at most: as in the style sheet."""


def alerts(services: Sequence[Service], room: int) -> list[Line]:
    """What is wrong with any service, in one line: the first of them, and how many more there are."""
    found = [f"{s['name']}: {c['text'] or c['id']}" for s in services for c in s["conditions"]]
    found += [f"{s['name']}: {s['state']} {views.reason(s)}" for s in services if s["state"] in ("FAILED", "BACKOFF")]
    if not found:
        return []
    more = f"  (+{len(found) - 1} more)" if len(found) > 1 else ""
    return [[Span(cut(printable(f"! {found[0]}"), room - len(more)), "warn"), Span(more, "dim")]]


class Dashboard(Page):
    NAME = "overview"
    HINTS = ("enter detail", "l log")
    ORDERS = True
    BINDINGS = [
        Binding("enter", "zoom('detail')", "detail of the selected service", show=False),
        Binding("l", "zoom('log')", "log alone"),
        Binding("s", "sort", "sort by the next figure"),
        Binding("S", "turn", "sort the other way round"),
        Binding("j", "move('down')", "down", show=False),
        Binding("k", "move('up')", "up", show=False),
        Binding("end,G", "follow", "follow the log"),
    ]

    def __init__(self, feeds: Feeds, paint: Paint) -> None:
        super().__init__(feeds, paint)
        self._drawn: object = None
        self._places = news.Places()
        self._live_title: list[Line] = []
        self._sort = Sort(SORTS)

    @property
    def selected(self) -> str | None:
        return self.query_one(ServiceTable).selected

    def body(self) -> Iterable[Widget]:
        yield Static(id="gpus")
        yield Static(id="alerts")
        yield ServiceTable(self._paint)
        yield Static(id="live")
        yield Static(id="happened")
        with Container(id="panes"):
            with Scroll(id="detail", can_focus=False):
                yield Static(id="facts")
            yield LogPane(self._paint)

    def on_mount(self) -> None:
        self.query_one(ServiceTable).focus()

    def draw(self) -> None:
        picture, table = self.picture, self.query_one(ServiceTable)
        drawn = (picture.received, self.room.width, self._sort.key)
        if picture.status is not None and self._drawn != drawn:
            self._drawn = drawn
            services = [settled(service, picture.wall) for service in self.services]
            ordered = self._sort.ordered(services, figure)
            table.show(ordered, picture.wall, self.room.width, self._sort.by.column)
            most = 1 if self.short else max(self.room.height // 8, 2)
            self.put("gpus", gpuview.strip(picture.status["gpus"], services, self.room.width, most))
            self.put("alerts", alerts(services, self.room.width))
        if picture.status is not None:
            self._draw_news()
        self._draw_selected()

    def _draw_news(self) -> None:
        """Nobody is asked for what there is no room for."""
        room = self.room
        above = sum(map(self.lines_of, ("header", "banner", "gpus", "alerts", "keys")))
        rows = news.rows(room.width, room.height, room.height - above - min(len(self.services) + 1, TABLE))
        running, early = self._feeds.live.running() if rows.live else (None, False)
        places = self._places.for_(len(running or ()), time.monotonic())
        lines = news.live(running, early, room.width, rows, places)
        self._live_title = lines[:1]
        self.put("live", lines)
        if rows.events:
            self._feeds.events.want()
        self.put("happened", news.happened(self._feeds.events.kept().items, self.picture.wall, room.width, rows))

    def figures(self) -> list[Shown]:
        from llmsupervisor.tui import shown

        status, service, now = self.picture.status, self.service, self.picture.wall
        if status is None:
            return []
        found = shown.of_service(service, self.times, now) if service else []
        found += shown.of_cards(status["gpus"] or [], self.services, self.times)
        curves = self._curves(service["name"]) if service else []
        found += shown.titled(self.NAME, curves, lambda name: None)
        happened = self._feeds.events.kept().items
        found += [shown.Shown("EVENTS", text_of(event_line(each, now)), each["time"]) for each in happened[-1:]]
        found += shown.titled(self.NAME, self._live_title, lambda name: now)
        return [*found, shown.Shown("LOG", f"{self.query_one(LogPane).body.line_count} lines")]

    def _curves(self, service: str) -> list[Line]:
        """Nothing where there is no room for them."""
        if self.room.width < TREND[0] or self.room.height < TREND[1]:
            return []
        cells = self.room.width * 2 // 5 - MARGIN
        return trend.lines(self._feeds.trend(service), service, cells, self._paint.ascii)

    @on(DataTable.RowHighlighted)
    def _draw_selected(self) -> None:
        service = self.service
        lines = views.detail(service, self.picture.wall) if service else []
        if service and (curves := self._curves(service["name"])):
            lines += [[], *curves]
        self.put("facts", lines)
        name = service["name"] if service else None
        logs = self._feeds.logs
        logs.select(name)
        log, news = self.query_one(LogPane), logs.take()
        if news.anew:
            log.clear()
        log.write([text for text, _ in news.lines])
        log.name_it(name, news.trouble)

    @on(DataTable.RowSelected)
    def _enter(self) -> None:
        self.action_zoom("detail")

    def action_move(self, where: str) -> None:
        if self.has_class("zoom-log"):
            getattr(self.query_one(LogPane).body, f"action_scroll_{where}")()
        else:
            getattr(self.query_one(ServiceTable), f"action_cursor_{where}")()

    def action_sort(self) -> None:
        self._sort.on()
        self._say_sort()

    def action_turn(self) -> None:
        self._sort.turn()
        self._say_sort()

    @on(DataTable.HeaderSelected)
    def _sort_by(self, event: DataTable.HeaderSelected) -> None:
        self._sort.by_column(event.column_key.value or "")
        self._say_sort()

    def _say_sort(self) -> None:
        """Its column may be one that there is no room for."""
        self.tell([Span(f"sorted by {self._sort.words}")])
        self.tick()

    def action_back(self) -> None:
        self.action_zoom("")

    def action_zoom(self, pane: str) -> None:
        """The pane alone under the header; again or Esc: all of them."""
        wanted = "" if self.has_class(f"zoom-{pane}") else pane
        self.set_class(wanted == "detail", "zoom-detail")
        self.set_class(wanted == "log", "zoom-log")
        detail = self.query_one("#detail", Scroll)
        detail.can_focus = wanted == "detail"
        panes: dict[str, Widget] = {"detail": detail, "log": self.query_one(LogPane).body}
        panes.get(wanted, self.query_one(ServiceTable)).focus()

    def action_follow(self) -> None:
        self.query_one(LogPane).body.follow()
