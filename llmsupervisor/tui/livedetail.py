"""One request that has not ended: what the gateway and its engine told of it so far. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmsupervisor.base.text import printable, width
from llmsupervisor.cli.requestviews import milliseconds
from llmsupervisor.cli.views import UNKNOWN, Line, Span, number, percent, text_of
from llmsupervisor.tui import liverows, waterfall
from llmsupervisor.tui.requestdetail import filled, titled, who

if TYPE_CHECKING:
    from llmsupervisor.link.requests import Live
    from llmsupervisor.link.services import Service
    from llmsupervisor.tui.livefeed import Phase, Running

_MEANS = {
    "count": "the tokens of its prompt are counted",
    "queue": "in the gateway",
    "load": "until its model is loaded",
    "send": "to the engine",
    "unknown": "not seen: before the first look, or between two",
}


def doubt(one: Running, running: Sequence[Running] | None) -> str:
    """Why it may not be so any more."""
    if running is None:
        return "nobody tells what runs now: no gateway, or it is away"
    if all(each.live["id"] != one.live["id"] for each in running):
        return "not among those that run any more; its record is not there yet"
    return ""


def lines(one: Running, doubt: str, service: Service | None, room: int, now: float) -> list[Line]:
    """`service`: the one that works on it."""
    live, age = one.live, one.told - one.live["since"]
    whole = liverows.scale(age * 1000)
    said = Span(f"{live['phase']} so far", liverows.SIGNS.get(live["phase"], liverows.UNSEEN)[1])
    head: Line = [Span("REQUEST ", "bold"), Span(printable(live["id"]))]
    asker = who(live, live["since"], now, room)
    narrow = len(asker) > 2
    return [
        *([[*head, Span("  "), said]] if width(text_of(head)) + width(said.text) + 2 <= room else [head, [said]]),
        *([[Span(doubt, "warn")]] if doubt else []),
        *([] if narrow else [*asker, []]),
        [Span(waterfall.axis(whole, room), "dim")],
        liverows.bar(one, whole, room),
        *(_part(part, _MEANS.get(part.name, ""), age) for part in one.parts[:-1]),
        _part(one.parts[-1], _progress(one.parts[-1], live), age),
        [Span(f"  {'age':<9}"), Span(f"{milliseconds(age * 1000):>8}", "bold")],
        *(asker if narrow else []),
        [],
        titled("CONTEXT", f"{number(live['prompt_tokens'])} + ~{live['tokens']}{_filled(live, service)}"),
        titled("", "told each second, ~ counted in chunks of the answer; its record has the exact figures"),
    ]


def _filled(live: Live, service: Service | None) -> str:
    return filled(live["prompt_tokens"], live["tokens"], service)


def _part(part: Phase, words: str, age: float) -> Line:
    sign, role = liverows.SIGNS.get(part.name, liverows.UNSEEN)
    share = percent(part.seconds / age) if age > 0 else UNKNOWN
    return [
        Span(f"{sign} ", role),
        Span(f"{part.name:<9}"),
        Span(f"{milliseconds(part.seconds * 1000):>8}{share:>6}", "bold"),
        Span(f"  {words}"),
    ]


def _progress(part: Phase, live: Live) -> str:
    """Of the part that lasts."""
    done, whole = live["prompt_done"], live["prompt_tokens"]
    if part.name == "decode":
        speed = f"  ~{live['tokens'] / part.seconds:.1f} tok/s" if live["tokens"] > 1 and part.seconds > 0.5 else ""
        return f"~{live['tokens']} tokens{speed}"
    if part.name == "prefill" and done and whole:
        left = milliseconds(part.seconds * max(whole - done, 0) / done * 1000)
        return f"{done} of {whole} tokens ({percent(done / whole)})  ~{left} left"
    if part.name == "prefill":
        return f"{number(whole)} tokens, or waiting in the engine"
    return _MEANS.get(part.name, "")
