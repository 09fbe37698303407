"""Figures of the last quarter of an hour, one sign for each stretch of it. Pure; what is not known is a gap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from llmsupervisor.base.units import format_size
from llmsupervisor.cli.servicetable import rate
from llmsupervisor.cli.views import UNKNOWN, Line, Span, number, percent

WINDOW = 900.0
EVERY = 15.0
"""Seconds between two looks: a curve that moves is bytes."""
_BARS, _PLAIN = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
_TITLE = 8


class Curve(NamedTuple):
    title: str
    figure: str
    told: Callable[[float | None], str]
    whole: float | None = None
    """What a full sign stands for; None: the greatest of the window."""


def _size(value: float | None) -> str:
    return UNKNOWN if value is None else format_size(int(value))


CURVES = (
    Curve("TOK/S", "tokens_per_s", rate),
    Curve("KV", "kv_cache_usage", percent, 1.0),
    Curve("RUN", "requests_running", number),
    Curve("QUEUE", "requests_queued", number),
    Curve("VRAM", "vram_bytes", _size),
)


CARD = (
    Curve("MEM", "memory_used_bytes", _size),
    Curve("BW", "memory_bandwidth", percent, 1.0),
    Curve("WATT", "power_w", number),
)
"""No busy time: it says nothing about load, now or then."""


def names(service: str) -> list[str]:
    return [f"services.{service}.{curve.figure}" for curve in CURVES]


def card_names(uuid: str) -> list[str]:
    return [f"gpus.{uuid}.{curve.figure}" for curve in CARD]


def lines(said: Mapping[str, Any] | None, service: str, room: int, ascii: bool) -> list[Line]:
    """Those that have a point; nothing where the daemon tells none."""
    found = _drawn(said, f"services.{service}", CURVES, room, ascii)
    return [[Span("LAST 15 MINUTES", "bold")], *found] if found else []


def card_lines(said: Mapping[str, Any] | None, uuid: str, room: int, ascii: bool) -> list[Line]:
    found = _drawn(said, f"gpus.{uuid}", CARD, room, ascii)
    return [[Span("15 min", "dim")], *found] if found else []


def _drawn(said: Mapping[str, Any] | None, of: str, curves: Sequence[Curve], room: int, ascii: bool) -> list[Line]:
    series: Mapping[str, Any] = (said or {}).get("series") or {}
    found: list[Line] = []
    for curve in curves:
        points: Mapping[str, Any] = series.get(f"{of}.{curve.figure}") or {"mean": []}
        values = points["mean"]
        known = [value for value in values if value is not None]
        if not known:
            continue
        greatest = max([*known, *(v for v in points.get("max") or [] if v is not None)])
        words = f" now {curve.told(values[-1])}  max {curve.told(greatest)}"
        cells = max(room - _TITLE - len(words) - 1, 0)
        bars = signs(_fitted(values, cells), curve.whole or max(known), _PLAIN if ascii else _BARS)
        found.append([Span(f"{curve.title:<{_TITLE}}", "dim"), Span(bars.ljust(cells), "busy"), Span(words)])
    return found


def signs(values: Sequence[float | None], whole: float, bars: str) -> str:
    """What is above nothing is seen."""
    top = len(bars) - 1
    return "".join(
        " " if v is None else bars[0 if v <= 0 or whole <= 0 else min(max(round(v / whole * top), 1), top)]
        for v in values
    )


def _fitted(values: Sequence[float | None], cells: int) -> list[float | None]:
    """At most so many: each the greatest of its stretch, so that no peak is lost."""
    if len(values) <= cells or cells < 1:
        return list(values[:cells])
    found: list[float | None] = []
    for n in range(cells):
        stretch = [v for v in values[n * len(values) // cells : (n + 1) * len(values) // cells] if v is not None]
        found.append(max(stretch) if stretch else None)
    return found
