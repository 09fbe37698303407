"""One start of one service, followed from its spawn (or its adoption) to the empty tree.

Two descriptors, two meanings: main's pidfd = it lives; the shim's = tree empty and log complete.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from llmsupervisor.base.layout import Layout
from llmsupervisor.host import logtail, spawn, tree
from llmsupervisor.host.http import Engine
from llmsupervisor.host.leavings import Leavings
from llmsupervisor.host.pidfd import readable
from llmsupervisor.host.shimcall import ShimFailed
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.service.exit import Phase, classify
from llmsupervisor.service.states import ExitInfo

CLASSIFIED = 256 * 1024
"""Bytes of the log's end in which the cause of an exit is sought."""
LAST_WORDS = 1.0
"""Seconds that they may need from a dead process to the log; as a rule it is milliseconds."""


class Process:
    """`plan` is what it was started with; `launch` the record of the start."""

    def __init__(
        self, run: spawn.Run, plan: ServicePlan, launch: dict[str, Any], layout: Layout, adopted: bool
    ) -> None:
        self.run = run
        self.plan = plan
        self.launch = launch
        self.adopted = adopted
        self.attempt = int(launch.get("attempt") or 1)
        self.generation = int(launch.get("generation") or 0)
        self.log = layout.log(plan.name)
        self._folder = layout.service(plan.name)
        inode, offset = launch.get("log_from") or (0, 0)
        self.mark = logtail.Mark(inode, offset)
        self.port = int(launch.get("port") or plan.port)
        self.last_pids: frozenset[int] = frozenset()
        """Of the last look at which it lived."""
        self.leavings = Leavings.of(self._folder, run.run_id)
        self.key = self._key(plan.definition)
        """The header that the engine checks: name and value."""
        self.engine = Engine(f"http://{plan.host}:{self.port}", self.key)

    @property
    def endpoint(self) -> str:
        return f"http://{self.plan.host}:{self.port}"

    @property
    def pid(self) -> int | None:
        return self.run.main.pid if self.run.main else None

    @property
    def started_at(self) -> float | None:
        """Unix seconds."""
        time = self.launch.get("time")
        return float(time) if isinstance(time, int | float) else None

    def _key(self, definition: Definition) -> tuple[str, str] | None:
        if definition.key is None:
            return None
        try:
            with open(self._folder.secrets, encoding="utf-8") as file:
                value = json.load(file).get(definition.key.env)
        except (OSError, ValueError):
            return None
        return (definition.key.header, definition.key.prefix + value) if value else None

    def pids(self) -> list[int]:
        """Of the service without the shim; empty once it is gone."""
        found = [identity.pid for identity in tree.descendants(self.run.shim.pid)]
        self.last_pids = frozenset(found) or self.last_pids
        return found

    def log_tail(self, limit: int = CLASSIFIED) -> str:
        """Of this run only."""
        return logtail.tail(self.log, self.mark, limit)

    def log_head(self, limit: int = CLASSIFIED) -> str:
        """Of this run only: what it said while it loaded."""
        return logtail.head(self.log, self.mark, limit)

    async def follow(self, exited: Callable[[ExitInfo], None], starting: Callable[[], bool]) -> ExitInfo | None:
        """Returns when the tree is empty. The exit only where `exited` was not called: nothing was ever started."""
        try:
            if self.run.main is None:
                await spawn.wait_run(self.run)
        except ShimFailed as error:
            spawn.kill_tree(self.run)
            await readable(self.run.shim_pidfd)
            return ExitInfo("shim-failed", str(error), time=time.time())
        if self.run.main_pidfd is not None:
            await readable(self.run.main_pidfd)
        record = await spawn.wait_exit(self.run)
        phase: Phase = "start" if starting() else "run"
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                await readable(self.run.shim_pidfd)
        exited(classify(self.plan.definition, record, self.log_tail(), phase, time.time()))
        await readable(self.run.shim_pidfd)
        if record is None:
            await spawn.adopt(self.run.folder)
        return None

    async def close(self) -> None:
        await self.engine.aclose()
        self.run.close()
