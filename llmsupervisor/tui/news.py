"""What the overview shows of requests and events beneath its services: as much as leaves room for detail and log. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from llmsupervisor.cli.views import Line, Span, clip, event_line
from llmsupervisor.tui import liverows

if TYPE_CHECKING:
    from llmsupervisor.link.events import Event
    from llmsupervisor.tui.livefeed import Running

ROOMY = (100, 30)
"""Columns and lines from which on both are there even while nothing runs."""
PANES = 12
"""Lines that detail and log keep."""


class Rows(NamedTuple):
    """Lines below the titles."""

    live: int
    events: int
    always: bool
    """Also while nothing runs."""


def rows(width: int, height: int, left: int) -> Rows:
    """`left`: lines that header, GPUs and services leave. Events go first where it is tight."""
    spare = left - PANES
    live = min(max((height - 18) // 3, 2), spare - 1)
    if live < 1:
        return Rows(0, 0, False)
    events = min(max((height - 22) // 3, 2), spare - live - 2)
    return Rows(live, max(events, 0), width >= ROOMY[0] and height >= ROOMY[1])


LATELY = 30.0
"""Seconds for which the place of a request is kept: what is below does not move with each one that comes and goes."""


class Places:
    """Lines kept for requests."""

    def __init__(self) -> None:
        self._kept = 0
        self._since = 0.0

    def for_(self, running: int, now: float) -> int:
        """`now`: monotonic seconds."""
        if running >= self._kept or now - self._since > LATELY:
            self._kept, self._since = running, now
        return self._kept


def live(running: Sequence[Running] | None, early: bool, room: int, rows: Rows, places: int) -> list[Line]:
    if not rows.live or not (rows.always or places):
        return []
    found = liverows.rows(None if running is None else liverows.ordered(running), early, room, rows.live)
    missing = min(places, rows.live) + 1 - len(found)
    return [*(clip(line, room) for line in found), *([[]] * missing)]


def happened(events: Sequence[Event], now: float, room: int, rows: Rows) -> list[Line]:
    """The last ones, the newest first."""
    if not rows.events or not events:
        return []
    last = events[: -rows.events - 1 : -1]
    return [[Span("EVENTS", "bold")], *(clip([Span(" "), *event_line(event, now)], room) for event in last)]
