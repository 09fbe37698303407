"""Does it fit, and how much would: the sums of `memory` against the room there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from llmsupervisor.plan.gguf import GgufHeader
from llmsupervisor.plan.memory import Memory, Settings, estimate
from llmsupervisor.plan.memory_place import Where

CONTEXT_STEP = 256
"""llama.cpp pads contexts to it."""
MOST_PARALLEL = 256
"""llama.cpp's own limit."""


@dataclass(frozen=True, slots=True)
class Shortfall:
    where: Where
    needed: int
    room: int

    @property
    def missing(self) -> int:
        return self.needed - self.room


def shortfalls(memory: Memory, room: Mapping[Where, int]) -> tuple[Shortfall, ...]:
    """Where the known parts alone are too much. A place that `room` does not name has no limit."""
    return tuple(
        Shortfall(where, needed, available)
        for where, available in room.items()
        if (needed := memory.sum_at(where)) > available
    )


def largest_context(header: GgufHeader, settings: Settings, room: Mapping[Where, int], most: int) -> int | None:
    """Tokens per request at this `parallel`, a multiple of 256, at most `most`. None: not even 256 fit, or a part of
    the sum is unknown."""
    steps = _largest(most // CONTEXT_STEP, header, room, lambda n: replace(settings, context_length=n * CONTEXT_STEP))
    return steps and steps * CONTEXT_STEP


def largest_parallel(header: GgufHeader, settings: Settings, room: Mapping[Where, int]) -> int | None:
    """Requests at once at this `context_length`. None as in `largest_context`."""
    return _largest(MOST_PARALLEL, header, room, lambda n: replace(settings, parallel=n))


def _largest(most: int, header: GgufHeader, room: Mapping[Where, int], with_n: Callable[[int], Settings]) -> int | None:
    def fits(n: int) -> bool:
        memory = estimate(header, with_n(n))
        return isinstance(memory, Memory) and not memory.unknown and not shortfalls(memory, room)

    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low or None
