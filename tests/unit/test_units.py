from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsupervisor.base.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0B", 0),
        ("7", 7),
        ("1kB", 1000),
        ("1k", 1000),
        ("1KiB", 1024),
        ("1Ki", 1024),
        ("512MiB", 512 * 1024**2),
        ("22GiB", 22 * 1024**3),
        ("22 GiB", 22 * 1024**3),
        (" 22GB ", 22 * 1000**3),
        ("1.5TiB", 3 * 1024**4 // 2),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1GiB", "1PiB", "1gib", "1 Gi B", "1,5GiB", "0x1B", "inf", "1e3B", "٣B", "9" * 16]
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("30s", 30.0),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("2d", 172800.0),
        ("1.5 s", 1.5),
        (" 0s ", 0.0),
        ("1m1ms", 60.001),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "30", "s", "-1s", "1 week", "30 sec", "1h 30", "1s,", "forever", "1e3s", "٣s", "9" * 16 + "s"]
)
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@given(st.text("0123456789.hmsdkMGTiB eE-", max_size=12))
def test_anything_else_is_a_value_error(text: str) -> None:
    for parse in (parse_size, parse_duration):
        try:
            assert 0 <= parse(text) < float("inf")
        except ValueError:
            continue


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "–"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (-(1024**2), "-1.0 MiB"),
        (22 * 1024**3, "22.0 GiB"),
        (3 * 1024**4, "3.0 TiB"),
        (5000 * 1024**4, "5000.0 TiB"),
    ],
)
def test_sizes_as_text(size: int | None, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0, "0ms"),
        (0.34, "340ms"),
        (1, "1s"),
        (4.2, "4.2s"),
        (10, "10s"),
        (190, "3m10s"),
        (7500, "2h05m"),
        (3 * 86400 + 4 * 3600, "3d04h"),
    ],
)
def test_durations_as_text(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text
