"""Tags of ours that nobody has any more: an edit left them behind, or it came while no daemon was there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llmsupervisor.daemon.made import tags_of
from llmsupervisor.daemon.modelwork import ASK, parts
from llmsupervisor.runtime import models
from llmsupervisor.service.states import State
from llmsupervisor.service.target import TargetState

if TYPE_CHECKING:
    from llmsupervisor.daemon.process import Process
    from llmsupervisor.daemon.runner import Runner

SETTLED = frozenset({TargetState.UNLOADED, TargetState.LOADED, TargetState.FAILED})


class Tags:
    """Of one Ollama: what it made. Another one may have the same folder."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.work: asyncio.Task[None] | None = None

    def look(self, process: Process) -> None:
        if self.work is None or self.work.done():
            self.work = asyncio.get_running_loop().create_task(self.tidy(process))

    async def tidy(self, process: Process) -> None:
        for tag in self._left(process):
            if tag in self._left(process):
                await self._drop(process, tag)

    def _left(self, process: Process) -> list[str]:
        """None before all is as it should be: what is being made may need the same weights, and of a start that fails the
        generation before comes back."""
        runners = self._runner.box.runners.values()
        states = {entry.target.state for runner in runners for entry in runner.models.entries.values()}
        ready = self._runner.box.loop.statuses[self._runner.name].state is State.READY
        if not ready or self._runner.process is not process or not states <= SETTLED:
            return []
        return self._runner.models.made.left({tag for runner in runners for tag in tags_of(runner)})

    async def _drop(self, process: Process, tag: str) -> None:
        """Out of memory, and at a later look off the disk."""
        loaded = await process.engine.call("GET", "/api/ps", None, ASK)
        if not loaded.ok:
            return
        if models.in_memory(loaded.json, tag) is not None:
            await process.engine.call(*parts(models.unload(tag, self._runner.plan.service.task)), ASK)
            return
        answer = await process.engine.call(*parts(models.delete(tag)), ASK)
        if answer.status in (200, 404):
            self._runner.models.made.forget(tag)
