"""The host's memory, which all services share: what they take of it together, and for whom there is no room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llmsupervisor.base.units import format_size
from llmsupervisor.plan.facts import Facts
from llmsupervisor.plan.gate import KILLED, READ_AGAIN, stays
from llmsupervisor.plan.launch import Refusal, ServicePlan
from llmsupervisor.plan.sums import Place

_KEPT = "its prompt caches are larger than what is left: smaller cache_ram"


@dataclass(frozen=True, slots=True)
class Crowded:
    warning: str = ""
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class _Share:
    name: str
    place: Place

    @property
    def known(self) -> int:
        return self.place.known

    @property
    def held(self) -> int:
        """What no file has."""
        return self.place.known - self.place.mapped

    @property
    def most(self) -> int:
        return self.place.known + self.place.cache_ram


def lines(plans: Sequence[ServicePlan]) -> Iterator[str]:
    """For people: the sum of the services that take something of the host."""
    shares = [share for share in map(_share, plans) if share is not None and share.most]
    if len(shares) < 2:
        return
    room = next((share.place.budget for share in shares if share.place.budget is not None), None)
    yield f"host: {_listed(shares)} of {format_size(room)}"


def crowded(plans: Sequence[ServicePlan], facts: Facts) -> Mapping[str, Crowded]:
    """Services, in the order of the spec, with whom those that stay are more than the host has. Each is told once, and
    whoever is refused takes nothing from those behind it."""
    room = min((size for size in (facts.memory, facts.memory_limit) if size is not None), default=None)
    found: dict[str, Crowded] = {}
    stay: list[_Share] = []
    for plan in plans:
        share = _share(plan)
        refused = any(refusal.kind == "memory" for refusal in plan.refusals)
        if room is None or share is None or refused or plan.service.gate == "off":
            continue
        said = _told(plan, stay, share, room)
        if said is not None:
            found[plan.name] = said
        if stays(plan) and (said is None or said.refusal is None):
            stay.append(share)
    return found


def _told(plan: ServicePlan, stay: Sequence[_Share], share: _Share, room: int) -> Crowded | None:
    together = [*stay, share]
    if not stay:
        return None
    before, known = sum(one.known for one in stay), sum(one.known for one in together)
    text = f"services.{plan.name}: memory: the host has {format_size(room)}, and {_listed(together)} are to be there together"
    if sum(one.held for one in together) > room:
        return Crowded(refusal=Refusal("memory", f'{text}: {KILLED}; gate = "off" starts it all the same', "vram"))
    if before <= room < known and share.known <= room:  # alone is the gate's matter
        if plan.service.gate == "strict":
            return Crowded(refusal=Refusal("memory", f'{text}: {READ_AGAIN}; gate = "strict" asks for that', "vram"))
        return Crowded(f"{text}: {READ_AGAIN}")
    if known <= room and sum(one.most for one in stay) <= room < sum(one.most for one in together):
        return Crowded(f"{text}: {_KEPT}")
    return None


def _share(plan: ServicePlan) -> _Share | None:
    place = plan.memory.at(None) if plan.memory else None
    return _Share(plan.name, place) if place else None


def _listed(shares: Sequence[_Share]) -> str:
    parts = [f"{share.name} {_said(share)}" for share in shares]
    return f"{' + '.join(parts)} = {format_size(sum(share.most for share in shares))}"


def _said(share: _Share) -> str:
    kept = share.place.cache_ram
    return format_size(share.place.known) + (f" and {format_size(kept)} for prompts" if kept else "")
