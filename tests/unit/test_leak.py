"""Memory over requests: what leaks, what is a cache that fills, what is noise."""

from __future__ import annotations

import itertools
import random

import pytest

from llmsupervisor.service.leak import POINTS, Leak, Point, kept, leak, slope

MIB = 1024**2


def points(sizes: list[float], every: int = 20) -> list[Point]:
    """Sizes in MiB."""
    return [Point(i * every, round(size * MIB)) for i, size in enumerate(sizes)]


def test_a_leak_is_found_and_measured() -> None:
    noise = random.Random(1)
    found = points([1000 + i * 5 + noise.uniform(0, 20) for i in range(120)])
    said = leak(found, 256 * MIB)
    assert said is not None and said.requests == 119 * 20 and 400 * MIB < said.rise < 600 * MIB
    per_request = slope(found)
    assert per_request is not None and per_request == pytest.approx(5 * MIB / 20, rel=0.1)


@pytest.mark.parametrize(
    "sizes",
    [
        [1000.0] * 120,
        [1000 + min(i, 30) * 20 for i in range(120)],  # a cache that fills, then is full
        [1000 + (i % 40) * 30 for i in range(120)],  # given back again and again
        [1000 + (i >= 60) * 600 for i in range(120)],  # one larger request
        [1000 - i * 5 for i in range(120)],
        [1000 + i for i in range(120)],  # less than what matters
    ],
)
def test_what_is_no_leak(sizes: list[float]) -> None:
    assert leak(points(sizes), 256 * MIB) is None


def test_a_leak_that_begins_late_is_found() -> None:
    sizes = [1000.0] * 120 + [1000 + i * 8 for i in range(120)]
    assert leak(points(sizes), 256 * MIB) is not None


@pytest.mark.parametrize("few", [[], points([1, 2, 3]), points([float(i) for i in range(50)], every=1)])
def test_few_requests_say_nothing(few: list[Point]) -> None:
    assert slope(few) is None and leak(few, 1) is None


def test_a_single_peak_is_no_slope() -> None:
    sizes = [1000.0] * 60
    sizes[30] = 9000.0
    assert slope(points(sizes)) == 0


def test_what_is_kept_is_bounded_and_goes_back_to_the_start() -> None:
    found: tuple[Point, ...] = ()
    for i in range(3000):
        found = kept(found, Point(i, i * MIB))
    gaps = {b.requests - a.requests for a, b in itertools.pairwise(found)}
    assert POINTS // 2 <= len(found) <= POINTS and found[0].requests == 0 and gaps == {16}
    said = leak(found, 256 * MIB)
    assert isinstance(said, Leak) and said.requests == found[-1].requests and 2300 * MIB < said.rise < 2700 * MIB
    assert kept(found, Point(found[-1].requests, 1)) == found, "no request, no news"
