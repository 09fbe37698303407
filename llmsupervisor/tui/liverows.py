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

SIGNS = {
    "load": ("L", "warn"),
    "count": (".", "dim"),
    "queue": (".", "dim"),
    "send": ("#", "busy"),
    "prefill": ("#", "busy"),
    "decode": (">", "good"),
}
UNSEEN = ("?", "dim")


def ordered(running: Sequence[Running], words: str = "") -> list[Running]:
    """The oldest first; only those in which every one of `words` occurs."""
    wanted = words.lower().split()
    found = [each for each in running if all(word in _said(each) for word in wanted)] if wanted else running
    return sorted(found, key=lambda each: each.live["since"])


def _said(running: Running) -> str:
    live = running.live
    said = (live["id"], live["service"], live["model"], live["client"], live["api"], live["phase"])
    return " ".join(str(each or "") for each in said).lower()


def rows(
    running: Sequence[Running] | None, early: bool, room: int, most: int, first: int = 0, selected: int = -1
) -> list[Line]:
    """A title and at most `most` rows of those that are `ordered`, from the `first` on. `early`: it was asked for just
    now; `selected`: place of the row under the cursor.
    """
    if running is None and early:
        return [[Span("LIVE ", "bold"), Span("asking the gateway …", "dim")]]
    if running is None:
        return [[Span("LIVE ", "bold"), Span("– nobody tells: no gateway, or it is away", "dim")]]
    waits = sum(each.live["phase"] in ("queue", "load") for each in running)
    title: Line = [Span("LIVE ", "bold"), Span(f"{len(running) - waits} run, {waits} wait")]
    seen = running[first : first + most]
    if len(seen) < len(running):
        title.append(Span(f"  {first + 1} to {first + len(seen)}, the oldest first:", "dim"))
    if not seen:
        return [title]
    texts = [_text(each, room) for each in seen]
    beside = max(width(text_of(text)) for text in texts)
    cells = max(room - beside - 1, 4)
    whole = scale(max(each.told - each.live["since"] for each in seen) * 1000)
    title.append(Span(f"  a whole bar is {waterfall.duration(whole)}", "dim"))
    lines = [title]
    for n, (each, text) in enumerate(zip(seen, texts, strict=True), first):
        text = [*text, Span(" " * (beside - width(text_of(text)) + 1))]
        if n == selected:
            text = [Span(f">{text_of(text)[1:]}", "cursor")]
        lines.append([*text, *bar(each, whole, cells)])
    return lines


def scale(longest_ms: float) -> float:
    """Grows by doubling, so that bars do not shrink each second."""
    whole = 1000.0
    while whole < longest_ms:
        whole *= 2
    return whole


def _text(running: Running, room: int) -> Line:
    live = running.live
    line: Line = [
        Span(f" {pad(printable(live['model']), 10)} ", "bold"),
        Span(f"{_phase(running):<13}", SIGNS.get(live["phase"], UNSEEN)[1]),
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


def bar(running: Running, whole_ms: float, cells: int) -> Line:
    line: Line = []
    at, used = 0.0, 0
    for name, seconds in running.parts:
        at += seconds * 1000
        end = min(round(at / whole_ms * cells), cells)
        if end > used:
            sign, role = SIGNS.get(name, UNSEEN)
            line.append(Span(sign * (end - used), role))
            used = end
    return line
