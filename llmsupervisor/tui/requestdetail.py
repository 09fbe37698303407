"""One request: where its time went, how much of its prompt was computed, and who says so. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from llmsupervisor.base.text import printable, width
from llmsupervisor.base.units import format_duration
from llmsupervisor.cli.requestviews import milliseconds
from llmsupervisor.cli.views import UNKNOWN, Line, Span, clock_time, number, percent, text_of
from llmsupervisor.tui import waterfall

if TYPE_CHECKING:
    from llmsupervisor.link.requests import Live, RequestRecord
    from llmsupervisor.link.services import Service

BLOCK = 2048
"""Bytes of prompt text that one of `hash_ids` is of."""
_TITLE = 9


class Compared(NamedTuple):
    """One request beside the others."""

    rank: list[Line]
    before: RequestRecord | None
    """The latest one with the longest common begin of the prompt."""
    shared: int
    """Blocks of it."""


def compared(record: RequestRecord, others: Sequence[RequestRecord]) -> Compared:
    """`others`: all that are known, oldest first. Looks at each of them."""
    return Compared(_rank(record, others), *_ancestor(record, others))


def lines(record: RequestRecord, beside: Compared, service: Service | None, room: int, now: float) -> list[Line]:
    """`service`: the one that answered, as it is now."""
    asker = who(record, record["time"], now, room)
    narrow = len(asker) > 2
    return [
        *_head(record, room),
        *([] if narrow else [*asker, []]),
        [Span(waterfall.axis(record["total_ms"], room), "dim")],
        waterfall.bar(record, record["total_ms"], room),
        *_parts(record, room),
        *(asker if narrow else []),
        [],
        *_firsts(record),
        *beside.rank,
        *_context(record, service),
        *_cache(record, beside),
        *_sources(record),
        *_rest(record),
    ]


def _head(record: RequestRecord, room: int) -> list[Line]:
    bad = "bad" if record["status"] >= 500 else "warn" if waterfall.failed(record) else "good"
    ended = printable((record["finish_reason"] or UNKNOWN).replace("_", " "))
    name: Line = [Span("REQUEST ", "bold"), Span(printable(record["id"]))]
    end: Line = [Span(f"{record['status']} {ended}", bad)]
    if record["truncated"]:
        end.append(Span("  cut off: the context was full", "warn"))
    return [[*name, Span("  "), *end]] if width(text_of([*name, *end])) + 2 <= room else [name, end]


def who(request: RequestRecord | Live, came: float, now: float, room: int) -> list[Line]:
    """As few lines as there is room for."""
    words = [
        request["service"] or UNKNOWN,
        f"model {request['model'] or UNKNOWN}",
        f"client {request['client'] or UNKNOWN}",
        request["api"],
        "stream" if request["stream"] else "no stream",
        clock_time(came, now),
    ]
    texts = [""]
    for word in map(printable, words):
        joined = f"{texts[-1]}  {word}" if texts[-1] else word
        if width(joined) <= room:
            texts[-1] = joined
        else:
            texts.append(word)
    return [[Span(text)] for text in texts if text]


def _parts(record: RequestRecord, room: int) -> list[Line]:
    """What it was spent on stands below its time where it does not fit beside it."""
    computed = _computed(record)
    out, decode, prefill = record["completion_tokens"], record["decode_ms"], record["prefill_ms"]
    prefilled = f"{number(computed)} tokens  {_speed(computed, prefill)}"
    decoded = f"{number(out)} tokens  {_rate(record['decode_tokens_per_s'])}"
    if out is not None and out > 1 and decode is not None:
        decoded += f"  TPOT {milliseconds(decode / (out - 1))}"
    rows = [
        ("L", "load", "load_ms", ""),
        (".", "queue", "queue_ms", "in the gateway"),
        (".", "waiting", "engine_queue_ms", "in the engine"),
        ("#", "prefill", "prefill_ms", prefilled),
        (">", "decode", "decode_ms", decoded),
        ("-", "rest", "other_ms", "reading it, connecting, the last bytes"),
    ]
    total = record["total_ms"]
    found: list[Line] = []
    for sign, name, figure, words in rows:
        value: float | None = record[figure]  # type: ignore[literal-required]
        if figure == "load_ms" and not value:
            continue
        share = percent(value / total) if value is not None and total else UNKNOWN
        line: Line = [
            Span(f"{sign} {name:<{_TITLE}}"),
            Span(f"{_exact(value):>12}{share:>6}", "bold"),
            Span(f"  {_source(record, figure):<8}", "dim"),
        ]
        beside = width(text_of(line)) + width(words) <= room
        found += [[*line, Span(words)]] if beside else [line, [Span(f"    {words}")]]
    found.append([Span(f"| {'total':<{_TITLE}}"), Span(f"{_exact(total):>12}", "bold")])
    return found


def _exact(ms: float | None) -> str:
    return UNKNOWN if ms is None else f"{ms:,.1f} ms".replace(",", " ")


def _speed(tokens: int | None, ms: float | None) -> str:
    return _rate(tokens / ms * 1000 if tokens and ms else None)


def _rate(per_second: float | None) -> str:
    return f"{UNKNOWN} tok/s" if per_second is None else f"{per_second:.1f} tok/s"


def _computed(record: RequestRecord) -> int | None:
    prompt, cached = record["prompt_tokens"], record["cached_tokens"]
    return None if prompt is None or cached is None or cached > prompt else prompt - cached


def titled(title: str, words: str, role: str = "") -> Line:
    return [Span(f"{title:<{_TITLE}}", "dim"), Span(printable(words), role)]


def _firsts(record: RequestRecord) -> list[Line]:
    words = milliseconds(record["ttft_ms"])
    if record["itl_p50_ms"] is not None:
        words += f"   between tokens p50 {milliseconds(record['itl_p50_ms'])} p95 {milliseconds(record['itl_p95_ms'])}"
    return [titled("TTFT", words)]


RECENT = 200
ENOUGH = 20
"""Others that tell a figure, from which on a rank in it says something."""
_RANKS = (
    ("total", "total_ms"),
    ("TTFT", "ttft_ms"),
    ("prefill", "prefill_ms"),
    ("decode", "decode_ms"),
    ("prompt", "prompt_tokens"),
)


def _rank(record: RequestRecord, others: Sequence[RequestRecord]) -> list[Line]:
    """Among those of the same service and model that are known, the newest ones."""
    same = (r for r in reversed(others) if (r["service"], r["model"]) == (record["service"], record["model"]))
    recent = list(islice((r for r in same if r["id"] != record["id"]), RECENT))
    found = []
    for name, figure in _RANKS:
        own: float | None = record[figure]  # type: ignore[literal-required]
        known = [value for r in recent if (value := r[figure]) is not None]  # type: ignore[literal-required]
        if own is not None and len(known) >= ENOUGH:
            below = sum(value < own for value in known)
            found.append(f"{name} {percent(below / len(known))}")
    if not found:
        return [titled("RANK", f"{UNKNOWN}   said of {ENOUGH} others of this model or more: {len(recent)} are known")]
    return [titled("RANK", f"of the last {len(recent)} it exceeds: {'  '.join(found)}")]


def _context(record: RequestRecord, service: Service | None) -> list[Line]:
    prompt, out = record["prompt_tokens"], record["completion_tokens"]
    words = f"{number(prompt)} + {number(out)}{filled(prompt, out, service)}"
    return [titled("CONTEXT", f"{words}   max_tokens {number(record['max_tokens'])}")]


def filled(prompt: int | None, out: int | None, service: Service | None) -> str:
    """Of what the engine got; empty where that is not known."""
    limit = (service["got"] or {}).get("context_length") or service["asked"].get("context_length") if service else None
    if not isinstance(limit, int) or limit <= 0:
        return ""
    share = percent((prompt + out) / limit) if prompt is not None and out is not None else UNKNOWN
    return f" of {limit} ({share})"


def _cache(record: RequestRecord, beside: Compared) -> list[Line]:
    prompt, cached = record["prompt_tokens"], record["cached_tokens"]
    share = percent(cached / prompt) if cached is not None and prompt and cached <= prompt else UNKNOWN
    found = [titled("CACHE", f"{number(cached)} of {number(prompt)} tokens of the prompt were there ({share})")]
    hashes = record["hash_ids"]
    if hashes:
        before, shared = beside.before, beside.shared
        text = f"{len(hashes)} block{'s' if len(hashes) > 1 else ''} of {BLOCK} bytes"
        if before is None:
            text += ", none of which an earlier request on this list began with"
        else:
            ago = format_duration(max(record["time"] - before["time"], 0.0))
            text += f", the first {shared} as {before['id']} had them {ago} before"
        found.append(titled("", text))
    return found


def _ancestor(record: RequestRecord, others: Sequence[RequestRecord]) -> tuple[RequestRecord | None, int]:
    """The latest one before it, of the same service, with the longest common begin, and how many blocks that is."""
    best, most = None, 0
    for other in others:
        if other["id"] == record["id"] or other["service"] != record["service"] or other["time"] > record["time"]:
            continue
        shared = 0
        for ours, theirs in zip(record["hash_ids"] or (), other["hash_ids"] or (), strict=False):
            if ours != theirs:
                break
            shared += 1
        if shared and shared >= most:
            best, most = other, shared
    return best, most


def _source(record: RequestRecord, figure: str) -> str:
    said = (record["sources"] or {}).get(figure)
    return {"engine": "engine", "gateway": "gateway", "both": "differ"}.get(said or "", "")


def _sources(record: RequestRecord) -> list[Line]:
    """Where engine and gateway do not agree, and what the engine said that cannot be."""
    sources = record["sources"] or {}
    found = []
    for name, value in sources.items():
        figure, _, who = name.rpartition("_")
        if who == "gateway" and figure in record:
            ours = f"the gateway measured {value} ms of {figure.removesuffix('_ms')}; the engine's figure is shown"
            found.append(titled("DIFFER", ours, "warn"))
        elif who == "engine" and figure in record:
            told = f"the engine told {value} ms of {figure.removesuffix('_ms')}, which cannot be; it is left out"
            found.append(titled("DIFFER", told, "warn"))
    return found


def _rest(record: RequestRecord) -> list[Line]:
    return [titled("SESSION", record["session_id"])] if record["session_id"] else []
