"""The table of requests: which rows and columns there is room for. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from llmsupervisor.base.text import pad, printable, width
from llmsupervisor.cli import requestviews, views
from llmsupervisor.cli.requestviews import milliseconds
from llmsupervisor.cli.views import UNKNOWN, Line, Span, number
from llmsupervisor.tui import waterfall
from llmsupervisor.tui.sorting import By, Sort

if TYPE_CHECKING:
    from llmsupervisor.link.requests import RequestRecord
    from llmsupervisor.link.services import Service

WINDOW = 300.0
"""Seconds that the figures above the table are of."""
ENOUGH = 20
"""Requests from which on a 95th percentile says something."""


class Column(NamedTuple):
    title: str
    cell: int
    """Its place in the row of `llmsupervisor requests`; negative: see `cells_of`."""
    cells: int
    right: bool
    drop: int
    """Columns with a higher number go first where the terminal is narrow; 0 stays."""


_PROMPT, _CACHED = -1, -2
COLUMNS = (
    Column("TIME", 0, 8, False, 3),
    Column("MODEL", 1, 10, False, 0),
    Column("CLIENT", 2, 10, False, 7),
    Column("CODE", 3, 4, True, 10),
    Column("PROMPT", _PROMPT, 6, True, 5),
    Column("CACHED", _CACHED, 6, True, 8),
    Column("OUT", 5, 5, True, 4),
    Column("QUEUE", 6, 6, True, 6),
    Column("LOAD", 7, 6, True, 12),
    Column("PREFILL", 8, 7, True, 9),
    Column("DECODE", 9, 7, True, 11),
    Column("TTFT", 10, 6, True, 0),
    Column("TOK/S", 11, 6, True, 2),
    Column("END", 12, 7, False, 1),
)
BAR = 14
"""Cells of a bar, at least; it gets what the columns leave."""
SORTS = (
    By("end", "", "newest", "oldest"),
    By("total"),
    By("queue", "QUEUE"),
    By("prefill", "PREFILL"),
    By("decode", "DECODE"),
    By("ttft", "TTFT"),
    By("prompt", "PROMPT"),
    By("output", "OUT"),
    By("tok/s", "TOK/S"),
)


def columns(room: int) -> list[Column]:
    kept = list(COLUMNS)
    while sum(c.cells + 1 for c in kept) + 1 + BAR * min(room, 200) // 60 > room and any(c.drop for c in kept):
        kept.remove(max(kept, key=lambda c: c.drop))
    return kept


def ordered(records: Sequence[RequestRecord], sort: Sort, words: str) -> list[RequestRecord]:
    """Only those in which every one of `words` occurs. `records`: the oldest first."""
    wanted = words.lower().split()
    newest = records[::-1]
    return sort.ordered([r for r in newest if all(word in _text(r) for word in wanted)] if wanted else newest, _figure)


def _text(record: RequestRecord) -> str:
    said = (record["id"], record["service"], record["model"], record["client"], record["api"], record["status"])
    return " ".join(str(each or "") for each in (*said, record["finish_reason"])).lower()


def _figure(record: RequestRecord, sort: str) -> float | None:
    if sort == "queue":
        waits = [record["queue_ms"], record["engine_queue_ms"], record["load_ms"]]
        return None if all(each is None for each in waits) else sum(each or 0.0 for each in waits)
    found: float | None = record[_FIGURES[sort]]  # type: ignore[literal-required]
    return found


_FIGURES = {
    "total": "total_ms",
    "prefill": "prefill_ms",
    "decode": "decode_ms",
    "ttft": "ttft_ms",
    "prompt": "prompt_tokens",
    "output": "completion_tokens",
    "tok/s": "decode_tokens_per_s",
}


def table(records: Sequence[RequestRecord], selected: int, room: int, now: float, sorted_by: str = "") -> list[Line]:
    """Titles, then a row for each of the records, as many as the screen has rows for."""
    rows = [cells_of(record, now) for record in records]
    kept = columns(room)
    if any(width(row[0].text) > COLUMNS[0].cells for row in rows) and kept[0] is COLUMNS[0]:
        kept[0] = kept[0]._replace(cells=_DATED)
    cells = room - sum(c.cells + 1 for c in kept) - 1
    whole = waterfall.scale(records)
    titles: Line = [Span(" ")]
    for column in kept:
        role = "bold" if column.title == sorted_by else "dim"
        titles += [Span(pad(column.title, column.cells, column.right), role), Span(" ")]
    lines: list[Line] = [[*titles, Span(waterfall.axis(whole, cells), "dim")]]
    for index, (record, row) in enumerate(zip(records, rows, strict=True)):
        marked = index == selected
        line: Line = [Span(">" if marked else " ", "cursor" if marked else "")]
        for column in kept:
            span = row[column.cell]
            text = pad(span.text, column.cells, column.right)
            line += [Span(text, "cursor" if marked else span.role), Span(" ", "cursor" if marked else "")]
        lines.append([*line, *waterfall.bar(record, whole, cells)])
    return lines


_DATED = 11
"""Cells of a time that is not today's."""


def cells_of(record: RequestRecord, now: float) -> list[Span]:
    return [
        *requestviews.cells(record, now),
        Span(number(record["cached_tokens"])),
        Span(number(record["prompt_tokens"])),
    ]


def summary(records: Sequence[RequestRecord], services: Sequence[Service], now: float) -> Line:
    """Of the last minutes, exactly; and what is under way."""
    recent = [r for r in records if r["time"] + r["total_ms"] / 1000 >= now - WINDOW]
    ttft = sorted(r["ttft_ms"] for r in recent if r["ttft_ms"] is not None)
    failed = sum(waterfall.failed(r) for r in recent)
    line = [Span(f"5m: {len(recent)} ended  "), Span(f"{failed} failed  ", "warn" if failed else "")]
    line.append(Span(f"TTFT p50 {milliseconds(_quantile(ttft, 0.5))} p95 {milliseconds(_quantile(ttft, 0.95))}"))
    line.append(Span(f" n={len(ttft)}  ", "dim"))
    under_way = [f"{name} {_sum(services, figure)}" for name, figure in _UNDER_WAY]
    return [*line, Span(" ".join(under_way))]


_UNDER_WAY = (("run", "requests_running"), ("wait", "requests_waiting"), ("queue", "requests_queued"))


def _sum(services: Sequence[Service], figure: str) -> str:
    known = [value for service in services if (value := views.total(service, figure)) is not None]
    return str(sum(known)) if known else UNKNOWN


def _quantile(ordered: Sequence[float], q: float) -> float | None:
    """The value itself of the smallest that at least a share `q` does not exceed."""
    if not ordered or (q > 0.5 and len(ordered) < ENOUGH):
        return None
    return ordered[math.ceil(q * len(ordered)) - 1]


def nothing(trouble: str, complete: bool, words: str) -> Line:
    if trouble:
        return [Span(printable(trouble), "warn")]
    if not complete:
        return [Span("reading what the gateway recorded …", "dim")]
    if words:
        return [Span(printable(f"no request has {words!r} in it; Esc shows all"), "dim")]
    return [Span("no request is recorded; they appear here when they end", "dim")]
