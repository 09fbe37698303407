"""How far something is, as a bar and in words. Pure."""

from __future__ import annotations

import math
import re

from llmsupervisor.base.units import format_duration, format_size

CELLS = 10
LONGEST = 100 * 3600
"""Seconds left above which nobody is helped by them."""
_SHARE = re.compile(r"[ ,:(]+(\d+) %")
_TO_THE_END = re.compile(_SHARE.pattern + ".*$")


def bar(share: float, cells: int = CELLS) -> str:
    """`[█████░░░░░]`, `[#####-----]` after `ascii_only`; full only at the end. `share`: 0..1."""
    done = min(max(int(share * cells), 0), cells)
    return f"[{'█' * done}{'░' * (cells - done)}]"


def transfer(done: int, total: int | None, bytes_per_s: float | None) -> str:
    """`52 % [█████░░░░░] 1.2 of 2.3 GiB, 85.0 MiB/s, 14s left`. Bytes; without a total only how many there are; rate
    and time left where they are known.
    """
    speed = [] if bytes_per_s is None else [f"{format_size(int(bytes_per_s))}/s"]
    if not total:
        return ", ".join([format_size(done), *speed])
    if bytes_per_s and done < total and (left := (total - done) / bytes_per_s) < LONGEST:
        speed.append(f"{format_duration(math.ceil(left))} left")
    share = min(done / total, 1.0)
    some, every = format_size(done), format_size(total)
    some = some.removesuffix(every[every.index(" ") :])
    return ", ".join([f"{int(100 * share)} % {bar(share)} {some} of {every}", *speed])


def name_of(text: str) -> str:
    """Without how far it is: `loads weights, 43 %` and `loads weights, 44 %` are one step."""
    return _TO_THE_END.sub("", text)


def shares(text: str) -> list[int]:
    """The percentages that it tells."""
    return [int(found) for found in re.findall(r"(\d+) %", text)]


def with_bar(text: str) -> str:
    """`loads weights, 43 %` as `loads weights 43 % [████░░░░░░]`."""
    return _SHARE.sub(lambda said: f" {said[1]} % {bar(int(said[1]) / 100)}", text, count=1)
