from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from llmsupervisor.service import states
from llmsupervisor.service.lifecycle import TABLE, transition
from llmsupervisor.service.states import (
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
    RecordCrash,
    Refused,
    Restart,
    Retry,
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

CRASH = ExitInfo("exited", "exited with code 1", code=1)
KILLED = ExitInfo("signal", "killed by SIGKILL", signal="SIGKILL", advice="look", time=5.0)
STEPS = Policy(stop_steps=(("TERM", 5.0), ("TERM", 6.0)))
READY = Status(State.READY, "up", attempt=1, started=0.0, ready_since=0.0)
STARTING = Status(State.STARTING, "up", attempt=1, started=0.0, deadline=300.0)


class Service:
    """One service and its clock."""

    def __init__(self, status: Status | None = None, policy: Policy = STEPS) -> None:
        self.status, self.policy, self.now = status or Status(), policy, 0.0
        self.effects: list[Effect] = []

    def post(self, *events: Event, at: float | None = None) -> Service:
        self.now = self.now if at is None else at
        for event in events:
            outcome = transition(self.status, event, self.policy, self.now)
            assert not outcome.impossible
            self.status, self.effects = outcome.status, list(outcome.effects)
        return self

    def expire(self) -> Service:
        assert self.status.deadline is not None
        return self.post(Deadline(), at=self.status.deadline)

    def crash(self, exit: ExitInfo = CRASH) -> Service:
        return self.post(Exited(exit), Gone())

    @property
    def state(self) -> str:
        return self.status.state.value


def test_every_cell_is_written() -> None:
    events = {v for v in vars(states).values() if isinstance(v, type) and issubclass(v, Event) and v is not Event}
    assert set(TABLE) == {(state, event) for state in State for event in events}
    assert len(TABLE) == 11 * 19


def test_the_impossible_changes_nothing_and_says_so() -> None:
    outcome = transition(READY, Admitted(), STEPS, 1.0)
    assert outcome.impossible and outcome.status == READY and not outcome.effects
    assert not transition(READY, StartupOk(), STEPS, 1.0).impossible


@pytest.mark.parametrize("state", State)
def test_a_deadline_that_was_overtaken_changes_nothing(state: State) -> None:
    for deadline in (None, 10.0):
        status = Status(state, "up", deadline=deadline)
        assert transition(status, Deadline(), STEPS, 9.9).status == status


def test_the_usual_life() -> None:
    service = Service().post(Start())
    assert service.state == "PENDING" and service.status.deadline == 5.0
    service.post(Refused("no room"), at=1.0)
    assert service.status.reason == "no room" and service.status.deadline == 6.0 and service.status.since == 0.0
    service.expire().post(Admitted())
    assert service.effects == [Spawn()] and service.status.attempt == 1 and service.status.restarts == 0
    service.post(NotReady("loading"), StartupOk(), at=9.0)
    assert service.state == "READY" and service.status.reason == "" and service.status.deadline is None
    service.post(NotReady("mute"), at=10.0).post(NotReady("deaf"), at=11.0)
    assert service.state == "UNREADY" and service.status.reason == "deaf" and service.status.since == 10.0
    service.post(ReadyAgain(), at=12.0)
    assert service.state == "READY" and service.status.ready_since == 12.0
    service.post(Stop("ada"), at=13.0)
    assert service.state == "DRAINING" and service.status.deadline == 43.0 and service.status.stopped_by == "ada"
    service.post(Drained(), at=14.0)
    assert service.state == "STOPPING" and service.effects == [Signal(0)] and service.status.deadline == 19.0
    service.post(Exited(ExitInfo("exited", "exited with code 0", code=0)))
    assert service.state == "KILLING" and not service.effects
    service.post(Gone())
    assert service.state == "STOPPED" and not service.effects and service.status.failures == ()
    assert service.status.last_exit is not None and service.status.last_exit.code == 0
    service.post(Stop("bob"))
    assert service.status.stopped_by == "ada"


def test_stop_steps_then_kill_once_more_then_unkillable() -> None:
    service = Service(READY).post(Stop("ada", now=True))
    assert service.effects == [Signal(0)] and service.status.deadline == 5.0
    service.expire()
    assert service.effects == [Signal(1)] and service.status.deadline == 11.0
    service.expire()
    assert service.state == "KILLING" and service.effects == [KillTree()] and service.status.deadline == 21.0
    service.expire()
    assert service.state == "KILLING" and service.effects == [KillTree()]
    service.expire()
    assert service.state == "FAILED" and service.status.unkillable and service.status.retry_at is None
    assert service.status.reason.startswith("unkillable: processes are left 20s after SIGKILL")
    service.post(Exited(KILLED))
    assert service.state == "FAILED" and service.status.last_exit == replace(KILLED, advice="")
    service.post(Gone())
    assert service.state == "STOPPED" and not service.status.unkillable


def test_the_exit_of_main_empties_the_tree_by_itself_and_a_deadline_orders_it() -> None:
    service = Service(READY).post(Exited(CRASH))
    assert service.state == "KILLING" and not service.effects
    service.expire()
    assert service.effects == [KillTree()]
    service.expire()
    assert service.state == "FAILED" and service.effects == [RecordCrash(CRASH)]
    service.post(Start(), Stop("ada"), Start(), Restart("spec"), Changed("file"))
    assert service.state == "FAILED" and service.status.goal == "up"
    service.post(Gone())
    assert service.state == "PENDING" and not service.effects


def test_an_unkillable_one_is_not_revived_against_the_goal() -> None:
    service = Service(READY).post(Exited(CRASH)).expire().expire().post(Stop("ada"), Restart("spec"))
    assert service.status.goal == "down" and service.post(Gone()).state == "STOPPED"
    service = Service(READY).post(Exited(CRASH)).expire().expire().post(Stop("ada"), Restart("op", revive=True))
    assert service.status.goal == "up" and service.post(Gone()).state == "PENDING"
    assert Service(replace(READY, state=State.FAILED)).post(Gone(CRASH)).state == "FAILED"


def test_without_stop_steps_the_tree_is_killed_at_once() -> None:
    service = Service(READY, Policy(stop_steps=())).post(Stop("ada", now=True))
    assert service.state == "KILLING" and service.effects == [KillTree()]


def test_P1_delays_double() -> None:
    service, delays = Service(policy=replace(STEPS, burst=99)).post(Start()), []
    for _ in range(8):
        service.post(Admitted()).crash()
        assert service.state == "BACKOFF" and service.status.deadline == service.status.retry_at
        delays.append(service.status.deadline - service.now)
        service.expire()
        assert service.state == "PENDING" and service.status.retry_at is None
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60]
    assert service.status.restarts == 7


def test_P20_a_burst_is_held_and_tried_once_more() -> None:
    service = Service().post(Start())
    for _ in range(4):
        service.post(Admitted()).crash().expire()
    service.post(Admitted()).crash()
    assert service.state == "FAILED" and service.status.retry_at == service.now + 300
    assert service.status.reason == "5 failures in 10m00s, the last: exited with code 1; one more try 5m00s later"
    assert service.expire().state == "PENDING"
    assert service.post(Admitted()).crash().state == "FAILED"
    assert service.post(Changed("file")).state == "PENDING" and service.status.failures == ()


@pytest.mark.parametrize(("ready_for", "state", "streak"), [(59.0, "BACKOFF", 4), (60.0, "PENDING", 0)])
def test_P21_only_sixty_ready_seconds_reset_the_counter(ready_for: float, state: str, streak: int) -> None:
    service = Service(replace(STARTING, streak=3, failures=(0.0,) * 3)).post(StartupOk(), at=10.0)
    service.post(Exited(CRASH), at=10.0 + ready_for).post(Gone(), at=200.0)
    assert service.state == state and service.status.streak == streak
    assert len(service.status.failures) == (1 if ready_for == 60 else 4)
    assert service.status.ready_since is None and not service.status.healthy


def test_a_break_before_sixty_seconds_starts_the_count_anew() -> None:
    service = Service(replace(STARTING, streak=1)).post(StartupOk(), at=0.0).post(NotReady("mute"), at=40.0)
    service.post(ReadyAgain(), at=41.0).crash()
    assert service.state == "BACKOFF"
    service = Service(replace(STARTING, streak=1)).post(StartupOk(), at=0.0).post(NotReady("mute"), at=70.0)
    assert service.post(ReadyAgain(), at=71.0).crash().state == "PENDING"


@pytest.mark.parametrize("retry", sorted(set(get_args(Retry)) - {"backoff"}))
def test_permanent_causes_wait_for_a_change(retry: Retry) -> None:
    service = Service(STARTING).crash(replace(CRASH, retry=retry))
    assert service.state == "FAILED" and service.status.retry_at is None and "waits" in service.status.reason
    assert service.post(Changed("it")).state == "PENDING"


def test_policy_never() -> None:
    service = Service(READY, replace(STEPS, restart="never")).crash()
    assert service.state == "FAILED" and service.status.retry_at is None and '"never"' in service.status.reason
    assert service.post(Changed("file")).state == "FAILED"
    assert service.post(Start()).state == "PENDING"


def test_an_exit_with_code_0_is_a_failure_too() -> None:
    for policy in ("always", "on-failure"):
        service = Service(READY, replace(STEPS, restart=policy)).crash(ExitInfo("exited", "code 0", code=0))
        assert service.state == "BACKOFF"


def test_every_fault_is_recorded_once_when_the_log_is_complete() -> None:
    service = Service(READY).post(Exited(CRASH))
    assert not service.effects
    assert service.post(Gone()).effects == [RecordCrash(CRASH)]
    assert Service(READY).post(Gone(KILLED)).effects == [RecordCrash(KILLED)]
    lost = Service(READY).post(Gone())
    assert lost.status.last_exit is not None and lost.status.last_exit.cause == "shim-killed"
    service = Service(READY).post(Exited(CRASH), Stop("ada"), Gone())
    assert service.state == "STOPPED" and service.effects == [RecordCrash(CRASH)]


def test_a_hang_keeps_its_cause_and_takes_the_signal() -> None:
    service = Service(READY).post(Stalled("no tokens for 2m"), at=70.0)
    assert service.state == "STOPPING" and service.effects == [Signal(0)]
    service.post(Exited(KILLED), Gone())
    exit = service.status.last_exit
    assert exit is not None and service.effects == [RecordCrash(exit)] and service.state == "PENDING"
    assert (exit.cause, exit.text, exit.signal, exit.time) == ("stalled", "hangs: no tokens for 2m", "SIGKILL", 5.0)


def test_P7_progress_extends_the_start_up_to_the_cap() -> None:
    service = Service(STARTING).post(Progress(), at=200.0)
    assert service.status.deadline == 500.0
    service.post(Progress(), at=899.0)
    assert service.status.deadline == 900.0
    service.post(NotReady("loading model")).expire()
    assert service.state == "STOPPING" and service.status.fault is not None
    assert service.status.fault.text == "not ready 15m00s after its start: loading model"
    adopted = Service(replace(STARTING, started=None, since=0.0)).post(Progress(), at=899.0)
    assert adopted.status.deadline == 900.0
    assert adopted.expire().status.reason == "not ready 15m00s after its start"


def test_a_planned_restart_costs_no_budget() -> None:
    for status in (READY, STARTING):
        service = Service(replace(status, failures=(0.0,), streak=1)).post(Restart("spec"))
        if status is READY:
            assert service.state == "DRAINING"
            service.expire()
        assert service.state == "STOPPING"
        service.post(Exited(KILLED), Gone())
        assert service.state == "PENDING" and service.status.failures == () and not service.effects


@pytest.mark.parametrize("event", [Restart("spec"), Changed("file"), Start()])
def test_what_comes_while_a_run_ends_is_not_lost(event: Event) -> None:
    permanent = replace(CRASH, retry="on-change")
    service = Service(READY).post(Exited(permanent), event, Gone())
    assert service.state == "PENDING" and not service.status.again


def test_restart_and_the_goal() -> None:
    assert Service().post(Restart("spec")).state == "STOPPED"
    assert Service().post(Restart("op", revive=True)).state == "PENDING"
    assert Service(Status(State.IDLE, "up", loaded=False)).post(Restart("spec")).state == "IDLE"
    for state in (State.PENDING, State.BACKOFF, State.FAILED):
        service = Service(Status(state, "up", failures=(0.0,), streak=3)).post(Restart("spec"))
        assert service.state == "PENDING" and service.status.streak == 0
    service = Service(READY).post(Stop("ada"), Restart("spec"))
    assert service.status.goal == "down" and service.post(Restart("op", revive=True)).status.goal == "up"


def test_start_after_stop_is_honoured_when_it_is_gone() -> None:
    service = Service(READY).post(Stop("ada"), Start(by="ada"), Drained(), Exited(KILLED), Gone())
    assert service.state == "PENDING" and service.status.stopped_by == ""
    service = Service(READY).post(Stop("ada"), Start(demand=True), Drained(), Exited(KILLED), Gone())
    assert service.state == "IDLE"


def test_stop_where_nothing_runs() -> None:
    for state in (State.IDLE, State.PENDING, State.BACKOFF, State.FAILED):
        assert Service(Status(state, "up", deadline=9.0)).post(Stop("ada")).state == "STOPPED"
    assert Service(STARTING).post(Stop("ada")).state == "STOPPING"
    service = Service(READY).post(Stop("ada"), Stop("bob", now=True))
    assert service.state == "STOPPING" and service.status.stopped_by == "ada"
    assert Service(READY).post(Restart("spec"), Stop("ada")).status.goal == "down"


def test_demand_and_unload() -> None:
    service = Service().post(Start(demand=True))
    assert service.state == "IDLE" and service.post(Start(demand=True)).state == "IDLE"
    assert service.post(Demand()).state == "PENDING"
    assert service.post(Unload("nobody waits")).state == "IDLE"
    service.post(Demand(), Admitted(), StartupOk(), Unload("idle for 10m"))
    assert service.state == "DRAINING" and service.status.reason == "idle for 10m"
    service.post(Unload("room"), Drained(), Exited(KILLED))
    assert service.post(Gone()).state == "IDLE"
    service.post(Demand(), Admitted(), StartupOk(), Unload("idle"), Demand(), Drained(), Exited(KILLED), Gone())
    assert service.state == "PENDING"
    assert Service().post(Demand()).state == "STOPPED"


def test_changes_end_a_wait() -> None:
    assert Service(Status(State.BACKOFF, "up", streak=3)).post(Changed("file")).status.streak == 3
    assert Service(Status(State.BACKOFF, "up")).post(Start()).state == "PENDING"
    assert Service(Status(State.FAILED, "up", streak=3)).post(Start()).status.streak == 0
    assert not Service(READY).post(Restart("spec"), Drained(), Changed("file"), Exited(KILLED), Gone()).status.again


def test_adoption() -> None:
    up = Status(goal="up", attempt=7)
    service = Service(up).post(Adopted(ready=True), at=3.0)
    assert service.state == "READY" and service.status.attempt == 7 and service.status.ready_since == 3.0
    assert Service(up).post(Adopted(ready=False), at=3.0).status.deadline == 303.0
    assert Service(replace(up, started=-50.0)).post(Adopted(ready=False)).status.started == -50.0
    service = Service(Status(stopped_by="ada")).post(Adopted(ready=True))
    assert service.state == "DRAINING" and service.status.reason == "stopped by ada"
    service = Service().post(Adopted(ready=False))
    assert service.state == "STOPPING" and service.effects == [Signal(0)] and service.status.reason == "not wanted"


def test_spawn_failed() -> None:
    service = Service(STARTING).post(SpawnFailed(CRASH))
    assert service.state == "BACKOFF" and service.effects == [RecordCrash(CRASH)]
    assert Service(STARTING).post(Stop("ada"), SpawnFailed(CRASH)).state == "STOPPED"


def test_jitter_moves_the_delay() -> None:
    for jitter, delay in ((-1.0, 0.8), (1.0, 1.2)):
        assert Service(replace(STARTING, jitter=jitter)).crash().status.retry_at == pytest.approx(delay)


def test_states_with_a_process_are_named() -> None:
    assert {"READY", "KILLING"} < states.HAS_PROCESS and State.FAILED not in states.HAS_PROCESS
