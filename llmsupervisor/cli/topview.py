"""What `top` shows: who works how fast, whose memory it is, and what happened lately. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmsupervisor.base.text import pad, printable, width
from llmsupervisor.base.units import format_size
from llmsupervisor.cli.views import (
    UNKNOWN,
    Line,
    Span,
    age,
    clip,
    daemon_line,
    event_line,
    number,
    percent,
    state_span,
    total,
)

if TYPE_CHECKING:
    from llmsupervisor.link.gpus import Gpu
    from llmsupervisor.link.series import Series
    from llmsupervisor.link.services import Service, Target
    from llmsupervisor.link.status import Host, Status

CURVE = 15
"""Points of a curve: a minute each."""
EVENTS = 5
HEAD = (
    "NAME",
    "STATE",
    "FOR",
    "RUN",
    "QUEUE",
    "WAIT",
    "TOK/S",
    "DECODE",
    "PREFILL",
    "KV",
    "HIT",
    "CTX95",
    "VRAM",
    "RAM",
    "LAST 15 MIN",
)
LEFT = {0, 1}
_BARS = " ▁▂▃▄▅▆▇█"
_ASCII_BARS = " .:-=+*#@"


def screen(status: Status, series: Series, now: float, room: int, ascii: bool) -> list[Line]:
    rows = [_cells(service, series, now, ascii) for service in status["services"]]
    lines = [daemon_line(status), [], *_table(rows)]
    for service in status["services"]:
        for condition in service["conditions"]:
            lines.append([Span(f"  {printable(service['name'])}: {printable(condition['text'])}", "warn")])
    if status["gpus"]:
        lines += [[], *[_gpu(gpu) for gpu in status["gpus"]]]
    if status["host"]:
        lines += [[], _host(status["host"])]
    told = [event for event in series["events"] if event["kind"] in ("state", "exit", "condition", "operator")]
    if told:
        lines.append([])
        lines += [event_line(event, now) for event in told[-EVENTS:]]
    return [clip(line, room) for line in lines]


def curve(values: Sequence[float | None], ascii: bool = False) -> str:
    """One sign a value, against the greatest; unknown is a gap."""
    bars = _ASCII_BARS if ascii else _BARS
    most = max((value for value in values if value is not None), default=0.0)
    if most <= 0:
        return ""
    return "".join(" " if value is None else bars[_height(value / most, len(bars) - 1)] for value in values)


def _height(share: float, most: int) -> int:
    """What is above nothing is seen."""
    return 0 if share <= 0 else max(1, round(share * most))


def _cells(service: Service, series: Series, now: float, ascii: bool) -> list[Span]:
    target: Target | None = service["targets"][0] if service["targets"] else None
    points = series["series"].get(f"services.{service['name']}.tokens_per_s")

    def figure(name: str) -> float | None:
        value = target.get(name) if target else None
        return value if isinstance(value, int | float) else None

    context = target["context"]["p95"] if target else None
    return [
        Span(printable(service["name"]), "bold"),
        state_span(service["state"]),
        Span(age(now - service["since"])),
        Span(number(total(service, "requests_running"))),
        Span(number(total(service, "requests_queued"))),
        Span(number(total(service, "requests_waiting"))),
        Span(_speed(figure("tokens_per_s"))),
        Span(_speed(figure("decode_tokens_per_s"))),
        Span(_speed(figure("prefill_tokens_per_s"))),
        Span(percent(figure("kv_cache_usage"))),
        Span(percent(figure("prefix_hit_ratio"))),
        Span(UNKNOWN if context is None else f"{context}/{number(target['context']['limit'] if target else None)}"),
        Span(format_size(service["vram_bytes"])),
        Span(format_size(service["rss_bytes"])),
        Span(curve(points["mean"], ascii) if points else "", "dim"),
    ]


def _speed(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _table(rows: list[list[Span]]) -> list[Line]:
    every = [[Span(title, "dim") for title in HEAD], *rows]
    widths = [max(width(row[i].text) for row in every) for i in range(len(HEAD))]
    return [_row(row, widths) for row in every]


def _row(row: list[Span], widths: list[int]) -> Line:
    line: Line = []
    for i, (span, cells) in enumerate(zip(row, widths, strict=True)):
        blank = " " * (cells - width(span.text))
        last = i == len(row) - 1
        text = span.text if last else pad(span.text, cells) if i in LEFT else blank + span.text
        line.append(Span(text if i == 0 else f"  {text}", span.role))
    return line


def _gpu(gpu: Gpu) -> Line:
    parts = [
        f"GPU {gpu['index']} {printable(gpu['name'] or '')}",
        f"{format_size(gpu['memory_used_bytes'])} of {format_size(gpu['memory_total_bytes'])}",
        f"busy {percent(gpu['busy'])}",
        f"{number(gpu['power_w'])} W",
        f"{number(gpu['temperature_c'])} °C",
    ]
    return [Span("  ".join(parts))]


def _host(host: Host) -> Line:
    free, all_of_it = format_size(host["memory_available_bytes"]), format_size(host["memory_total_bytes"])
    return [Span(f"host  CPU {percent(host['cpu_busy'])} of {host['cpu_count']}  RAM {free} free of {all_of_it}")]
