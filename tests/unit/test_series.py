"""Figures over time: rings in memory, and the file of a week."""

from __future__ import annotations

import math
import os
import sqlite3
import time
from pathlib import Path

import pytest

from llmsupervisor.daemon.rings import SECONDS, Minute, Rings, buckets
from llmsupervisor.host.seriesfile import COARSE, FINE, KEPT, PAGE, VERSION, SeriesFile

NOON = 1_790_006_400
DAY = 86400


def fed(values: list[dict[str, float]], start: float = NOON, every: float = 1.0) -> tuple[Rings, list[Minute]]:
    rings = Rings()
    ended = [rings.tick(start + i * every, each) for i, each in enumerate(values)]
    return rings, [minute for minute in ended if minute is not None]


def test_each_minute_ends_once_with_mean_and_maximum() -> None:
    rings, ended = fed([{"a": float(i % 60)} | ({"b": 7.0} if i >= 60 else {}) for i in range(121)])
    assert [(m.start, dict(m.values)) for m in ended] == [
        (NOON, {"a": (29.5, 59.0)}),
        (NOON + 60, {"a": (29.5, 59.0), "b": (7.0, 7.0)}),
    ]
    assert rings.minute(NOON + 120).values == {"a": (0.0, 0.0), "b": (7.0, 7.0)}


def test_what_is_unknown_is_a_gap() -> None:
    rings, _ = fed([{"a": 1.0}, {"a": math.inf}, {"a": 3.0}])
    assert sorted(rings.points("a", NOON, NOON + 3)) == [(NOON, 1.0, 1.0), (NOON + 2, 3.0, 3.0)]
    assert buckets(rings.points("a", NOON, NOON + 4), NOON, 1, 4) == ([1, None, 3, None], [1, None, 3, None])
    assert list(rings.points("b", NOON, NOON + 3)) == []


def test_a_ring_is_fifteen_minutes_and_a_silent_series_goes() -> None:
    rings, _ = fed([{"gone": 1.0}] + [{"a": 1.0}] * (SECONDS - 1))
    assert rings.names() == ["gone", "a"] and len(list(rings.points("a", 0, math.inf))) == SECONDS - 1
    rings.tick(NOON + SECONDS, {"a": 2.0})
    assert rings.names() == ["a"] and len(list(rings.points("a", 0, math.inf))) == SECONDS


def test_a_clock_that_is_set_is_no_harm() -> None:
    rings, _ = fed([{"a": 1.0}, {"a": 2.0}])
    ended = rings.tick(NOON - 3600, {"a": 9.0})
    assert ended == Minute(NOON, {"a": (1.5, 2.0)})
    assert list(rings.points("a", NOON - 3600, NOON)) == [(NOON - 3600, 9.0, 9.0)]


def test_buckets_are_means_and_maxima() -> None:
    points = [(0.0, 1.0, 2.0), (5.0, 3.0, 10.0), (12.0, 1 / 3, 1 / 3), (99.0, 5.0, 5.0), (-1.0, 5.0, 5.0)]
    assert buckets(points, 0, 10, 2) == ([2, 0.333333], [10, 0.333333])


# --- the file ------------------------------------------------------------------------------------------------------


def test_minutes_and_tens_of_minutes(tmp_path: Path) -> None:
    file = SeriesFile(tmp_path / "series.db")
    assert file.names() == []
    assert all(file.write(NOON + i * 60, {"a": (i, i + 0.5), "b": (1.0, 1.0)}) for i in range(15))
    file.close()
    file = SeriesFile(tmp_path / "series.db")
    assert file.names() == ["a", "b"]
    assert file.read(["a", "c"], NOON + 60, NOON + 180, FINE) == {
        "a": [(NOON + 60, 1.0, 1.5), (NOON + 120, 2.0, 2.5)],
        "c": [],
    }
    assert file.read(["a"], NOON, NOON + DAY, COARSE)["a"] == [(NOON, 4.5, 9.5), (NOON + COARSE, 12.0, 14.5)]
    assert os.stat(tmp_path / "series.db").st_mode & 0o777 == 0o600
    file.write(NOON + 60, {"a": (8.0, 8.0)})
    assert file.read(["a"], NOON + 60, NOON + 61, FINE)["a"] == [(NOON + 60, 8.0, 8.0)], "a minute that goes on"


def test_the_old_goes_and_its_names_with_it(tmp_path: Path) -> None:
    file = SeriesFile(tmp_path / "series.db")
    file.write(NOON, {"old": (1.0, 1.0)})
    file.write(NOON + DAY + 60, {"new": (2.0, 2.0)})
    assert file.read(["old"], NOON, NOON + DAY, FINE) == {"old": []}
    assert file.read(["old"], NOON, NOON + DAY, COARSE)["old"] == [(NOON, 1.0, 1.0)]
    file.write(NOON + KEPT[COARSE] + 3600, {"new": (2.0, 2.0)})
    assert file.names() == ["new"]


def test_its_size_is_bounded(tmp_path: Path) -> None:
    """The oldest give way; what comes is written."""
    path, bound = tmp_path / "series.db", 64 * PAGE
    file = SeriesFile(path, size=bound)
    values = {f"s{i}": (i / 7, i / 3) for i in range(200)}
    for i in range(60):
        assert file.write(NOON + i * 60, values)
    assert path.stat().st_size <= bound and file.degraded is None
    kept = file.read(["s7"], NOON, NOON + DAY, FINE)["s7"]
    assert kept[-1] == (NOON + 59 * 60, 1.0, 7 / 3) and 5 < len(kept) < 60
    assert len(kept) == kept[-1][0] / 60 - kept[0][0] / 60 + 1, "no holes"


@pytest.mark.parametrize("damage", ["text", "torn"])
def test_a_corrupt_file_is_set_aside(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "series.db"
    file = SeriesFile(path)
    for i in range(50):
        file.write(NOON + i * 60, {f"s{j}": (1.0, 1.0) for j in range(50)})
    file.close()
    whole = path.read_bytes()
    path.write_bytes(b"no database at all" * 1000 if damage == "text" else whole[:4096] + b"\xff" * (len(whole) - 4096))
    file = SeriesFile(path)
    tries = [file.write(NOON + i * 60, {"a": (1.0, 1.0)}) for i in range(3)]
    assert tries[-1] and (tmp_path / "series.db.bad").exists()
    assert file.recovered and "series.db.bad" in file.recovered and file.degraded is None


def test_a_newer_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "series.db"
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version={VERSION + 1}")
    before = path.read_bytes()
    file = SeriesFile(path)
    assert not file.write(NOON, {"a": (1.0, 1.0)}) and file.read(["a"], 0, NOON, FINE) == {"a": []}
    assert file.degraded and "newer" in file.degraded and path.read_bytes() == before


def test_a_refusing_disk_is_told_and_tried_again(tmp_path: Path) -> None:
    clock = Clock()
    file = SeriesFile(tmp_path / "missing" / "series.db", clock)
    assert not file.write(NOON, {"a": (1.0, 1.0)}) and file.degraded and "30 s" in file.degraded
    (tmp_path / "missing").mkdir()
    assert not file.write(NOON, {"a": (1.0, 1.0)})
    clock.at += 31
    assert file.write(NOON, {"a": (1.0, 1.0)}) and file.degraded is None


def test_a_file_that_was_removed_is_made_again(tmp_path: Path) -> None:
    file = SeriesFile(tmp_path / "series.db")
    file.write(NOON, {"a": (1.0, 1.0)})
    for path in tmp_path.iterdir():
        path.unlink()
    assert file.write(NOON + 60, {"a": (2.0, 2.0)})
    assert file.read(["a"], NOON, NOON + 120, FINE)["a"] == [(NOON + 60, 2.0, 2.0)]


class Clock:
    at = 100.0

    def monotonic(self) -> float:
        return self.at

    def wall(self) -> float:
        return time.time()
