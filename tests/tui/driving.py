"""The app without a terminal, against a daemon that says what it is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from textual.pilot import Pilot
from tui.stand_in import StandIn

from llmsupervisor.tui.app import SupervisorApp
from llmsupervisor.tui.feeds import Feeds

PLACES = [((80, 24), "C.UTF-8"), ((40, 10), "C"), ((120, 40), "C.UTF-8")]
"""Sizes of terminals, and their locales."""
Play = Callable[[Pilot[None]], Awaitable[None]]


def an_app(path: Path, lang: str = "C.UTF-8", readonly: bool = False) -> SupervisorApp:
    feeds = Feeds(lambda: str(path), 1.0, {"LANG": lang, "XDG_CACHE_HOME": str(path.parent)}, readonly)
    feeds.start()
    return SupervisorApp(feeds)


def screen(app: SupervisorApp) -> str:
    return "\n".join("".join(s.text for s in strip).rstrip() for strip in app.screen._compositor.render_strips())


async def until(pilot: Pilot[None], holds: Callable[[str], Any], what: str, within: float = 60.0) -> str:
    """The text of the screen once it holds."""
    deadline = time.monotonic() + within
    while True:
        await pilot.pause(0.02)
        shown = screen(pilot.app)  # type: ignore[arg-type]
        if holds(shown):
            return shown
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}\n{shown}"


async def reach(pilot: Pilot[None], key: str, holds: Callable[[str], Any], what: str) -> str:
    """The same, with the key pressed again and again: a page may grow while it is read."""
    deadline = time.monotonic() + 60.0
    while True:
        await pilot.press(key)
        await pilot.pause(0.1)
        shown = screen(pilot.app)  # type: ignore[arg-type]
        if holds(shown):
            return shown
        assert time.monotonic() < deadline, f"not reached by {key}: {what}\n{shown}"


def drive(
    stand_in: StandIn, size: tuple[int, int], play: Play, lang: str = "C.UTF-8", readonly: bool = False
) -> SupervisorApp:
    app = an_app(stand_in.path, lang, readonly)

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda s: "READY" in s and "LIVE" in s, "the first picture")
            await play(pilot)

    asyncio.run(run())
    return app
