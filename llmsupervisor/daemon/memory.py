"""GPU memory of services: what each holds, what its next start will need, and what is free."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmsupervisor.base.ids import canonical, sha256
from llmsupervisor.daemon.lessons import Lessons
from llmsupervisor.host import tree
from llmsupervisor.host.gpu import Sample, free_bytes
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.measure import need
from llmsupervisor.service.states import State

if TYPE_CHECKING:
    from llmsupervisor.daemon.box import Box
    from llmsupervisor.daemon.runner import Runner

STEP = 64 * 1024**2
"""Bytes by which a measured need must change before it is written down again."""

Held = dict[str, int]
"""UUID → bytes."""


class Memory:
    """`held` of a service is what NVML lists for its processes. Where NVML lists none of them (in a container it numbers
    them as the host does), it is by how much the use of its GPUs rose during its start, if nobody else of ours came or went."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self.lessons = Lessons(box, Path(box.layout.learned))
        self._held: dict[str, Held] = {}
        self._risen_only: set[str] = set()
        self._free_at_start: dict[str, dict[str, int | None]] = {}
        self._before: dict[str, tuple[Held, object]] = {}
        self._seen = 0.0

    # --- measuring -----------------------------------------------------------------------------------------------

    def spawned(self, runner: Runner) -> None:
        self._held.pop(runner.name, None)
        self._risen_only.discard(runner.name)
        self._free_at_start[runner.name] = self.free(runner.plan)
        self._before.pop(runner.name, None)
        sample = self._box.gpu.latest
        used = {uuid: gpu.memory_used_bytes for uuid in runner.plan.gpus if (gpu := sample.gpu(uuid)) is not None}
        known = {uuid: size for uuid, size in used.items() if size is not None}
        if known and len(known) == len(runner.plan.gpus):
            self._before[runner.name] = (known, self._others(runner))

    def gone(self, runner: Runner) -> None:
        self._held.pop(runner.name, None)

    def look(self) -> None:
        """At a new sample: what everybody with a process holds; of those that are READY it is remembered."""
        sample = self._box.gpu.latest
        if not sample.gpus or sample.time <= self._seen:
            return
        self._seen = sample.time
        listed = self._listed(sample)
        learned = False
        for name, runner in self._box.runners.items():
            status = self._box.loop.statuses[name]
            if runner.process is None or not runner.process.plan.gpus:
                continue
            ready = status.state is State.READY and (status.ready_since or 0.0) < sample.time
            risen = self._risen(runner, sample) if ready and name not in listed else None
            held = listed.get(name) or risen or self._held.get(name)
            if held:
                self._held[name] = held
            if name in listed:
                self._risen_only.discard(name)
            elif risen:
                self._risen_only.add(name)
            if held and ready:
                learned = self._learn(runner, held) or learned
                self.lessons.teach(runner, {uuid: size for uuid, size in held.items()})
        if learned:
            self._box.save()

    def _listed(self, sample: Sample) -> dict[str, Held]:
        """Only of services all of whose listed processes say a size."""
        shims = {runner.process.run.shim.pid: name for name, runner in self._box.runners.items() if runner.process}
        found: dict[str, Held] = {}
        dark: set[str] = set()
        for gpu in sample.gpus or ():
            for process in gpu.processes or ():
                name = next((shims[pid] for pid in tree.ancestors(process.pid) if pid in shims), None)
                if name is None:
                    continue
                if process.used_bytes is None:
                    dark.add(name)
                else:
                    held = found.setdefault(name, {})
                    held[gpu.uuid] = held.get(gpu.uuid, 0) + process.used_bytes
        return {name: held for name, held in found.items() if name not in dark}

    def _risen(self, runner: Runner, sample: Sample) -> Held | None:
        """Once, at the first sample after it became READY."""
        used, others = self._before.pop(runner.name, ({}, None))
        if not used or others != self._others(runner):
            return None
        now = {uuid: gpu.memory_used_bytes for uuid in used if (gpu := sample.gpu(uuid)) is not None}
        risen = {uuid: size - used[uuid] for uuid, size in now.items() if size is not None}
        return risen if len(risen) == len(used) and all(size > 0 for size in risen.values()) else None

    def _others(self, runner: Runner) -> object:
        """Who else has a process on its GPUs."""
        statuses, mine = self._box.loop.statuses, set(runner.plan.gpus)
        return sorted(
            (name, other.process.attempt)
            for name, other in self._box.runners.items()
            if name != runner.name and other.process and mine & set(other.process.plan.gpus) and name in statuses
        )

    def _learn(self, runner: Runner, held: Held) -> bool:
        """Whether it is worth a write."""
        assert runner.process is not None
        wish, of = self._box.desired.wish(runner.name), rendered_hash(runner.process.launch.get("rendered"))
        old: Mapping[str, int] = wish.vram.get("gpus", {}) if wish.vram and wish.vram.get("of") == of else {}
        if old.keys() == held.keys() and all(abs(old[uuid] - size) < STEP for uuid, size in held.items()):
            return False
        wish.vram = {"gpus": dict(held), "of": of}
        return True

    # --- asking --------------------------------------------------------------------------------------------------

    def held(self, name: str) -> Held | None:
        """UUID → bytes; None: not known, or no process."""
        return self._held.get(name)

    def free_at_start(self, name: str) -> Mapping[str, int | None]:
        """On each of its GPUs when its last start began."""
        return self._free_at_start.get(name, {})

    def source(self, name: str) -> Literal["nvml", "delta"]:
        """Of what `held` says."""
        return "delta" if name in self._risen_only else "nvml"

    def needs(self, plan: ServicePlan) -> dict[str, int | None]:
        """What it held when it last was READY as it would be started now, else what the plan's sums say, else what the
        spec allows it."""
        held = self._last(plan)
        asked = plan.service.gate != "off"
        return {uuid: held.get(uuid, need(plan, uuid) if asked else plan.service.gpu_memory) for uuid in plan.gpus}

    def sums(self, plan: ServicePlan) -> dict[str, str]:
        """UUID → of what that consists, in words; where the plan's sums were taken."""
        held, memory = self._last(plan), plan.memory
        if memory is None or plan.service.gate == "off":
            return {}
        places = {uuid: memory.at(uuid) for uuid in plan.gpus if uuid not in held}
        return {uuid: place.sum for uuid, place in places.items() if place is not None and place.total is not None}

    def _last(self, plan: ServicePlan) -> Mapping[str, int]:
        vram = self._box.desired.wish(plan.name).vram or {}
        return dict(vram.get("gpus", {})) if vram.get("of") == rendered_hash(plan.rendered) else {}

    def holds(self, runner: Runner) -> dict[str, int | None]:
        """On each GPU that it was started on."""
        plan = runner.process.plan if runner.process else runner.plan
        held = self._held.get(runner.name)
        return {**dict.fromkeys(plan.gpus, 0), **held} if held else self.needs(plan)

    def free(self, plan: ServicePlan) -> dict[str, int | None]:
        """Of its GPUs, less what others that still load have not taken yet."""
        sample = self._box.gpu.latest
        return {uuid: self._free(sample, uuid, plan.name) for uuid in plan.gpus}

    def _free(self, sample: Sample, uuid: str, me: str) -> int | None:
        gpu = sample.gpu(uuid)
        there = None if gpu is None else free_bytes(gpu)
        if there is None:
            return None
        for name, runner in self._box.runners.items():
            status = self._box.loop.statuses[name]
            if name != me and runner.process is not None and status.state is State.STARTING:
                coming = self.needs(runner.process.plan).get(uuid) or 0
                there -= max(0, coming - (self._held.get(name) or {}).get(uuid, 0))
        return max(0, there)

    def unseen(self, plan: ServicePlan) -> str:
        """Who became READY on one of its GPUs since the last look: what that holds is not in `free` yet. Empty: nobody."""
        sample = self._box.gpu.latest
        for name, runner in self._box.runners.items() if sample.gpus else ():
            ready = self._box.loop.statuses[name].ready_since
            if name == plan.name or runner.process is None or ready is None or ready < sample.time:
                continue
            if set(plan.gpus) & set(runner.process.plan.gpus):
                return name
        return ""

    def label(self, uuid: str) -> str:
        gpu = self._box.gpu.latest.gpu(uuid)
        return uuid if gpu is None else f"GPU {gpu.index}"


def rendered_hash(rendered: Any) -> str:
    """Of the argv and environment of a start: another one may need another amount."""
    return sha256(canonical(rendered))
