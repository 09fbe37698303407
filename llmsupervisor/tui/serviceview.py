"""One service in full, as lines. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmsupervisor.base.text import pad, printable, width
from llmsupervisor.base.units import format_size
from llmsupervisor.cli import views
from llmsupervisor.cli.views import UNKNOWN, Line, Span, value_text
from llmsupervisor.tui import figures
from llmsupervisor.tui.ages import coarse

if TYPE_CHECKING:
    from llmsupervisor.link.events import Event
    from llmsupervisor.link.services import Service

_BESIDE = 60
"""Cells of terminal from which on origins stand beside their items, not below."""
_ORIGIN = 30


def missing(name: str | None) -> str:
    return "no service is known yet" if name is None else printable(f"{name} is not in the spec any more")


def lines(
    service: Service,
    plan: Mapping[str, Any] | None,
    trouble: str,
    room: int,
    now: float,
    parts: Sequence[Sequence[Line]] = (),
) -> list[Line]:
    """`plan`: what runs; without it `trouble` says why it is not known. `parts`: further sections."""
    found = [line for line in views.detail(service, now) if views.text_of(line[:1]) != "asked "]
    found += probe(service, now)
    told = figures.lines(service)
    found += [*([[]] if told else []), *told, [], *_asked(service, room)]
    for part in parts:
        found += [*([[]] if part else []), *part]
    if trouble:
        found += [[], [Span(printable(trouble), "warn")]]
    if plan is None:
        return found if trouble else [*found, [], [Span("asking what it was started with …", "dim")]]
    if memory := figures.budget(plan.get("memory")):
        found += [[], *memory]
    found += [[], *_items("ARGV", _argv(plan), room), [], *_items("ENVIRONMENT", _environment(plan), room)]
    found += [[], [Span("gpus ", "dim"), Span(printable(", ".join(plan["gpus"]) or "none: the CPU"))]]
    if plan["cwd"]:
        found.append([Span("cwd ", "dim"), Span(printable(plan["cwd"]))])
    for title, items in (("input", plan["inputs"]), ("artefact", plan["artefacts"])):
        found += [[Span(f"{title} ", "dim"), Span(printable("  ".join(map(str, item))))] for item in items]
    found += [[Span("warning ", "warn"), Span(printable(text))] for text in plan["warnings"]]
    found += [[Span("cannot start ", "bad"), Span(printable(r["text"]))] for r in plan["refusals"]]
    return found


def processes(said: Mapping[str, Any] | None, now: float) -> list[Line]:
    """The tree, each below the one that started it."""
    told = (said or {}).get("processes") or []
    depth: dict[int, int] = {}
    found: list[Line] = []
    for each in told:
        depth[each["pid"]] = depth.get(each["parent"], -1) + 1
        name = f"{'  ' * depth[each['pid']]}{each['name']}"
        figures = (
            f"{format_size(each['rss_bytes'])}  {each['threads']} threads  {each['cpu_s']:.0f} s CPU  {each['state']}"
        )
        found.append([Span(printable(f"  {each['pid']:>8}  {name}  ")), Span(printable(figures), "dim")])
    return [[Span("PROCESSES", "bold")], *found] if found else []


def probe(service: Service, now: float) -> list[Line]:
    """As long as it is fresh its age is not told by the second: a screen on which nothing happens is not drawn again."""
    seen = service.get("probe")  # an older daemon tells none
    if seen is None:
        return [[Span("PROBE ", "bold"), Span(UNKNOWN)]]
    answer = f"answers {seen['status']}" if seen["status"] is not None else f"no answer: {seen['error'] or UNKNOWN}"
    old = now - seen["time"]
    when = f"less than {FRESH:g}s ago" if old < FRESH else f"{views.age(coarse(old))} ago"
    failed = seen["failures"]
    line = [Span("PROBE ", "bold"), Span(printable(f"{seen['path']} {answer}"), "warn" if failed else "")]
    return [[*line, Span(f"  {when}", "dim"), Span(f"  {failed} failed in a row", "warn" if failed else "dim")]]


FRESH = 15.0
"""Seconds; who is idle is looked at each 5 s."""


def starts(events: Sequence[Event], service: str, now: float, room: int) -> list[Line]:
    """The last loads, newest first: when each began, how long it took or why it did not come to an end, and how long each
    of its phases was.
    """
    found: list[list[Line]] = []
    began: float | None = None
    for event in events:
        if event["service"] != service or event["kind"] != "state":
            continue
        to = event.get("to")
        if to == "STARTING":
            began = event["time"]
        elif began is not None:
            took = views.age(event["time"] - began)
            words = f"ready after {took}" if to == "READY" else f"{to} after {took}  {event.get('reason') or ''}"
            said = printable(f"  {views.clock_time(began, now)}  {words}")
            phases = ", ".join(f"{each['phase']} {_took(each['seconds'])}" for each in event.get("phases", []))
            below = [[Span(text, "dim")] for text in _hanging(printable(phases), room, 4)] if phases else []
            found.append([[Span(said, "" if to == "READY" else "warn")], *below])
            began = None
    if not found:
        return []
    return [[Span("STARTS", "bold")], *(line for each in found[-_STARTS:][::-1] for line in each)]


def _took(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds < 10 else views.age(seconds)


_STARTS = 5


def _asked(service: Service, room: int) -> list[Line]:
    """A table, or two lines for each where it does not fit; `!` marks what the engine has otherwise than it should."""
    asked, got = service["asked"], service["got"] or {}
    rows = [("  ASKED AGAINST GOT", "ASKED", "GOT", "dim")]
    for key in [*asked, *(k for k in got if k not in asked)]:
        differs = key in asked and got.get(key) is not None and got[key] != asked[key]
        texts = (f"{'!' if differs else ' '} {key}", value_text(asked.get(key)), value_text(got.get(key)))
        rows.append((*map(printable, texts), "warn" if differs else ""))  # type: ignore[arg-type]
    first, second, third = (max(width(row[n]) for row in rows) for n in range(3))
    found: list[Line] = []
    for what, wish, value, role in rows:
        if first + second + third + 4 <= room:
            found.append([Span(f"{pad(what, first)}  {pad(wish, second)}  {value}", role)])
        else:
            found += [[Span(what, role)], [Span(f"      {wish}  {value}", role)]]
    if service["got"] is None:
        found.append([Span("  the engine was not asked yet", "dim")])
    return found


def _argv(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(" ".join(_quoted(word) for word in each["words"]), each["origin"]) for each in plan["argv"]]


def _environment(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(f"{each['name']}={each['value']}", each["origin"]) for each in plan["env"]]


def _quoted(word: str) -> str:
    return repr(word) if not word or any(c.isspace() for c in word) else word


def _items(title: str, items: list[tuple[str, str]], room: int) -> list[Line]:
    """Each item with its origin: on one line where both fit, else below."""
    found: list[Line] = [[Span(f"{title} ", "bold"), Span(f"{len(items)}, and where each comes from", "dim")]]
    beside = max((width(item) for item, _ in items if width(item) <= room - _ORIGIN), default=0) + 2
    for item, origin in items:
        item, origin = printable(item), printable(origin)
        if room >= _BESIDE and width(item) <= beside and beside + 2 + width(origin) <= room:
            found.append([Span(f"  {pad(item, beside)}"), Span(origin, "dim")])
        else:
            found += [[Span(text)] for text in _hanging(item, room, 2)]
            found += [[Span(text, "dim")] for text in _hanging(origin, room, 6)]
    return found


def _hanging(text: str, room: int, indent: int) -> list[str]:
    """Broken at blanks, else where it must be; what follows stands two cells further in than the begin."""
    wrapped = textwrap.wrap(
        text, max(room, 12), initial_indent=" " * indent, subsequent_indent=" " * (indent + 2), break_on_hyphens=False
    )
    return wrapped or [""]
