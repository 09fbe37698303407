"""What each service was when, as a row of signs. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from llmsupervisor.base.text import pad, printable, width
from llmsupervisor.base.units import format_duration
from llmsupervisor.cli.views import Line, Span, clock_time

if TYPE_CHECKING:
    from llmsupervisor.link.events import Event

WINDOWS = (900.0, 3600.0, 6 * 3600.0, 86400.0, 7 * 86400.0)
SIGNS: Mapping[str, tuple[str, str]] = {
    "READY": ("=", "good"),
    "STARTING": ("L", "busy"),
    "UNREADY": ("~", "warn"),
    "DRAINING": ("d", "busy"),
    "STOPPING": ("s", "busy"),
    "KILLING": ("k", "warn"),
    "BACKOFF": ("b", "warn"),
    "FAILED": ("F", "bad"),
    "PENDING": ("p", "warn"),
    "IDLE": ("_", "dim"),
    "STOPPED": (".", "dim"),
}
LEGEND = "= ready  L loads  ~ unready  d drains  s stops  b back-off  F failed  p pending  _ idle  . stopped  x ended by itself"
_NAME = 16


class Stretch(NamedTuple):
    begin: float
    state: str


def stretches(events: Sequence[Event]) -> dict[str, list[Stretch]]:
    """Of each service, in the order in which they are first named."""
    found: dict[str, list[Stretch]] = {}
    for event in events:
        service, to, before = event["service"], event.get("to"), event.get("from")
        if event["kind"] != "state" or service is None or to is None:
            continue
        known = found.setdefault(service, [])
        if not known and before is not None:
            known.append(Stretch(-math.inf, before))
        known.append(Stretch(event["time"], to))
    return found


def rows(events: Sequence[Event], services: Sequence[str], now: float, window: float, room: int) -> list[Line]:
    """An axis, and a row for each of the services. Cells begin at whole multiples of their length: a picture moves by
    a cell, or not at all.
    """
    name = min(max([4, *(width(printable(s)) for s in services)]), _NAME)
    cells = max(room - name - 1, 1)
    length = window / cells
    end = math.ceil(now / length) * length
    begin = end - cells * length
    known = stretches(events)
    lines: list[Line] = [[Span(pad("", name + 1)), Span(_axis(begin, end, cells, now), "dim")]]
    for service in services:
        ends = [e["time"] for e in events if e["service"] == service and e["kind"] == "exit"]
        line: Line = [Span(pad(printable(service), name) + " ", "bold")]
        for n in range(cells):
            sign = _cell(known.get(service, []), ends, begin + n * length, min(begin + (n + 1) * length, now))
            if len(line) > 1 and line[-1].role == sign[1]:
                line[-1] = Span(line[-1].text + sign[0], sign[1])
            else:
                line.append(Span(*sign))
        lines.append(line)
    return lines


def _cell(known: Sequence[Stretch], ends: Sequence[float], begin: float, end: float) -> tuple[str, str]:
    """What lasted longest in it; an end that nobody asked for is never lost in it."""
    if any(begin <= time < end for time in ends):
        return ("x", "bad")
    longest, found = 0.0, (" ", "")
    for n, stretch in enumerate(known):
        after = known[n + 1].begin if n + 1 < len(known) else math.inf
        lasts = min(after, end) - max(stretch.begin, begin)
        if lasts > longest:
            longest, found = lasts, SIGNS.get(stretch.state, ("?", "warn"))
    return found


def _axis(begin: float, end: float, cells: int, now: float) -> str:
    first, last = clock_time(begin, now), f"now, {format_duration(end - begin)}"
    return (first + last.rjust(max(cells - len(first), 0)))[:cells]
