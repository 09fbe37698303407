"""What the linter and the conditions say: the finding, its evidence, the knob and what turning it does. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmsupervisor.base.text import cut, pad, printable
from llmsupervisor.cli.views import UNKNOWN, Line, Span, condition_line, exit_lines, value_text

if TYPE_CHECKING:
    from llmsupervisor.link.services import Service

SIGNS = {"error": ("x", "bad"), "warning": ("!", "warn"), "info": ("i", "")}
_WIDE = 100


def rows(findings: Sequence[Mapping[str, Any]], words: str) -> list[Mapping[str, Any]]:
    """The gravest first; what the spec says is to stay comes last."""
    order = list(SIGNS)
    wanted = words.lower().split()
    found = [f for f in findings if all(word in _text(f) for word in wanted)]
    return sorted(found, key=lambda f: (f.get("ignored") is not None, _rank(order, f["severity"])))


def _rank(order: Sequence[str], severity: str) -> int:
    return order.index(severity) if severity in order else len(order)


def _text(finding: Mapping[str, Any]) -> str:
    return " ".join(
        str(finding.get(key) or "") for key in ("id", "service", "key", "says", "change", "severity")
    ).lower()


def row(finding: Mapping[str, Any], marked: bool, room: int) -> Line:
    sign, role = SIGNS.get(finding["severity"], ("?", ""))
    dim = finding.get("ignored") is not None
    head = f"{'>' if marked else ' '}{sign} {pad(printable(finding['service'] or '(spec)'), 12)} "
    knob = pad(printable(finding["key"] or UNKNOWN), 20) + " " if room >= _WIDE else ""
    text = cut(head + knob + printable(finding["says"]), room)
    return [Span(pad(text, room) if marked else text, "cursor" if marked else "dim" if dim else role)]


def finding_lines(finding: Mapping[str, Any]) -> list[Line]:
    sign, role = SIGNS.get(finding["severity"], ("?", ""))
    where = f"{finding.get('file')}:{finding['line']}" if finding.get("line") else finding.get("file") or UNKNOWN
    lines: list[Line] = [
        [Span(f"{sign} {finding['severity']} ", role), Span(printable(f"{finding['rule']} {finding['name']}"), "bold")],
        [Span(printable(finding["says"]))],
        [],
        _titled("SERVICE", finding["service"] or "the spec as a whole"),
        _titled("WHERE", where),
        _titled("DO", finding["change"] or UNKNOWN),
        _titled("EFFECT", finding.get("effect") or f"{UNKNOWN} not known in figures"),
    ]
    for turn in finding.get("changes") or []:
        restarts = "restarts it" if turn["restarts"] else "without a restart"
        lines.append(
            _titled("TURN", f"{turn['key']}  {value_text(turn['old'])} → {value_text(turn['new'])}   {restarts}")
        )
    rests = finding.get("requests")
    lines.append(_titled("RESTS ON", f"{rests} recorded requests" if rests is not None else "the plan alone"))
    lines += [
        _titled("EVIDENCE", f"{key} {value_text(value)}") for key, value in (finding.get("evidence") or {}).items()
    ]
    lines.append(_titled("SOURCE", finding.get("source") or UNKNOWN))
    if finding.get("ignored") is not None:
        lines.append(_titled("IGNORED", finding["ignored"] or "without a reason"))
    return lines


def _titled(title: str, words: str) -> Line:
    return [Span(f"{title:<10}", "dim"), Span(printable(words))]


def conditions(services: Sequence[Service], findings: Sequence[Mapping[str, Any]], now: float) -> list[Line]:
    """What is wrong now beside the findings, and what the last end advises."""
    rules = {finding["rule"] for finding in findings}
    found: list[Line] = []
    for service in services:
        said = [condition_line(c, now) for c in service["conditions"] if c["id"] not in rules]
        if service["state"] != "READY" and service["last_exit"] is not None:
            said += exit_lines(service["last_exit"], now)
        found += [[Span(printable(f"{service['name']}: "), "bold"), *line] for line in said]
    return found
