"""The whole lifecycle, walked: what may never happen, what must always follow, and that the walk sees broken tables."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from model import explorer
from model.explorer import CRASH, POLICY, Walk, explore

from llmsupervisor.service import lifecycle
from llmsupervisor.service.lifecycle import TABLE, Handler, Rule
from llmsupervisor.service.states import (
    Deadline,
    Event,
    Exited,
    Gone,
    NotReady,
    Outcome,
    Policy,
    Progress,
    Refused,
    Restart,
    Spawn,
    Stalled,
    Start,
    State,
    Status,
    Stop,
)

POLICIES = {
    "always": POLICY,
    "never": replace(POLICY, restart="never"),
    "no-stop-steps": replace(POLICY, stop_steps=(), drain_timeout=0),
}


@cache
def walked(policy: Policy) -> Walk:
    return explore(policy)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_nothing_forbidden_and_everything_owed(policy: Policy) -> None:
    walk = walked(policy)
    assert not walk.violations, walk.violations[:3]
    print(f"{len(walk.nodes)} states of service, process and clock, {walk.edges} steps")


def test_every_state_and_every_acting_cell_is_reached() -> None:
    walk = walked(POLICY)
    assert {node.status.state for node in walk.nodes} == set(State)
    assert {cell for cell, rule in TABLE.items() if not isinstance(rule, Rule)} <= set(walk.cells)
    assert not {cell for cell, rule in TABLE.items() if rule is Rule.IMPOSSIBLE} & set(walk.cells)


DETAILS = {
    (State.STOPPED, Stop): "who stopped it first is kept",
    (State.PENDING, Refused): "only the reason",
    (State.STARTING, NotReady): "only the reason",
    (State.UNREADY, NotReady): "only the reason",
    (State.KILLING, Exited): "only the record of the exit",
    (State.FAILED, Exited): "only the record of the exit",
}
"""Cells that the walk cannot tell from IGNORE, because it leaves out what is only shown. Pinned by unit tests."""

ACTING = [cell for cell, rule in TABLE.items() if not isinstance(rule, Rule) and cell not in DETAILS]


@pytest.mark.parametrize("cell", ACTING, ids=lambda cell: f"{cell[0]}-{cell[1].__name__}")
def test_the_walk_finds_a_cell_that_ignores_its_event(
    cell: tuple[State, type[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLE, cell, Rule.IGNORE)
    assert explore(first_only=True).violations


def to_backoff(s: Status, e: Event, policy: Policy, now: float) -> Outcome:
    return Outcome(replace(s, state=State.BACKOFF, deadline=now + 1, fault=None))


def to_stopped(s: Status, e: Event, policy: Policy, now: float) -> Outcome:
    return Outcome(replace(s, state=State.STOPPED, deadline=None, goal="down"))


def spawn_at_once(s: Status, e: Event, policy: Policy, now: float) -> Outcome:
    return Outcome(replace(s, state=State.STARTING, goal="up", deadline=now + 1, started=now), (Spawn(),))


def for_ever(s: Status, e: Event, policy: Policy, now: float) -> Outcome:
    return Outcome(replace(s, deadline=now + 1))


def forget_the_process(s: Status, e: Event, policy: Policy, now: float) -> Outcome:
    return Outcome(replace(lifecycle.rekill(s, e, policy, now).status, unkillable=False))  # type: ignore[arg-type]


def blind_to_the_goal(s: Status, e: Gone, policy: Policy, now: float) -> Outcome:
    return lifecycle.gone(replace(s, goal="up"), e, policy, now)


WRONG: dict[str, tuple[State, type[Event], Handler]] = {
    "a hang leaves the process behind": (State.READY, Stalled, to_backoff),
    "an exit leaves the tree behind": (State.READY, Exited, to_backoff),
    "stop forgets the process": (State.READY, Stop, to_stopped),
    "restart in STARTING spawns a second one": (State.STARTING, Restart, spawn_at_once),
    "start in KILLING spawns a second one": (State.KILLING, Start, spawn_at_once),
    "draining for ever": (State.DRAINING, Deadline, for_ever),
    "killing for ever": (State.KILLING, Deadline, for_ever),
    "a start is extended for ever": (State.STARTING, Progress, for_ever),
    "the unkillable is called gone": (State.KILLING, Deadline, forget_the_process),
    "the end ignores the goal": (State.KILLING, Gone, blind_to_the_goal),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_the_walk_finds_a_wrong_handler(
    wrong: tuple[State, type[Event], Handler], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, event, handler = wrong
    monkeypatch.setitem(TABLE, (state, event), handler)
    assert explore(first_only=True).violations


def test_after_a_stop_deadlines_alone_end_it() -> None:
    """One path spelled out: nothing answers, nothing dies, and then it goes after all."""
    node = explorer.Node(Status(State.READY, "up", ready_since=0.0), "alive")
    node = explorer.follow(node, Stop("x"), "alive", POLICY).after
    seen = [node.status.state]
    while not node.status.unkillable:
        while node.status.deadline:
            node = explorer.follow(node, None, "alive", POLICY).after
        node = explorer.follow(node, Deadline(), "alive", POLICY).after
        seen.append(node.status.state)
    assert [s.value for s in seen] == ["DRAINING", "STOPPING", "STOPPING", "KILLING", "KILLING", "FAILED"]
    assert explorer.follow(node, Gone(CRASH), "none", POLICY).after.status.state is State.STOPPED
