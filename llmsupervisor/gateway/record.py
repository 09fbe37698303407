"""Where the time of one request went. Pure.

The engine's own figures stand first, then our stamps. What neither knows is None.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from llmsupervisor.gateway.timing import Reader
from llmsupervisor.link.requests import RequestRecord

APART, APART_MS = 0.2, 5.0
"""Of the greater figure, and absolute: what engine and gateway may differ by."""
SINGLE = {"embeddings", "rerank"}
"""Apis whose answer comes out of the prompt alone: there is no decode."""
CUT = {"length", "max_tokens", "max_output_tokens", "model_context_window_exceeded"}
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [first + second for first in ALPHABET for second in ALPHABET]

Gone = Literal["client_gone", "queue_timeout", "rejected", "engine_exit", "timeout"]
"""Why a request has no regular end. `rejected`: refused here."""


@dataclass(slots=True)
class Marks:
    """Moments of one request, monotonic seconds; None: it did not come to that."""

    came: float
    """Its first byte."""
    wall: float
    """The same moment in Unix seconds."""
    complete: float | None = None
    """It is read to its end."""
    queued: float | None = None
    admitted: float | None = None
    loading_s: float = 0.0
    """Of the wait: as long as its target was not open."""
    sent: float | None = None
    """It is written to the engine."""
    head: float | None = None
    """The first byte of the engine's answer."""
    done: float | None = None


@dataclass(slots=True)
class _Spans:
    """Milliseconds."""

    engine_queue: float | None = None
    prefill: float | None = None
    decode: float | None = None


def new_id(wall: float, random: bytes) -> str:
    """26 characters that sort by time (a ULID), of 10 random bytes."""
    number = (int(wall * 1000) & (2**48 - 1)) << 80 | int.from_bytes(random[:10].rjust(10, b"\0"), "big")
    return "".join([_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])


def build(
    id: str,
    marks: Marks,
    *,
    service: str,
    model: str,
    api: str,
    stream: bool,
    status: int,
    reader: Reader | None = None,
    gone: Gone | None = None,
    client: str | None = None,
    max_tokens: int | None = None,
    context_length: int | None = None,
    session_id: str | None = None,
    hash_ids: list[str] | None = None,
) -> RequestRecord:
    """`reader`: of the answer, ended; None where none began. `max_tokens`: what the engine was told."""
    done = marks.done if marks.done is not None else marks.came
    total = _ms(marks.came, done)
    queue, load = _waited(marks, done)
    sources: dict[str, str] = {}
    single = api in SINGLE and status < 400
    spans = _spans(marks, done, single, stream, reader, sources)
    completion = reader.completion_tokens if reader is not None else None
    if reader is not None:
        if completion is not None:
            sources["completion_tokens"] = "engine"
        elif reader.chunks:
            completion = reader.chunks
            sources["completion_tokens"] = "gateway"
    ttft = p50 = p95 = None
    if reader is not None and reader.first is not None:
        ttft = _ms(marks.came, reader.first)
        p50, p95 = reader.itl(0.5), reader.itl(0.95)
        sources["ttft_ms"] = "gateway"
    speed = None
    if completion is not None and completion > 1 and spans.decode:
        speed = (completion - 1) / spans.decode * 1000
    return RequestRecord(
        id=id,
        time=marks.wall,
        service=service,
        model=model,
        client=client,
        api=api,
        stream=stream,
        status=status,
        finish_reason=_finish_reason(status, reader, gone),
        prompt_tokens=None if reader is None else reader.prompt_tokens,
        cached_tokens=None if reader is None else reader.cached_tokens,
        completion_tokens=completion,
        queue_ms=_round(queue),
        load_ms=_round(load),
        engine_queue_ms=_round(spans.engine_queue),
        prefill_ms=_round(spans.prefill),
        decode_ms=_round(spans.decode),
        other_ms=_round(_other(total, queue, load, spans, marks, api)),
        ttft_ms=_round(ttft),
        itl_p50_ms=_round(None if p50 is None else p50 * 1000),
        itl_p95_ms=_round(None if p95 is None else p95 * 1000),
        decode_tokens_per_s=_round(speed),
        total_ms=round(total, 3),
        truncated=reader is not None and _truncated(reader, max_tokens, context_length),
        max_tokens=max_tokens,
        session_id=session_id,
        hash_ids=hash_ids,
        sources=sources,
    )


def _waited(marks: Marks, done: float) -> tuple[float, float]:
    """In the queue without the load, and for the load."""
    if marks.queued is None:
        return 0.0, 0.0
    wait = _ms(marks.queued, marks.admitted if marks.admitted is not None else done)
    load = min(marks.loading_s * 1000, wait)
    return wait - load, load


def _spans(
    marks: Marks, done: float, single: bool, stream: bool, reader: Reader | None, sources: dict[str, str]
) -> _Spans:
    """`single`: an answer that comes out of the prompt alone. Our stamps cannot tell an engine's queue from its prefill, nor the parts of an answer that comes at once."""
    spans = _Spans()
    if reader is None or marks.sent is None:
        return spans
    limit = _ms(marks.sent, done) + APART_MS
    said = {name: _plausible(name, reader, limit, sources) for name in ("queue_ms", "prefill_ms", "decode_ms")}
    queue, prefill, decode = said["queue_ms"], said["prefill_ms"], said["decode_ms"]
    if reader.first is not None:
        before: float | None = _ms(marks.sent, reader.first)
        spans.decode = _agreed("decode_ms", decode, _ms(reader.first, reader.last), sources)
    elif marks.head is not None and prefill is not None and decode is not None:
        before = _ms(marks.sent, done if stream else marks.head) - decode
        spans.decode = _agreed("decode_ms", decode, None, sources)
    elif marks.head is not None and single:
        before = _ms(marks.sent, marks.head)
    else:
        before = None
        spans.decode = _agreed("decode_ms", decode, None, sources)
    if queue is not None:
        spans.engine_queue = queue
        sources["engine_queue_ms"] = "engine"
        ours = None if before is None else max(before - queue, 0.0)
        spans.prefill = _agreed("prefill_ms", prefill, ours, sources)
    elif prefill is not None and before is not None:
        # The engine's clock for a prompt starts when it leaves the engine's queue. First tokens that are no content
        # yet (half a character, a call of a tool) are decode.
        rest = _ms(marks.sent, done) - prefill - (decode or 0.0)
        spans.engine_queue = max(min(before - prefill, rest), 0.0)
        sources["engine_queue_ms"] = "gateway"
        spans.prefill = _agreed("prefill_ms", prefill, min(prefill, max(before, 0.0)), sources)
    else:
        spans.prefill = _agreed("prefill_ms", prefill, before, sources)
    return spans


def _plausible(name: str, reader: Reader, limit: float, sources: dict[str, str]) -> float | None:
    """The engine's figure, unless no request can have it: then it is only told, under `FIGURE_engine`."""
    value = reader.figures.get(name)
    if value is None or (math.isfinite(value) and 0 <= value <= limit):
        return value
    sources["engine_queue_ms_engine" if name == "queue_ms" else f"{name}_engine"] = f"{value:g}"
    return None


def _agreed(name: str, engine: float | None, ours: float | None, sources: dict[str, str]) -> float | None:
    if engine is None:
        if ours is not None:
            sources[name] = "gateway"
        return ours
    sources[name] = "engine"
    if ours is not None and abs(engine - ours) > max(APART * max(engine, ours), APART_MS):
        sources[name] = "both"
        sources[f"{name}_gateway"] = f"{ours:.3f}"
    return engine


def _other(total: float, queue: float, load: float, spans: _Spans, marks: Marks, api: str) -> float | None:
    """None where most of it may be work of the engine."""
    known = queue + load
    if marks.sent is not None:
        if spans.prefill is None or (spans.decode is None and api not in SINGLE):
            return None
        known += spans.prefill + (spans.decode or 0.0) + (spans.engine_queue or 0.0)
    return max(total - known, 0.0)


def _finish_reason(status: int, reader: Reader | None, gone: Gone | None) -> str | None:
    if gone is not None:
        return gone
    if reader is not None and reader.error is not None and status < 400:
        return "error"
    if status >= 400:
        return "error" if status in (500, 502) else "rejected"
    if reader is None or reader.finish_reason is not None or reader.complete:
        return None if reader is None else reader.finish_reason
    return "incomplete"


def _truncated(reader: Reader, max_tokens: int | None, context_length: int | None) -> bool:
    """It ended because the context was full, not because it had what it was allowed to have."""
    if reader.truncated or reader.finish_reason == "model_context_window_exceeded":
        return True
    done = reader.completion_tokens
    if reader.finish_reason not in CUT or done is None or (max_tokens is not None and done >= max_tokens):
        return False
    if max_tokens is not None or context_length is None or reader.prompt_tokens is None:
        return True
    return reader.prompt_tokens + done >= context_length - 1


def _ms(start: float, end: float) -> float:
    return max((end - start) * 1000, 0.0)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
