"""P26: any order of commands, faults and time gives one linear history: one process at most, no lost stop."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmsupervisor.service.lifecycle import transition
from llmsupervisor.service.states import (
    HAS_PROCESS,
    Admitted,
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
    Policy,
    Progress,
    ReadyAgain,
    RecordCrash,
    Refused,
    Restart,
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

EXITS = st.builds(
    ExitInfo,
    st.sampled_from(["exited", "signal", "oom_load"]),
    st.just("it ended"),
    retry=st.sampled_from(["backoff", "on-change", "when-vram-changes", "when-port-free"]),
)
COMMANDS = st.one_of(
    st.builds(Start, st.just("x"), st.booleans()),
    st.builds(Stop, st.just("x"), st.booleans()),
    st.builds(Restart, st.just("x"), st.booleans()),
    st.sampled_from([Demand(), Unload("idle"), Changed("file")]),
)
REPORTS = st.sampled_from([StartupOk(), Progress(), NotReady("mute"), ReadyAgain(), Stalled("hang"), Drained()])


class Service(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.status = Status()
        self.policy = Policy(stop_steps=(("TERM", 5.0), ("TERM", 5.0)))
        self.now = 0.0
        self.process = "none"
        self.attempts: list[int] = []
        self.unasked = False
        """The present run ended without being asked to: a crash record is owed."""

    def post(self, event: Event) -> None:
        before = self.status
        outcome = transition(before, event, self.policy, self.now)
        assert not outcome.impossible, (before, event)
        self.status = after = outcome.status
        for effect in outcome.effects:
            match effect:
                case Spawn():
                    assert self.process == "none", "a second process"
                    self.process = "alive"
                    self.attempts.append(after.attempt)
                case KillTree():
                    assert self.process != "none", "a kill of nobody"
                case RecordCrash():
                    assert self.unasked or before.fault is not None, "a crash record of an end that was asked for"
                    self.unasked = False

    @rule(event=COMMANDS)
    def command(self, event: Event) -> None:
        self.post(event)
        if isinstance(event, Stop):
            assert self.status.goal == "down"

    @precondition(lambda self: self.process == "alive")
    @rule(event=REPORTS)
    def report(self, event: Event) -> None:
        self.post(event)

    @precondition(lambda self: self.status.state is State.PENDING)
    @rule(yes=st.booleans())
    def admission(self, yes: bool) -> None:
        self.post(Admitted() if yes else Refused("no room"))

    @precondition(lambda self: self.process == "alive")
    @rule(exit=EXITS)
    def dies(self, exit: ExitInfo) -> None:
        asked = self.status.state in (State.STOPPING, State.KILLING, State.FAILED) and self.status.fault is None
        self.process, self.unasked = "dying", not asked
        self.post(Exited(exit))

    @precondition(lambda self: self.process == "dying")
    @rule()
    def tree_is_empty(self) -> None:
        self.process = "none"
        self.post(Gone())
        assert not self.unasked, "a crash without a record"

    @precondition(lambda self: self.status.state is State.STARTING and self.process == "alive")
    @rule(exit=EXITS)
    def spawn_fails(self, exit: ExitInfo) -> None:
        self.process, self.unasked = "none", True
        self.post(SpawnFailed(exit))
        assert not self.unasked

    @rule(seconds=st.floats(0, 120))
    def time(self, seconds: float) -> None:
        """Deadlines fire when they are due, in order."""
        until = self.now + seconds
        while self.status.deadline is not None and self.status.deadline <= until:
            self.now = max(self.now, self.status.deadline)
            self.post(Deadline())
        self.now = until

    @rule(jitter=st.floats(-1, 1))
    def draw(self, jitter: float) -> None:
        self.status = replace(self.status, jitter=jitter)

    @invariant()
    def process_and_state_agree(self) -> None:
        owns = self.status.state in HAS_PROCESS or self.status.unkillable
        assert owns == (self.process != "none")

    @invariant()
    def goal_and_state_agree(self) -> None:
        if self.status.goal == "down":
            assert self.status.state in {State.STOPPED, State.DRAINING, State.STOPPING, State.KILLING, State.FAILED}
            assert self.status.state is not State.FAILED or self.status.unkillable
        else:
            assert self.status.state is not State.STOPPED

    @invariant()
    def attempts_only_grow(self) -> None:
        assert self.attempts == list(range(1, len(self.attempts) + 1))

    @invariant()
    def retry_is_a_deadline(self) -> None:
        if self.status.retry_at is not None:
            assert self.status.state in (State.BACKOFF, State.FAILED)
            assert self.status.retry_at == self.status.deadline


Service.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
test_P26_any_order_of_commands = Service.TestCase
