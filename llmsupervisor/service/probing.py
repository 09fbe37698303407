"""What a watch of the running process means. Pure: observations in, a verdict out; thresholds live here, not in the table.

A busy engine may be mute for minutes (a long prefill): silence alone is no hang. A hung engine may go on answering its
health path: an answer alone is no health. So both are asked: does it answer, and does anything move?
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from llmsupervisor.base.units import format_duration


@dataclass(frozen=True, slots=True)
class Observation:
    """One look at a service. None is unknown, and never taken for 0."""

    time: float
    """Monotonic seconds."""
    answered: bool
    """The readiness path said ready."""
    running: int | None = None
    waiting: int | None = None
    progress: Hashable | None = None
    """Anything that differs when tokens moved: counters, (task, decoded) per slot."""
    cpu_s: float | None = None
    """CPU seconds of the whole tree so far."""
    prompt_tokens: int | None = None
    """Prompt tokens whose prefill is under way."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, except where said."""

    misses: int = 3
    """Observations without an answer before it counts as not ready."""
    stall_timeout: float = 120.0
    cpu_stall: float = 30.0
    busy_timeout: float = 600.0
    cpu_share: float = 0.02
    """Of one core: less between two observations is standing still."""
    prefill_rate: float = 50.0
    """Prompt tokens per second, a pessimistic guess: no prompt in flight is taken to need longer than that."""


@dataclass(frozen=True, slots=True)
class ProbeState:
    misses: int = 0
    silent_since: float | None = None
    progress: Hashable | None = None
    moved: float | None = None
    """When tokens last moved, or the work began; None: no work."""
    cpu: tuple[float, float] | None = None
    """(time, CPU seconds) of the last observation that knew."""
    cpu_moved: float | None = None
    prompt: int = 0
    """Most prompt tokens that were in flight at once since something last moved. The gateway tells of the end of a prefill
    before the engine does: what is left of the budget then stays."""


@dataclass(frozen=True, slots=True)
class Verdict:
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Ok(Verdict):
    pass


@dataclass(frozen=True, slots=True)
class NotReady(Verdict):
    pass


@dataclass(frozen=True, slots=True)
class Busy(Verdict):
    """Does not answer and works: never restarted for that."""


@dataclass(frozen=True, slots=True)
class Suspect(Verdict):
    """One tiny request decides; where it fails, the service is stalled."""


def verdict(state: ProbeState, seen: Observation, limits: Limits) -> tuple[ProbeState, Verdict]:
    state = _cpu(state, seen, limits)
    return _answering(state, seen, limits) if seen.answered else _silent(state, seen, limits)


def cleared(state: ProbeState, now: float) -> ProbeState:
    """The tiny request succeeded: every budget starts anew."""
    moved = None if state.moved is None else now
    return replace(state, misses=0, silent_since=None, moved=moved, prompt=0)


def _answering(state: ProbeState, seen: Observation, limits: Limits) -> tuple[ProbeState, Verdict]:
    state = replace(state, misses=0, silent_since=None)
    outstanding = (seen.running or 0) + (seen.waiting or 0)
    if outstanding == 0 or seen.progress is None:
        return replace(state, moved=None, progress=seen.progress, prompt=0), Ok()
    moved = state.moved
    if moved is None or seen.progress != state.progress:
        return replace(state, moved=seen.time, progress=seen.progress, prompt=seen.prompt_tokens or 0), Ok()
    state, still = _prompt(state, seen), seen.time - moved
    if still < _budget(limits.stall_timeout, state, limits):
        return state, Ok()
    what = f"{outstanding} request" + ("s" if outstanding != 1 else "")
    return state, Suspect(f"{what} outstanding and no progress for {format_duration(still)}")


def _silent(state: ProbeState, seen: Observation, limits: Limits) -> tuple[ProbeState, Verdict]:
    since = seen.time if state.silent_since is None else state.silent_since
    state = _prompt(replace(state, misses=state.misses + 1, silent_since=since), seen)
    text = f"no answer for {format_duration(seen.time - since)}"
    working = state.cpu_moved is not None and state.cpu_moved > since
    if seen.cpu_s is not None:
        still = seen.time - max(since, since if state.cpu_moved is None else state.cpu_moved)
        if still >= limits.cpu_stall:
            return state, Suspect(f"{text}, and no CPU time used for {format_duration(still)}")
    if seen.time - since >= _budget(limits.busy_timeout, state, limits):
        return state, Suspect(text + (", though it uses CPU time" if working else ""))
    if state.misses < limits.misses:
        return state, Ok()
    return state, Busy(f"{text}; it works") if working else NotReady(text)


def _prompt(state: ProbeState, seen: Observation) -> ProbeState:
    return replace(state, prompt=max(state.prompt, seen.prompt_tokens or 0))


def _budget(seconds: float, state: ProbeState, limits: Limits) -> float:
    """Longer by as long as the prompts in flight may take."""
    return seconds + state.prompt / limits.prefill_rate


def _cpu(state: ProbeState, seen: Observation, limits: Limits) -> ProbeState:
    if seen.cpu_s is None:
        return state
    mark = (seen.time, seen.cpu_s)
    if state.cpu is None or seen.time <= state.cpu[0]:
        return replace(state, cpu=mark)
    share = (seen.cpu_s - state.cpu[1]) / (seen.time - state.cpu[0])
    return replace(state, cpu=mark, cpu_moved=seen.time if share >= limits.cpu_share else state.cpu_moved)


def start_progress(previous: Sequence[int | None] | None, current: Sequence[int | None]) -> bool:
    """Did a start move between two samples of what grows while a model loads (bytes read, memory, log)? None: unknown."""
    pairs = zip(previous or (), current, strict=False)
    return any(old is not None and new is not None and new > old for old, new in pairs)
