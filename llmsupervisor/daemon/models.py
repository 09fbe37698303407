"""The targets of a service that loads its models by itself: the single writer of their states. `service/target.py` decides,
the tasks here do what it orders, and what comes of it is posted back. For every other runtime it is empty."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import traceback
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from llmsupervisor.daemon.enrich import EngineLog
from llmsupervisor.daemon.made import Made
from llmsupervisor.daemon.modelwork import AGAIN, APPEARS, ASK, Entry, Stopped, Work, parts
from llmsupervisor.daemon.runners import RunnerProcess, find, together
from llmsupervisor.daemon.tags import Tags
from llmsupervisor.link.gateway import Finished
from llmsupervisor.runtime import models
from llmsupervisor.runtime.adapter import adapter_for
from llmsupervisor.runtime.engine import Figures
from llmsupervisor.runtime.llama_server import LlamaServer
from llmsupervisor.runtime.models import Model, RunnerArgs
from llmsupervisor.service.states import HAS_PROCESS, State
from llmsupervisor.service.target import (
    STEPPED,
    Answers,
    Appeared,
    Deadline,
    Demand,
    Edited,
    Failed,
    Idle,
    Order,
    RunnerGone,
    Silent,
    TargetEvent,
    TargetPolicy,
    TargetState,
    transition,
)

if TYPE_CHECKING:
    from llmsupervisor.daemon.process import Process
    from llmsupervisor.daemon.runner import Runner

CALLED = HAS_PROCESS - {State.STOPPING, State.KILLING}
"""States in which the engine may be called."""
LOOK = 0.5
TRANSFER = 20.0
"""Seconds of a transfer that a start waits for."""
SAID = 0.5
"""Seconds after a death in which the engine may still say that it was its own doing."""
APPEAR = 5
"""Looks between two at the process tree, and at what edits left behind."""
COMES = 5.0
"""Seconds after such a word in which the other one may come."""


class Models:
    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.made = Made(runner)
        self._process: Process | None = None
        self._entries: dict[str, Entry] = {}
        self._changed = asyncio.Event()
        self._log: EngineLog | None = None
        self._looks = 0
        self._closing: set[asyncio.Task[None]] = set()
        self._mourning: set[asyncio.Task[None]] = set()
        self._tags = Tags(runner)

    # --- the service ---------------------------------------------------------------------------------------------

    def begin(self, process: Process) -> None:
        """The engine answers. Also of one that an earlier daemon started: what it has is looked at."""
        if self._process is process:
            return
        self._end()
        wanted = adapter_for(self._runner.plan.definition).models(self._runner.plan.service)
        if not wanted:
            return
        self._process = process
        self._log = EngineLog(process.log, self._now, self._tell_gateway)
        self._entries = {model.name: Entry(model) for model in wanted}
        for name in self._entries:
            self.post(name, Answers())

    def entered(self, state: State) -> None:
        """Of the service."""
        if state not in CALLED and self._process is not None:
            self._end()

    def _end(self) -> None:
        self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None
        for name, entry in self._entries.items():
            self.post(name, Silent())
            self._leave(entry)
        self._runner.conditions.clear("model-failed", "offload", "runner-unseen")

    async def let_go(self) -> None:
        """The daemon ends, everything runs on."""
        tasks = [task for task in (self._tags.work, *(entry.work for entry in self._entries.values())) if task]
        if self._log is not None:
            self._log.close()
        for entry in self._entries.values():
            self._leave(entry)
            if entry.timer is not None:
                entry.timer.cancel()
        for task in (*tasks, *self._mourning):
            task.cancel()
        await asyncio.gather(*tasks, *self._mourning, *self._closing, return_exceptions=True)

    def edited(self) -> None:
        """The spec changed, and no restart is due."""
        if self._process is None:
            return
        wanted = adapter_for(self._runner.plan.definition).models(self._runner.plan.service)
        for name in self._entries.keys() - {model.name for model in wanted}:
            self._forget(self._entries.pop(name), self._process)
        for model in wanted:
            entry = self._entries.get(model.name)
            if entry is None:
                self._entries[model.name] = Entry(model)
                self.post(model.name, Answers())
                continue
            if entry.model == model:
                continue
            old, entry.model = entry.model, model
            if (old.tag, old.file) != (model.tag, model.file):
                entry.superseded = entry.superseded or old.tag
                self.post(model.name, Edited(model.other_than(old)))
            elif entry.target.state is TargetState.FAILED or (model.preload and not old.preload):
                self.post(model.name, Edited("the spec"))

    def _forget(self, entry: Entry, process: Process) -> None:
        """No longer in the spec: no request comes any more, and the engine waits for those that run."""
        self._order(entry, Order.DROP)
        if entry.timer is not None:
            entry.timer.cancel()
        self._leave(entry)
        self.tell()
        unload = process.engine.call(*parts(models.unload(entry.model.tag, entry.model.task)), ASK)
        self._closing.add(asyncio.get_running_loop().create_task(_ended(unload)))

    # --- the writer ----------------------------------------------------------------------------------------------

    def post(self, name: str, event: TargetEvent, step: int | None = None) -> None:
        entry = self._entries.get(name)
        if entry is None or (isinstance(event, STEPPED) and step != entry.target.step):
            return
        old = entry.target
        new, order = transition(old, event, self.policy(entry.model), self._now())
        entry.target = new
        if order is not None:
            self._order(entry, order)
        self._arm(name, entry)
        if (new.state, new.reason) != (old.state, old.reason):
            fields = {"was": old.state.value, "state": new.state.value, "reason": new.reason}
            self._runner.box.emit({"service": self._runner.name, "kind": "target", "target": name, **fields})
            self.tell()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if self._runner.box.gateway is not None:
            self._runner.box.gateway.wake()

    def _tell_gateway(self, message: Mapping[str, Any]) -> None:
        if self._runner.box.gateway is not None:
            self._runner.box.gateway.tell(message)

    def policy(self, model: Model) -> TargetPolicy:
        plan = self._runner.plan
        load = plan.service.start_timeout or 3 * plan.definition.ready.cap * plan.definition.ready.timeout
        return TargetPolicy(
            preload=model.preload,
            load_timeout=load,
            unload_timeout=plan.service.drain_timeout + 30.0,
            max_delay=plan.service.restart.max_delay,
            healthy_after=plan.service.restart.healthy_after,
        )

    def _order(self, entry: Entry, order: Order) -> None:
        if entry.work is not None and entry.work is not _current():
            entry.work.cancel()
        entry.work, entry.progress = None, None
        if order is Order.DROP or self._process is None:
            return
        work = Work(self, self._runner, self._process)
        works = {Order.LOOK: work.look, Order.CREATE: work.create, Order.LOAD: work.load, Order.UNLOAD: work.unload}
        done = self._do(entry, works[order](entry), entry.target.step)
        entry.work = asyncio.get_running_loop().create_task(done)

    async def _do(self, entry: Entry, work: Coroutine[Any, Any, TargetEvent], step: int) -> None:
        try:
            event = await work
        except Stopped as stopped:
            event = Failed(str(stopped), stopped.lasting)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            event = Failed(f"{type(error).__name__}: {error}")
        self.post(entry.model.name, event, step)

    def _arm(self, name: str, entry: Entry) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        if entry.target.deadline is not None:
            delay = max(0.0, entry.target.deadline - self._now())
            entry.timer = asyncio.get_running_loop().call_later(delay, self.post, name, Deadline())

    def _now(self) -> float:
        return self._runner.box.clock.monotonic()

    def tell(self) -> None:
        failed = [
            f"{name}: {entry.target.reason}"
            for name, entry in self._entries.items()
            if entry.target.state is TargetState.FAILED
        ]
        self._runner.conditions.set("model-failed", "; ".join(failed))
        less = [f"{name}: {entry.offload}" for name, entry in self._entries.items() if entry.offload]
        self._runner.conditions.set("offload", "; ".join(less))

    # --- runners -------------------------------------------------------------------------------------------------

    def watch(self, entry: Entry, late: bool = False) -> bool:
        """Whether a process has it in memory; from here on that one is watched. `late`: whatever its context is (that of
        the model's training is the longest there is)."""
        other = late or self._runner.plan.service.client_options == "passed"

        def wanted(args: RunnerArgs) -> bool:
            return args.blob == entry.blob and (other or args.context_length in (None, entry.model.context_length))

        process = self._process
        found = find(process.run.shim.pid, wanted) if entry.blob and process is not None else None
        if found is None:
            return False
        if entry.process is not None and entry.process.identity == found[0]:
            return not entry.process.dead.is_set()
        self._leave(entry)
        definition, stall = self._runner.plan.definition, self._runner.plan.service.probe.stall_timeout
        if (said := definition.runner) is None:
            return True
        adapter = LlamaServer(definition.model_copy(update={"metrics": said.metrics}))
        entry.process = RunnerProcess.open(
            found,
            adapter,
            min(said.hang, stall),
            stall,
            lambda dead, why: self._died(entry, dead, why),
            self._runner.box.clock,
            lambda: self._runner.box.traffic.of(self.key(entry.model.name)),
        )
        return entry.process is not None

    def key(self, name: str) -> str:
        """Of its traffic."""
        return f"{self._runner.name}/{name}" if len(self._entries) > 1 else self._runner.name

    def _leave(self, entry: Entry) -> None:
        if entry.process is not None:
            process, entry.process = entry.process, None
            self._closing = {task for task in self._closing if not task.done()}
            self._closing.add(asyncio.get_running_loop().create_task(process.close()))
        entry.offload = ""

    def _died(self, entry: Entry, dead: RunnerProcess, killed: str) -> None:
        self._mourning = {task for task in self._mourning if not task.done()}
        self._mourning.add(asyncio.get_running_loop().create_task(self._mourn(entry, dead, killed, self._now())))

    async def _mourn(self, entry: Entry, dead: RunnerProcess, killed: str, at: float) -> None:
        """Whose doing was it? The engine ends one only to load another, or the same with another context; what it says of
        an end in its log it also says of a death, but then the other may come late: after the memory came back."""
        evicted = False
        while entry.target.state is TargetState.LOADED and not killed and not evicted and entry.process is dead:
            evicted = self._other_comes(entry, dead)
            said = self._log is not None and self._log.read() >= at - SAID
            if self._now() > at + (COMES if said else SAID):
                break
            await asyncio.sleep(AGAIN)
        if entry.process is not dead or self._process is None:
            return
        self._leave(entry)
        if evicted and self._runner.plan.service.client_options == "passed":
            for _ in range(int(APPEARS / AGAIN)):
                if self.watch(entry):
                    return
                await asyncio.sleep(AGAIN)
        why = "Ollama unloaded it by itself" if evicted else killed or "its process died"
        self.tell()
        self.post(entry.model.name, RunnerGone(f"{why} (pid {dead.identity.pid})", evicted))

    def _other_comes(self, entry: Entry, dead: RunnerProcess) -> bool:
        """Of which the dead one is not the cause: one of the same kind takes its place."""
        others = (each.target.state for each in self._entries.values() if each is not entry)
        if TargetState.LOADING in others:
            return True
        kind = (dead.args.blob, dead.args.context_length)
        known = {e.process.identity for e in self._entries.values() if e.process is not None}
        shim = self._process.run.shim.pid if self._process is not None else 0
        found = find(shim, lambda args: (args.blob, args.context_length) != kind)
        return found is not None and found[0].start >= dead.identity.start and found[0] not in known

    def look(self) -> None:
        """Each second: the log, how fast what is made goes on, and now and then what somebody else had loaded."""
        if self._log is not None:
            self._log.read()
        for entry in self._entries.values():
            entry.pace.look(self._now(), entry.progress)
        self._looks += 1
        if self._process is None or self._looks % APPEAR:
            return
        for name, entry in self._entries.items():
            entry.replaced = self.made.replaced(entry.model)
            if entry.target.state is TargetState.UNLOADED and self.watch(entry):
                self.post(name, Appeared())
        self._tags.look(self._process)

    def finished(self, said: Finished) -> None:
        """A request ended at the gateway, which would like to know more of it."""
        if self._log is not None:
            self._log.finished(said)

    # --- traffic -------------------------------------------------------------------------------------------------

    def demand(self, name: str) -> None:
        """Of the one that there is where it has no name of its own."""
        if not name and len(self._entries) == 1:
            (name,) = self._entries
        entry = self._entries.get(name)
        if (
            entry is not None
            and entry.target.state is TargetState.UNLOADED
            and (why := self.made.replaced(entry.model))
        ):
            self.post(name, Edited(why))
        self.post(name, Demand())

    def idle(self, name: str, why: str) -> None:
        self.post(name, Idle(why))

    # --- what others see -----------------------------------------------------------------------------------------

    @property
    def entries(self) -> Mapping[str, Entry]:
        """By the name in the spec; empty where nobody is there, or where the service is one target."""
        return self._entries if self._process is not None else {}

    @property
    def drift(self) -> tuple[str, ...]:
        return tuple(entry.replaced for entry in self.entries.values() if entry.replaced)

    def shown(self) -> Mapping[str, Entry]:
        """Also where nobody is there: all of them absent."""
        if self._process is not None:
            return self._entries
        plan = self._runner.plan
        return {model.name: Entry(model) for model in adapter_for(plan.definition).models(plan.service)}

    def figures(self) -> Figures | None:
        """Of all of them together; None: nothing of them is known."""
        return together(
            [e.process.figures for e in self.entries.values() if e.process is not None and e.process.figures]
        )

    async def settled(self) -> None:
        """Until those that are to be preloaded are loaded, or failed."""
        while any(_unsettled(entry, self._now()) for entry in self._entries.values()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._changed.wait()

    def phase(self) -> str | None:
        """Of those that are not there yet."""
        texts = [
            f"{name}: {entry.progress.status if entry.progress else entry.target.state}"
            for name, entry in self._entries.items()
            if entry.target.state in (TargetState.CREATING, TargetState.LOADING)
        ]
        return ", ".join(texts) or None


def _unsettled(entry: Entry, now: float) -> bool:
    """What is still read, uploaded or pulled after a while may take hours."""
    transfers = entry.progress is not None and entry.progress.total is not None and now - entry.target.since > TRANSFER
    return entry.target.state in (TargetState.ABSENT, TargetState.CREATING, TargetState.LOADING) and not transfers


async def _ended(work: Coroutine[Any, Any, object]) -> None:
    await work


def _current() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
