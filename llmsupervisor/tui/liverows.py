"""Requests that have not ended, as rows with the bar so far. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmsupervisor.base.text import cut, pad, printable, width
from llmsupervisor.cli.requestviews import milliseconds
from llmsupervisor.cli.views import UNKNOWN, Line, Span, number, percent, text_of
from llmsupervisor.tui import waterfall

if TYPE_CHECKING:
    from llmsupervisor.tui.livefeed import Running

_SIGNS = {
    "load": ("L", "warn"),
    "count": (".", "dim"),
    "queue": (".", "dim"),
    "send": ("#", "busy"),
    "prefill": ("#", "busy"),
    "decode": (">", "good"),
}
_UNKNOWN = ("?", "dim")


def rows(running: Sequence[Running] | None, early: bool, room: int, most: int) -> list[Line]:
    """A title and at most `most` rows, the oldest first. `early`: it was asked for just now."""
    if running is None and early:
        return [[Span("LIVE ", "bold"), Span("asking the gateway …", "dim")]]
    if running is None:
        return [[Span("LIVE ", "bold"), Span("– nobody tells: no gateway, or it is away", "dim")]]
    waits = sum(each.live["phase"] in ("queue", "load") for each in running)
    title: Line = [Span("LIVE ", "bold"), Span(f"{len(running) - waits} run, {waits} wait")]
    ordered = sorted(running, key=lambda each: each.live["since"])
    left = len(ordered) - most
    if left > 0:
        title.append(Span(f"  the {most} oldest of them:", "dim"))
    ordered = ordered[:most]
    ages = [(each.told - each.live["since"]) * 1000 for each in ordered]
    if not ordered:
        return [title]
    texts = [_text(each, room) for each in ordered]
    beside = max(width(text_of(text)) for text in texts)
    cells = max(room - beside - 1, 4)
    whole = _scale(max(ages))
    title.append(Span(f"  a whole bar is {waterfall.duration(whole)}", "dim"))
    lines = [title]
    for each, text in zip(ordered, texts, strict=True):
        gap = Span(" " * (beside - width(text_of(text)) + 1))
        lines.append([*text, gap, *_bar(each, whole, cells)])
    return lines


def _scale(longest_ms: float) -> float:
    """Grows by doubling, so that bars do not shrink each second."""
    whole = 1000.0
    while whole < longest_ms:
        whole *= 2
    return whole


def _text(running: Running, room: int) -> Line:
    live = running.live
    line: Line = [
        Span(f" {pad(printable(live['model']), 10)} ", "bold"),
        Span(f"{_phase(running):<13}", _SIGNS.get(live["phase"], _UNKNOWN)[1]),
    ]
    if room >= 60:
        prompt = number(live["prompt_tokens"])
        line.append(Span(f" {prompt:>6} in {live['tokens']:>5} out"))
    if room >= 90:
        line.insert(1, Span(f"{pad(cut(printable(live['client'] or UNKNOWN), 10), 10)} "))
    return line


def _phase(running: Running) -> str:
    """With what is known of its progress: the share of the prompt, or tokens a second so far."""
    live, told = running.live, running.told
    lasts = max(told - live["phase_since"], 0.0)
    if live["phase"] == "prefill" and live["prompt_done"] is not None and live["prompt_tokens"]:
        return f"prefill {percent(live['prompt_done'] / live['prompt_tokens'])}"
    if live["phase"] == "decode" and live["tokens"] > 1 and lasts > 0.5:
        return f"decode {live['tokens'] / lasts:.0f}/s"
    return f"{live['phase']} {milliseconds(lasts * 1000)}" if live["phase"] in ("queue", "load") else live["phase"]


def _bar(running: Running, whole_ms: float, cells: int) -> Line:
    live = running.live
    parts = [*running.past, (live["phase"], running.told - live["phase_since"])]
    line: Line = []
    at, used = 0.0, 0
    for name, seconds in parts:
        at += seconds * 1000
        end = min(round(at / whole_ms * cells), cells)
        if end > used:
            sign, role = _SIGNS.get(name, _UNKNOWN)
            line.append(Span(sign * (end - used), role))
            used = end
    return line
