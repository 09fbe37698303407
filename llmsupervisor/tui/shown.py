"""The figures that stand on a page now, each with where it comes from, how old it is and what it does not mean. Pure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llmsupervisor.base.text import cut, printable, width
from llmsupervisor.base.units import format_size
from llmsupervisor.cli import servicetable, views
from llmsupervisor.cli.views import UNKNOWN, Line, Span, age, text_of
from llmsupervisor.tui import gpuview, header, meanings, requestview

if TYPE_CHECKING:
    from llmsupervisor.link.gpus import Gpu
    from llmsupervisor.link.requests import RequestRecord
    from llmsupervisor.link.services import Service
    from llmsupervisor.link.status import Status
    from llmsupervisor.tui.feed import Picture

Times = Callable[[str], float | None]
_LONGEST = 100
_PART = re.compile(r"[.L#>|?-]? +([a-z]+) +(.*)")
"""A part of a request behind its sign."""
_BAR = re.compile(r"[#=*+%@&$.?-]{8,} +")
_CARD = re.compile(r">?(GPU\d+) +(.*)")


class Shown(NamedTuple):
    name: str
    value: str
    time: float | None = None
    """Unix seconds when it was measured; None: nobody tells."""
    of: str = ""
    """The card it belongs to, where the page has several."""


def lines(page: str, figures: Iterable[Shown], runtime: str, room: int, now: float) -> list[Line]:
    """`runtime`: of the service that the page is about; engines tell the same by different names."""
    found: list[Line] = []
    for each in figures:
        meaning = meanings.of(page, each.name)
        name = printable(f"{each.of} {each.name}".strip())
        old = UNKNOWN if each.time is None else f"{age(now - each.time)} old"
        most = max(min(room, _LONGEST) - width(name) - width(old) - 4, 8)
        value = cut(printable(each.value or "below"), most)
        found.append([Span(name, "bold"), Span(f"  {value}  "), Span(old, "dim")])
        found += [[Span(text)] for text in _wrapped(f"from {meaning.engines.get(runtime, meaning.source)}", room)]
        if meaning.caution:
            found += [[Span(text, "warn")] for text in _wrapped(f"but {meaning.caution}", room)]
    return found


def _wrapped(text: str, room: int) -> list[str]:
    return textwrap.wrap(text, max(room, 12), initial_indent="  ", subsequent_indent="  ")


def titled(page: str, text: Sequence[Line], time: Times) -> list[Shown]:
    """Rows that begin with the name of a figure of this page, behind a sign or not."""
    names = sorted(meanings.BY_PAGE.get(page, ()), key=len, reverse=True)
    found: list[Shown] = []
    of = ""
    for line in map(text_of, text):
        row = line.strip()
        if part := _PART.fullmatch(line.rstrip()):
            row = f"{part[1].upper()} {part[2]}"
        elif card := _CARD.fullmatch(row):
            of, row = card[1], f"GPU {card[2]}"
        name = next((n for n in names if row == n or row.startswith(f"{n} ")), None)
        if name is not None:
            found.append(Shown(name, _BAR.sub("", row[len(name) :]).strip(), time(name), of))
    return found


def around(picture: Picture, now: float) -> list[Shown]:
    """Of the lines above every page. `now`: monotonic seconds."""
    status = picture.status
    stale = header.stale_age(picture, now)
    if status is None:
        return [Shown("LINK", "CONNECTING")]
    return [
        Shown("READY", header.ready(status), picture.wall),
        Shown("GENERATION", str(status["daemon"]["spec"]["generation"]), picture.wall),
        Shown("UP", age(status["daemon"]["uptime_s"]), picture.wall),
        Shown("RATE", f"a picture each {picture.interval:g} s"),
        Shown("LINK", f"STALE {stale}" if stale else "LIVE", picture.wall),
    ]


# --- one service, card or request -----------------------------------------------------------------------------------

_OF_THE_ENGINE = {"KV", "PRE/S", "TOK/S", "HIT", "FIGURES", "CACHE HIT", "DRAFT", "PREEMPTED"}
_OF_NVML = {"VRAM", "MEM", "BW", "BUSY", "POWER", "CLOCK", "TEMP", "ECC", "ROWS", "XID", "GPU"}
_OF_THE_HOST = {"CPU", "RAM", "DISK", "FILES", "BOX"}
_UNTOLD = {"LAST 15 MINUTES", "15 min", "WATT", "HELD", "GROWTH"}


def times(status: Status, service: Service | None, received: float) -> Times:
    """When what a status tells was measured; what the daemon itself knows is as old as the status."""
    told: Mapping[str, Any] = status
    engine = [t.get("figures_time") for t in service["targets"]] if service else []
    known = [time for time in engine if time is not None]

    def time(name: str) -> float | None:
        if name == "PROBE":
            seen = service.get("probe") if service else None
            return seen["time"] if seen else None
        if name in _OF_THE_ENGINE:
            return min(known, default=None)
        if name in _OF_NVML or (service is None and name == "PID"):
            return (told.get("nvml") or {}).get("time")
        if name in _OF_THE_HOST:
            return (told.get("host") or {}).get("time")
        return None if name in _UNTOLD else received

    return time


def of_service(service: Service, time: Times, now: float) -> list[Shown]:
    cells = servicetable.cells(service, now)
    found = [Shown(c.title, s.text or UNKNOWN, time(c.title)) for c, s in zip(servicetable.COLUMNS, cells, strict=True)]
    found.append(Shown("VRAM", format_size(service["vram_bytes"]), time("VRAM")))
    found += [Shown("CONDITION", f"{c['id']}: {c['text']}", time("CONDITION")) for c in service["conditions"]]
    asked = map(text_of, views.asked_lines(service))
    return found + [Shown("ASKED", text.removeprefix("asked "), time("ASKED")) for text in asked]


def of_cards(gpus: Sequence[Gpu], services: Sequence[Service], time: Times) -> list[Shown]:
    found: list[Shown] = []
    for gpu in gpus:
        wide: Mapping[str, Any] = gpu
        memory = f"{gpuview.gib(gpu['memory_used_bytes'])}/{gpuview.gib(gpu['memory_total_bytes'])} GiB"
        told = [
            ("MEM", memory),
            ("BW", gpuview.bandwidth(wide)),
            ("CARD TOK/S", gpuview.tokens(gpu, services)),
            ("BUSY", views.percent(wide.get("busy"))),
            ("POWER", gpuview.watts(wide)),
            ("TEMP", gpuview.degrees(wide.get("temperature_c"))),
        ]
        found += [Shown(name, value, time(name), f"GPU{gpu['index']}") for name, value in told]
    return found


def of_record(record: RequestRecord, now: float) -> list[Shown]:
    """Its columns, also those that there is no room for."""
    ended = record["time"] + record["total_ms"] / 1000
    cells = requestview.cells_of(record, now)
    found = [Shown(column.title, cells[column.cell].text, ended) for column in requestview.COLUMNS]
    return [*found, Shown("BAR", f"{record['total_ms']:.0f} ms", ended)]
