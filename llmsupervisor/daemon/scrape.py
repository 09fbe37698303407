"""The one reader of an engine's figures. Everybody else reads what it read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llmsupervisor.base.clock import Clock
from llmsupervisor.daemon.process import Process
from llmsupervisor.host.http import Answer
from llmsupervisor.runtime.adapter import adapter_for
from llmsupervisor.runtime.engine import Allocated, Figures
from llmsupervisor.runtime.rates import Rates, Reading, kept, rates

SLOTS_EVERY = 2.0
"""Seconds between two looks at the slots at least: a faster one hides vanished clients from llama-server."""


class Scraper:
    """Of one start of one service. `figures` None: the engine has none, or did not tell them yet."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.figures: Figures | None = None
        self.rates = Rates()
        self.time: float | None = None
        """Unix seconds of the last reading."""
        self.failed: tuple[str, Answer] | None = None
        """Path and answer of the last look, where it brought no figures."""
        self.allocated: Allocated | None = None
        """What its log said while it loaded."""
        self._readings: Sequence[Reading] = ()
        self._slots: Any = None
        self._slots_at = -SLOTS_EVERY
        self._changed = True
        """Work was in flight at the last look at the slots, or there was none yet."""

    async def look(self, process: Process, ask: float) -> Figures | None:
        """None where the engine has no figures or does not answer; the last ones stay. Slots are asked for while work is in
        flight, and once after it."""
        adapter = adapter_for(process.plan.definition)
        metrics, *slots = adapter.calls_figures() or (None,)
        if metrics is None:
            return None
        answer = await process.engine.get_text(metrics.path, ask)
        self.failed = None if answer.ok else (metrics.path, answer)
        if not answer.ok:
            return None
        found = adapter.figures(answer.text, None)
        works = bool(found.requests_running or found.requests_waiting)
        if slots and (works or self._changed) and self._clock.monotonic() >= self._slots_at + SLOTS_EVERY:
            self._slots = (await process.engine.get_json(slots[0].path, ask)).json
            self._slots_at, self._changed = self._clock.monotonic(), works
            found = adapter.figures(answer.text, self._slots)
        elif slots and works:
            found = adapter.figures(answer.text, self._slots)
        elif slots and found.requests_running == 0 and self.figures is not None:
            found = replace(
                found,
                kv_cache_usage=0.0,
                kv_tokens_used=0,
                kv_tokens_cached=self.figures.kv_tokens_cached,
                kv_tokens_capacity=self.figures.kv_tokens_capacity,
            )
        self.take(found)
        return found

    def take(self, found: Figures) -> None:
        self.figures, self.time = found, self._clock.wall()
        self._readings = kept(self._readings, Reading(self._clock.monotonic(), found))
        self.rates = rates(self._readings)
