"""From a plan to wishes: which service starts, restarts, stops, or only changes live. Posts events, touches nothing.

A service that runs is never ended for a box fact: its generation is kept and the refusal is a condition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from llmsupervisor.base.ids import Json
from llmsupervisor.daemon.box import Box
from llmsupervisor.daemon.runner import Runner
from llmsupervisor.daemon.source import Planned
from llmsupervisor.daemon.start import same_wanted, sweep
from llmsupervisor.plan.diff import Change, changes, drift
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.place import gpu_words
from llmsupervisor.plan.plan import replan
from llmsupervisor.service.states import HAS_PROCESS, Changed, ExitInfo, Restart, Start, State, Status, Stop


class Reconciler:
    def __init__(self, box: Box, boot: str) -> None:
        self._box = box
        self._boot = boot
        self.planned: Planned | None = None

    def running(self) -> dict[str, Mapping[str, Json]]:
        """Service → the `wanted` of what runs, or would run at its next start."""
        return {
            name: (runner.process.launch.get("wanted") if runner.process else None) or runner.plan.wanted
            for name, runner in self._box.runners.items()
            if not runner.retired
        }

    def preview(self, planned: Planned) -> list[Change]:
        return [change for change in self._changes(planned) if change.action != "none"]

    def _changes(self, planned: Planned) -> list[Change]:
        """What needs a restart is judged by what runs; what is live was applied already where the last plan has it."""
        runs = changes(self.running(), planned.plan, planned.applied.definitions, planned.facts)
        last = {name: runner.plan.wanted for name, runner in self._box.runners.items() if not runner.retired}
        applied = changes(last, planned.plan, planned.applied.definitions, planned.facts)
        live = {change.service: change for change in applied if change.action in ("live", "none")}
        return [live.get(change.service, change) if change.action in ("live", "none") else change for change in runs]

    def apply(self, planned: Planned) -> list[Change]:
        """What changed. Idempotent: the same plan again changes nothing."""
        found = self._changes(planned)
        self.planned = planned
        for change in found:
            plan = planned.plan.services.get(change.service)
            if plan is None:
                self._retire(change.service)
            elif change.service in self._box.runners:
                self._update(self._box.runners[change.service], plan, change)
            else:
                self._create(plan)
        return [change for change in found if change.action != "none"]

    # --- one service ---------------------------------------------------------------------------------------------

    def _create(self, plan: ServicePlan) -> None:
        runner = Runner(plan, self._box)
        self._box.runners[plan.name] = runner
        self._box.loop.add(plan.name, runner, Status(since=self._box.clock.monotonic()))
        self._remember(plan)
        self.begin(runner)

    def begin(self, runner: Runner) -> None:
        """Goal up, unless a person stopped it during this boot."""
        wish = self._box.desired.wish(runner.name)
        if wish.stopped_by and wish.stopped_boot == self._boot:
            self._box.loop.post(runner.name, Stop(wish.stopped_by))
        else:
            wish.stopped_by = wish.stopped_boot = ""
            gateway = self.planned is not None and self.planned.applied.spec.gateway is not None
            unloaded = wish.unloaded_boot == self._boot and gateway
            demand = runner.plan.service.start == "demand" or unloaded
            self._box.loop.post(runner.name, Start("boot", demand=demand))

    def _retire(self, name: str) -> None:
        runner = self._box.runners[name]
        runner.retired = True
        if self._box.loop.statuses[name].state is State.STOPPED:
            self.forget(runner)
        else:
            self._box.loop.post(name, Stop("the spec"))

    def forget(self, runner: Runner) -> None:
        sweep(self._box.layout, runner.name)
        self._box.loop.remove(runner.name)
        del self._box.runners[runner.name]
        if self.planned is None or runner.name not in self.planned.applied.spec.services:
            runner.models.made.bequeath(self._box.runners.values())  # disabled, it may come back
        self._box.desired.services.pop(runner.name, None)

    def _update(self, runner: Runner, plan: ServicePlan, change: Change) -> None:
        status = self._box.loop.statuses[runner.name]
        if runner.retired:
            runner.retired = False
            self._adopt_plan(runner, plan)
            self._box.loop.post(runner.name, Start("the spec", demand=plan.service.start == "demand"))
            return
        runs = status.state in HAS_PROCESS
        if plan.refusals and runs and change.action == "restart":
            runner.conditions.set("refused", _held(plan, change))
            return
        wish = self._box.desired.wish(runner.name)
        if wish.rejected is not None and same_wanted(wish.rejected, plan.wanted):
            if not runner.conditions.has("rolled-back"):
                runner.conditions.set(
                    "rolled-back", "what the spec asks for did not become READY; the last that did, runs"
                )
            return
        before = runner.plan
        runner.conditions.clear("refused", "rolled-back")
        wish.rejected = None
        self._adopt_plan(runner, plan)
        if change.action != "restart":
            runner.models.edited()
        if runs and change.action == "restart":
            runner.generation = self._box.desired.generation
            self._box.loop.post(runner.name, Restart(change.why))
        elif not runs and _relevant(before, plan):
            runner.generation = self._box.desired.generation
            self._box.loop.post(runner.name, Changed(change.why or "the plan"))
        if runner.process is not None and change.action != "restart":
            runner.drift = drift(plan, runner.process.launch)

    def _adopt_plan(self, runner: Runner, plan: ServicePlan) -> None:
        runner.plan = plan
        runner.conditions.set("warning", "; ".join(plan.warnings))
        self._remember(plan)

    def _remember(self, plan: ServicePlan) -> None:
        wish = self._box.desired.wish(plan.name)
        wish.port = plan.port or wish.port
        if plan.gpus:
            wish.gpu_words, wish.gpus = list(gpu_words(plan.service)), list(plan.gpus)

    # --- what a start taught --------------------------------------------------------------------------------------

    def current(self, name: str) -> ServicePlan | None:
        """What the spec asks for now, also where an older generation was gone back to."""
        return self.planned.plan.services.get(name) if self.planned else None

    def take_current(self, runner: Runner) -> None:
        """A person's restart tries the spec's own generation again."""
        plan = self.current(runner.name)
        if plan is not None and not plan.refusals:
            self._box.desired.wish(runner.name).rejected = None
            runner.conditions.clear("refused", "rolled-back")
            self._adopt_plan(runner, plan)

    def roll_back(self, runner: Runner, exit: ExitInfo) -> None:
        """A new generation did not become READY: the last one that did is started again, and a condition says so."""
        good = self._box.desired.wish(runner.name).good
        tried = runner.process.launch.get("wanted") if runner.process else runner.plan.wanted
        if good is None or self.planned is None or same_wanted(good, tried) or same_wanted(good, runner.plan.wanted):
            return
        if not same_wanted(tried, runner.plan.wanted):
            return
        old = replan(good, runner.name, self.planned.applied.definitions, self.planned.facts, runner.plan.port)
        if old is None or old.fingerprint == runner.plan.fingerprint:
            return
        self._box.desired.wish(runner.name).rejected = runner.plan.wanted
        runner.plan = replace(old, port=runner.plan.port) if old.port == 0 else old
        text = f"generation {runner.generation} did not become READY ({exit.text}); going back to the last one that was"
        runner.conditions.set("rolled-back", text)
        self._box.loop.post(runner.name, Changed("going back to the last generation that was READY"))


def _held(plan: ServicePlan, change: Change) -> str:
    reasons = "; ".join(refusal.text for refusal in plan.refusals)
    return f"the spec asks for {change.why or 'another generation'}, which cannot start here: {reasons}"


def _relevant(before: ServicePlan, after: ServicePlan) -> bool:
    return (
        before.fingerprint != after.fingerprint
        or before.artefacts != after.artefacts
        or before.refusals != after.refusals
        or before.service.restart != after.service.restart
    )
