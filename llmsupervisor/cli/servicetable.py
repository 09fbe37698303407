"""The table of services, shared by `status`, `up` and the terminal UI. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmsupervisor.base.text import pad, printable, width
from llmsupervisor.cli.views import (
    UNKNOWN,
    Column,
    Line,
    Span,
    age,
    kv_usage,
    notes,
    number,
    percent,
    reason,
    sign,
    state_span,
    total,
)

if TYPE_CHECKING:
    from llmsupervisor.link.services import Service
    from llmsupervisor.link.status import Status


COLUMNS = (
    Column("NAME", False, 0),
    Column("RUNTIME", False, 8),
    Column("STATE", False, 0, least=10),
    Column("FOR", True, 3, least=6),
    Column("RESTARTS", True, 7),
    Column("PID", True, 9, least=7),
    Column("KV", True, 2, least=4),
    Column("RUN/WAIT/Q", True, 1),
    Column("PRE/S", True, 5, least=5),
    Column("TOK/S", True, 4, least=5),
    Column("HIT", True, 6, least=4),
    Column("REASON", False, 10),
)
REASON = len(COLUMNS) - 1
_NARROWEST_REASON = 12
_NAME_LIMIT = 32


UNDER_WAY = ("requests_running", "requests_waiting", "requests_queued")
"""Decoded, waiting in the engine, queued in the gateway."""


def rate(per_second: float | None) -> str:
    """Three digits: what follows trembles."""
    return UNKNOWN if per_second is None else f"{per_second:.0f}" if per_second >= 100 else f"{per_second:.1f}"


def greatest(service: Service, figure: str) -> float | None:
    """Of the targets that tell it."""
    return max(_told(service, figure), default=None)


def together(service: Service, figure: str) -> float | None:
    """Sum over the targets that tell it now."""
    return sum(found) if (found := _told(service, figure)) else None


def _told(service: Service, figure: str) -> list[float]:
    return [value for target in service["targets"] if isinstance(value := target.get(figure), int | float)]


def cells(service: Service, now: float) -> list[Span]:
    """One cell for each of COLUMNS."""
    role = sign(service["state"]).role
    return [
        Span(printable(service["name"]), "bold"),
        Span(printable(service["runtime"])),
        state_span(service["state"]),
        Span(age(now - service["since"])),
        Span(number(service["restarts"]), "warn" if service["restarts"] else ""),
        Span(number(service["pid"])),
        Span(percent(kv_usage(service))),
        Span("/".join(number(total(service, figure)) for figure in UNDER_WAY)),
        Span(rate(greatest(service, "prefill_tokens_per_s"))),
        Span(rate(together(service, "tokens_per_s"))),
        Span(percent(greatest(service, "prefix_hit_ratio"))),
        Span(reason(service), role if role in {"warn", "bad"} else "dim"),
    ]


def fit(rows: Sequence[Sequence[str]], room: int, gap: int = 2) -> list[tuple[int, int]]:
    """(index in COLUMNS, width) of what fits into `room` cells. REASON takes what is left, or goes first."""
    widths = [max([width(c.title), c.least, *(width(row[i]) for row in rows)]) for i, c in enumerate(COLUMNS)]
    widths[0] = min(widths[0], _NAME_LIMIT)
    kept = [i for i in range(len(COLUMNS)) if i != REASON]

    def used() -> int:
        return sum(widths[i] + gap for i in kept) - gap

    while used() > room and (droppable := [i for i in kept if COLUMNS[i].drop]):
        kept.remove(max(droppable, key=lambda i: COLUMNS[i].drop))
    if used() > room:
        widths[0] = max(1, widths[0] - (used() - room))
    left = room - used() - gap
    if any(row[REASON] for row in rows) and left >= _NARROWEST_REASON:
        kept.append(REASON)
        widths[REASON] = min(widths[REASON], left)
    return [(i, widths[i]) for i in kept]


def table(status: Status, now: float, room: int) -> list[Line]:
    """Title line, then per service its row and its notes."""
    services = status["services"]
    if not services:
        return [[Span("no services: the spec has none enabled", "dim")]]
    rows = [cells(service, now) for service in services]
    columns = fit([[cell.text for cell in row] for row in rows], room)
    reason_shown = columns[-1][0] == REASON
    lines = [_row([Span(c.title, "dim") for c in COLUMNS], columns)]
    for service, row in zip(services, rows, strict=True):
        lines.append(_row(row, columns))
        whole = not row[REASON].text or (reason_shown and width(row[REASON].text) <= columns[-1][1])
        if not whole:
            lines.append([Span("  "), Span(row[REASON].text, row[REASON].role)])
        lines += [[Span("  "), *note] for note in notes(service, now)]
    return lines


def _row(row: Sequence[Span], columns: list[tuple[int, int]]) -> Line:
    line: Line = []
    for index, cells_wide in columns:
        if line:
            line.append(Span("  "))
        line.append(Span(pad(row[index].text, cells_wide, COLUMNS[index].right), row[index].role))
    line[-1] = Span(line[-1].text.rstrip(), line[-1].role)
    return line
