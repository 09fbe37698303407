"""Which services give up their GPU memory so that another one can start. Pure.

Fair both ways: a busy service cannot keep a waiting one out for ever, and a waiting one cannot throw out what was just
loaded and has work. Memory is counted, nothing is declared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from llmsupervisor.base.units import format_duration, format_size

FAIR_WAIT = 5.0
"""Seconds that a request waits at least before a busy service gives way: shorter ones pass by themselves. Also the longest
time without a request after which a service counts as idle: less, where its load takes less, because a client between two
requests would pay a load for each."""
READY_AT_LEAST = 10.0
"""Seconds that a busy service keeps what it loaded: several answers of common length."""
LOADS_WORTH = 2.0
"""Loads' worth of READY that a busy service keeps at least: at most a third of the time goes into loading."""
SLACK = 64 * 1024**2
"""Bytes: the contexts of other processes come and go by this much."""

Bytes = Mapping[str, int | None]
"""UUID of a GPU → bytes; None: unknown."""


@dataclass(frozen=True, slots=True)
class Need:
    """What waits for memory. `gpus`: what it will hold on each of its GPUs."""

    name: str
    gpus: Bytes
    waited: float | None = None
    """Seconds that its oldest request waits; None: no request does."""
    starved: bool = False
    """Its last start did not find enough memory, whatever `gpus` says: something has to go first."""
    sums: Mapping[str, str] = field(default_factory=dict)
    """UUID → what its bytes are made of, in words."""


@dataclass(frozen=True, slots=True)
class Resident:
    """Another service with a process on a GPU."""

    name: str
    holds: Bytes
    keep_alive: float | None = None
    """None: for ever, never unloaded."""
    idle: bool | None = None
    """No request runs there or waits for it; None: not known yet."""
    unused: float = 0.0
    """Seconds since a request last came or went; where none did, since it became READY."""
    ready_for: float | None = None
    """Seconds; None: it is not READY."""
    load: float | None = None
    """Seconds that its last start took."""
    leaves: bool = False
    """It is being unloaded or stopped: its memory comes back."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Memory that was made for `name`, which has not started yet: nobody else takes it."""

    name: str
    gpus: Bytes


@dataclass(frozen=True, slots=True)
class Room:
    fits: bool
    reason: str = ""
    """Why not, and what is done about it."""
    unload: tuple[str, ...] = ()
    """Now."""
    comes: bool = False
    """Where it does not fit: it will, without anybody's help."""


def rests(resident: Resident) -> bool:
    """No client is between two requests."""
    return bool(resident.idle) and resident.unused >= min(FAIR_WAIT, resident.load or 0.0)


def fair_wait(resident: Resident) -> float:
    """Seconds that a request waits before this busy service gives way to it."""
    return max(FAIR_WAIT, resident.load or 0.0)


def kept(resident: Resident) -> float:
    """Seconds of READY before this busy service gives way."""
    return max(READY_AT_LEAST, LOADS_WORTH * (resident.load or 0.0))


def make_room(
    need: Need,
    free: Bytes,
    residents: Sequence[Resident],
    claims: Sequence[Claim] = (),
    labels: Mapping[str, str] | None = None,
) -> Room:
    """`free`: of each GPU now, less what starts in progress will still take. `labels`: what people call a GPU.

    Nothing is unloaded unless that is enough. Of those that may go, the least recently used go first, and as few as suffice.
    """
    lacking = _lacking(need, free, claims)
    if not lacking:
        return Room(True)
    wants = _wants(need, lacking, free, claims, labels or {})
    if not need.starved and inf in lacking.values():
        return Room(False, wants, comes=True)
    leaving = [resident for resident in residents if resident.leaves and _touches(resident, lacking)]
    left = _after(lacking, leaving, need)
    if not left:
        return Room(False, f"{wants}; {_names(leaving)} {_verb(leaving, 'unloads', 'unload')}", comes=True)
    may = [r for r in residents if not r.leaves and r.keep_alive is not None and _touches(r, left)]
    may.sort(key=_order)
    chosen = _choose(left, [resident for resident in may if _gives_way(resident, need)], need)
    if chosen:
        return Room(False, f"{wants}; asks {_names(chosen)} to unload", tuple(r.name for r in chosen), comes=True)
    later = _choose(left, may, need)
    if later:
        return Room(False, f"{wants}; {_until(later, need)}", comes=True)
    ours = {uuid for claim in claims for uuid in claim.gpus}
    if ours & set(lacking):
        return Room(False, wants, comes=True)
    return Room(False, f"{wants}; nothing there may be unloaded")


def _lacking(need: Need, free: Bytes, claims: Sequence[Claim]) -> dict[str, float]:
    """UUID → bytes that are missing there; infinite where a claim says no number."""
    if need.starved:
        return dict.fromkeys(need.gpus, inf)
    lacking: dict[str, float] = {}
    for uuid, wanted in need.gpus.items():
        claimed = [claim.gpus[uuid] for claim in claims if uuid in claim.gpus]
        if None in claimed:
            lacking[uuid] = inf
            continue
        there = free.get(uuid)
        if wanted is None or there is None:
            continue
        missing = wanted - SLACK - there + sum(size or 0 for size in claimed)
        if missing > 0:
            lacking[uuid] = missing
    return lacking


def _after(lacking: Mapping[str, float], gone: Iterable[Resident], need: Need) -> dict[str, float]:
    """What is still missing when these are gone. Whoever holds nobody knows how much is taken to hold enough: it is looked
    at again when it is gone."""
    gone = list(gone)
    if need.starved and gone:
        return {}
    left = dict(lacking)
    for resident in gone:
        for uuid, size in resident.holds.items():
            if uuid in left:
                left[uuid] = left[uuid] - size if size is not None else 0
    return {uuid: size for uuid, size in left.items() if size > 0}


def _choose(lacking: Mapping[str, float], may: Sequence[Resident], need: Need) -> list[Resident]:
    """The first that suffice, without those that turn out not to be needed; none where all of them do not suffice."""
    chosen: list[Resident] = []
    for resident in may:
        if _touches(resident, _after(lacking, chosen, need)):
            chosen.append(resident)
    if not chosen or _after(lacking, chosen, need):
        return []
    for resident in list(chosen):
        others = [other for other in chosen if other is not resident]
        if others and not _after(lacking, others, need):
            chosen = others
    return chosen


def _order(resident: Resident) -> tuple[bool, float, str]:
    return (not rests(resident), -resident.unused, resident.name)


def _gives_way(resident: Resident, need: Need) -> bool:
    if resident.idle is None or resident.ready_for is None:
        return False
    if rests(resident):
        return True
    if need.waited is None:
        return False
    return need.waited >= fair_wait(resident) and resident.ready_for >= kept(resident)


def _touches(resident: Resident, lacking: Mapping[str, float]) -> bool:
    return any(uuid in lacking and size != 0 for uuid, size in resident.holds.items())


# --- words ----------------------------------------------------------------------------------------------------------


def _wants(
    need: Need, lacking: Mapping[str, float], free: Bytes, claims: Sequence[Claim], labels: Mapping[str, str]
) -> str:
    if need.starved:
        return f"the last start did not find enough memory on {', '.join(labels.get(u, u) for u in need.gpus)}"
    parts = []
    for uuid in lacking:
        place = labels.get(uuid, uuid)
        owners = [claim.name for claim in claims if uuid in claim.gpus]
        for_them = f", kept for {', '.join(owners)}" if owners else ""
        wanted, there = need.gpus[uuid], free.get(uuid)
        if wanted is None or there is None:
            parts.append(f"memory on {place}{for_them}")
        else:
            parts.append(f"{need.sums.get(uuid, format_size(wanted))} on {place}, {format_size(there)} free{for_them}")
    return f"waits for {' and '.join(parts)}"


def _until(busy: Sequence[Resident], need: Need) -> str:
    busy = [resident for resident in busy if not (rests(resident) and resident.ready_for is not None)]
    if unknown := [resident for resident in busy if resident.idle is None or resident.ready_for is None]:
        return f"{_names(unknown)} {_verb(unknown, 'has', 'have')} to say first what runs there"
    wait = format_duration(max(fair_wait(resident) for resident in busy))
    text = f"{_names(busy)} {_verb(busy, 'is', 'are')} in use"
    return text if need.waited is None else f"{text} and {_verb(busy, 'gives', 'give')} way after {wait} of waiting"


def _names(residents: Sequence[Resident]) -> str:
    return ", ".join(resident.name for resident in residents)


def _verb(residents: Sequence[Resident], one: str, several: str) -> str:
    return one if len(residents) == 1 else several
