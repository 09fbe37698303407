"""What real starts taught: how much a process held beyond what the formulas say. Kept in `learned.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace

from llmsupervisor.base.ids import Json

HOST = "host"
MOST = 256
"""Entries; the oldest goes first."""


@dataclass(frozen=True, slots=True)
class Key:
    """`place`: name of the GPU, or `host`. `flags`: fingerprint of the settings and files that move memory."""

    runtime: str
    version: str
    place: str
    flags: str


@dataclass(frozen=True, slots=True)
class Learned:
    key: Key
    held: int
    planned: int | None
    """What the plan said without any learning, on the host without `overhead`; None: not all buffers were known."""
    overhead: int
    """`held` less what the parts of the plan, or else the engine, say."""
    compute: int | None = None
    """As the engine said."""
    starts: int = 1
    time: float = 0.0


Lessons = tuple[Learned, ...]


def same(lessons: Lessons, key: Key) -> Learned | None:
    return next((one for one in lessons if one.key == key), None)


def alike(lessons: Lessons, key: Key, size: int) -> Learned | None:
    """Of the same runtime, version and place, whatever the flags: the one whose buffers are nearest to `size` bytes. Where
    not all buffers were known, the rest is no overhead."""
    found = [one for one in lessons if one.planned is not None and replace(one.key, flags=key.flags) == key]
    return min(found, key=lambda one: abs(one.held - one.overhead - size), default=None)


def taught(lessons: Lessons, new: Learned, again: bool = False) -> Lessons:
    """The newest last. `again`: by a start that is counted already."""
    before = same(lessons, new.key)
    counted = replace(new, starts=before.starts + (not again)) if before else new
    return (*(one for one in lessons if one.key != new.key), counted)[-MOST:]


def to_json(lessons: Lessons) -> dict[str, Json]:
    return {"v": 1, "entries": [asdict(one) for one in lessons]}


def from_json(data: Mapping[str, object]) -> Lessons:
    """What cannot be read is left out."""
    rows = data.get("entries")
    return tuple(_entries(rows if isinstance(rows, list) else []))


def _entries(rows: Iterable[object]) -> Iterable[Learned]:
    for row in rows:
        match row:
            case {
                "key": {"runtime": str(runtime), "version": str(version), "place": str(place), "flags": str(flags)},
                "held": int(held),
                "overhead": int(overhead),
                **rest,
            }:
                planned, compute, starts, time = (rest.get(k) for k in ("planned", "compute", "starts", "time"))
                yield Learned(
                    Key(runtime, version, place, flags),
                    held,
                    planned if isinstance(planned, int) else None,
                    overhead,
                    compute if isinstance(compute, int) else None,
                    starts if isinstance(starts, int) else 1,
                    time if isinstance(time, float) else 0.0,
                )
