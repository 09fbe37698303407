"""After the daemon's death: what do the run folders say, what of it still lives, and how did the rest end?"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmsupervisor.base.layout import Layout
from llmsupervisor.daemon.box import Box
from llmsupervisor.daemon.desired import Desired
from llmsupervisor.daemon.process import CLASSIFIED, Process
from llmsupervisor.daemon.runner import Runner
from llmsupervisor.daemon.source import Planned
from llmsupervisor.daemon.start import sweep
from llmsupervisor.host import logtail, spawn
from llmsupervisor.host.leavings import Leavings
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.plan import replan
from llmsupervisor.service.exit import Phase, classify
from llmsupervisor.service.states import Adopted, ExitInfo, Status


@dataclass(frozen=True)
class Survivor:
    """A service that an earlier daemon started: `run` where it lives, else what is known of its end."""

    name: str
    launch: dict[str, Any]
    found: spawn.Found

    @property
    def run(self) -> spawn.Run | None:
        return self.found.run

    @property
    def wanted(self) -> dict[str, Any]:
        return self.launch.get("wanted") or {}

    @property
    def port(self) -> int:
        return int(self.launch.get("port") or 0)


async def survey(layout: Layout) -> list[Survivor]:
    """Every run folder with a start in it. Leftovers of killed shims are killed, records of starts that never were are
    removed; nothing else is touched."""
    names = sorted(p.name for p in Path(layout.run / "services").glob("*") if p.is_dir())
    found = await asyncio.gather(*(spawn.adopt(spawn.RunFolder(layout.service(name))) for name in names))
    for name, one in zip(names, found, strict=True):
        if one.state == "empty":
            sweep(layout, name)
    return [
        Survivor(name, one.facts.launch, one)
        for name, one in zip(names, found, strict=True)
        if one.facts.launch is not None and one.state != "empty"
    ]


def remember_ports(survivors: list[Survivor], desired: Desired) -> None:
    """A lost `desired.json` moves nobody: what was started last says who has which port."""
    for survivor in survivors:
        wish = desired.wish(survivor.name)
        wish.port = wish.port or survivor.port or None


def adopt(survivors: list[Survivor], planned: Planned, box: Box, boot: str) -> None:
    """Living runs become services again, with the plan they were started with. What ended meanwhile is told and recorded.

    A living run that the running code can make nothing of is killed: nobody would ever stop it.
    """
    for survivor in survivors:
        plan = _plan_of(survivor, planned)
        if survivor.run is None:
            Leavings.of(box.layout.service(survivor.name), str(survivor.launch.get("run"))).clear()
        if plan is None:
            if survivor.run is not None:
                spawn.kill_tree(survivor.run)
                _emit(box, survivor, what="killed", error="its launch record cannot be read by this version")
            continue
        runner = Runner(plan, box)
        box.runners[survivor.name] = runner
        box.loop.add(survivor.name, runner, _status(survivor, box, boot))
        ready_run = box.desired.wish(survivor.name).ready_run
        if survivor.run is not None:
            ready = survivor.launch.get("run") == ready_run
            runner.adopt(Process(survivor.run, plan, survivor.launch, box.layout, adopted=True), ready)
            box.loop.post(survivor.name, Adopted(ready))
            _emit(box, survivor, what="adopted", pid=survivor.run.main.pid if survivor.run.main else None)
        else:
            _tell_end(survivor, runner, box, ready_run)
    box.save()


def _plan_of(survivor: Survivor, planned: Planned) -> ServicePlan | None:
    ran = replan(survivor.wanted, survivor.name, planned.applied.definitions, planned.facts, survivor.port)
    return ran or planned.plan.services.get(survivor.name)


def _status(survivor: Survivor, box: Box, boot: str) -> Status:
    wish = box.desired.wish(survivor.name)
    stopped = bool(wish.stopped_by) and wish.stopped_boot == boot
    return Status(
        goal="down" if stopped else "up",
        loaded=survivor.run is not None,
        stopped_by=wish.stopped_by if stopped else "",
        attempt=int(survivor.launch.get("attempt") or 1),
        since=box.clock.monotonic(),
    )


def _tell_end(survivor: Survivor, runner: Runner, box: Box, ready_run: str) -> None:
    inode, offset = survivor.launch.get("log_from") or (0, 0)
    tail = logtail.tail(box.layout.log(survivor.name), logtail.Mark(inode, offset), CLASSIFIED)
    exit = _ended(survivor, runner, tail, ready_run, box.clock.wall())
    box.loop.statuses[survivor.name] = replace(box.loop.statuses[survivor.name], last_exit=exit)
    wish, run = box.desired.wish(survivor.name), str(survivor.launch.get("run"))

    def told() -> None:
        wish.told_run = run
        box.save()

    if wish.told_run != run:
        runner.record_end(exit, survivor.launch, lambda: tail, told)


def _ended(survivor: Survivor, runner: Runner, tail: str, ready_run: str, wall: float) -> ExitInfo:
    if survivor.found.state == "rebooted":
        return ExitInfo("boot-id-changed", "ended with the machine's last boot", time=wall)
    phase: Phase = "run" if survivor.launch.get("run") == ready_run else "start"
    return classify(runner.plan.definition, survivor.found.facts.exit, tail, phase, wall)


def _emit(box: Box, survivor: Survivor, **fields: Any) -> None:
    box.emit({"service": survivor.name, "kind": "daemon", **fields})
