"""States, events and effects of a service: the words of the lifecycle. The table is `lifecycle.py`."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Literal


class State(enum.StrEnum):
    STOPPED = "STOPPED"
    """Goal down, or the service never started."""
    IDLE = "IDLE"
    """Goal up, unloaded; a demand starts it."""
    PENDING = "PENDING"
    """Wants to start and waits, with a reason, for something outside."""
    STARTING = "STARTING"
    READY = "READY"
    UNREADY = "UNREADY"
    """Alive, was READY, does not answer its readiness path now."""
    DRAINING = "DRAINING"
    """No new requests; running ones go on until `drain_timeout`."""
    STOPPING = "STOPPING"
    """Walks the definition's stop steps."""
    KILLING = "KILLING"
    """Main process exited or is being killed; its tree is emptied. Ends with GONE."""
    BACKOFF = "BACKOFF"
    """Waits until `retry_at`, then PENDING."""
    FAILED = "FAILED"
    """`retry_at` set: half-open. None: waits for a relevant change, or unkillable."""


HAS_PROCESS = frozenset({State.STARTING, State.READY, State.UNREADY, State.DRAINING, State.STOPPING, State.KILLING})
"""FAILED may have one too: unkillable."""

Retry = Literal["backoff", "on-change", "when-vram-changes", "when-port-free"]


@dataclass(frozen=True, slots=True)
class ExitInfo:
    """How a start ended. `cause` is a class of the definition or one of ours: `exited`, `signal`, `exec-failed`,
    `shim-killed`, `start-timeout`, `stalled`, `gpu-lost`, `no-readiness`, `boot-id-changed`.
    """

    cause: str
    text: str
    """One line for people: what happened, with the distinctive log line."""
    code: int | None = None
    signal: str | None = None
    advice: str = ""
    retry: Retry = "backoff"
    time: float | None = None
    """Unix seconds."""


# --- events -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """Wishes (of a person, the plan, the gateway) or results of an attempt. The loop keeps beside each queued result the
    attempt it belongs to, and drops those of an earlier one before the table."""


@dataclass(frozen=True, slots=True)
class Start(Event):
    """Goal up (an operator, the boot, a new service in the spec). `by` is shown."""

    by: str = "boot"
    demand: bool = False
    """True: `start = "demand"`: from STOPPED to IDLE."""


@dataclass(frozen=True, slots=True)
class Stop(Event):
    by: str
    now: bool = False
    """Skip the drain."""


@dataclass(frozen=True, slots=True)
class Restart(Event):
    """A planned restart: costs no restart budget. From STOPPED it starts only with `revive`."""

    reason: str
    revive: bool = False


@dataclass(frozen=True, slots=True)
class Demand(Event):
    """A request waits for an IDLE service."""


@dataclass(frozen=True, slots=True)
class Unload(Event):
    """Idle for `keep_alive`, or making room: down to IDLE."""

    reason: str


@dataclass(frozen=True, slots=True)
class Changed(Event):
    """Something relevant changed (spec, model file, binary, VRAM, port): FAILED and BACKOFF may try at once."""

    what: str


@dataclass(frozen=True, slots=True)
class Admitted(Event):
    """PENDING may start: facts hold, memory is stable, no other start on its GPUs."""


@dataclass(frozen=True, slots=True)
class Refused(Event):
    """PENDING goes on, with this reason; asked again at `policy.pending_recheck`."""

    reason: str


@dataclass(frozen=True, slots=True)
class SpawnFailed(Event):
    """The shim itself could not be started: no process exists."""

    exit: ExitInfo


@dataclass(frozen=True, slots=True)
class Adopted(Event):
    """A living run of an earlier daemon. `ready`: it had been READY."""

    ready: bool


@dataclass(frozen=True, slots=True)
class StartupOk(Event):
    pass


@dataclass(frozen=True, slots=True)
class Progress(Event):
    """The start moves (bytes read, memory, log): extends the deadline up to the cap."""


@dataclass(frozen=True, slots=True)
class NotReady(Event):
    reason: str


@dataclass(frozen=True, slots=True)
class ReadyAgain(Event):
    pass


@dataclass(frozen=True, slots=True)
class Stalled(Event):
    """Work is outstanding and nothing moves, and a probe confirmed it: replace the process."""

    reason: str
    cause: str = "stalled"
    """`oom-run`, `gpu-lost`: it may move, and is of no use."""


@dataclass(frozen=True, slots=True)
class Drained(Event):
    pass


@dataclass(frozen=True, slots=True)
class Exited(Event):
    """pidfd(main) fired and the exit record was read. The tree may still live."""

    exit: ExitInfo


@dataclass(frozen=True, slots=True)
class Gone(Event):
    """pidfd(shim) fired: tree empty, log complete. `exit` where no Exited came before (the shim was killed)."""

    exit: ExitInfo | None = None


@dataclass(frozen=True, slots=True)
class Deadline(Event):
    """`status.deadline` passed."""


# --- effects: the table's whole reach into the world --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Effect:
    pass


@dataclass(frozen=True, slots=True)
class Spawn(Effect):
    pass


@dataclass(frozen=True, slots=True)
class Signal(Effect):
    """Send stop step `step` (0-based) to main."""

    step: int


@dataclass(frozen=True, slots=True)
class KillTree(Effect):
    """Order the shim to kill everything now (SIGUSR2); the daemon does it itself where the shim is gone."""


@dataclass(frozen=True, slots=True)
class RecordCrash(Effect):
    exit: ExitInfo


# --- status and policy --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Policy:
    """What the table needs to know of a service's plan. Seconds."""

    restart: Literal["always", "on-failure", "never"] = "always"
    max_delay: float = 60.0
    burst: int = 5
    window: float = 600.0
    half_open: float = 300.0
    """FAILED after a burst tries once more after this."""
    healthy_after: float = 60.0
    """READY this long without a break: the restart counter starts anew, and the next restart is immediate."""
    start_timeout: float = 300.0
    start_cap: int = 3
    drain_timeout: float = 30.0
    stop_steps: tuple[tuple[str, float], ...] = (("TERM", 10.0),)
    kill_timeout: float = 10.0
    pending_recheck: float = 5.0


@dataclass(frozen=True, slots=True)
class Status:
    """All that the table knows of a service. Times are monotonic seconds of the loop's clock."""

    state: State = State.STOPPED
    goal: Literal["up", "down"] = "down"
    loaded: bool = True
    """Goal up and False: IDLE is where it belongs until a demand."""
    reason: str = ""
    since: float = 0.0
    deadline: float | None = None
    attempt: int = 0
    """Counts spawns; results of an earlier attempt are stale."""
    failures: tuple[float, ...] = ()
    """Times of unrequested ends inside the window."""
    streak: int = 0
    """Unrequested ends since the last healthy run: the exponent of the delay."""
    restarts: int = 0
    """Spawns after the first one, for display."""
    started: float | None = None
    """Spawn of the running attempt."""
    ready_since: float | None = None
    """Last time that this run became READY; None: it never was."""
    healthy: bool = False
    """This run was READY for `healthy_after` without a break, at some time."""
    step: int = 0
    """Stop step under way; in KILLING: how often the kill was ordered anew."""
    fault: ExitInfo | None = None
    """Why this end counts as a failure; None while an end is asked for."""
    again: bool = False
    """A planned restart, or a relevant change seen while the run was ending: its end leads to PENDING, fault or not."""
    unkillable: bool = False
    """FAILED with a process that outlived SIGKILL: its GPUs are not free, and only GONE leads out."""
    retry_at: float | None = None
    last_exit: ExitInfo | None = None
    stopped_by: str = ""
    jitter: float = 0.0
    """Random number in [-1, 1], drawn by the loop before each event: the table draws none."""


@dataclass(frozen=True, slots=True)
class Outcome:
    status: Status
    effects: tuple[Effect, ...] = field(default=())
    impossible: bool = False
    """The table says that this event cannot come in this state: a bug of the caller. Nothing was changed; log it."""
