"""The page of requests, those that run above those that ended, and the page of one of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from textual.binding import Binding
from textual.widget import Widget
from textual.widgets import Static

from llmsupervisor.base.text import printable
from llmsupervisor.cli.views import Line, Span, clip, text_of
from llmsupervisor.tui import liverows, requestdetail, requestview, waterfall
from llmsupervisor.tui.feeds import Feeds
from llmsupervisor.tui.listpage import ListPage
from llmsupervisor.tui.page import SHORT
from llmsupervisor.tui.paint import Paint
from llmsupervisor.tui.textpage import TextPage

if TYPE_CHECKING:
    from llmsupervisor.link.messages import RequestRecord


class RequestList(ListPage):
    NAME = "requests"
    HINTS = ("enter one", "/ filter", "s sort", "y copy", "i meaning")
    WORDS = "words that a request has: model, client, end, status, id"
    BINDINGS = [Binding("s", "sort", "sort by end, total, ttft, prompt, queue")]

    def __init__(self, feeds: Feeds, paint: Paint, service: str | None = None) -> None:
        super().__init__(feeds, paint, service)
        self._made_of: object = None
        self._sort = requestview.SORTS[0]

    def panes(self) -> Iterable[Widget]:
        yield Static(id="summary")
        yield Static(id="live")
        yield Static(id="rows")
        yield Static(id="legend")

    def key_of(self, row: RequestRecord) -> str:
        return row["id"]

    def on_mount(self) -> None:
        self._feeds.requests.want()
        self._feeds.live.want(True)

    def on_screen_resume(self) -> None:
        self._feeds.live.want(True)

    def on_screen_suspend(self) -> None:
        self._feeds.live.want(False)

    def on_unmount(self) -> None:
        self._feeds.live.want(False)

    def draw(self) -> None:
        kept, now, room = self._feeds.requests.kept(), self.picture.wall, self.room.width
        made_of = (kept.version, self._sort, self.words)
        if made_of != self._made_of:
            self._made_of = made_of
            self.rows = requestview.ordered(kept.items, self._sort, self.words)
        summary = [clip(requestview.summary(kept.items, self.services, now), room)]
        if not self.short:
            found = f"{len(self.rows)} of {len(kept.items)}  sort {self._sort}"
            filtered = printable(f"  filter {self.words}" if self.words else "")
            summary.append(clip([Span("REQUESTS ", "bold"), Span(found), Span(filtered, "warn")], room))
        self.put("summary", summary)
        live = liverows.rows(*self._feeds.live.running(), room, max(self.room.height - SHORT, 2) // 2 + 2)
        self.put("live", [clip(line, room) for line in live[: 2 if self.short else None]])
        window, at = self.window()
        if window:
            self.put("rows", requestview.table(window, at, room, now))
        else:
            self.put("rows", [clip(requestview.nothing(kept.trouble, kept.complete, self.words), room)])
        self.put("legend", [clip([Span(waterfall.LEGEND, "dim")], room)])

    def copied(self) -> tuple[str, Any]:
        if not self.rows:
            return "", None
        record = self.rows[self.at]
        titles, row = requestview.table([record], -1, 250, self.picture.wall)
        return f"{text_of(titles)}\n{text_of(row)}", record

    def action_open(self) -> None:
        if self.rows:
            self.app.push_screen(RequestPage(self._feeds, self._paint, self.rows, self.at))

    def action_sort(self) -> None:
        self._sort = requestview.SORTS[(requestview.SORTS.index(self._sort) + 1) % len(requestview.SORTS)]
        self.tick()


class RequestPage(TextPage):
    NAME = "request"
    HINTS = ("[ ] above, below", "esc back", "y copy", "i meaning")
    BINDINGS = [
        Binding("left_square_bracket", "step(-1)", "the one above in the list"),
        Binding("right_square_bracket", "step(1)", "the one below in the list"),
    ]

    def __init__(self, feeds: Feeds, paint: Paint, records: list[RequestRecord], at: int) -> None:
        """`records`: in the order of the list it was opened from."""
        super().__init__(feeds, paint)
        self._records = records
        self._at = at

    @property
    def selected(self) -> str | None:
        return self._records[self._at]["service"]

    def lines(self, room: int) -> list[Line]:
        known = self._feeds.requests.kept().items
        return requestdetail.lines(self._records[self._at], known, self.service, room, self.picture.wall)

    def copied(self) -> tuple[str, Any]:
        return "\n".join(map(text_of, self.lines(100))), self._records[self._at]

    def action_step(self, by: int) -> None:
        self._at = min(max(self._at + by, 0), len(self._records) - 1)
        self.to_the_top()
        self.tick()
