"""Where the time of a request went, as a bar: each part has a sign of its own, colour only adds to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from llmsupervisor.cli.views import Line, Span

if TYPE_CHECKING:
    from llmsupervisor.link.requests import RequestRecord

IRREGULAR = frozenset({"client_gone", "queue_timeout", "rejected", "engine_exit", "timeout", "error", "incomplete"})
OUTLIERS = 0.8
"""Share of the bars that end within the scale; longer ones are cut, with a `+`."""
LEGEND = "L load . queue # prefill > decode - rest ? unknown | end x failed + longer"


class Part(NamedTuple):
    sign: str
    role: str
    name: str
    ms: float


def parts(record: RequestRecord) -> list[Part]:
    """In the order in which they happened, those that took time. What no figure covers is unknown, not idle."""
    found = [
        Part("L", "warn", "load", record["load_ms"] or 0.0),
        Part(".", "dim", "queue", (record["queue_ms"] or 0.0) + (record["engine_queue_ms"] or 0.0)),
        Part("#", "busy", "prefill", record["prefill_ms"] or 0.0),
        Part(">", "good", "decode", record["decode_ms"] or 0.0),
    ]
    rest = max(record["total_ms"] - sum(part.ms for part in found), 0.0)
    known = record["other_ms"] is not None
    found.append(Part("-" if known else "?", "dim", "rest" if known else "unknown", rest))
    return [part for part in found if part.ms > 0]


def failed(record: RequestRecord) -> bool:
    return record["status"] >= 400 or record["finish_reason"] in IRREGULAR


def scale(records: Sequence[RequestRecord]) -> float:
    """Milliseconds of a whole bar: 1, 2 or 5 times a power of ten."""
    totals = sorted(record["total_ms"] for record in records)
    wanted = totals[min(int(len(totals) * OUTLIERS), len(totals) - 1)] if totals else 1.0
    step = 1.0
    while True:
        for factor in (1.0, 2.0, 5.0):
            if factor * step >= wanted:
                return factor * step
        step *= 10


def bar(record: RequestRecord, whole_ms: float, cells: int) -> Line:
    """At most `cells` wide, ended by `|`, `x` where it failed, or `+` where it is longer than the bar."""
    room = max(cells - 1, 0)
    line: Line = []
    at, used = 0.0, 0
    for part in parts(record):
        at += part.ms
        end = min(round(at / whole_ms * room), room)
        if end > used:
            line.append(Span(part.sign * (end - used), part.role))
            used = end
    if record["total_ms"] > whole_ms * 1.001:
        last = Span("+", "bold")
    else:
        last = Span("x", "bad") if failed(record) else Span("|")
    return [*line, last]


def axis(whole_ms: float, cells: int) -> str:
    """`0`, the middle where there is room, and the end of the scale."""
    whole = duration(whole_ms)
    text = "0" + whole.rjust(cells - 1)
    middle = duration(whole_ms / 2)
    at = cells // 2
    if cells >= 2 * len(middle) + len(whole) + 6:
        text = text[:at] + middle + text[at + len(middle) :]
    return text[:cells]


def duration(ms: float) -> str:
    """Three digits."""
    return f"{ms:.3g}ms" if ms < 999.5 else f"{ms / 1000:.3g}s" if ms < 999_500 else f"{ms / 1000:.0f}s"
