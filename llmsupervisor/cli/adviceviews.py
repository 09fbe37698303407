"""Findings as people read them. Pure; shared by `advise` and the terminal UI."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from llmsupervisor.base.text import printable
from llmsupervisor.base.units import format_duration
from llmsupervisor.cli.views import UNKNOWN, Line, Span

if TYPE_CHECKING:
    from llmsupervisor.link.advice import Advice, Finding, Fixed, Turn

ROLES = {"error": "bad", "warning": "warn", "info": "dim"}


def advice(said: Advice, every: bool = False) -> list[Line]:
    """`every`: also what is ignored with a reason."""
    told = [finding for finding in said["findings"] if every or finding["ignored"] is None]
    lines: list[Line] = []
    for found in told:
        lines += [*([[]] if lines else []), *finding(found)]
    if said["reason"] is not None:
        lines.append([Span(printable(f"nothing was read of requests: {said['reason']}"), "dim")])
    if not told:
        window = format_duration(said["window_s"])
        lines.insert(0, [Span(f"no finding: neither in the plan nor in the requests of {window}", "good")])
    if ignored := len(said["findings"]) - len(told):
        lines.append([Span(f"{ignored} ignored with a reason (--all shows them)", "dim")])
    return lines


def finding(found: Finding) -> list[Line]:
    """What is wrong, what to write, what that is worth, and how anybody knows."""
    of = f"services.{found['service']}.{found['key']}" if found["service"] else found["key"]
    lines = [
        [
            Span(found["severity"], ROLES[found["severity"]]),
            Span(printable(f"  {found['id']}"), "bold"),
            Span(printable(f"  {of}"), "dim"),
        ],
        [Span(printable(f"  {found['says']}"))],
        [Span("  do      ", "dim"), Span(printable(found["change"]))],
    ]
    lines += [[Span("          "), *turn(each)] for each in found["changes"]]
    lines.append([Span("  effect  ", "dim"), Span(printable(found["effect"]))])
    lines.append([Span("  seen    ", "dim"), Span(printable(evidence(found)))])
    lines.append([Span("  source  ", "dim"), Span(printable(found["source"]))])
    if found["ignored"] is not None:
        lines.append([Span("  ignored ", "dim"), Span(printable(found["ignored"]))])
    return lines


def turn(each: Turn) -> Line:
    """`kv_cache_type "f16" → "q8_0"  (restarts)`"""
    new = "(left out)" if each["new"] is None else _value(each["new"])
    what = f"{each['key']} {_value(each['old'])} → {new}"
    return [Span(printable(what)), Span("  restarts it" if each["restarts"] else "  live", "dim")]


def evidence(found: Finding) -> str:
    """Settings and figures, and how many requests they rest on."""
    facts = ", ".join(f"{name} {_value(value)}" for name, value in found["evidence"].items())
    if found["requests"] is None:
        return facts
    return f"{facts} ({found['requests']} requests)"


def staged(said: Fixed) -> list[Line]:
    """A change before it is made: the spec's lines, and what becomes of services."""
    lines: list[Line] = []
    for text in said["diff"].splitlines():
        role = {"+": "good", "-": "bad", "@": "dim"}.get(text[:1], "")
        lines.append([Span(printable(text), role)])
    for change in said["changes"]:
        lines.append([Span(printable(f"{change['service']}  {change['action']}  {change['why']}".rstrip()))])
    if not said["changes"]:
        lines.append([Span("no service changes", "dim")])
    for refusal in said["refusals"]:
        lines.append([Span(printable(f"{refusal['service']} could not start with it: {refusal['text']}"), "bad")])
    for found in said["findings"]:
        lines.append([Span(printable(f"{found['severity']} {found['id']}: {found['says']}"), ROLES[found["severity"]])])
    return lines


def _value(value: object) -> str:
    return UNKNOWN if value is None else json.dumps(value, ensure_ascii=False)
