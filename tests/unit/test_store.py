"""The store between rings and file: what is asked of which, and a disk that refuses for a while."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmsupervisor.base.errors import UsageError
from llmsupervisor.daemon import store as module
from llmsupervisor.daemon.store import Store, Wanted

NOON = 1_790_006_400.0


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def wall(self) -> float:
        return NOON + self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(
        module, "collect", lambda daemon: {"services.chat.tokens_per_s": clock.seconds, "host.cpu_busy": 0.5}
    )
    reloader = SimpleNamespace(observer=SimpleNamespace(store=None))
    layout = SimpleNamespace(series=tmp_path / "state" / "series.db")
    daemon: Any = SimpleNamespace(clock=clock, layout=layout, reloader=reloader)
    store = Store(daemon)
    store.file = module.SeriesFile(Path(daemon.layout.series), clock)
    return store


async def tick(store: Store, clock: Clock, seconds: int) -> None:
    for _ in range(seconds):
        store._tick()
        if store._writing is not None:
            await store._writing
            store._writing = None
        clock.seconds += 1


def read(store: Store, **args: Any) -> dict[str, Any]:
    return asyncio.run(store.read(Wanted.read(args)))


def test_each_second_of_the_last_quarter_and_minutes_of_what_was_before(
    tmp_path: Path, store: Store, clock: Clock
) -> None:
    (tmp_path / "state").mkdir()
    asyncio.run(tick(store, clock, 1200))
    store.event({"time": NOON + 1190, "kind": "daemon"})
    found = read(store, names=["services.*"], window_s=10)
    assert found["start"] == NOON + 1190 and found["count"] == 10 and found["step_s"] == 1
    assert found["series"] == {"services.chat.tokens_per_s": {"mean": list(range(1190, 1200)), "max": None}}
    assert [e["time"] for e in found["events"]] == [NOON + 1190] and read(store, window_s=5)["events"] == []
    hour = read(store, names=["services.chat.tokens_per_s"], window_s=3600, step_s=60)
    points = hour["series"]["services.chat.tokens_per_s"]
    assert hour["count"] == 60 and points["mean"][-20:] == [29.5 + 60 * i for i in range(20)], (
        "the last one from memory"
    )
    assert points["max"][-20:] == [59 + 60 * i for i in range(20)] and set(points["mean"][:-20]) == {None}
    week = read(store, window_s=7 * 86400)
    assert week["step_s"] % 600 == 0 and set(week["series"]) == {"services.chat.tokens_per_s", "host.cpu_busy"}
    past = read(store, names=["host.*"], window_s=120, until=NOON + 240, events=False)
    assert past["series"]["host.cpu_busy"]["mean"] == [0.5, 0.5] and past["step_s"] == 60


def test_an_answer_fits_a_line(store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "collect", lambda daemon: {f"services.s{i}.x": 1.0 for i in range(200)})
    asyncio.run(tick(store, clock, 30))
    found = read(store, window_s=900, step_s=1)
    assert found["step_s"] > 1 and found["count"] * 200 <= module.ANSWER + 200


def test_what_a_disk_refuses_is_tried_again(tmp_path: Path, store: Store, clock: Clock) -> None:
    asyncio.run(tick(store, clock, 70))
    assert store.file.degraded is not None and read(store, window_s=10)["reason"] == store.file.degraded
    (tmp_path / "state").mkdir()
    asyncio.run(tick(store, clock, 32))
    assert store.file.degraded is None and (tmp_path / "state" / "series.db").exists()
    assert store.file.read(["host.cpu_busy"], NOON, NOON + 60, 60)["host.cpu_busy"] == [(NOON, 0.5, 0.5)]
    asyncio.run(store.close())
    assert store.file.read(["host.cpu_busy"], NOON + 60, NOON + 120, 60)["host.cpu_busy"] == [(NOON + 60, 0.5, 0.5)]


@pytest.mark.parametrize(
    "args",
    [
        {"names": "x"},
        {"names": [1]},
        {"window_s": 0},
        {"window_s": 8 * 86400},
        {"window_s": "1h"},
        {"step_s": 0.5},
        {"until": -1},
    ],
)
def test_what_cannot_be_asked(args: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Wanted.read(args)
