"""What counters say over the last minute: speeds and shares. Never an engine's own rate gauges: each scrape resets them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmsupervisor.runtime.engine import Figures, Work

WINDOW = 60.0
"""Seconds that the readings go back."""


@dataclass(frozen=True, slots=True)
class Reading:
    time: float
    """Monotonic seconds."""
    figures: Figures


@dataclass(frozen=True, slots=True)
class Rates:
    """None: nothing of the kind happened, or it is not told."""

    prefill_tokens_per_s: float | None = None
    """While prompts are worked on."""
    decode_tokens_per_s: float | None = None
    """Of one request, while it is answered."""
    tokens_per_s: float | None = None
    """Of all answers together, since the reading before."""
    prefix_hit_ratio: float | None = None
    draft_acceptance: float | None = None


def kept(readings: Sequence[Reading], new: Reading) -> tuple[Reading, ...]:
    """With the new one; those of before the window are dropped but for the last, from which it counts."""
    every = (*readings, new)
    first = sum(reading.time < new.time - WINDOW for reading in every)
    return every[max(0, first - 1) :]


def rates(readings: Sequence[Reading]) -> Rates:
    if len(readings) < 2:
        return Rates()
    first, before, last = readings[0].figures, readings[-2], readings[-1]
    now = last.figures
    return Rates(
        prefill_tokens_per_s=_speed(first.prefill, now.prefill),
        decode_tokens_per_s=_speed(first.decode, now.decode),
        tokens_per_s=_flow(before, last),
        prefix_hit_ratio=_share(
            (first.prefix_hits_total, now.prefix_hits_total), (first.prefix_queries_total, now.prefix_queries_total)
        ),
        draft_acceptance=_share(
            (first.draft_accepted_total, now.draft_accepted_total), (first.draft_tokens_total, now.draft_tokens_total)
        ),
    )


def _speed(first: Work, now: Work) -> float | None:
    if first.tokens is None or first.seconds is None or now.tokens is None or now.seconds is None:
        return None
    tokens, seconds = now.tokens - first.tokens, now.seconds - first.seconds
    return tokens / seconds if tokens > 0 and seconds > 0 else None


def _flow(before: Reading, last: Reading) -> float | None:
    old = before.figures.written
    moved = sum(max(0, tokens - old.get(request, 0)) for request, tokens in last.figures.written.items())
    seconds = last.time - before.time
    return moved / seconds if moved and seconds > 0 else None


def _share(part: tuple[int | None, int | None], whole: tuple[int | None, int | None]) -> float | None:
    some, every = _grown(*part), _grown(*whole)
    return min(1.0, some / every) if some is not None and every else None


def _grown(first: int | None, now: int | None) -> int | None:
    return None if first is None or now is None or now < first else now - first
