"""What recorded requests say of each service, since its spec was last changed: read for the observed rules of the linter."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsupervisor.base.errors import LlmsupervisorError
from llmsupervisor.daemon import requests
from llmsupervisor.daemon.store import Wanted
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.observed import SAMPLE, Busy, Seen, busy, observe

if TYPE_CHECKING:
    from llmsupervisor.daemon.box import Box
    from llmsupervisor.daemon.reload import Reloader
    from llmsupervisor.daemon.store import Store

DAY = 86400.0
FIRST, NEXT = 30.0, 600.0
"""Seconds after the start, and then between two looks."""
Look = Mapping[str, tuple[Seen, ...]]


class Observer:
    def __init__(self, box: Box, reloader: Reloader) -> None:
        self._box = box
        self._reloader = reloader
        self.store: Store | None = None
        """Figures over time."""
        self._turned: dict[str, float] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def run(self) -> None:
        delay = FIRST
        while True:
            await asyncio.sleep(delay)
            await self.look(requests.WINDOW)
            delay = NEXT

    async def look(self, window_s: float) -> str | None:
        """What observed rules find in the requests of the window is told from here on. Why nothing could be read of them."""
        async with self._one_at_a_time:
            if self._turned is None:
                self._turned = await turned(Path(self._box.layout.events))
            first, changed = self._box.clock.wall() - window_s, self._turned | self._reloader.turned
            plans = {name: runner.plan for name, runner in self._box.runners.items()}
            since = {name: max(first, changed.get(name, first)) for name in plans}
            seen, reason = await read(Path(self._box.layout.requests), plans, since)
            self._reloader.observe({name: await self._counted(name, each, since[name]) for name, each in seen.items()})
            return reason

    async def _counted(self, name: str, seen: tuple[Seen, ...], since: float) -> tuple[Seen, ...]:
        """With what the engine counts itself; which of several models it was it does not say."""
        pressed, runner = await self._busy(name, since), self._box.runners.get(name)
        if runner is None or runner.scraper.figures is None or len(seen) != 1:
            return seen
        figures = runner.scraper.figures
        return (
            replace(
                seen[0],
                preemptions=figures.preemptions_total,
                drafted=figures.draft_tokens_total,
                accepted=figures.draft_accepted_total,
                busy=pressed,
            ),
        )

    async def _busy(self, name: str, since: float) -> Busy | None:
        if self.store is None:
            return None
        names = [f"services.{name}.{figure}" for figure in ("requests_running", "kv_cache_usage", "requests_waiting")]
        age = min(max(self._box.clock.wall() - since, 60.0), DAY)
        told = await self.store.read(Wanted(tuple(names), age, events=False))
        means = [told["series"].get(each, {"mean": []})["mean"] for each in names]
        return busy(told["step_s"], *means)


async def read(path: Path, plans: Mapping[str, ServicePlan], since: Mapping[str, float]) -> tuple[Look, str | None]:
    """What each of `plans` has seen after its `since` (Unix seconds), and why nothing could be read."""
    found: dict[str, tuple[Seen, ...]] = {}
    try:
        for name, plan in plans.items():
            found[name] = await asyncio.to_thread(_of, path, plan, since[name])
    except LlmsupervisorError as error:
        return {}, str(error)
    return found, None if path.exists() else f"no request is recorded: the gateway has not made {path} yet"


def _of(path: Path, plan: ServicePlan, since: float) -> tuple[Seen, ...]:
    """Of an Ollama with several models each one; requests under a name of the service are the first one's."""
    records = requests.sample(path, plan.name, since, SAMPLE)
    names = [model.name for model in plan.service.models or ()]
    if len(names) < 2:
        return (observe(records),)
    of = {name: [r for r in records if (r["model"] if r["model"] in names else names[0]) == name] for name in names}
    return tuple(observe(of[name], name) for name in names)


async def turned(events: Path) -> dict[str, float]:
    """Service → when its spec was last changed (Unix seconds), as an earlier daemon wrote it down."""
    return await asyncio.to_thread(_turned, events)


def _turned(events: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for path in (events.with_name(f"{events.name}.1"), events):
        with contextlib.suppress(OSError), path.open("rb") as file:
            for line in file:
                if b'"reload"' in line:
                    with contextlib.suppress(ValueError, KeyError, TypeError):
                        found |= turns(json.loads(line))
    return found


def turns(event: Mapping[str, Any]) -> dict[str, float]:
    """Services whose spec a `reload` event changed. At the daemon's own start everything is started: that is no change."""
    begun = event["why"] == "started"
    return {
        change["service"]: float(event["time"])
        for change in event["changes"]
        if change["action"] in ("restart", "live") or (change["action"] == "start" and not begun)
    }
