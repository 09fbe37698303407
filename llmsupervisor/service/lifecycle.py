"""The lifecycle of a service as one table, State × Event, pure and total. Drawn in `docs/lifecycle.md`.

What the caller owes the table:
- Exited, Gone and SpawnFailed come once per attempt, in this order, and only for the running attempt.
- Gone is sent when the tree is empty, also where the shim was killed and the daemon emptied it.
- Adopted comes before any other event of its service.
- Admission is asked whenever an event other than Refused leaves the service in PENDING.
- Reports of probes and waits (StartupOk … Drained) may be late: where they no longer apply they are ignored.

Every run ends in KILLING and GONE. Main's exit lets the shim empty the tree by itself; a deadline orders the kill, once
more after `kill_timeout`, and then calls the service unkillable.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from llmsupervisor.base.units import format_duration
from llmsupervisor.service import restart
from llmsupervisor.service.states import (
    Admitted,
    Adopted,
    Changed,
    Deadline,
    Demand,
    Drained,
    Event,
    Exited,
    ExitInfo,
    Gone,
    KillTree,
    NotReady,
    Outcome,
    Policy,
    Progress,
    ReadyAgain,
    RecordCrash,
    Refused,
    Restart,
    Signal,
    Spawn,
    SpawnFailed,
    Stalled,
    Start,
    StartupOk,
    State,
    Status,
    Stop,
    Unload,
)


class Rule(enum.Enum):
    IGNORE = "–"
    """Nothing to do: the event is late, or asks for what is already so."""
    IMPOSSIBLE = "!"
    """Only a bug of the caller brings it: nothing changes and `Outcome.impossible` is set, to be logged."""


Handler = Callable[[Status, Any, Policy, float], Outcome]


def transition(status: Status, event: Event, policy: Policy, now: float) -> Outcome:
    """`now`: monotonic seconds. A Deadline that was overtaken (moved, or cleared) changes nothing."""
    if isinstance(event, Deadline) and (status.deadline is None or now < status.deadline):
        return Outcome(status)
    rule = TABLE[status.state, type(event)]
    if isinstance(rule, Rule):
        return Outcome(status, impossible=rule is Rule.IMPOSSIBLE)
    return rule(status, event, policy, now)


# --- steps shared by the handlers ---------------------------------------------------------------------------------


def _to(s: Status, state: State, policy: Policy, now: float, after: float | None = None, **changes: Any) -> Status:
    """`after`: seconds to the new state's deadline."""
    if s.state is State.READY and s.ready_since is not None:
        s = replace(s, healthy=s.healthy or now - s.ready_since >= policy.healthy_after)
    since = s.since if state is s.state else now
    deadline = None if after is None else now + after
    return replace(s, **{"state": state, "since": since, "deadline": deadline, "retry_at": None, **changes})


def _pending(s: Status, policy: Policy, now: float, **changes: Any) -> Outcome:
    return Outcome(_to(s, State.PENDING, policy, now, policy.pending_recheck, **changes))


def _draining(s: Status, reason: str, policy: Policy, now: float) -> Outcome:
    return Outcome(_to(s, State.DRAINING, policy, now, policy.drain_timeout, reason=reason))


def _stopping(s: Status, policy: Policy, now: float, step: int = 0, **changes: Any) -> Outcome:
    """Stop step `step`, or the kill where there is none left."""
    if step >= len(policy.stop_steps):
        return _killing(s, policy, now, KillTree(), **changes)
    after = policy.stop_steps[step][1]
    return Outcome(_to(s, State.STOPPING, policy, now, after, step=step, **changes), (Signal(step),))


def _killing(s: Status, policy: Policy, now: float, *effects: KillTree, **changes: Any) -> Outcome:
    return Outcome(_to(s, State.KILLING, policy, now, policy.kill_timeout, **{"step": 0, **changes}), effects)


def _up(s: Status, **changes: Any) -> Status:
    return replace(s, goal="up", stopped_by="", **changes)


def _down(s: Status, event: Stop) -> Status:
    """The first one who stopped it is remembered."""
    return replace(s, goal="down", stopped_by=s.stopped_by or event.by)


def _fresh(s: Status, **changes: Any) -> Status:
    """A full restart budget."""
    return replace(s, failures=(), streak=0, **changes)


def _note(s: Status, exit: ExitInfo | None) -> Status:
    """How main ended. An end that was ordered needs no advice; a fault that we found (a stall) keeps its cause and text
    and takes the code and the signal."""
    if exit is None:
        return s
    if s.fault is None:
        return replace(s, last_exit=replace(exit, advice=""))
    fault = replace(s.fault, code=exit.code, signal=exit.signal, time=exit.time)
    return replace(s, fault=fault, last_exit=fault)


def _closed(s: Status, policy: Policy, now: float) -> Status:
    """The run is counted, and nothing of it is left in the status."""
    s = restart.settle_books(s, policy, now)
    return replace(s, fault=None, again=False, unkillable=False, step=0, started=None, ready_since=None)


def _settle(s: Status, policy: Policy, now: float) -> Outcome:
    """The tree is empty: what next."""
    fault, again = s.fault, s.again
    crash = () if fault is None else (RecordCrash(fault),)
    s = _closed(s, policy, now)
    if s.goal == "down":
        return Outcome(_to(s, State.STOPPED, policy, now), crash)
    if not s.loaded:
        return Outcome(_to(s, State.IDLE, policy, now), crash)
    if fault is None or again:
        return replace(_pending(s, policy, now), effects=crash)
    return _retry_or_fail(s, fault, policy, now)


def _retry_or_fail(s: Status, fault: ExitInfo, policy: Policy, now: float) -> Outcome:
    crash = (RecordCrash(fault),)
    decision = restart.decide(s, fault, policy, now)
    if isinstance(decision, restart.GiveUp):
        at, reason = decision.retry_at, decision.reason
        return Outcome(_to(s, State.FAILED, policy, now, deadline=at, retry_at=at, reason=reason), crash)
    if decision.delay == 0:
        return replace(_pending(s, policy, now, reason=fault.text), effects=crash)
    at = now + decision.delay
    return Outcome(_to(s, State.BACKOFF, policy, now, deadline=at, retry_at=at, reason=fault.text), crash)


# --- goal: Start, Stop, Restart, Demand, Unload, Changed ----------------------------------------------------------


def wake(s: Status, e: Start, policy: Policy, now: float) -> Outcome:
    if s.goal == "down":
        s = _fresh(s, loaded=False)
    s = _up(s, loaded=s.loaded or not e.demand, reason="")
    return _pending(s, policy, now) if s.loaded else Outcome(_to(s, State.IDLE, policy, now))


def want(s: Status, e: Start, policy: Policy, now: float) -> Outcome:
    """A run is ending: the wish is honoured when it is gone, whatever the run ends by."""
    loaded = not e.demand or (s.goal == "up" and s.loaded)
    return Outcome(_up(s, loaded=loaded, again=True))


def retry(s: Status, e: Event, policy: Policy, now: float) -> Outcome:
    """Out of a wait; the restart budget stays as it is."""
    return _pending(s, policy, now)


def revive(s: Status, e: Start, policy: Policy, now: float) -> Outcome:
    return want(s, e, policy, now) if s.unkillable else _pending(_fresh(_up(s)), policy, now, reason="")


def halt(s: Status, e: Stop, policy: Policy, now: float) -> Outcome:
    """No process: stopped at once."""
    return Outcome(_to(_down(s, e), State.STOPPED, policy, now, reason=""))


def unwant(s: Status, e: Stop, policy: Policy, now: float) -> Outcome:
    """A run is ending: it is not replaced."""
    return Outcome(_down(s, e))


def halt_fail(s: Status, e: Stop, policy: Policy, now: float) -> Outcome:
    return unwant(s, e, policy, now) if s.unkillable else halt(s, e, policy, now)


def abort(s: Status, e: Stop, policy: Policy, now: float) -> Outcome:
    """Not READY yet: nothing to drain."""
    return _stopping(_down(s, e), policy, now, reason=f"stopped by {e.by}")


def close(s: Status, e: Stop, policy: Policy, now: float) -> Outcome:
    return abort(s, e, policy, now) if e.now else _draining(_down(s, e), f"stopped by {e.by}", policy, now)


def hurry(s: Status, e: Stop, policy: Policy, now: float) -> Outcome:
    return abort(s, e, policy, now) if e.now else unwant(s, e, policy, now)


def re_stop(s: Status, e: Restart, policy: Policy, now: float) -> Outcome:
    return _pending(_fresh(_up(s, loaded=True)), policy, now, reason=e.reason) if e.revive else Outcome(s)


def re_wait(s: Status, e: Restart, policy: Policy, now: float) -> Outcome:
    return _pending(_fresh(s), policy, now, reason=e.reason)


def re_fail(s: Status, e: Restart, policy: Policy, now: float) -> Outcome:
    return re_end(s, e, policy, now) if s.unkillable else re_wait(s, e, policy, now)


def re_start(s: Status, e: Restart, policy: Policy, now: float) -> Outcome:
    return _stopping(_fresh(s, again=True), policy, now, reason=e.reason)


def re_run(s: Status, e: Restart, policy: Policy, now: float) -> Outcome:
    return _draining(_fresh(s, again=True), e.reason, policy, now)


def re_end(s: Status, e: Restart, policy: Policy, now: float) -> Outcome:
    """A run is ending: its successor is owed, whatever it ends by."""
    if s.goal == "down":
        return Outcome(_fresh(_up(s, loaded=True), again=True) if e.revive else s)
    return Outcome(_fresh(s, again=True))


def load(s: Status, e: Demand, policy: Policy, now: float) -> Outcome:
    return _pending(s, policy, now, loaded=True, reason="")


def reload(s: Status, e: Demand, policy: Policy, now: float) -> Outcome:
    """Comes while the run is being unloaded; never brings back a stopped service."""
    return Outcome(replace(s, loaded=True))


def unload(s: Status, e: Unload, policy: Policy, now: float) -> Outcome:
    return _draining(replace(s, loaded=False), e.reason, policy, now)


def un_pend(s: Status, e: Unload, policy: Policy, now: float) -> Outcome:
    return Outcome(_to(s, State.IDLE, policy, now, loaded=False, reason=e.reason))


def un_drain(s: Status, e: Unload, policy: Policy, now: float) -> Outcome:
    return Outcome(replace(s, loaded=False))


def change(s: Status, e: Changed, policy: Policy, now: float) -> Outcome:
    if s.unkillable or policy.restart == "never":
        return Outcome(s)
    return _pending(_fresh(s), policy, now)


def ch_end(s: Status, e: Changed, policy: Policy, now: float) -> Outcome:
    """What changed may be the cause of the fault, and is not told again."""
    return Outcome(replace(s, again=s.again or (s.fault is not None and policy.restart != "never")))


# --- the way up ---------------------------------------------------------------------------------------------------


def spawn(s: Status, e: Admitted, policy: Policy, now: float) -> Outcome:
    restarts = s.restarts + (s.attempt > 0)
    new = _to(s, State.STARTING, policy, now, policy.start_timeout, reason="", started=now, restarts=restarts)
    return Outcome(replace(new, attempt=s.attempt + 1), (Spawn(),))


def refuse(s: Status, e: Refused, policy: Policy, now: float) -> Outcome:
    return _pending(s, policy, now, reason=e.reason)


def adopt(s: Status, e: Adopted, policy: Policy, now: float) -> Outcome:
    """A run that nobody wants any more (the last daemon died while stopping it) is stopped."""
    s = replace(s, loaded=True, started=now if s.started is None else s.started, reason="")
    if s.goal == "down":
        reason = f"stopped by {s.stopped_by}" if s.stopped_by else "not wanted"
        return _draining(s, reason, policy, now) if e.ready else _stopping(s, policy, now, reason=reason)
    if e.ready:
        return Outcome(_to(s, State.READY, policy, now, ready_since=now))
    return Outcome(_to(s, State.STARTING, policy, now, policy.start_timeout))


def ready(s: Status, e: StartupOk | ReadyAgain, policy: Policy, now: float) -> Outcome:
    return Outcome(_to(s, State.READY, policy, now, ready_since=now, reason=""))


def extend(s: Status, e: Progress, policy: Policy, now: float) -> Outcome:
    cap = (s.since if s.started is None else s.started) + policy.start_cap * policy.start_timeout
    return Outcome(replace(s, deadline=min(now + policy.start_timeout, cap)))


def sicken(s: Status, e: NotReady, policy: Policy, now: float) -> Outcome:
    return Outcome(_to(s, State.UNREADY, policy, now, reason=e.reason))


def explain(s: Status, e: NotReady, policy: Policy, now: float) -> Outcome:
    return Outcome(replace(s, reason=e.reason))


# --- the way down -------------------------------------------------------------------------------------------------


def hang(s: Status, e: Stalled, policy: Policy, now: float) -> Outcome:
    fault = ExitInfo(e.cause, f"hangs: {e.reason}" if e.cause == "stalled" else e.reason)
    return _stopping(s, policy, now, fault=fault, reason=fault.text)


def late(s: Status, e: Deadline, policy: Policy, now: float) -> Outcome:
    after = format_duration(now - (s.since if s.started is None else s.started))
    fault = ExitInfo("start-timeout", f"not ready {after} after its start" + (f": {s.reason}" if s.reason else ""))
    return _stopping(s, policy, now, fault=fault, reason=fault.text)


def quit(s: Status, e: Event, policy: Policy, now: float) -> Outcome:
    """Drained, out of time, or nothing moves any more."""
    return _stopping(s, policy, now)


def step(s: Status, e: Deadline, policy: Policy, now: float) -> Outcome:
    return _stopping(s, policy, now, s.step + 1)


def rekill(s: Status, e: Deadline, policy: Policy, now: float) -> Outcome:
    if s.step == 0:
        return _killing(s, policy, now, KillTree(), step=1)
    crash = () if s.fault is None else (RecordCrash(s.fault),)
    s = replace(_closed(s, policy, now), unkillable=True)
    waited = format_duration(2 * policy.kill_timeout)
    reason = (
        f"unkillable: processes are left {waited} after SIGKILL, most likely inside a driver; its GPUs are not used"
    )
    return Outcome(_to(s, State.FAILED, policy, now, reason=reason), crash)


def die(s: Status, e: Exited, policy: Policy, now: float) -> Outcome:
    """Nobody asked for it: a fault, whatever the code."""
    return _killing(replace(s, fault=e.exit, last_exit=e.exit), policy, now, reason=e.exit.text)


def end(s: Status, e: Exited, policy: Policy, now: float) -> Outcome:
    return _killing(_note(s, e.exit), policy, now)


def record(s: Status, e: Exited, policy: Policy, now: float) -> Outcome:
    return Outcome(_note(s, e.exit))


def vanish(s: Status, e: Gone | SpawnFailed, policy: Policy, now: float) -> Outcome:
    """Without an Exited before: the shim was killed, or never lived."""
    fault = e.exit or ExitInfo("shim-killed", "its shim ended and left no exit record")
    return _settle(replace(s, fault=fault, last_exit=fault), policy, now)


def gone(s: Status, e: Gone | SpawnFailed, policy: Policy, now: float) -> Outcome:
    return _settle(_note(s, e.exit), policy, now)


def release(s: Status, e: Gone | SpawnFailed, policy: Policy, now: float) -> Outcome:
    """The unkillable went after all."""
    return _settle(_note(replace(s, reason=""), e.exit), policy, now) if s.unkillable else Outcome(s)


# --- the table ----------------------------------------------------------------------------------------------------

_ = Rule.IGNORE
X = Rule.IMPOSSIBLE
# fmt: off
_ROWS: dict[type[Event], tuple[Handler | Rule, ...]] = {
    #            STOPPED  IDLE     PENDING  STARTING READY    UNREADY  DRAINING STOPPING KILLING  BACKOFF  FAILED
    Start:       (wake,    wake,    _,       _,       _,       _,       want,    want,    want,    retry,   revive),
    Stop:        (halt,    halt,    halt,    abort,   close,   close,   hurry,   unwant,  unwant,  halt,    halt_fail),
    Restart:     (re_stop, _,       re_wait, re_start, re_run, re_run,  re_end,  re_end,  re_end,  re_wait, re_fail),
    Demand:      (_,       load,    _,       _,       _,       _,       reload,  reload,  reload,  _,       _),
    Unload:      (_,       _,       un_pend, _,       unload,  unload,  un_drain, _,      _,       _,       _),
    Changed:     (_,       _,       _,       _,       _,       _,       _,       ch_end,  ch_end,  retry,   change),
    Admitted:    (_,       _,       spawn,   X,       X,       X,       X,       X,       X,       X,       X),
    Refused:     (_,       _,       refuse,  X,       X,       X,       X,       X,       X,       X,       X),
    SpawnFailed: (X,       X,       X,       vanish,  X,       X,       X,       gone,    gone,    X,       release),
    Adopted:     (adopt,   adopt,   adopt,   X,       X,       X,       X,       X,       X,       X,       X),
    StartupOk:   (_,       _,       _,       ready,   _,       _,       _,       _,       _,       _,       _),
    Progress:    (_,       _,       _,       extend,  _,       _,       _,       _,       _,       _,       _),
    NotReady:    (_,       _,       _,       explain, sicken,  explain, _,       _,       _,       _,       _),
    ReadyAgain:  (_,       _,       _,       _,       _,       ready,   _,       _,       _,       _,       _),
    Stalled:     (_,       _,       _,       hang,    hang,    hang,    quit,    _,       _,       _,       _),
    Drained:     (_,       _,       _,       _,       _,       _,       quit,    _,       _,       _,       _),
    Exited:      (X,       X,       X,       die,     die,     die,     die,     end,     record,  X,       record),
    Gone:        (X,       X,       X,       vanish,  vanish,  vanish,  vanish,  gone,    gone,    X,       release),
    Deadline:    (_,       _,       retry,   late,    _,       _,       quit,    step,    rekill,  retry,   retry),
}
# fmt: on
TABLE: dict[tuple[State, type[Event]], Handler | Rule] = {
    (state, event): rule for event, row in _ROWS.items() for state, rule in zip(State, row, strict=True)
}
"""Every cell is written; a test counts them."""
