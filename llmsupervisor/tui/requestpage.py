"""The page of one request: while it runs what is known so far, then its record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual.binding import Binding

from llmsupervisor.cli.views import Line, text_of
from llmsupervisor.tui import livedetail, requestdetail
from llmsupervisor.tui.feeds import Feeds
from llmsupervisor.tui.livefeed import Running
from llmsupervisor.tui.paint import Paint
from llmsupervisor.tui.textpage import TextPage

if TYPE_CHECKING:
    from llmsupervisor.link.requests import RequestRecord
    from llmsupervisor.tui.shown import Times

    Request = RequestRecord | Running


def id_of(request: Request) -> str:
    return request.live["id"] if isinstance(request, Running) else request["id"]


class RequestPage(TextPage):
    NAME = "request"
    HINTS = ("[ ] above, below", "esc back", "y copy", "i meaning")
    BINDINGS = [
        Binding("left_square_bracket", "step(-1)", "the one above in the list"),
        Binding("right_square_bracket", "step(1)", "the one below in the list"),
    ]

    def __init__(self, feeds: Feeds, paint: Paint, requests: list[Request], at: int) -> None:
        """`requests`: in the order of the list it was opened from."""
        super().__init__(feeds, paint)
        self._requests = requests
        self._at = at
        self._beside: requestdetail.Compared | None = None
        self._beside_of: object = None

    @property
    def _one(self) -> Request:
        """The last look at it, and its record once there is one."""
        one = self._requests[self._at]
        if isinstance(one, Running):
            running, _ = self._feeds.live.running()
            newer = next((each for each in running or () if id_of(each) == id_of(one)), one)
            self._requests[self._at] = self._feeds.requests.find(id_of(one)) or newer
        return self._requests[self._at]

    @property
    def selected(self) -> str | None:
        one = self._one
        return one.live["service"] if isinstance(one, Running) else one["service"]

    def lines(self, room: int) -> list[Line]:
        one, now = self._one, self.picture.wall
        if isinstance(one, Running):
            running, early = self._feeds.live.running()
            why = "" if early else livedetail.doubt(one, running)
            return livedetail.lines(one, why, self.service, room, now)
        return requestdetail.lines(one, self._compared(one), self.service, room, now)

    def _compared(self, one: RequestRecord) -> requestdetail.Compared:
        """Anew only where another request is known or shown."""
        kept = self._feeds.requests.kept()
        of = (kept.version, one["id"])
        if self._beside is None or self._beside_of != of:
            self._beside, self._beside_of = requestdetail.compared(one, kept.items), of
        return self._beside

    @property
    def times(self) -> Times:
        """Of a record nothing is younger than its end."""
        one = self._one
        measured = one.told if isinstance(one, Running) else one["time"] + one["total_ms"] / 1000
        return lambda name: measured

    def copied(self) -> tuple[str, Any]:
        one = self._one
        return "\n".join(map(text_of, self.lines(100))), one.live if isinstance(one, Running) else one

    def action_step(self, by: int) -> None:
        self._at = min(max(self._at + by, 0), len(self._requests) - 1)
        self.to_the_top()
        self.tick()
