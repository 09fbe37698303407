"""The hands of one service: what the lifecycle's effects do, and which tasks belong to which state.

`plan` is what the next start will use; `process.plan` is what runs. Never writes a Status: results go to `Loop.post`.
"""

from __future__ import annotations

import asyncio
import signal as _signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llmsupervisor.base.errors import LlmsupervisorError
from llmsupervisor.base.ids import Json
from llmsupervisor.daemon import crashes, oom, probes
from llmsupervisor.daemon.conditions import Conditions
from llmsupervisor.daemon.memory import STEP
from llmsupervisor.daemon.models import Models
from llmsupervisor.daemon.process import Process
from llmsupervisor.daemon.scrape import Scraper
from llmsupervisor.daemon.seen import Seen
from llmsupervisor.daemon.start import prepare
from llmsupervisor.host import logtail, spawn, tree
from llmsupervisor.host.failpoints import failpoint
from llmsupervisor.host.gpu import free_bytes, memory_back
from llmsupervisor.plan.launch import Refusal, ServicePlan
from llmsupervisor.plan.place import gpu_words
from llmsupervisor.service.admit import FITS, admission
from llmsupervisor.service.room import Room
from llmsupervisor.service.states import (
    HAS_PROCESS,
    Changed,
    Event,
    Exited,
    ExitInfo,
    Gone,
    Policy,
    SpawnFailed,
    State,
    Status,
)

if TYPE_CHECKING:
    from llmsupervisor.daemon.box import Box

T = TypeVar("T")

WATCHED = frozenset({State.READY, State.UNREADY})
MEMORY_BACK = 10.0
"""Seconds that a GPU gets to give memory back before the next start waits with a reason."""
AGAIN = 1.0
"""Seconds after which a task of ours that failed is tried again."""


class Runner:
    def __init__(self, plan: ServicePlan, box: Box) -> None:
        self.name = plan.name
        self.plan = plan
        self.box = box
        self.process: Process | None = None
        self.retired = False
        """No longer in the spec: forgotten once it is stopped."""
        self.generation = box.desired.generation
        self.conditions = Conditions(box.clock.wall, self._tell)
        self.scraper = Scraper(box.clock)
        self.models = Models(self)
        self.got: dict[str, Json] | None = None
        self.drift: tuple[str, ...] = ()
        self.seen = Seen(box.clock)
        self.memory_held: tuple[str, ...] = ()
        """GPUs whose memory did not come back after our end."""
        self.ready_at: float | None = None
        """Monotonic seconds; of a run that an earlier daemon saw become READY, when that was."""
        self.restarts: dict[str, int] = {}
        """By cause, since this daemon began."""
        self.hint = asyncio.Event()
        """Somebody had trouble with it: it is looked at now."""
        self.suspicion = ""
        """Why the next look asks for more than figures."""
        self._why = ""
        """Why the next start is made; empty: nobody asked for it, and nothing failed (the plan, a person)."""
        self._waiter: asyncio.Task[None] | None = None
        self._free_then: int | None = None
        self._records: set[asyncio.Task[None]] = set()
        self._ready_attempt = 0
        self._ended_process: Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._follow: asyncio.Task[None] | None = None

    # --- Hands ---------------------------------------------------------------------------------------------------

    @property
    def policy(self) -> Policy:
        service, definition = self.plan.service, self.plan.definition
        return Policy(
            restart=service.restart.policy,
            max_delay=service.restart.max_delay,
            burst=service.restart.burst,
            window=service.restart.window,
            healthy_after=service.restart.healthy_after,
            start_timeout=service.start_timeout or definition.ready.timeout,
            start_cap=definition.ready.cap,
            drain_timeout=service.drain_timeout,
            stop_steps=definition.stop.steps,
        )

    def spawn(self, attempt: int) -> None:
        folder = spawn.RunFolder(self.box.layout.service(self.name))
        try:
            ready = prepare(self.plan, attempt, self.generation, self.box.layout, self.box.logs, self.box.cgroups)
            folder.prepare()
            run = folder.start(ready.launch, ready.secrets)
        except (OSError, LlmsupervisorError) as error:
            text = f"could not be started: {error}"
            self._post(SpawnFailed(ExitInfo("spawn-failed", text, time=self.box.clock.wall())), attempt)
            return
        wish = self.box.desired.wish(self.name)
        wish.port = self.plan.port
        self.box.save()
        if attempt > 1:
            self.restarts[self._why or "planned"] = self.restarts.get(self._why or "planned", 0) + 1
        self._why = ""
        self.box.memory.spawned(self)
        self._take(Process(run, self.plan, ready.launch, self.box.layout, adopted=False))

    def signal(self, step: int) -> None:
        if self.process is not None:
            self.process.leavings.look(self.process.pids())
            spawn.signal_main(self.process.run, _signal.Signals[f"SIG{self.policy.stop_steps[step][0]}"])
            failpoint("after-signal")

    def kill_tree(self) -> None:
        if self.process is not None:
            self.process.leavings.look(self.process.pids())
            spawn.kill_tree(self.process.run)

    def record_crash(self, exit: ExitInfo) -> None:
        self._why = exit.cause
        ended = self._ended_process
        self.record_end(exit, *((ended.launch, ended.log_tail) if ended else ({}, str)))

    def record_end(
        self, exit: ExitInfo, launch: dict[str, Any], tail: Callable[[], str], told: Callable[[], None] = lambda: None
    ) -> None:
        """In a thread: its syncs of the disk must not delay the next start. `told` is called when it is on record."""
        work = self._record(exit, launch, tail, told)
        self._records = {task for task in self._records if not task.done()}
        self._records.add(asyncio.get_running_loop().create_task(work))

    async def _record(
        self, exit: ExitInfo, launch: dict[str, Any], tail: Callable[[], str], told: Callable[[], None]
    ) -> None:
        folder = Path(self.box.layout.crashes)
        path = await asyncio.to_thread(lambda: crashes.record(folder, self.name, exit, launch, tail()))
        self._emit("exit", exit=probes.exit_json(exit), record=path or None)
        told()

    def ask_admission(self) -> Event:
        gpus = {
            name: (runner.process.plan if runner.process else runner.plan).gpus
            for name, runner in self.box.runners.items()
        }
        if closed := self.box.cards.barred(self.cards()):
            self.box.swapper.forgo(self.name)
        return admission(
            self.name,
            self.box.loop.statuses,
            gpus | {self.name: self.plan.gpus},
            [self._named(refusal) for refusal in self.plan.refusals],
            self._memory_held(),
            FITS if closed else self._room(),
            closed,
        )

    def _room(self) -> Room:
        """With the names of those who are not ours and hold memory there, where it is not enough."""
        room = self.box.swapper.room(self)
        others = "" if room.fits else self.box.cards.foreign_on(self.plan.gpus)
        return replace(room, reason=f"{room.reason}; not ours there: {others}") if others else room

    def cards(self) -> tuple[str, ...]:
        """UUIDs of where it is meant to run; of a card that is not there now, what its index meant."""
        wish = self.box.desired.wish(self.name)
        same = list(gpu_words(self.plan.service)) == wish.gpu_words
        return self.plan.gpus or (tuple(wish.gpus) if same else ())

    def suspect(self, why: str) -> None:
        """It may be broken though it says nothing: the tiny request decides, now."""
        self.suspicion = why
        self.hint.set()

    def _named(self, refusal: Refusal) -> Refusal:
        """Who holds the port, where that is ours to see."""
        owner = tree.port_owner(self.plan.port) if refusal.kind == "port" and self.plan.port else None
        return replace(refusal, text=f"{refusal.text}: pid {owner[0]} ({owner[1]})") if owner else refusal

    def entered(self, old: Status, new: Status) -> None:
        if new.state is not old.state:
            self._turned(old, new)
        self.models.entered(new.state)
        if new.attempt == old.attempt and (new.state is old.state or {old.state, new.state} <= WATCHED):
            return
        self._end_task()
        self.seen.phase = None
        process = self.process
        match new.state:
            case State.STARTING if process is not None:
                self._begin(probes.startup, process)
            case State.READY:
                self._became_ready(new)
                if process is not None:
                    self._begin(probes.watch, process)
            case State.DRAINING if process is not None:
                self._begin(probes.drain, process)
            case State.KILLING if new.fault is not None and self._ready_attempt != new.attempt:
                self.box.roll_back(self, new.fault)
            case State.BACKOFF | State.FAILED if old.state is State.STARTING and new.last_exit is not None:
                self.box.roll_back(self, new.last_exit)
        if new.state not in HAS_PROCESS:
            self.ready_at = None
            self.conditions.clear("not-as-asked", "port-not-ours", "no-figures")
            self.scraper, self.got = Scraper(self.box.clock), None
            self.drift = ()

    def _turned(self, old: Status, new: Status) -> None:
        if old.state is State.IDLE and new.state is State.PENDING:
            self._why = "demand"
        wish, idle = self.box.desired.wish(self.name), new.state is State.IDLE
        unloaded = self.box.boot if idle and old.state is not State.STOPPED else ""
        if unloaded != wish.unloaded_boot and not (idle and old.state is State.STOPPED):
            wish.unloaded_boot = unloaded
            self.box.save()
        self.box.swapper.entered(self, old, new)

    # --- processes -----------------------------------------------------------------------------------------------

    def adopt(self, process: Process, ready: bool) -> None:
        """A living run of an earlier daemon. The caller posts Adopted."""
        if ready:
            self._ready_attempt = process.attempt
            since, clock = self.box.desired.wish(self.name).ready_at, self.box.clock
            self.ready_at = None if since is None else clock.monotonic() - max(0.0, clock.wall() - since)
        self._take(process)

    def _take(self, process: Process) -> None:
        self.process, self.scraper = process, Scraper(self.box.clock)
        self.suspicion, self.seen = "", Seen(self.box.clock)
        self.conditions.clear("not-as-asked", "port-not-ours", "no-figures", "internal", "out-of-memory")
        self._follow = asyncio.get_running_loop().create_task(self._until_gone(process))

    async def _until_gone(self, process: Process) -> None:
        def starting() -> bool:
            return self._ready_attempt != process.attempt

        def exited(exit: ExitInfo) -> None:
            if exit.retry == "when-port-free" and not tree.listening_inodes(process.port):
                exit = replace(exit, retry="backoff")
            if told := oom.explain(self, exit.cause):
                exit = replace(exit, advice=f"{exit.advice} {told}".strip())
            failpoint("exited")
            self._post(Exited(exit), process.attempt)

        exit = await self._persist("follow", lambda: process.follow(exited, starting))
        if cgroup := process.launch.get("cgroup"):
            tree.remove_cgroup(cgroup)
        await self._persist("leavings", lambda: asyncio.to_thread(process.leavings.clear))
        if process.plan.gpus:
            pids = process.last_pids | ({process.pid} if process.pid else set())
            await self._persist("memory", lambda: self._memory_returns(process.plan.gpus, pids))
        await process.close()
        self.box.memory.gone(self)
        failpoint("gone")
        self._ended_process, self.process = process, None
        self._post(Gone(exit), process.attempt)

    async def _memory_returns(self, gpus: tuple[str, ...], pids: frozenset[int]) -> None:
        """Before the next start. Unreadable: the tree is empty, and 2 s passed. Held: shown, and looked at until it is free."""
        back = await memory_back(self.box.gpu, gpus, pids, MEMORY_BACK)
        text = "the memory of the last run could not be seen to come back (NVML unreadable)" if back is None else ""
        self.conditions.set("memory-unseen", text)
        if back is False:
            self.memory_held = gpus
            self.conditions.set(
                "memory-held", f"{', '.join(gpus)}: memory did not come back {MEMORY_BACK:g} s after the end"
            )
            self._waiter = asyncio.get_running_loop().create_task(self._until_memory_is_free(gpus, pids))

    async def _until_memory_is_free(self, gpus: tuple[str, ...], pids: frozenset[int]) -> None:
        while await memory_back(self.box.gpu, gpus, pids, 60.0) is False:
            pass
        self.memory_held = ()
        self.conditions.clear("memory-held")
        self.box.loop.changed("memory came back")

    def look_outside(self) -> None:
        """What a FAILED service waits for, and no plan tells."""
        self._look_at_memory()
        status = self.box.loop.statuses[self.name]
        exit = status.last_exit
        waits = status.state is State.FAILED and exit is not None and exit.retry == "when-port-free"
        if waits and not tree.listening_inodes(self.plan.port):
            self.box.loop.post(self.name, Changed("the port became free"))

    def _look_at_memory(self) -> None:
        """FAILED for want of GPU memory: tried again when clearly more of it is free than then."""
        status = self.box.loop.statuses[self.name]
        exit = status.last_exit
        if status.state is not State.FAILED or exit is None or exit.retry != "when-vram-changes":
            self._free_then = None
            return
        free = self._free_memory()
        if free is None:
            return
        if self._free_then is None:
            self._free_then = min(free, self._free_at_start() or free)
        if free > self._free_then + STEP:
            self._free_then = None
            self.box.loop.post(self.name, Changed("GPU memory became free"))

    def _free_memory(self) -> int | None:
        gpus = [gpu for uuid in self.plan.gpus if (gpu := self.box.gpu.latest.gpu(uuid)) is not None]
        sizes = [size for gpu in gpus if (size := free_bytes(gpu)) is not None]
        return sum(sizes) if sizes else None

    def _free_at_start(self) -> int | None:
        sizes = [size for size in self.box.memory.free_at_start(self.name).values() if size is not None]
        return sum(sizes) if sizes else None

    def _memory_held(self) -> frozenset[str]:
        return frozenset(uuid for runner in self.box.runners.values() for uuid in runner.memory_held)

    def _became_ready(self, status: Status) -> None:
        if self.process is None:
            return
        wish = self.box.desired.wish(self.name)
        if self._ready_attempt != self.process.attempt:
            self.ready_at, wish.ready_at = status.ready_since, self.box.clock.wall()
            if not self.process.adopted and status.ready_since is not None and status.started is not None:
                wish.load_s = status.ready_since - status.started
        self._ready_attempt, self.seen.starts = self.process.attempt, False
        wish.ready_run = str(self.process.launch["run"])
        wish.good = self.process.launch.get("wanted")
        failpoint("ready")
        self.box.save()

    def log_mark(self) -> logtail.Mark | None:
        """Where the log of the running start begins; None: nothing runs."""
        return self.process.mark if self.process is not None else None

    # --- telling -------------------------------------------------------------------------------------------------

    def post(self, event: Event, process: Process) -> None:
        self._post(event, process.attempt)

    def _post(self, event: Event, attempt: int) -> None:
        self.box.loop.post(self.name, event, attempt)

    def _tell(self, id: str, text: str, on: bool) -> None:
        self._emit("condition", id=id, text=text, on=on)

    def _emit(self, kind: str, **fields: Any) -> None:
        self.box.emit({"service": self.name, "kind": kind, **fields})

    def _begin(self, probe: Callable[[Runner, Process], Coroutine[Any, Any, None]], process: Process) -> None:
        work = self._persist(probe.__name__, lambda: probe(self, process))
        self._task = asyncio.get_running_loop().create_task(work)

    async def _persist(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        """A bug of ours leaves no service unwatched: told, and tried again."""
        while True:
            try:
                failpoint(name)
                return await work()
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                text = f"{name} ended with {type(error).__name__}: {error}; it is tried again each {AGAIN:g} s"
                self.conditions.set("internal", text)
                await asyncio.sleep(AGAIN)

    def _end_task(self) -> None:
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._task = None

    async def let_go(self) -> None:
        """The daemon ends and the service goes on: nothing is touched."""
        self._end_task()
        tasks = [task for task in (self._follow, self._waiter) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._records, self.models.let_go(), return_exceptions=True)
        if self.process is not None:
            await self.process.close()
