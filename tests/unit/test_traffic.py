"""What the gateway's figures mean, on a clock of our own."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmsupervisor.daemon import probes
from llmsupervisor.daemon.runner import Runner
from llmsupervisor.daemon.traffic import DEMAND, PUMPED, Traffic

WALL = 1_790_000_000.0


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return WALL + self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def traffic(clock: Clock) -> Traffic:
    traffic = Traffic(clock)
    traffic.hello(300.0)
    traffic.applied(["chat@1"])
    clock.now += PUMPED
    return traffic


def said(running: int = 0, queued: int = 0, activity: float | None = None, prefill: int | None = 0) -> Any:
    last = None if activity is None else WALL + activity
    return {
        "running": running,
        "queued": queued,
        "prefill_tokens": prefill,
        "tokens": 0,
        "last_activity": last,
    }


def test_nothing_is_known_before_the_first_word_and_after_the_last(traffic: Traffic) -> None:
    assert traffic.of("chat") is None and not traffic.known
    traffic.stats({"chat@1": said(1, 2)})
    load = traffic.of("chat")
    assert load and (load.running, load.queued, load.idle, load.settled) == (1, 2, False, True)
    traffic.lost()
    assert traffic.of("chat") is None


def test_all_starts_of_a_service_count(traffic: Traffic) -> None:
    traffic.stats({"chat@1": said(1, 0, prefill=10), "chat@2": said(0, 3, prefill=5), "chat.2@1": said(7, 7)})
    load = traffic.of("chat")
    assert load and (load.running, load.queued, load.prefill_tokens) == (1, 3, 15)
    traffic.stats({"chat@1": said(1, 0, prefill=None), "chat@2": said()})
    load = traffic.of("chat")
    assert load and load.prefill_tokens is None


def test_what_was_told_before_it_opened_says_not_that_it_is_idle(traffic: Traffic, clock: Clock) -> None:
    traffic.stats({"chat@1": said(), "next@1": said()})
    load = traffic.of("next")
    assert load and load.idle and not load.settled
    traffic.applied(["chat@1", "next@1"])
    traffic.stats({"chat@1": said(), "next@1": said()})
    chat, following = traffic.of("chat"), traffic.of("next")
    assert chat and chat.settled and following and not following.settled
    clock.now += PUMPED
    traffic.stats({"next@1": said()})
    assert (following := traffic.of("next")) and following.settled


def test_when_it_was_used_last(traffic: Traffic, clock: Clock) -> None:
    assert traffic.used("chat") == 700, "never: since the gateway would know"
    traffic.stats({"chat@1": said(activity=900)})
    assert traffic.used("chat") == 900
    clock.now = 1100.0
    traffic.stats({"chat@1": said(running=1, activity=950)})
    assert traffic.used("chat") == 1100
    traffic.hello(5.0)
    traffic.stats({"chat@1": said()})
    assert traffic.used("chat") == 1100, "the next gateway process does not know, we do"
    traffic.stats({"chat@1": said(activity=99_999)})
    assert traffic.used("chat") == 1100, "a clock that was set forward"


def test_a_demand_holds_while_it_is_told(traffic: Traffic, clock: Clock) -> None:
    assert traffic.waits_since("chat") is None
    traffic.demand("chat", 2500.0)
    assert traffic.waits_since("chat") == clock.now - 2.5
    clock.now += DEMAND + 0.1
    assert traffic.waits_since("chat") is None


def test_a_hint_brings_the_next_look_forward_and_a_storm_does_not_bring_more() -> None:
    async def case() -> tuple[float, float]:
        runner = cast(Runner, SimpleNamespace(hint=asyncio.Event()))
        loop = asyncio.get_running_loop()
        began = loop.time()
        loop.call_later(1.2, runner.hint.set)
        await probes._next_look(runner, 30.0)
        hinted = loop.time() - began
        for _ in range(100):
            runner.hint.set()
        await probes._next_look(runner, 30.0)
        return hinted, loop.time() - began - hinted

    hinted, stormed = asyncio.run(case())
    assert 1.1 < hinted < 20 and probes.HINTS <= stormed < 20
