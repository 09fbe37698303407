"""Prometheus text exposition, read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_LINE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?\s*")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPES = {"\\n": "\n", '\\"': '"', "\\\\": "\\"}


@dataclass(frozen=True, slots=True)
class Sample:
    labels: Mapping[str, str]
    value: float


def parse(text: str) -> dict[str, list[Sample]]:
    """Samples by name; comments and lines that are no samples are passed over."""
    samples: dict[str, list[Sample]] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        labels = {
            name: re.sub(r"\\.", lambda m: _ESCAPES.get(m[0], m[0]), raw)
            for name, raw in _LABEL.findall(match[2] or "")
        }
        samples.setdefault(match[1], []).append(Sample(labels, value))
    return samples


def values(samples: Mapping[str, list[Sample]], names: str | Iterable[str]) -> list[float]:
    """Of the first of `names` that is there, over all label sets; without NaN and infinities."""
    for name in (names,) if isinstance(names, str) else names:
        if found := [s.value for s in samples.get(name, ()) if math.isfinite(s.value)]:
            return found
    return []
