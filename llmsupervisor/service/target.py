"""The life of one target: a model that a service loads, keeps and unloads by itself (Ollama). One table, State × Event,
pure and total; the lifecycle of the service beside it (`lifecycle.py`) says whether there is anybody to ask.

What the caller owes the table:
- Answers comes when the engine takes calls, Silent when it no longer does; between them everything else.
- Each effect carries the `step` of the target then; what comes of it is posted with that step, and dropped where the
  target has gone on since. RunnerGone, Appeared, Demand, Idle and Edited belong to no step.
- One Deadline is armed at most, that of the present target.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from llmsupervisor.base.units import format_duration


class TargetState(enum.StrEnum):
    ABSENT = "absent"
    """Nothing is known of it: the engine is not there, or was not asked yet."""
    CREATING = "creating"
    UNLOADED = "unloaded"
    """The engine has it, memory does not: a request loads it."""
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class TargetPolicy:
    """Seconds."""

    preload: bool = True
    load_timeout: float = 900.0
    """A load that says nothing for so long has failed."""
    unload_timeout: float = 60.0
    """From the order to the empty memory, requests that end first included."""
    first_delay: float = 1.0
    max_delay: float = 60.0
    healthy_after: float = 60.0
    """Loaded this long: its next death is the first one."""


@dataclass(frozen=True, slots=True)
class Target:
    state: TargetState = TargetState.ABSENT
    reason: str = ""
    wanted: bool = False
    """It should be in memory."""
    since: float = 0.0
    deadline: float | None = None
    step: int = 0
    """Of the work that is out; what comes of an earlier one is late."""
    tries: int = 0
    """Failures in a row."""
    again: bool = False
    """UNLOADING for an edit: it is looked at anew afterwards."""


# --- events -------------------------------------------------------------------------------------------------------


class TargetEvent:
    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Answers(TargetEvent):
    """The engine takes calls: it was started, or found again."""


@dataclass(frozen=True, slots=True)
class Silent(TargetEvent):
    """The engine is gone, and all memory with it."""


@dataclass(frozen=True, slots=True)
class Found(TargetEvent):
    present: bool
    """As the spec wants it."""
    loaded: bool


@dataclass(frozen=True, slots=True)
class Created(TargetEvent):
    pass


@dataclass(frozen=True, slots=True)
class Loaded(TargetEvent):
    """In memory, and a first request was answered."""


@dataclass(frozen=True, slots=True)
class Unloaded(TargetEvent):
    pass


@dataclass(frozen=True, slots=True)
class Failed(TargetEvent):
    """A call to the engine. `lasting`: the same call would fail again until the spec or the box changes."""

    why: str
    lasting: bool = False


@dataclass(frozen=True, slots=True)
class RunnerGone(TargetEvent):
    """The process that had it in memory. `evicted`: the engine itself ended it."""

    why: str
    evicted: bool = False


@dataclass(frozen=True, slots=True)
class Appeared(TargetEvent):
    """Somebody else had it loaded: who asks the engine past the gateway."""


@dataclass(frozen=True, slots=True)
class Demand(TargetEvent):
    """Requests wait for it."""


@dataclass(frozen=True, slots=True)
class Idle(TargetEvent):
    why: str


@dataclass(frozen=True, slots=True)
class Edited(TargetEvent):
    """The spec wants another one of this name."""

    why: str


@dataclass(frozen=True, slots=True)
class Deadline(TargetEvent):
    pass


EVENTS: tuple[type[TargetEvent], ...] = (
    Answers, Silent, Found, Created, Loaded, Unloaded, Failed, RunnerGone, Appeared, Demand, Idle, Edited, Deadline,
)  # fmt: skip
STEPPED = (Found, Created, Loaded, Unloaded, Failed)
"""Results of an effect."""


class Order(enum.StrEnum):
    """What the hands do next, instead of what they did. None of the table: nothing new."""

    LOOK = "look"
    CREATE = "create"
    LOAD = "load"
    UNLOAD = "unload"
    """Nothing new is sent to it, what runs there ends, then the engine is told."""
    DROP = "drop"
    """Nothing; what is out is of no use any more."""


Step = tuple[Target, Order | None]
Handler = Callable[[Target, Any, TargetPolicy, float], Step]
IGNORE = "–"
"""The event is late, or asks for what is already so."""


def transition(target: Target, event: TargetEvent, policy: TargetPolicy, now: float) -> Step:
    """`now`: monotonic seconds. A Deadline that was overtaken changes nothing."""
    if isinstance(event, Deadline) and (target.deadline is None or now < target.deadline):
        return target, None
    rule = TABLE[target.state, type(event)]
    return (target, None) if isinstance(rule, str) else rule(target, event, policy, now)


# --- steps --------------------------------------------------------------------------------------------------------


def _to(t: Target, state: TargetState, now: float, after: float | None = None, **changes: Any) -> Target:
    """`after`: seconds to the deadline. Whatever was out belongs to an earlier step."""
    deadline = None if after is None else now + after
    return replace(
        t, **{"state": state, "since": now, "deadline": deadline, "step": t.step + 1, "again": False, **changes}
    )


def _look(t: Target, event: TargetEvent, p: TargetPolicy, now: float, **changes: Any) -> Step:
    return _to(t, TargetState.ABSENT, now, **changes), Order.LOOK


def _load(t: Target, p: TargetPolicy, now: float, **changes: Any) -> Step:
    return _to(t, TargetState.LOADING, now, p.load_timeout, wanted=True, **changes), Order.LOAD


def _rest(t: Target, p: TargetPolicy, now: float, reason: str = "") -> Step:
    """There, and in memory only where it is wanted."""
    return _load(t, p, now, reason="") if t.wanted else (_to(t, TargetState.UNLOADED, now, reason=reason), Order.DROP)


def _unload(t: Target, why: str, p: TargetPolicy, now: float, **changes: Any) -> Step:
    return _to(t, TargetState.UNLOADING, now, p.unload_timeout, reason=why, **changes), Order.UNLOAD


def _fail(t: Target, why: str, lasting: bool, p: TargetPolicy, now: float) -> Step:
    delay = min(p.max_delay, p.first_delay * 2 ** min(t.tries, 16))
    after = None if lasting else delay
    return _to(t, TargetState.FAILED, now, after, reason=why, tries=t.tries + 1), Order.DROP


# --- cells --------------------------------------------------------------------------------------------------------


def _answers(t: Target, event: Answers, p: TargetPolicy, now: float) -> Step:
    return _look(t, event, p, now, wanted=t.wanted or p.preload, reason="", tries=0)


def _silent(t: Target, event: Silent, p: TargetPolicy, now: float) -> Step:
    return _to(t, TargetState.ABSENT, now, wanted=False, reason="", tries=0), Order.DROP


def _found(t: Target, event: Found, p: TargetPolicy, now: float) -> Step:
    if not event.present:
        return _to(t, TargetState.CREATING, now, reason=""), Order.CREATE
    if event.loaded:
        return _to(t, TargetState.LOADED, now, wanted=True, reason=""), Order.DROP
    return _rest(t, p, now)


def _created(t: Target, event: Created, p: TargetPolicy, now: float) -> Step:
    return _rest(t, p, now)


def _loaded(t: Target, event: Loaded, p: TargetPolicy, now: float) -> Step:
    return _to(t, TargetState.LOADED, now, reason=""), Order.DROP


def _unloaded(t: Target, event: TargetEvent, p: TargetPolicy, now: float) -> Step:
    return _look(t, event, p, now) if t.again else _rest(t, p, now, t.reason)


def _failed(t: Target, event: Failed, p: TargetPolicy, now: float) -> Step:
    return _fail(t, event.why, event.lasting, p, now)


def _not_unloaded(t: Target, event: Failed, p: TargetPolicy, now: float) -> Step:
    """For an edit the next load replaces it all the same."""
    return _look(t, event, p, now, wanted=True, reason=f"could not be unloaded: {event.why}")


def _died(t: Target, event: RunnerGone, p: TargetPolicy, now: float) -> Step:
    """One that the engine ended made room: loaded again at once, it would end another."""
    if event.evicted:
        return _to(t, TargetState.UNLOADED, now, wanted=False, reason=event.why), Order.DROP
    tries = 0 if now - t.since >= p.healthy_after else t.tries
    if tries == 0:
        return _load(t, p, now, reason=event.why, tries=1)
    return _fail(replace(t, tries=tries), event.why, False, p, now)


def _appeared(t: Target, event: Appeared, p: TargetPolicy, now: float) -> Step:
    return _to(t, TargetState.LOADED, now, wanted=True, reason=""), Order.DROP


def _wish(t: Target, event: Demand, p: TargetPolicy, now: float) -> Step:
    return replace(t, wanted=True), None


def _demanded(t: Target, event: Demand, p: TargetPolicy, now: float) -> Step:
    return _load(t, p, now, reason="")


def _idle(t: Target, event: Idle, p: TargetPolicy, now: float) -> Step:
    return _unload(t, event.why, p, now, wanted=False)


def _edited(t: Target, event: Edited, p: TargetPolicy, now: float) -> Step:
    return _look(t, event, p, now, reason=event.why, tries=0, wanted=t.wanted or p.preload)


def _edited_in_memory(t: Target, event: Edited, p: TargetPolicy, now: float) -> Step:
    return _unload(t, event.why, p, now, again=True, wanted=t.wanted or p.preload)


def _edited_unloading(t: Target, event: Edited, p: TargetPolicy, now: float) -> Step:
    return replace(t, again=True, wanted=t.wanted or p.preload, reason=event.why), None


def _retry(t: Target, event: Deadline, p: TargetPolicy, now: float) -> Step:
    return _look(t, event, p, now)


def _never_loaded(t: Target, event: Deadline, p: TargetPolicy, now: float) -> Step:
    return _fail(t, f"did not load within {format_duration(p.load_timeout)}", False, p, now)


def _never_unloaded(t: Target, event: Deadline, p: TargetPolicy, now: float) -> Step:
    late = Failed(f"still in memory after {format_duration(p.unload_timeout)}")
    return _not_unloaded(t, late, p, now)


S = TargetState
TABLE: dict[tuple[TargetState, type[TargetEvent]], Handler | str] = {
    **{(state, event): IGNORE for state in S for event in EVENTS},
    **{(state, Answers): _answers for state in S},
    **{(state, Silent): _silent for state in S},
    **{(state, Edited): _edited for state in (S.ABSENT, S.CREATING, S.UNLOADED, S.LOADING, S.FAILED)},
    (S.ABSENT, Found): _found,
    (S.ABSENT, Failed): _failed,
    (S.ABSENT, Demand): _wish,
    (S.CREATING, Created): _created,
    (S.CREATING, Failed): _failed,
    (S.CREATING, Demand): _wish,
    (S.UNLOADED, Appeared): _appeared,
    (S.UNLOADED, Demand): _demanded,
    (S.LOADING, Loaded): _loaded,
    (S.LOADING, Failed): _failed,
    (S.LOADING, Deadline): _never_loaded,
    (S.LOADED, RunnerGone): _died,
    (S.LOADED, Idle): _idle,
    (S.LOADED, Edited): _edited_in_memory,
    (S.UNLOADING, Unloaded): _unloaded,
    (S.UNLOADING, RunnerGone): _unloaded,
    (S.UNLOADING, Failed): _not_unloaded,
    (S.UNLOADING, Demand): _wish,
    (S.UNLOADING, Edited): _edited_unloading,
    (S.UNLOADING, Deadline): _never_unloaded,
    (S.FAILED, Deadline): _retry,
}
"""CREATING has no deadline: an upload or a pull may take hours; its calls have their own."""
