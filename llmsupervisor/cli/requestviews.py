"""Requests as people read them: a table, and the summary. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmsupervisor.base.text import cut, pad, printable, width
from llmsupervisor.base.units import format_duration
from llmsupervisor.cli.views import UNKNOWN, Column, Line, Span, number, percent

if TYPE_CHECKING:
    from llmsupervisor.link.history import RequestsSummary, Spread, TargetSummary, Times
    from llmsupervisor.link.requests import Live, RequestRecord

COLUMNS = (
    Column("TIME", False, 0, least=8),
    Column("MODEL", False, 0, least=8),
    Column("CLIENT", False, 4, least=8),
    Column("CODE", True, 0, least=4),
    Column("PROMPT(CACHED)", True, 0, least=7),
    Column("OUTPUT", True, 0, least=6),
    Column("QUEUE", True, 1, least=6),
    Column("LOAD", True, 5, least=6),
    Column("PREFILL", True, 2, least=7),
    Column("DECODE", True, 3, least=7),
    Column("TTFT", True, 0, least=6),
    Column("TOK/S", True, 0, least=6),
    Column("END", False, 0),
)
_END = len(COLUMNS) - 1
_TEXT = (1, 2)
_WIDE = 140
_GAP = 2
_END_ROOM = 12
"""Cells that END wants: `context full`."""
Columns = list[tuple[int, int]]


def fit(rows: Sequence[Sequence[Span]], room: int) -> Columns:
    """(index in COLUMNS, width) of what fits into `room` cells, for these rows and those that follow them."""
    widths = [
        max([width(_title(i, room)), c.least, *(width(row[i].text) for row in rows)]) for i, c in enumerate(COLUMNS)
    ]
    for index in _TEXT:
        widths[index] = min(widths[index], 10 if room < 100 else 16 if room < _WIDE else 24)
    widths[_END] = 4 if room < 100 else _END_ROOM
    kept = list(range(len(COLUMNS)))

    def used() -> int:
        return sum(widths[i] + _GAP for i in kept) - _GAP

    while used() > room and (droppable := [i for i in kept if COLUMNS[i].drop]):
        kept.remove(max(droppable, key=lambda i: COLUMNS[i].drop))
    widths[_END] += max(0, room - used())
    return [(i, widths[i]) for i in kept]


def _title(index: int, room: int) -> str:
    """The longest one is cut short where every cell counts."""
    title = COLUMNS[index].title
    return title if room >= _WIDE else title.partition("(")[0]


def heading(columns: Columns, room: int) -> Line:
    return _row([Span(_title(i, room), "dim") for i in range(len(COLUMNS))], columns)


def row(record: RequestRecord, columns: Columns, now: float) -> Line:
    return _row(cells(record, now), columns)


def _row(spans: Sequence[Span], columns: Columns) -> Line:
    line: Line = []
    for index, cells_wide in columns:
        text, role = spans[index]
        if line:
            line.append(Span(" " * _GAP))
        # A figure that outgrew its column is shown whole: half a number is a wrong one.
        text = cut(text, cells_wide) if index in _TEXT or index == _END else text
        line.append(Span(pad(text, max(cells_wide, width(text)), COLUMNS[index].right), role))
    line[-1] = Span(line[-1].text.rstrip(), line[-1].role)
    return line


def cells(record: RequestRecord, now: float) -> list[Span]:
    """One for each of COLUMNS. A `!` marks a figure on which engine and gateway differ by over 20 %."""
    failed = "bad" if record["status"] >= 500 else "warn" if record["status"] >= 400 else ""
    cached = "" if record["cached_tokens"] is None else f"({record['cached_tokens']})"
    waits = [record["queue_ms"], record["engine_queue_ms"]]
    queue = None if waits == [None, None] else sum(each or 0.0 for each in waits)
    speed = record["decode_tokens_per_s"]
    return [
        Span(moment(record["time"], now), "dim"),
        Span(printable(record["model"] or UNKNOWN), "bold"),
        Span(printable(record["client"] or UNKNOWN)),
        Span(str(record["status"]), failed),
        Span(number(record["prompt_tokens"]) + cached),
        Span(number(record["completion_tokens"])),
        Span(milliseconds(queue)),
        Span(milliseconds(record["load_ms"])),
        _figure(record, "prefill_ms", record["prefill_ms"]),
        _figure(record, "decode_ms", record["decode_ms"]),
        Span(milliseconds(record["ttft_ms"])),
        Span(UNKNOWN if speed is None else f"{speed:.1f}"),
        _end(record, failed),
    ]


def _figure(record: RequestRecord, name: str, value: float | None) -> Span:
    differs = (record["sources"] or {}).get(name) == "both"
    return Span(milliseconds(value) + ("!" if differs else ""), "warn" if differs else "")


def _end(record: RequestRecord, failed: str) -> Span:
    if record["truncated"]:
        return Span("context full", "warn")
    reason = record["finish_reason"]
    if reason == "rejected" and record["status"] == 400 and record["prompt_tokens"] is not None:
        return Span("too long", "warn")
    irregular = reason in ("client_gone", "engine_exit", "error", "incomplete", "timeout")
    return Span(printable(reason or UNKNOWN).replace("_", " "), failed or ("warn" if irregular else ""))


def live(requests: Sequence[Live], now: float) -> list[Line]:
    """Those that have not ended, the oldest first."""
    if not requests:
        return [[Span("no request runs or waits", "dim")]]
    lines: list[Line] = [[Span("AGE       PHASE             PROMPT  OUTPUT  CLIENT      MODEL", "dim")]]
    for each in sorted(requests, key=lambda request: request["since"]):
        done, whole = each["prompt_done"], each["prompt_tokens"]
        prompt = number(whole) if done is None else f"{done}/{number(whole)}"
        phase = f"{each['phase']} {milliseconds(max(0.0, now - each['phase_since']) * 1000)}"
        age = milliseconds(max(0.0, now - each["since"]) * 1000)
        client = pad(cut(printable(each["client"] or UNKNOWN), 10), 10)
        text = f"{age:<8}  {phase:<14}  {prompt:>8}  {each['tokens']:>6}  {client}  {printable(each['model'])}"
        lines.append([Span(text)])
    return lines


def milliseconds(value: float | None) -> str:
    return format_duration(None if value is None else value / 1000)


def moment(seconds: float, now: float) -> str:
    """Local time of day; of another day its date and the minute."""
    then = time.localtime(seconds)
    return time.strftime("%H:%M:%S" if then[:3] == time.localtime(now)[:3] else "%m-%d %H:%M", then)


# --- summary --------------------------------------------------------------------------------------------------------


def summary(said: RequestsSummary) -> list[Line]:
    lines: list[Line] = []
    for target in said["targets"]:
        lines += [*([[]] if lines else []), *target_lines(target, said["window_s"])]
    if said["reason"] is not None:
        lines.append([Span(printable(said["reason"]), "warn")])
    return lines or [[Span("no requests recorded", "dim")]]


def target_lines(target: TargetSummary, window_s: float) -> list[Line]:
    name = printable(target["service"] + (f" {target['model']}" if target["model"] is not None else ""))
    head = [Span(name, "bold"), Span(f"  {target['requests']} requests in {format_duration(window_s)}")]
    apart = [
        (target["refused"], "refused as too long"),
        (target["truncated"], "cut by a full context"),
        (target["unfinished"], "failed or left"),
    ]
    head += [Span(f", {count} {what}", "warn" if what != "failed or left" else "") for count, what in apart if count]
    if not target["requests"]:
        return [head]
    lines: list[Line] = [head]
    if target["sized"]:
        lines.append([Span(f"  {'tokens':8}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}", "dim")])
        spreads = (("prompt", target["prompt"]), ("output", target["output"]), ("sum", target["total"]))
        lines += [[Span(f"  {title:8}{_tokens(spread)}")] for title, spread in spreads]
    times = [(title, value) for title in ("ttft", "queue", "prefill", "decode") if (value := _time(target, title))]
    if times:
        lines.append([Span(f"  {'time':8}{'p50':>9}{'p95':>9}", "dim")])
        lines += [
            [Span(f"  {title:8}{milliseconds(value['p50']):>9}{milliseconds(value['p95']):>9}")]
            for title, value in times
        ]
    return [*lines, _context_line(target)]


def _tokens(spread: Spread | None) -> str:
    values = (spread["p50"], spread["p95"], spread["p99"], spread["max"]) if spread else (None,) * 4
    return "".join(f"{number(value):>9}" for value in values)


def _time(target: TargetSummary, title: str) -> Times | None:
    found: Times | None = target[f"{title}_ms"]  # type: ignore[literal-required]
    return found


def _context_line(target: TargetSummary) -> Line:
    limit, over = target["context_length"], target["over"]
    line = [Span("  context_length ", "dim"), Span(number(limit))]
    if over is not None:
        line.append(Span(f": {_share(over)} does not fit", "warn" if over > 0.05 else ""))
    implied, reserved = target["context_length_p95"], target["context_length_p95_reserved"]
    if implied is None:
        counted = target["sized"] + target["refused"] + target["truncated"]
        if counted >= target["needed"]:
            return [*line, Span("; over 5% were refused, how long they were is not known: raise it", "warn")]
        more = f"; what the 95th percentile implies is said from {target['needed']} requests on: {counted} so far"
        return [*line, Span(more, "dim")]
    least = "at least " if target["at_least"] else ""
    line.append(Span(f"; the 95th percentile implies {least}{implied}"))
    if reserved != implied:
        line.append(Span(f" ({least}{number(reserved)} if every max_tokens is to fit whole)"))
    return line


def _share(ratio: float) -> str:
    return percent(ratio) if ratio in (0, 1) or 0.01 <= ratio <= 0.99 else f"{ratio * 100:.2f}%"
