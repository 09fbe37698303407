"""The lines around the panes: who is asked, how old the picture is, what is wrong with the spec, which keys there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from llmsupervisor.base.text import pad, printable, width
from llmsupervisor.cli import views
from llmsupervisor.cli.views import Line, Span, text_of
from llmsupervisor.tui.ages import coarse
from llmsupervisor.tui.pages import PAGES

if TYPE_CHECKING:
    from textual.binding import ActiveBinding

    from llmsupervisor.link.status import Status
    from llmsupervisor.tui.feed import Picture

STALE_AFTER = 2.0
"""Seconds without a status, beyond the interval."""


def stale_age(picture: Picture, now: float) -> str:
    """`12s` where the picture is old, empty where it is fresh. `now`: monotonic seconds."""
    if picture.status is None:
        return ""
    old = now - picture.received
    return views.age(old) if picture.lost or old > picture.interval + STALE_AFTER else ""


def header(
    picture: Picture,
    now: float,
    room: int,
    short: bool,
    readonly: bool = False,
    host: str | None = None,
    paused: bool = False,
) -> list[Line]:
    """One line, or two where there is height; the state of the link stands at the right."""
    stale = stale_age(picture, now)
    mark = (
        Span("CONNECTING", "warn")
        if picture.status is None
        else Span(f"PAUSED {views.age(coarse(now - picture.received))}", "alarm")
        if paused
        else Span(f"STALE {stale}", "alarm")
        if stale
        else Span("LIVE", "good")
    )
    if picture.interval != 1.0:
        mark = Span(f"{mark.text} each {picture.interval:g} s", mark.role)
    if readonly:
        mark = Span(f"READ-ONLY {mark.text}", mark.role)
    status = picture.status
    if status is None:
        return [_spread([Span("llmsupervisor", "bold")], mark, room)]
    daemon = status["daemon"]
    uptime = daemon["uptime_s"] // 60 * 60 if daemon["uptime_s"] >= 60 else daemon["uptime_s"]
    who = [
        Span(printable(f"{host}  ") if host else "llmsupervisor ", "bold"),
        Span(printable(f"{daemon['version']}  pid {daemon['pid']}  up {views.age(uptime)}")),
    ]
    if short:
        return [_spread([*who[: bool(host)], Span(printable(f"pid {daemon['pid']}  {ready(status)}"))], mark, room)]
    spec = daemon["spec"]
    what = f"{ready(status)}  generation {spec['generation']}  spec {spec['path']}"
    return [_spread(who, mark, room), views.clip([Span(printable(what), "dim")], room)]


def ready(status: Status) -> str:
    up = [s for s in status["services"] if s["goal"] == "up"]
    return f"ready {sum(s['state'] == 'READY' for s in up)}/{len(up)}"


def _spread(left: Line, right: Span, room: int) -> Line:
    left = views.clip(left, max(0, room - width(right.text) - 2))
    gap = max(1, room - width(views.text_of(left)) - width(right.text))
    return [*left, Span(" " * gap), right]


def banner(picture: Picture, now: float, most: int, paused: bool = False) -> list[Line]:
    """At most `most` lines: why the picture is old, then what is wrong with the daemon and its spec."""
    lines: list[Line] = []
    stale = stale_age(picture, now)
    if picture.lost:
        lines.append([Span(printable(picture.lost), "warn")])
    elif stale and not paused:
        lines.append([Span("the daemon is silent; what is shown is old, what runs goes on", "warn")])
    if picture.status is not None:
        lines += views.troubles(picture.status, picture.wall)
    if len(lines) > most:
        lines = [*lines[: most - 1], [Span(f"… {len(lines) - most + 1} more lines: llmsupervisor status", "dim")]]
    return lines


ORDERS = "u/x/r/d orders"
ENOUGH = 76
"""Cells of terminal from which on every page has its digit told."""
ROOMY = 130


def keys(page: str, hints: Sequence[str], room: int) -> Line:
    """Digits, what this page has of its own as far as it fits, and the way out."""
    last = "? keys  q detach"
    line: Line = []
    if room >= ENOUGH:
        for each in PAGES:
            name = each.name if room >= ROOMY else each.short
            line.append(
                Span(
                    f"{each.digit} {name}" if room >= ROOMY else f"{each.digit}{name}",
                    "bold" if each.name == page else "dim",
                )
            )
            line.append(Span(" " if room < ROOMY else "  "))
        line.append(Span(" "))
    left = room - width(text_of(line)) - len(last)
    for hint in hints:
        if len(hint) + 2 <= left:
            line.append(Span(f"{hint}  ", "dim"))
            left -= len(hint) + 2
    return views.clip([*line, Span(last, "dim")], room)


def help_lines(page: str, bindings: Iterable[ActiveBinding]) -> list[Line]:
    """Keys that work here; several of one action stand together."""
    found: dict[str, list[str]] = {}
    ordered = sorted(bindings, key=lambda each: each.binding.key in COMMON)
    for _, binding, enabled, _ in ordered:
        if enabled and binding.description and binding.key not in FOREIGN:
            found.setdefault(binding.description, []).append(binding.key_display or NAMES.get(binding.key, binding.key))
    wide = max((width(" ".join(keys)) for keys in found.values()), default=0)
    lines: list[Line] = [[Span(f"keys of the page {page}", "bold")]]
    for description, keys in found.items():
        lines.append([Span(pad(" ".join(dict.fromkeys(keys)), wide), "bold"), Span(f"  {description}")])
    return [
        *lines,
        [],
        [
            Span(
                "The mouse is left to the terminal: select and copy as ever. --mouse: it scrolls and clicks here.",
                "dim",
            )
        ],
    ]


COMMON = {
    "ctrl+p",
    "colon",
    "y",
    "Y",
    "i",
    "question_mark",
    "space",
    "plus",
    "equals_sign",
    "minus",
    "escape",
    "q",
    "ctrl+c",
    "ctrl+z",
    "ctrl+l",
    *(page.digit for page in PAGES),
}
FOREIGN = {"super+c", "ctrl+q", "tab", "shift+tab", "ctrl+pageup", "ctrl+pagedown"}
"""The library's own, which are of no use here."""
NAMES = {
    "question_mark": "?", "slash": "/", "left_square_bracket": "[", "right_square_bracket": "]",
    "pageup": "PgUp", "pagedown": "PgDn", "escape": "Esc", "enter": "Enter", "ctrl+c": "^C", "ctrl+z": "^Z", "ctrl+l": "^L", "vertical_line": "|",
    "plus": "+", "equals_sign": "=", "minus": "-", "less_than_sign": "<", "greater_than_sign": ">", "ctrl+p": "^P", "colon": ":",
}  # fmt: skip
