"""What real starts teach the planner (`learned.json`): how much their processes held, beside what the formulas say."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llmsupervisor.base.errors import LlmsupervisorError
from llmsupervisor.base.units import format_size
from llmsupervisor.host import resident
from llmsupervisor.host.journal import StateFile
from llmsupervisor.plan import learned
from llmsupervisor.plan.facts import Facts, GpuFact
from llmsupervisor.plan.learned import Learned
from llmsupervisor.plan.measure import cards_of, key, sums
from llmsupervisor.plan.sums import Place
from llmsupervisor.runtime.engine import Allocated, Parts
from llmsupervisor.service.states import State

if TYPE_CHECKING:
    from llmsupervisor.daemon.box import Box
    from llmsupervisor.daemon.process import Process
    from llmsupervisor.daemon.runner import Runner

VERSION = 1
GROWN = 64 * 1024**2
"""Bytes by which a process must have grown since it taught, to teach again."""
EVERY = 10
"""Looks at the host's memory between two of a service that has taught."""
SAME = 1024**2
"""Bytes that KV caches may differ by: the engine tells them in MiB with two digits."""


class Lessons:
    def __init__(self, box: Box, path: os.PathLike[str]) -> None:
        self._box = box
        self._file: StateFile | None = StateFile(path, VERSION)
        self.facts: Facts | None = None
        """That the present plan was made with."""
        self.known: learned.Lessons = ()
        self._taught: dict[str, tuple[int, dict[str | None, int]]] = {}
        """Service → attempt, and what it held when it taught."""
        self._looks = 0
        try:
            self.known = learned.from_json(self._file.load() or {})
        except LlmsupervisorError:
            self._file = None  # unreadable, or of a newer version: left alone

    def forget(self, service: str | None) -> int:
        """How many; of one service those of its present settings. What runs has taught: only its next start does again."""
        before = len(self.known)
        if service is None:
            self.known = ()
        else:
            plan, facts = self._box.runners[service].plan, self.facts or Facts()
            keys = {key(plan, facts, card) for card in cards_of(plan, facts) or (None,)}
            self.known = tuple(one for one in self.known if one.key not in keys)
        for wish in (self._box.desired.wish(name) for name in ([service] if service else list(self._box.runners))):
            wish.vram = None
        self._save()
        return before - len(self.known)

    # --- learning ------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """At services without a GPU: what their trees hold of the host's memory. Those on GPUs are told by `memory.py`."""
        self._looks += 1
        for name, runner in self._box.runners.items():
            process = runner.process
            if process is None or process.plan.gpus or self._box.loop.statuses[name].state is not State.READY:
                continue
            if not self._can_teach(process) or (self._has_taught(name, process) and self._looks % EVERY):
                continue
            if (held := resident.held(process.pids())) is not None:
                self.teach(runner, {None: held})

    def _can_teach(self, process: Process) -> bool:
        """An Ollama is READY long before it has loaded anything."""
        return (
            self.facts is not None
            and not process.adopted
            and process.plan.memory is not None
            and process.plan.definition.adapter != "ollama"
        )

    def teach(self, runner: Runner, held: Mapping[str | None, int]) -> None:
        """`held`: UUID, or None for the host → bytes, of a service that is READY."""
        process, facts = runner.process, self.facts
        if process is None or facts is None or not self._can_teach(process):
            return
        known = self._taught.get(runner.name)
        taught = known[1] if known and known[0] == process.attempt else {}
        cards = {gpu.uuid: gpu for gpu in facts.gpus or ()}
        news = False
        for gpu, size in held.items():
            if (gpu is not None and gpu not in cards) or (gpu in taught and size < taught[gpu] + GROWN):
                continue
            one = self._learned(runner, process, facts, cards.get(gpu or ""), size)
            self.known = learned.taught(self.known, one, again=gpu in taught)
            taught[gpu] = size
            news = True
        if news:
            self._taught[runner.name] = (process.attempt, taught)
            self._save()

    def _has_taught(self, name: str, process: Process) -> bool:
        return name in self._taught and self._taught[name][0] == process.attempt

    def _learned(self, runner: Runner, process: Process, facts: Facts, card: GpuFact | None, held: int) -> Learned:
        bare = sums(process.plan, replace(facts, learned=()))
        place = bare.at(card.uuid if card else None) if bare else None
        formula = (place.known - (place.overhead or 0)) if place else 0
        buffers = _told(runner.scraper.allocated, process.plan.gpus, card)
        compute = buffers.compute if buffers else None
        if compute is not None and place is not None:
            formula += compute - (place.compute or 0)
        if buffers and place:
            self._compare(runner, place, buffers)
        return Learned(
            key(process.plan, facts, card),
            held=held,
            planned=place.known if place and None not in (place.weights, place.kv_cache, place.compute) else None,
            overhead=held - formula,
            compute=compute,
            time=self._box.clock.wall(),
        )

    def _compare(self, runner: Runner, place: Place, buffers: Parts) -> None:
        """The formula of the KV cache is exact, or wrong."""
        ours, theirs = place.kv_cache, buffers.kv
        asked = not runner.conditions.has("not-as-asked")
        wrong = asked and ours is not None and theirs is not None and abs(ours - theirs) > SAME
        text = f"the plan has a KV cache of {format_size(ours)} on {place.label}, the engine {format_size(theirs)}"
        runner.conditions.set("memory-formula", text if wrong else "")

    def _save(self) -> None:
        if self._file is not None:
            self._file.save(learned.to_json(self.known))


def _told(allocated: Allocated | None, gpus: Sequence[str], card: GpuFact | None) -> Parts | None:
    """Of several GPUs the engine's log is told as one."""
    if allocated is None or (card is not None and len(gpus) > 1):
        return None
    return allocated.host if card is None else allocated.gpu


def of_file(path: os.PathLike[str]) -> learned.Lessons:
    """For a plan without a daemon; what cannot be read taught nothing."""
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, ValueError):
        return ()
    return learned.from_json(data) if isinstance(data, dict) else ()
