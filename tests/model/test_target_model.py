"""The life of a target, walked: engine and its runner as an adversary drives them, every answer late, lost or bad."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from llmsupervisor.service import target as module
from llmsupervisor.service.target import (
    IGNORE,
    STEPPED,
    TABLE,
    Answers,
    Appeared,
    Created,
    Deadline,
    Demand,
    Edited,
    Failed,
    Found,
    Idle,
    Loaded,
    Order,
    RunnerGone,
    Silent,
    Target,
    TargetEvent,
    TargetPolicy,
    TargetState,
    Unloaded,
    transition,
)

S = TargetState
POLICY = TargetPolicy(load_timeout=900, unload_timeout=60, first_delay=1, max_delay=4, healthy_after=60)
LAZY = replace(POLICY, preload=False)
WORK = {S.ABSENT: Order.LOOK, S.CREATING: Order.CREATE, S.LOADING: Order.LOAD, S.UNLOADING: Order.UNLOAD}
TIMED = {S.LOADING, S.UNLOADING}


@dataclass(frozen=True)
class Node:
    target: Target
    up: bool
    work: Order | None
    """That the hands are at."""
    old: bool
    """It has been in this state for an hour."""


def canonical(target: Target) -> Target:
    """Times relative to now = 0, counters only as far as they matter."""
    return replace(target, since=0.0, step=0, reason="", tries=min(target.tries, 2), deadline=target.deadline and 1.0)


def now_of(node: Node) -> float:
    return 3600.0 if node.old else 0.0


def step(node: Node, event: TargetEvent, policy: TargetPolicy) -> Node:
    target = replace(node.target, deadline=None if node.target.deadline is None else now_of(node))
    new, order = transition(target, event, policy, now_of(node))
    up = True if isinstance(event, Answers) else False if isinstance(event, Silent) else node.up
    left = None if isinstance(event, STEPPED) else node.work
    work = left if order is None else None if order is Order.DROP else order
    moved = new.since != target.since or new.state is not target.state or new.step != target.step
    return Node(canonical(new), up, work, node.old and not moved)


def events(node: Node) -> Iterator[TargetEvent]:
    yield Answers()
    if not node.up:
        return
    yield from (Silent(), Appeared(), Demand(), Idle("idle"), Edited("context_length 1 → 2"))
    yield from (RunnerGone("died"), RunnerGone("evicted", evicted=True))
    match node.work:
        case Order.LOOK:
            yield from (Found(False, False), Found(True, False), Found(True, True))
        case Order.CREATE:
            yield Created()
        case Order.LOAD:
            yield Loaded()
        case Order.UNLOAD:
            yield Unloaded()
    if node.work is not None:
        yield from (Failed("500"), Failed("no such file", lasting=True))
    if node.target.deadline is not None:
        yield Deadline()


def wrong(node: Node) -> str:
    """What may never be."""
    target = node.target
    if not node.up:
        return "" if (target.state, node.work, target.deadline) == (S.ABSENT, None, None) else "works on nothing"
    if node.work is not WORK.get(target.state):
        return f"{target.state} with {node.work} out"
    if (target.state in TIMED) and target.deadline is None:
        return f"{target.state} without an end"
    if target.state in (S.LOADED, S.UNLOADED) and target.deadline is not None:
        return f"a deadline in {target.state}"
    if target.state is S.UNLOADED and target.wanted:
        return "wanted, and nobody loads it"
    return ""


def kindly(node: Node, policy: TargetPolicy) -> Node:
    """Every call succeeds, and nothing else happens."""
    for _ in range(8):
        match node.work:
            case Order.LOOK:
                node = step(node, Found(True, False), policy)
            case Order.CREATE:
                node = step(node, Created(), policy)
            case Order.LOAD:
                node = step(node, Loaded(), policy)
            case Order.UNLOAD:
                node = step(node, Unloaded(), policy)
            case _ if node.target.deadline is not None:
                node = step(node, Deadline(), policy)
    return node


def owed(node: Node, policy: TargetPolicy) -> str:
    """What must follow where nothing fails any more."""
    if not node.up:
        return ""
    target, end = node.target, kindly(node, policy)
    lasting = target.state is S.FAILED and target.deadline is None
    due = S.FAILED if lasting else S.LOADED if target.wanted or target.state is S.LOADED else S.UNLOADED
    return "" if end.target.state is due else f"{target.state}, wanted {target.wanted}: ends {end.target.state}"


def follows(node: Node, event: TargetEvent, new: Node, policy: TargetPolicy) -> str:
    """What one event must bring, whatever the state."""
    before, after = node.target, new.target
    match event:
        case Silent() | Answers() if after.state is not S.ABSENT:
            return "the engine changed, and it goes on as before"
        case Answers() if after.wanted < policy.preload:
            return "not preloaded"
        case Appeared() if before.state is S.UNLOADED and after.state is not S.LOADED:
            return "it is in memory, and nobody sees it"
        case Demand() if before.state is not S.FAILED and not after.wanted:
            return "a demand was not heard"
        case Edited() if before.state is S.UNLOADING and not after.again:
            return "the edit is forgotten"
        case Edited() if before.state is not S.UNLOADING and transition(before, event, policy, 0.0)[1] is None:
            return "the edit is not applied"
        case Edited() if before.state is S.LOADED and not after.again:
            return "after the edit the old one would be loaded again"
        case Unloaded() | RunnerGone() if before.again and before.state is S.UNLOADING and new.work is not Order.LOOK:
            return "the edit is lost"
        case Idle() if before.state is S.LOADED and after.state is not S.UNLOADING:
            return "idle, and stays"
        case RunnerGone(_, evicted) if before.state is S.LOADED and after.state is not (
            S.UNLOADED if evicted else S.FAILED if before.tries and not node.old else S.LOADING
        ):
            return "a death in the wrong place"
        case Failed(_, lasting) if before.state is not S.UNLOADING and (
            after.state is not S.FAILED or (after.deadline is None) is not lasting
        ):
            return "a failure is not told"
        case Found(False) if new.work is not Order.CREATE:
            return "absent, and not created"
        case Deadline() if after.state is before.state:
            return "a deadline that changes nothing"
    return ""


def walk(policy: TargetPolicy) -> tuple[list[str], set[tuple[TargetState, type[TargetEvent]]], set[Node]]:
    begin = Node(Target(), False, None, False)
    seen, cells, violations, rest = {begin}, set(), [], deque([begin])
    while rest:
        node = rest.popleft()
        if text := wrong(node) or owed(node, policy):
            violations.append(f"{text}: {node}")
            continue
        nexts = [(event, step(node, event, policy)) for event in events(node)]
        for event, new in nexts:
            cells.add((node.target.state, type(event)))
            if text := follows(node, event, new, policy):
                violations.append(f"{text}: {node} · {event} → {new}")
        for new in [*(n for _, n in nexts), replace(node, old=True)]:
            if new not in seen:
                seen.add(new)
                rest.append(new)
    return violations, cells, seen


@pytest.mark.parametrize("policy", [POLICY, LAZY], ids=["preload", "lazy"])
def test_nothing_forbidden_and_everything_owed(policy: TargetPolicy) -> None:
    violations, cells, seen = walk(policy)
    assert not violations, violations[:3]
    assert {node.target.state for node in seen} == set(S)
    assert {cell for cell, rule in TABLE.items() if rule != IGNORE} <= cells


ACTING = [cell for cell, rule in TABLE.items() if rule != IGNORE]


@pytest.mark.parametrize("cell", ACTING, ids=lambda cell: f"{cell[0]}-{cell[1].__name__}")
def test_the_walk_finds_a_cell_that_ignores_its_event(
    cell: tuple[TargetState, type[TargetEvent]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.TABLE, cell, IGNORE)
    assert any(walk(policy)[0] for policy in (POLICY, LAZY))


def test_what_comes_of_an_earlier_step_can_be_told_from_this_one() -> None:
    """Each order has a step of its own, also two of one kind."""
    target, steps = Target(), []
    for event in (Answers(), Found(True, False), Edited("x"), Found(True, False), Edited("y")):
        target, order = transition(target, event, POLICY, 0.0)
        steps.append((order, target.step))
    assert [order for order, _ in steps] == [Order.LOOK, Order.LOAD] * 2 + [Order.LOOK]
    assert len(set(steps)) == len(steps)


def test_it_is_tried_again_later_and_later() -> None:
    target = replace(Target(), state=S.LOADING, wanted=True)
    delays = []
    for _ in range(5):
        target, _ = transition(replace(target, state=S.LOADING), Failed("500"), POLICY, 100.0)
        assert target.deadline is not None
        delays.append(target.deadline - 100.0)
    assert delays == [1, 2, 4, 4, 4]


def test_a_deadline_that_was_overtaken_changes_nothing() -> None:
    target = replace(Target(), state=S.LOADING, deadline=10.0)
    assert transition(target, Deadline(), POLICY, 9.0) == (target, None)
    assert transition(replace(target, deadline=None), Deadline(), POLICY, 9.0)[1] is None
