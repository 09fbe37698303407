"""Sizes and durations as people write them: `22GiB`, `512MiB`, `30s`, `10m`, `250ms`."""

from __future__ import annotations

import re

_NUMBER = r"([0-9]{1,15}(?:\.[0-9]{1,9})?)"
_SIZE = re.compile(_NUMBER + r"\s*(B|[kKMGT]i?B?)?")
_SIZE_UNITS = {
    "": 1,
    "b": 1,
    **{
        p.lower() + suffix: factor**power
        for power, p in enumerate("kMGT", 1)
        for suffix, factor in (("", 1000), ("b", 1000), ("i", 1024), ("ib", 1024))
    },
}
_DURATION = re.compile(_NUMBER + r"\s*(ms|s|m|h|d)")
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str) -> int:
    """Bytes of `22GiB` (1024³) or `22GB` (1000³). ValueError for anything else."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'{text!r} is not a size such as "22GiB" or "512MiB"')
    return int(float(match[1]) * _SIZE_UNITS[(match[2] or "").lower()])


def parse_duration(text: str) -> float:
    """Seconds of `250ms`, `30s`, `10m`, `1h30m`, `2d`. ValueError for anything else, also for a bare number."""
    text = text.strip()
    matches = list(_DURATION.finditer(text))
    if not matches or "".join(m[0] for m in matches) != text:
        raise ValueError(f'{text!r} is not a duration such as "30s", "10m" or "1h30m"')
    return sum(float(m[1]) * _DURATION_UNITS[m[2]] for m in matches)


def format_size(size: int | None) -> str:
    """`1.5 GiB`; unknown is `–`."""
    if size is None:
        return "–"
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def format_duration(seconds: float | None) -> str:
    """`340ms`, `4.2s`, `3m10s`, `2h05m`, `3d04h`; unknown is `–`."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s".replace(".0s", "s")
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
