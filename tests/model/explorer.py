"""Walks every state that a service can get into, with a model of the process and of a discrete clock.

The adversary orders the events as it likes and withholds what it likes, but deadlines. Times are kept relative to now and
clamped where the policy cannot tell them apart, so that the walk is finite.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from llmsupervisor.service import lifecycle
from llmsupervisor.service.states import (
    HAS_PROCESS,
    Admitted,
    Adopted,
    Changed,
    Deadline,
    Demand,
    Drained,
    Effect,
    Event,
    Exited,
    ExitInfo,
    Gone,
    KillTree,
    NotReady,
    Policy,
    Progress,
    ReadyAgain,
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

POLICY = Policy(
    max_delay=2, burst=2, window=3, half_open=2, healthy_after=1, start_timeout=1, start_cap=2, drain_timeout=1,
    stop_steps=(("TERM", 1.0), ("TERM", 1.0)), kill_timeout=1, pending_recheck=1,
)  # fmt: skip

Process = Literal["none", "found", "spawning", "alive", "dying"]
"""found: living when the daemon starts · spawning: may yet fail · dying: main is dead, its tree is not."""

CRASH = ExitInfo("exited", "")
PERMANENT = ExitInfo("bad-flag", "", retry="on-change")

WISHES = (
    Start(), Start(demand=True), Stop("x"), Stop("x", now=True), Restart("x"), Restart("x", revive=True),
    Demand(), Unload("x"), Changed("x"),
)  # fmt: skip
REPORTS = (StartupOk(), Progress(), NotReady(""), ReadyAgain(), Stalled(""), Drained())


@dataclass(frozen=True, slots=True)
class Node:
    status: Status
    process: Process


@dataclass(frozen=True, slots=True)
class Edge:
    before: Node
    event: Event | None
    """None: one second passes."""
    after: Node
    effects: tuple[Effect, ...]
    impossible: bool


@dataclass
class Walk:
    policy: Policy
    nodes: set[Node] = field(default_factory=set)
    edges: int = 0
    cells: dict[tuple[State, type[Event]], set[State]] = field(default_factory=dict)
    """Where each cell was seen to lead."""
    violations: list[str] = field(default_factory=list)


def starts() -> list[Node]:
    waits, idle = Status(State.PENDING, "up", deadline=1.0), Status(State.IDLE, "up", loaded=False)
    found = [Node(s, "found") for s in (Status(), Status(goal="up"), waits, idle)]
    return [Node(Status(), "none"), *found]


def relative(s: Status, now: float, policy: Policy) -> Status:
    """The same for every later event: times from now on, nothing that is only shown."""
    cap = policy.start_cap * policy.start_timeout
    return replace(
        s,
        deadline=None if s.deadline is None else max(0.0, s.deadline - now),
        retry_at=None if s.retry_at is None else max(0.0, s.retry_at - now),
        failures=tuple(t - now for t in s.failures if now - t < policy.window),
        started=None if s.started is None else max(s.started - now, -cap),
        ready_since=None if s.ready_since is None else max(s.ready_since - now, -policy.healthy_after),
        streak=min(s.streak, 3),
        attempt=0,
        restarts=0,
        since=0.0,
        reason="",
        stopped_by="",
        last_exit=None,
        fault=None if s.fault is None else PERMANENT if s.fault.retry == "on-change" else CRASH,
    )


def possible(node: Node) -> Iterator[tuple[Event | None, Process]]:
    """What the world can bring next, and the process after it."""
    s, process = node.status, node.process
    if process == "found":
        yield Adopted(True), "alive"
        yield Adopted(False), "alive"
        return
    for wish in WISHES:
        yield wish, process
    if process != "spawning":
        for report in REPORTS:
            yield report, process
    if s.state is State.PENDING:
        yield Admitted(), process
    if s.state in (State.PENDING, State.STOPPED, State.IDLE):  # asked in PENDING, answered a moment later
        yield Refused(""), process
    if process == "spawning":
        yield SpawnFailed(CRASH), "none"
        yield None, "alive"
    if process == "alive":
        yield Exited(CRASH), "dying"
        yield Exited(PERMANENT), "dying"
        yield Gone(CRASH), "none"
    if process == "dying":
        yield Gone(), "none"
    if s.deadline is not None and s.deadline <= 0:
        yield Deadline(), process
    else:
        yield None, process


def follow(node: Node, event: Event | None, process: Process, policy: Policy) -> Edge:
    """One second passes with None, else no time."""
    if event is None:
        return Edge(node, None, Node(relative(node.status, 1.0, policy), process), (), False)
    outcome = lifecycle.transition(node.status, event, policy, 0.0)
    if any(isinstance(e, Spawn) for e in outcome.effects) and process == "none":
        process = "spawning"
    return Edge(node, event, Node(relative(outcome.status, 0.0, policy), process), outcome.effects, outcome.impossible)


def explore(policy: Policy = POLICY, first_only: bool = False) -> Walk:
    """`first_only`: ends at the first violation."""
    walk = Walk(policy)
    todo = deque(starts())
    walk.nodes.update(todo)
    stopped: set[Node] = set()
    while todo:
        node = todo.popleft()
        if node.process != "found":
            walk.violations += raised(node, policy)
        for event, process in possible(node):
            edge = follow(node, event, process, policy)
            walk.edges += 1
            if event is not None:
                walk.cells.setdefault((node.status.state, type(event)), set()).add(edge.after.status.state)
            walk.violations += [f"{what}: {node} {event}" for what in (*broken(edge), *unheeded(edge, policy))]
            if isinstance(event, Stop) and edge.after not in stopped:
                stopped.add(edge.after)
                walk.violations += lost_stop(edge.after, policy)
            if edge.after not in walk.nodes:
                walk.nodes.add(edge.after)
                todo.append(edge.after)
        if first_only and walk.violations:
            break
    return walk


def broken(edge: Edge) -> Iterator[str]:
    """What may never happen in one step."""
    before, after, event = edge.before, edge.after, edge.event
    if edge.impossible:
        yield "an event that the table calls impossible came"
    if any(isinstance(e, Spawn) for e in edge.effects) and before.process != "none":
        yield "a second process"
    if any(isinstance(e, KillTree | Signal) for e in edge.effects) and after.process == "none":
        yield "a signal to nobody"
    owns = after.status.state in HAS_PROCESS or after.status.unkillable
    if owns != (after.process != "none") and after.process != "found":
        yield "a process without a state" if after.process != "none" else "a state without its process"
    if isinstance(event, Stop) and after.status.goal != "down":
        yield "a lost stop"
    if isinstance(event, Start) and after.status.goal != "up":
        yield "a lost start"
    if before.status.goal != after.status.goal and not isinstance(event, Stop | Start | Restart):
        yield "a goal that nobody set"
    if isinstance(event, Deadline) and after == before:
        yield "a deadline that nobody heeds"
    if isinstance(event, Progress) and after.status.started is not None and after.status.deadline is not None:
        cap = POLICY.start_cap * POLICY.start_timeout
        if after.status.state is State.STARTING and after.status.deadline > after.status.started + cap:
            yield "a start without an end"


ENDING = frozenset({State.STOPPING, State.KILLING})


def unheeded(edge: Edge, policy: Policy) -> Iterator[str]:
    """What each event must bring about, whatever the state."""
    before, after = edge.before.status, edge.after.status
    running = before.state in (State.STARTING, State.READY, State.UNREADY)
    match edge.event:
        case Restart(_, revive) if revive and (after.goal != "up" or after.state is State.STOPPED):
            yield "a lost start"
        case Restart() if after.goal == "up" and after.failures and before.state is not State.IDLE:
            yield "a planned restart that costs budget"
        case Start(_, demand) if not demand and not after.loaded:
            yield "a start that loads nothing"
        case Start() | Restart() if after.goal == "up" and after.loaded:
            yield from owed(edge, policy)
        case Demand() if before.goal == "up" and not before.unkillable and not after.loaded:
            yield "a demand that nobody hears"
        case Unload() if before.state in (State.PENDING, State.READY, State.UNREADY, State.DRAINING) and after.loaded:
            yield "still loaded"
        case Changed() if before.state in (State.BACKOFF, State.FAILED) and not before.unkillable:
            if after.state is not State.PENDING and policy.restart != "never":
                yield "waits on after what it waits for"
        case Changed() if before.state in ENDING and before.fault is not None and policy.restart != "never":
            yield from owed(edge, policy)
        case Stalled() if running and (after.state not in ENDING or after.fault is None):
            yield "a hang that is kept"
        case Stalled() | Drained() if before.state is State.DRAINING and after.state not in ENDING:
            yield "drains on for nothing"
        case Exited() if before.state not in (State.KILLING, State.FAILED):
            if after.state is not State.KILLING or (before.state is not State.STOPPING and after.fault is None):
                yield "an exit that nobody saw"
        case NotReady() if before.state is State.READY and after.state is not State.UNREADY:
            yield "traffic for a service that does not answer"
        case Progress() if before.state is State.STARTING and before.started is not None and before.deadline == 0:
            if before.started > -policy.start_cap * policy.start_timeout and after.deadline == 0:
                yield "a load that makes progress is cut off"


def owed(edge: Edge, policy: Policy) -> Iterator[str]:
    """A successor: at once, or when the present run ends, and be it by a permanent fault."""
    here = edge.after
    before, state = edge.before.status.state, here.status.state
    if isinstance(edge.event, Restart) and before in HAS_PROCESS and state not in {*ENDING, State.DRAINING}:
        yield "a restart that does not end the old run"
    if isinstance(edge.event, Start) and state in (State.STARTING, State.READY, State.UNREADY, State.PENDING):
        return
    if here.process in ("alive", "spawning") and not here.status.unkillable:
        here = follow(here, Exited(PERMANENT), "dying", policy).after
    if here.process != "none":
        here = follow(here, Gone(PERMANENT if here.status.unkillable else None), "none", policy).after
    if here.status.loaded and here.status.goal == "up" and here.status.state is not State.PENDING:
        yield "a successor is owed and does not come"


def lost_stop(node: Node, policy: Policy) -> Iterator[str]:
    """After a stop only deadlines fire, and the process ignores everything. Then it dies, if it was told to."""
    for obeys_kill in (True, False):
        here, killed = node, False
        for _ in range(20):
            s = here.status
            if here.process == "none":
                break
            if killed and obeys_kill:
                if here.process == "alive":
                    here = follow(here, Exited(CRASH), "dying", policy).after
                here = follow(here, Gone(), "none", policy).after
                break
            if s.unkillable:
                here = follow(here, Gone(CRASH), "none", policy).after
                break
            if s.deadline is None:
                yield f"nothing ends the stop: {here}"
                return
            while here.status.deadline:
                here = follow(here, None, here.process, policy).after
            edge = follow(here, Deadline(), here.process, policy)
            here, killed = edge.after, killed or any(isinstance(e, KillTree) for e in edge.effects)
        if here.status.state is not State.STOPPED:
            yield f"stopped, and ends in {here.status.state}: {node}"


def raised(node: Node, policy: Policy) -> Iterator[str]:
    """Goal up and a world that helps: READY must follow."""
    if node.status.goal == "down":
        return
    here = node
    for _ in range(30):
        s = here.status
        if s.state is State.READY:
            return
        event, process = _help(here, policy)
        if isinstance(event, Deadline):
            while here.status.deadline:
                here = follow(here, None, here.process, policy).after
        here = follow(here, event, process, policy).after
    yield f"wanted, and never READY: {node} ends as {here}"


def _help(node: Node, policy: Policy) -> tuple[Event, Process]:
    s, process = node.status, node.process
    match s.state:
        case State.IDLE:
            return Demand(), process
        case State.PENDING:
            return Admitted(), process
        case State.STARTING if process != "dying":
            return StartupOk(), "alive"
        case State.UNREADY:
            return ReadyAgain(), process
        case State.DRAINING:
            return Drained(), process
        case State.STOPPING if process in ("alive", "spawning"):
            return Exited(CRASH), "dying"
        case State.KILLING if process == "dying":
            return Gone(), "none"
        case State.KILLING:
            return Gone(CRASH), "none"
        case State.FAILED if s.unkillable:
            return Gone(CRASH), "none"
        case State.FAILED if s.deadline is None:
            return (Restart("x") if policy.restart == "never" else Changed("x")), process
    return Deadline(), process
