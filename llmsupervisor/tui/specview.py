"""The spec on disk against the one that runs: what is wrong with it, what would restart, and the lines that differ. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmsupervisor.base.text import pad, printable, width
from llmsupervisor.cli import views
from llmsupervisor.cli.views import UNKNOWN, Line, Span

if TYPE_CHECKING:
    from llmsupervisor.link.services import Service
    from llmsupervisor.link.status import Status

_ROLES = {"restart": "warn", "stop": "bad", "start": "good", "live": "busy"}


def lines(
    said: Mapping[str, Any] | None, trouble: str, status: Status, services: Sequence[Service], now: float
) -> list[Line]:
    spec = status["daemon"]["spec"]
    found: list[Line] = [
        [Span("SPEC ", "bold"), Span(printable(f"{spec['path']}  generation {spec['generation']} runs"), "bold")]
    ]
    if trouble:
        found.append([Span(printable(trouble), "warn")])
    if said is None:
        return [*found, *([] if trouble else [[Span("asking what the file would change …", "dim")]])]
    found += _state(said, now)
    found += [[], *changes(said, services)]
    found += [[], *difference(said.get("diff"))]
    drift = [(service["name"], text) for service in services for text in service["drift"]]
    if drift:
        found += [
            [],
            [Span("DRIFT ", "bold"), Span("what runs is not what would be started now; restart applies it", "dim")],
        ]
        found += [[Span(printable(f"  {name}: {text}"), "warn")] for name, text in drift]
    return found


def _state(said: Mapping[str, Any], now: float) -> list[Line]:
    written = said.get("changed")
    when = (
        f"the file was written {views.clock_time(written, now)}" if written is not None else "the file cannot be read"
    )
    if said.get("error"):
        head = [Span("INVALID ", "bad"), Span(f"{when}; nothing of it is applied")]
        return [head, *([Span(f"  {printable(problem)}", "bad")] for problem in str(said["error"]).splitlines())]
    if said.get("diff"):
        return [[Span("CHANGED ", "warn"), Span(f"{when}, and is valid; a applies it")]]
    return [[Span("IN SYNC ", "good"), Span(f"{when}, and runs as it stands there")]]


def changes(said: Mapping[str, Any], services: Sequence[Service]) -> list[Line]:
    """What applying the file would do to each service, and what that cuts."""
    told = said.get("changes") or []
    found: list[Line] = [[Span("WHAT APPLYING IT DOES", "bold")]]
    if not told:
        return [*found, [Span("  no service is touched", "dim")]]
    wide = max(width(printable(change["service"])) for change in told)
    for change in told:
        role = _ROLES.get(change["action"], "")
        what = f"  {pad(printable(change['service']), wide)}  {change['action']:<8}"
        found.append([Span(what, role), Span(printable(change["why"]))])
        service = next((s for s in services if s["name"] == change["service"]), None)
        if service is not None and change["action"] in ("restart", "stop"):
            found.append([Span(f"  {'':<{wide}}  cuts    ", "dim"), Span(cut_by(service))])
    return found


def cut_by(service: Service) -> str:
    if service["pid"] is None:
        return "nothing: no process runs"
    figures = (("running", "requests_running"), ("waiting", "requests_waiting"), ("queued", "requests_queued"))
    counts = ", ".join(f"{views.number(views.total(service, figure))} {name}" for name, figure in figures)
    return f"pid {service['pid']} with {counts}: drained first"


def difference(diff: Sequence[str] | None) -> list[Line]:
    found: list[Line] = [
        [Span("APPLIED ", "bold"), Span("- against ", "dim"), Span("ON DISK ", "bold"), Span("+", "dim")]
    ]
    if diff is None:
        return [*found, [Span(f"  {UNKNOWN} the file cannot be read", "warn")]]
    if not diff:
        return [*found, [Span("  the same text", "dim")]]
    for line in diff[2:]:
        role = {"+": "good", "-": "bad", "@": "dim"}.get(line[:1], "")
        found.append([Span(printable(line), role)])
    return found
