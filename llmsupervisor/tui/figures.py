"""What an engine makes of its memory and of its traffic, as lines. Pure; what nobody tells is `–`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmsupervisor.base.text import printable
from llmsupervisor.base.units import format_size
from llmsupervisor.cli.servicetable import rate
from llmsupervisor.cli.views import UNKNOWN, Line, Span, number, percent

if TYPE_CHECKING:
    from llmsupervisor.link.services import Service

_TITLE = 10


def lines(service: Service) -> list[Line]:
    found: list[Line] = []
    for target in service["targets"]:
        told: Mapping[str, Any] = target
        if "figures_time" not in told:
            continue
        name = f"  {target['model']}" if len(service["targets"]) > 1 else ""
        found += [[Span(printable(f"FIGURES{name}"), "bold")], *_target(told)]
    wide: Mapping[str, Any] = service
    found += _memory(wide)
    found += [_objective(each) for each in wide.get("slo") or []]
    return found


def _row(title: str, words: str, role: str = "") -> Line:
    return [Span(f"  {title:<{_TITLE}}", "dim"), Span(printable(words), role)]


def _target(told: Mapping[str, Any]) -> list[Line]:
    used, whole = told.get("kv_tokens_used"), told.get("kv_tokens_capacity")
    kv = f"{number(used)} of {number(whole)} tokens in use, {number(told.get('kv_tokens_cached'))} more cached"
    if told.get("kv_bytes_capacity") is not None:
        kv += f"; {format_size(told.get('kv_bytes_used'))} of {format_size(told['kv_bytes_capacity'])}"
    speed = f"prefill {rate(told.get('prefill_tokens_per_s'))}  one answer {rate(told.get('decode_tokens_per_s'))}  all answers {rate(told.get('tokens_per_s'))}"
    cache = f"{percent(told.get('prefix_hit_ratio'))} of prompt tokens"
    rows = [_row("KV", kv), _row("TOK/S", speed), _row("CACHE HIT", cache)]
    if told.get("draft_acceptance") is not None:
        rows.append(_row("DRAFT", f"{percent(told['draft_acceptance'])} of drafted tokens were right"))
    preempted = told.get("preemptions")
    if preempted is not None:
        rows.append(_row("PREEMPTED", f"{preempted} requests since the start", "warn" if preempted else ""))
    context = told.get("context") or {}
    rows.append(
        _row(
            "CONTEXT",
            f"p95 {number(context.get('p95'))} of {number(context.get('limit'))} tokens   n={number(context.get('requests'))}",
        )
    )
    return rows


def _memory(service: Mapping[str, Any]) -> list[Line]:
    if "rss_bytes" not in service:
        return []
    swap = service.get("swap_bytes")
    held = f"{format_size(service.get('rss_bytes'))} of RAM, {format_size(swap)} swapped, VRAM {format_size(service.get('vram_bytes'))}"
    source = {"delta": " (by how much it rose while it loaded)"}.get(str(service.get("vram_source")), "")
    rows: list[Line] = [[Span("MEMORY", "bold")], _row("HELD", held + source, "warn" if swap else "")]
    said = service.get("memory") or {}
    for place in ("gpu", "host"):
        parts = said.get(place)
        if parts:
            sizes = "  ".join(
                f"{name} {format_size(parts.get(f'{name}_bytes'))}" for name in ("weights", "kv", "compute", "overhead")
            )
            rows.append(_row(place.upper(), f"{sizes}   by the {said.get('source')}"))
    growth = service.get("growth")
    if growth:
        rows.append(
            _row(
                "GROWTH",
                f"RAM {_bytes(growth.get('host_bytes_per_request'))} VRAM {_bytes(growth.get('vram_bytes_per_request'))} a request   n={growth.get('requests')}",
            )
        )
    return rows


def _bytes(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:+.0f} B"


def _objective(each: Mapping[str, Any]) -> Line:
    measured = each.get("measured_s")
    words = f"{each['name']} {UNKNOWN if measured is None else f'{measured:g} s'} of {each['limit_s']:g} s   n={each.get('requests')}"
    return [
        Span("SLO  ", "bold"),
        Span(printable(words + ("  BREACHED" if each.get("breached") else "")), "bad" if each.get("breached") else ""),
    ]


_FITS: Mapping[Any, Span] = {
    True: Span("fits", "good"),
    False: Span("does not fit", "bad"),
    None: Span("not known to fit", "warn"),
}


def budget(memory: Mapping[str, Any] | None) -> list[Line]:
    """The plan's sum, place by place, against what may be taken there."""
    if not memory:
        return []
    fits = _FITS[memory.get("fits")]
    found: list[Line] = [[Span("MEMORY IT WILL TAKE ", "bold"), fits]]
    for place in memory.get("places") or []:
        parts = "  ".join(f"{name} {format_size(place.get(key))}" for name, key in _PARTS)
        total = place.get("total")
        whole = format_size(total) if total is not None else f"at least {format_size(place.get('known'))}"
        if kept := place.get("cache_ram"):
            parts += f"  and {format_size(kept)} for prompts"
        found.append(_row(place["label"][:_TITLE], f"{whole} of {format_size(place.get('budget'))}: {parts}"))
    most = memory.get("most")
    if most:
        each = [f"of {name} {number(context)}" for name, context in (most.get("models") or {}).items()]
        context = ", or ".join(each) or number(most.get("context_length"))
        found.append(_row("MOST", f"context_length {context}, or parallel {number(most.get('parallel'))}, would fit"))
    return found


_PARTS: Sequence[tuple[str, str]] = (
    ("weights", "weights"),
    ("KV", "kv_cache"),
    ("compute", "compute"),
    ("overhead", "overhead"),
)
