"""A status as people read it: rows, notes and sentences with roles instead of colours. Pure; shared by `status`,
`up` and the terminal UI. Every foreign text passes `printable` here.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from llmsupervisor.base.progress import transfer, with_bar
from llmsupervisor.base.text import cut, pad, printable, width
from llmsupervisor.base.units import format_duration, format_size

if TYPE_CHECKING:
    from llmsupervisor.link.events import Event
    from llmsupervisor.link.services import Condition, Exit, Service, Target
    from llmsupervisor.link.status import Status

UNKNOWN = "–"


class Span(NamedTuple):
    """`role`: good, busy, warn, bad, dim, bold or empty. The word says it too: colour is never alone."""

    text: str
    role: str = ""


Line = list[Span]


def text_of(line: Line) -> str:
    return "".join(span.text for span in line)


def clip(line: Line, cells: int) -> Line:
    """At most `cells` wide."""
    kept: Line = []
    for span in line:
        kept.append(Span(cut(span.text, cells), span.role))
        cells -= width(span.text)
        if cells <= 0:
            break
    return kept


class Sign(NamedTuple):
    mark: str
    role: str


SIGNS = {
    "STOPPED": Sign("□", "dim"),
    "IDLE": Sign("○", "dim"),
    "PENDING": Sign("◌", "warn"),
    "STARTING": Sign("◐", "busy"),
    "READY": Sign("●", "good"),
    "UNREADY": Sign("◑", "warn"),
    "DRAINING": Sign("▽", "busy"),
    "STOPPING": Sign("▼", "busy"),
    "KILLING": Sign("✕", "warn"),
    "BACKOFF": Sign("↻", "warn"),
    "FAILED": Sign("✖", "bad"),
}
_NO_SIGN = Sign("?", "warn")


def sign(state: str) -> Sign:
    return SIGNS.get(state, _NO_SIGN)


def state_span(state: str) -> Span:
    found = sign(state)
    return Span(f"{found.mark} {printable(state)}", found.role)


def age(seconds: float | None) -> str:
    """Whole seconds: `0s`, `42s`, `3m10s`. A clock that was set back gives `0s`."""
    if seconds is None:
        return UNKNOWN
    return f"{max(0, int(seconds))}s" if seconds < 60 else format_duration(int(seconds))


def percent(ratio: float | None) -> str:
    return UNKNOWN if ratio is None else f"{ratio * 100:.0f}%"


def number(value: float | None) -> str:
    return UNKNOWN if value is None else str(value) if isinstance(value, int) else f"{value:g}"


def clock_time(seconds: float, now: float) -> str:
    """Local time of day; with the date where it is not today's."""
    then = time.localtime(seconds)
    same_day = then[:3] == time.localtime(now)[:3]
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S", then)


def total(service: Service, figure: str) -> int | None:
    """Sum over the targets; None where any is unknown: a part is not the whole."""
    values = [target.get(figure) for target in service["targets"]]
    return sum(v for v in values if isinstance(v, int)) if values and None not in values else None


def kv_usage(service: Service) -> float | None:
    """Of the fullest target."""
    known = [t["kv_cache_usage"] for t in service["targets"] if t["kv_cache_usage"] is not None]
    return max(known) if known else None


class Column(NamedTuple):
    title: str
    right: bool
    drop: int
    """Columns with a higher number go first where the terminal is narrow; 0 stays."""
    least: int = 0
    """Cells, so that a figure that grows does not move its neighbours."""


def reason(service: Service) -> str:
    return _because(service, phase(service))


def _because(service: Service, phase: str) -> str:
    parts = [service["reason"]]
    if phase and phase not in service["reason"]:
        parts.insert(0, phase)
    return printable("; ".join(p for p in parts if p).replace("\n", " "))


def phase(service: Service) -> str:
    """What it is at and how far, each model that is made by itself."""
    parts = with_bar(service["phase"] or "").split(", ")
    for target in service["targets"]:
        if (said := target.get("progress")) and (bar := how_far(target)):
            begin = f"{target['model']}: "
            place = next((n for n, part in enumerate(parts) if part.startswith(begin)), len(parts))
            parts[place : place + 1] = [f"{begin}{said['status']} {bar}"]
    return ", ".join(filter(None, parts))


def how_far(target: Target) -> str:
    """Of an upload, a create or a pull; empty where it does not tell its bytes."""
    said = target.get("progress")
    if said is None or said["completed"] is None:
        return ""
    return transfer(said["completed"], said["total"], said.get("bytes_per_s"))  # an older daemon tells no rate


# --- notes: what is wrong or unusual with one service ---------------------------------------------------------------


def notes(service: Service, now: float) -> list[Line]:
    """Conditions, drift, the next try, and while not READY the last exit with its advice; an end that was asked for
    is no news.
    """
    lines = [condition_line(condition, now) for condition in service["conditions"]]
    lines += [[Span("drift ", "warn"), Span(printable(text))] for text in service["drift"]]
    if service["stopped_by"] and service["goal"] == "down":
        lines.append(
            [
                Span(
                    printable(f"stopped by {service['stopped_by']}; start it: llmsupervisor start {service['name']}"),
                    "dim",
                )
            ]
        )
    if service["retry_at"] is not None and service["state"] in {"BACKOFF", "FAILED"}:
        lines.append([Span(f"next try in {age(service['retry_at'] - now)}", "warn")])
    if service["state"] != "READY" and service["goal"] == "up" and service["last_exit"] is not None:
        lines += exit_lines(service["last_exit"], now, said=service["reason"])
    return lines


def condition_line(condition: Condition, now: float) -> Line:
    since = condition["since"]
    lasts = "" if since is None else f" (for {age(now - since)})"
    return [Span("condition ", "warn"), Span(printable(f"{condition['id']}: {condition['text']}")), Span(lasts, "dim")]


def exit_lines(exit: Exit, now: float, said: str = "") -> list[Line]:
    """What happened, unless `said` says it already, and what to do."""
    text = exit["text"] or exit["cause"]
    ago = "" if exit["time"] is None else f" ({age(now - exit['time'])} ago)"
    lines: list[Line] = []
    if text not in said:
        lines.append([Span("last exit ", "warn"), Span(printable(text)), Span(ago, "dim")])
    if exit["advice"]:
        lines.append([Span("advice ", "bold"), Span(printable(exit["advice"]))])
    return lines


# --- the daemon and its spec ------------------------------------------------------------------------------------------


def daemon_line(status: Status) -> Line:
    daemon = status["daemon"]
    spec = daemon["spec"]
    line = [
        Span("llmsupervisor ", "bold"),
        Span(printable(f"{daemon['version']}  pid {daemon['pid']}  up {age(daemon['uptime_s'])}  ")),
        Span(printable(f"spec {spec['path']}  generation {spec['generation']}")),
    ]
    gateway = status["gateway"]
    if gateway is not None:
        line.append(Span(printable(f"  gateway {gateway['listen']} {gateway['state']}"), sign(gateway["state"]).role))
    return line


def troubles(status: Status, now: float) -> list[Line]:
    """Of the daemon itself and of its spec."""
    return [*(condition_line(c, now) for c in status["daemon"]["conditions"]), *spec_error(status)]


def spec_error(status: Status) -> list[Line]:
    error = status["daemon"]["spec"]["error"]
    if not error:
        return []
    generation = status["daemon"]["spec"]["generation"]
    head = [Span(f"SPEC ERROR: the file was not applied; generation {generation} goes on", "bad")]
    return [head, *([Span("  "), Span(printable(problem))] for problem in error.splitlines())]


# --- the detail of one service --------------------------------------------------------------------------------------


def detail(service: Service, now: float) -> list[Line]:
    """Everything that is known of one service."""
    head = [Span(printable(service["name"]), "bold"), Span("  "), state_span(service["state"])]
    head.append(Span(f" for {age(now - service['since'])}"))
    if said := _because(service, with_bar(service["phase"] or "")):
        head.append(Span(f"  {said}", "dim"))
    facts = [
        service["runtime"],
        service["endpoint"] or UNKNOWN,
        f"generation {service['generation']}",
        f"restarts {service['restarts']}",
        f"pid {number(service['pid'])}",
        f"VRAM {format_size(service['vram_bytes'])}",
    ]
    lines: list[Line] = [head, [Span(printable("  ".join(facts)))], *notes(service, now)]
    if service["state"] == "READY" and service["last_exit"] is not None:
        lines += exit_lines(service["last_exit"], now)
    for target in service["targets"]:
        lines.append(_target_line(target))
        if bar := how_far(target):
            lines.append([Span("  "), Span(bar, "busy")])
    return lines + asked_lines(service)


def _target_line(target: Target) -> Line:
    progress = target.get("progress")
    figures = [
        f"{target['model']} ({', '.join(target['names'])})",
        target["state"],
        f"KV {percent(target['kv_cache_usage'])}",
        f"running {number(target['requests_running'])}",
        f"waiting {number(target['requests_waiting'])}",
        f"queued {number(target['requests_queued'])}",
        target.get("reason", ""),
        progress["status"] if progress else "",
    ]
    figures = [figure for figure in figures if figure]
    return [Span("target ", "dim"), Span(printable("  ".join(figures)))]


def asked_lines(service: Service) -> list[Line]:
    """What was asked for against what the engine says it got; `–` where it does not say."""
    asked, got = service["asked"], service["got"] or {}
    lines: list[Line] = []
    for key in [*asked, *(k for k in got if k not in asked)]:
        has = key in got and got[key] is not None
        same = has and got[key] == asked.get(key)
        answer = "got the same" if same else f"got {value_text(got.get(key))}"
        what = Span(printable(f"{key} {value_text(asked.get(key))}  "))
        lines.append([Span("asked ", "dim"), what, Span(printable(answer), "dim" if same or not has else "warn")])
    return lines


def value_text(value: object) -> str:
    """Of JSON, as a person reads it."""
    match value:
        case None:
            return UNKNOWN
        case bool():
            return str(value).lower()
        case dict():
            return ", ".join(f"{key} {value_text(each)}" for key, each in value.items())
        case list():
            return ", ".join(map(value_text, value))
    return str(value)


# --- events and GPUs --------------------------------------------------------------------------------------------------


def event_line(event: Event, now: float) -> Line:
    who = printable(event["service"] or event.get("gpu") or "daemon")
    words, role = _event_words(event)
    return [
        Span(clock_time(event["time"], now), "dim"),
        Span(f"  {pad(who, max(12, width(who)))}  "),
        Span(printable(words), role),
    ]


def _event_words(event: Event) -> tuple[str, str]:
    match event["kind"]:
        case "state":
            to = event.get("to", UNKNOWN)
            because = f": {event['reason']}" if event.get("reason") else ""
            attempt = f" (start {event['attempt']})" if event.get("attempt", 0) > 1 else ""
            return f"{event.get('from', UNKNOWN)} → {to}{because}{attempt}", sign(to).role
        case "exit":
            exit = event.get("exit")
            advice = f"; {exit['advice']}" if exit and exit["advice"] else ""
            return f"exit: {exit['text'] or exit['cause']}{advice}" if exit else "exit", "warn"
        case "condition":
            on = event.get("on", True)
            text = f": {event['text']}" if event.get("text") else ""
            return f"condition {event.get('id', UNKNOWN)} {'on' if on else 'over'}{text}", "warn" if on else "good"
        case "reload":
            changes = ", ".join(f"{c['service']} {c['action']} ({c['why']})" for c in event.get("changes", []))
            return (
                f"spec applied as generation {event.get('generation', UNKNOWN)}: {changes or 'no service changed'}",
                "",
            )
        case "refused":
            return f"spec refused: {event.get('error', '')}".replace("\n", " | "), "bad"
        case "operator":
            return f"{event.get('call', UNKNOWN)} by {event.get('by', UNKNOWN)}", "bold"
        case "gpu":
            return event.get("text", ""), "warn"
        case "target":
            because = f": {event['reason']}" if event.get("reason") else ""
            state = event.get("state", UNKNOWN)
            role = {"failed": "bad", "loaded": "good"}.get(state, "")
            return f"{event.get('target', UNKNOWN)} {event.get('was', UNKNOWN)} → {state}{because}", role
        case "daemon":
            return f"daemon {event.get('what', UNKNOWN)}", "bold"
    return str(event["kind"]), ""
