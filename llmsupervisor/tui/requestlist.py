"""The page of requests: those that run above those that ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from textual.binding import Binding
from textual.widget import Widget
from textual.widgets import Static

from llmsupervisor.base.text import printable
from llmsupervisor.cli.views import Line, Span, clip, text_of
from llmsupervisor.tui import liverows, requestview, waterfall
from llmsupervisor.tui.feeds import Feeds
from llmsupervisor.tui.listpage import ListPage
from llmsupervisor.tui.livefeed import Running
from llmsupervisor.tui.page import SHORT
from llmsupervisor.tui.paint import Paint
from llmsupervisor.tui.requestpage import RequestPage, id_of
from llmsupervisor.tui.sorting import Sort

if TYPE_CHECKING:
    from llmsupervisor.tui.requestpage import Request
    from llmsupervisor.tui.shown import Shown


class RequestList(ListPage):
    NAME = "requests"
    HINTS = ("enter one", "/ filter", "s S sort", "y copy", "i meaning")
    WORDS = "words that a request has: model, client, end, status, id"
    BINDINGS = [Binding("s", "sort", "sort by the next figure"), Binding("S", "turn", "sort the other way round")]

    def __init__(self, feeds: Feeds, paint: Paint, service: str | None = None) -> None:
        super().__init__(feeds, paint, service)
        self._made_of: object = None
        self._summed: Line = []
        self._summed_of: object = None
        self._sort = Sort(requestview.SORTS)

    def panes(self) -> Iterable[Widget]:
        yield Static(id="summary")
        yield Static(id="live")
        yield Static(id="rows")
        yield Static(id="legend")

    def key_of(self, row: Request) -> str:
        """One that ends stays selected."""
        return id_of(row)

    def on_mount(self) -> None:
        self._feeds.requests.want()

    def draw(self) -> None:
        kept, now, room = self._feeds.requests.kept(), self.picture.wall, self.room.width
        made_of = (kept.version, self._sort.key, self.words)
        if made_of != self._made_of:
            self._made_of = made_of
            self.rows = requestview.ordered(kept.items, self._sort, self.words)
        summed_of = (kept.version, now)
        if summed_of != self._summed_of:
            self._summed_of = summed_of
            self._summed = requestview.summary(kept.items, self.services, now)
        summary = [clip(self._summed, room)]
        if not self.short:
            found = f"{len(self.rows)} of {len(kept.items)}  sort {self._sort.words}"
            filtered = printable(f"  filter {self.words}" if self.words else "")
            summary.append(clip([Span("REQUESTS ", "bold"), Span(found), Span(filtered, "warn")], room))
        self.put("summary", summary)
        running, early = self._feeds.live.running()
        self.above = liverows.ordered(running or (), self.words)
        most = 1 if self.short else max(self.room.height - SHORT, 2) // 2 + 2
        live = liverows.rows(None if running is None else self.above, early, room, most, *self.window_above(most))
        self.put("live", [clip(line, room) for line in live])
        window, at = self.window()
        if window:
            self.put("rows", requestview.table(window, at, room, now, self._sort.by.column))
        else:
            self.put("rows", [clip(requestview.nothing(kept.trouble, kept.complete, self.words), room)])
        self.put("legend", [clip([Span(waterfall.LEGEND, "dim")], room)])

    def figures(self) -> list[Shown]:
        from llmsupervisor.tui import shown

        records, now, one = self._feeds.requests.kept().items, self.picture.wall, self.one
        found = [shown.Shown("5m", text_of(requestview.summary(records, self.services, now)).removeprefix("5m: "), now)]
        found.append(shown.Shown("REQUESTS", f"{len(self.rows)} of {len(records)}"))
        running, early = self._feeds.live.running()
        title, *_ = liverows.rows(running, early, self.room.width, len(running or ()))
        found += shown.titled(self.NAME, [title], lambda name: now)
        if isinstance(one, Running):
            return [*found, shown.Shown("LIVE", text_of(liverows.rows([one], False, 100, 1)[1]), one.told)]
        return found if one is None else [*found, *shown.of_record(one, now)]

    def copied(self) -> tuple[str, Any]:
        one = self.one
        if one is None:
            return "", None
        if isinstance(one, Running):
            return text_of(liverows.rows([one], False, 100, 1)[1]).strip(), one.live
        titles, row = requestview.table([one], -1, 250, self.picture.wall)
        return f"{text_of(titles)}\n{text_of(row)}", one

    def action_open(self) -> None:
        if everything := self.everything:
            self.app.push_screen(RequestPage(self._feeds, self._paint, everything, self.at))

    def action_sort(self) -> None:
        self._sort.on()
        self.tick()

    def action_turn(self) -> None:
        self._sort.turn()
        self.tick()
