"""The memory sums of a plan for people."""

from __future__ import annotations

from collections.abc import Iterator

from llmsupervisor.base.units import format_size
from llmsupervisor.plan.sums import Most, Place, Sums

COLUMNS = ("", "weights", "KV cache", "compute", "overhead", "total", "budget", "free now")
UNKNOWN = "–"
SAYS = {True: "fits", False: "does not fit", None: "not known whether it fits"}


def memory_lines(memory: Sums) -> Iterator[str]:
    rows = [COLUMNS, *(_row(place) for place in memory.places)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    yield f"  memory: {SAYS[memory.fits]}"
    for row in rows:
        cells = (text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))
        yield f"    {row[0]:<{widths[0]}}  {'  '.join(cells)}".rstrip()
    for place in memory.places:
        if place.cache_ram:
            yield f"    {place.label}: {format_size(place.cache_ram)} more for prompts that it keeps (cache_ram), as they come"
        if place.beside:
            others = ", ".join(f"{name} {format_size(size)}" for name, size in place.beside)
            yield f"    {place.label} beside it: {others}"
    if memory.kv_bytes_per_token is not None:
        holds = f"; the KV cache holds {memory.kv_tokens:,} tokens" if memory.kv_tokens is not None else ""
        yield f"    a token of context costs {format_size(memory.kv_bytes_per_token)}{holds}"
    if memory.most is not None:
        parallel = memory.most.parallel or UNKNOWN
        yield f"    at most: {_contexts(memory.most)} at this parallel, parallel = {parallel} at this context"
    if memory.learned:
        yield f"    {memory.learned}"
    if memory.refused:
        yield f"    refused by the engine: {memory.refused}"
    for text in memory.unknown:
        yield f"    not known: {text}"


def _contexts(most: Most) -> str:
    if not most.models:
        return f"context_length = {most.context_length or UNKNOWN}"
    each = ", ".join(f"{name} {context or UNKNOWN}" for name, context in most.models)
    return f"context_length of one model, the others as they are: {each}"


def _row(place: Place) -> tuple[str, ...]:
    sizes = (size for _, size in place.told)
    return (place.label, *map(format_size, (*sizes, place.total, place.budget, place.free)))
