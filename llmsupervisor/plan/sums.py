"""What a service takes of each GPU and of the host, told part by part: the types. `measure.py` fills them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmsupervisor.base.ids import Json
from llmsupervisor.base.units import format_size

Kind = Literal["weights", "kv_cache", "compute", "overhead"]
KINDS: tuple[Kind, ...] = ("weights", "kv_cache", "compute", "overhead")
"""`kv_cache` with recurrent states; `compute` with the rows of logits; `overhead`: what a process takes beside its
buffers (CUDA context, libraries)."""


@dataclass(frozen=True, slots=True)
class Part:
    """`gpu` None: in the host's memory. `exact` False: an estimate, or learned from an earlier start."""

    gpu: str | None
    kind: Kind
    name: str
    bytes: int
    why: str
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Place:
    """One GPU, or the host; None: unknown. `budget`: the most that the service may take there."""

    gpu: str | None
    label: str
    weights: int | None = None
    kv_cache: int | None = None
    compute: int | None = None
    overhead: int | None = None
    budget: int | None = None
    free: int | None = None
    """When the plan was made, by whoever uses the rest."""
    beside: tuple[tuple[str, int | None], ...] = ()
    """Other services of the plan there, and what each takes."""

    known: int = 0
    """What it takes at least."""
    total: int | None = None
    cache_ram: int = 0
    """What the prompts that it keeps may take beside that, later."""
    mapped: int = 0
    """Of its weights, what the engine reads from the file again where there is no room."""

    @property
    def told(self) -> tuple[tuple[str, int | None], ...]:
        named = ("weights", self.weights), ("KV cache", self.kv_cache)
        return *named, ("compute", self.compute), ("overhead", self.overhead)

    @property
    def sum(self) -> str:
        """`9.1 GiB = weights 4.3 GiB + KV cache 4.2 GiB + compute 156.0 MiB + overhead 457.0 MiB`."""
        parts = [f"{name} {format_size(size)}" for name, size in self.told if size]
        unknown = [name for name, size in self.told if size is None]
        more = f" and an unknown amount of {' and '.join(unknown)}" if unknown else ""
        text = f"{format_size(self.known)} = {' + '.join(parts)}" if len(parts) > 1 else format_size(self.known)
        return text + more


@dataclass(frozen=True, slots=True)
class Most:
    """What would fit into the same budgets. None: nothing does, or it cannot be told."""

    context_length: int | None
    """At this `parallel`."""
    parallel: int | None
    """At this `context_length`."""
    models: tuple[tuple[str, int | None], ...] = ()
    """Of an Ollama: each model's largest `context_length` at this `parallel`, with the others as they are."""


@dataclass(frozen=True, slots=True)
class Sums:
    places: tuple[Place, ...]
    """GPUs in the order of the service, then the host."""
    parts: tuple[Part, ...] = ()
    unknown: tuple[str, ...] = ()
    """What no part stands for, and why."""
    kv_bytes_per_token: int | None = None
    """On all GPUs together."""
    kv_tokens: int | None = None
    """That its KV cache holds, all requests together."""
    learned: str = ""
    """What of it was learned from earlier starts, in words."""
    most: Most | None = None
    """None: not asked for."""
    refused: str = ""
    """Why the engine would not start with these settings, wherever."""
    doubts: tuple[str, ...] = ()
    """What the engine will do that nobody asked for: warnings."""

    def at(self, gpu: str | None) -> Place | None:
        return next((place for place in self.places if place.gpu == gpu), None)

    def need(self, gpu: str | None) -> int | None:
        """Bytes there, without prompts that are kept; None: not all of it is known."""
        place = self.at(gpu)
        return None if place is None else place.total

    @property
    def over(self) -> tuple[Place, ...]:
        """Where what is known alone is more than the budget."""
        return tuple(place for place in self.places if place.budget is not None and place.known > place.budget)

    @property
    def fits(self) -> bool | None:
        """Within its budgets, on a box of its own. None: not everything is known."""
        if self.over or self.refused:
            return False
        return None if any(place.total is None or place.budget is None for place in self.places) else True

    def to_json(self) -> dict[str, Json]:
        most: Json = None
        if self.most is not None:
            context, parallel = self.most.context_length, self.most.parallel
            most = {"context_length": context, "parallel": parallel, "models": dict(self.most.models)}
        return {
            "fits": self.fits,
            "places": [_place(place) for place in self.places],
            "parts": [
                {"gpu": p.gpu, "kind": p.kind, "name": p.name, "bytes": p.bytes, "why": p.why, "exact": p.exact}
                for p in self.parts
            ],
            "unknown": list(self.unknown),
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv_tokens": self.kv_tokens,
            "learned": self.learned or None,
            "most": most,
            "refused": self.refused or None,
        }


def _place(place: Place) -> dict[str, Json]:
    return {
        "gpu": place.gpu,
        "label": place.label,
        **{kind: getattr(place, kind) for kind in KINDS},
        "known": place.known,
        "total": place.total,
        "cache_ram": place.cache_ram,
        "budget": place.budget,
        "free": place.free,
        "beside": [{"service": name, "total": total} for name, total in place.beside],
    }
