"""Reads the spec when it, or what it was planned with, changes, and applies the difference."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmsupervisor.base.errors import SpecError
from llmsupervisor.base.ids import Json
from llmsupervisor.daemon import advice
from llmsupervisor.daemon.box import Box
from llmsupervisor.daemon.notify import Notify
from llmsupervisor.daemon.observed import Look, Observer, turns
from llmsupervisor.daemon.reconcile import Reconciler
from llmsupervisor.daemon.source import Applied, Planned, Source
from llmsupervisor.host.failpoints import failpoint
from llmsupervisor.host.files import atomic_write, read_spec, rewrite, secret_path
from llmsupervisor.host.watch import watch
from llmsupervisor.plan.diff import Change
from llmsupervisor.plan.lint import Finding

RECHECK = 5.0
"""Seconds between two looks at what refused services wait for, and at replaced binaries and models."""
NVML_WAIT = 3.0
"""Seconds that the first plan waits for the GPUs; a service that needs them waits in PENDING after that."""
DIFF_LINES = 2000
LONG = 2.0
"""Seconds after which those who watch are told what is waited for."""
PACE = 2.0
"""Seconds between two reloads by SIGHUP."""


class Reloader:
    """`spec_error` is the text of a refused spec: what ran before goes on, and `status` shows it."""

    def __init__(self, box: Box, reconciler: Reconciler, notify: Notify, ring: Callable[[], None]) -> None:
        self.applied: Applied | None = None
        self.spec_error: str | None = None
        self.observer = Observer(box, self)
        self.findings: list[Finding] = []
        self.seen: Look = {}
        """What observed rules look at."""
        self.turned: dict[str, float] = {}
        """Service → when its spec was changed last, Unix seconds."""
        self._said: tuple[int, list[Change]] | None = None
        """Generation and its changes: what waits (for a drain, for what refuses it) is a change at each look."""
        self.asking: list[str] = []
        """Executables that are being run for what their `--help` says; a reload waits for them."""
        self.hangup = asyncio.Event()
        self._box = box
        self._reconciler = reconciler
        self._notify = notify
        self._ring = ring
        self._source: Source | None = None
        self._one_at_a_time = asyncio.Lock()
        self._last_good = ""
        self._read_at: float | None = None
        """Unix seconds of the first read: what was written since is news to the watch."""

    # --- the first plan ------------------------------------------------------------------------------------------

    async def first(
        self, path: Path, running: Sequence[Mapping[str, Json]], own_ports: frozenset[int], ask: bool
    ) -> Planned:
        """An invalid spec starts what was last good, loudly; without one: SpecError."""
        self._source = Source(path.absolute(), self._box.gpu, Path(self._box.layout.binaries))
        self._box.desired.spec_path = os.fspath(self._source.path)
        self._read_at = time.time()
        self.applied = await self._read_or_last_good(self._source)
        if any(service.gpus != () for service in self.applied.spec.services.values()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(NVML_WAIT):
                    await self._box.gpu.fresh()
        return await self._plan(self.applied, running, own_ports, ask)

    async def second(self) -> Planned:
        """The first plan again, with what its executables say."""
        assert self.applied is not None
        async with self._one_at_a_time:
            return await self._plan(self.applied)

    async def without_spec(self, running: Sequence[Mapping[str, Json]], own_ports: frozenset[int]) -> Planned:
        """Only what is needed to stop what runs."""
        path = Path(self._box.desired.spec_path or "llmsupervisor.toml")
        self._source = Source(path.absolute(), self._box.gpu, Path(self._box.layout.binaries))
        self.applied = await self._source.nothing()
        return await self._plan(self.applied, running, own_ports, ask=False)

    async def _read_or_last_good(self, source: Source) -> Applied:
        try:
            return await source.read()
        except SpecError as error:
            try:
                applied = await source.parse(Path(self._box.layout.last_good).read_text(encoding="utf-8"))
            except (OSError, SpecError):
                raise error from None
            self.spec_error = str(error)
            print(f"llmsupervisor: the spec is wrong, the last good one runs:\n{error}", file=sys.stderr)
            return applied

    async def _plan(
        self,
        applied: Applied,
        running: Sequence[Mapping[str, Json]] = (),
        own_ports: frozenset[int] = frozenset(),
        ask: bool = True,
    ) -> Planned:
        assert self._source is not None
        wishes = self._box.desired.services
        ours = {runner.process.port for runner in self._box.runners.values() if runner.process}
        return await self._source.plan(
            applied,
            [*running, *self._reconciler.running().values()],
            {name: wish.port for name, wish in wishes.items() if wish.port},
            {name: tuple(wish.gpus) for name, wish in wishes.items() if wish.gpus},
            {name: wish.gpu_words for name, wish in wishes.items() if wish.gpus},
            own_ports | ours,
            self._box.memory.lessons.known,
            self._box.desired.made_from(),
            self._asks if ask else None,
        )

    def _asks(self, executables: list[str]) -> None:
        """A short question is nothing that anybody is woken for."""
        self.asking = executables
        if executables:
            asyncio.get_running_loop().call_later(LONG, self._ring)
        else:
            self._ring()

    # --- reload --------------------------------------------------------------------------------------------------

    async def reload(self, why: str, dry_run: bool = False) -> dict[str, Any]:
        """A spec error changes nothing and is shown."""
        assert self._source is not None
        async with self._one_at_a_time:
            if dry_run:
                return await self._preview(self._source)
            self._notify.reloading()
            try:
                planned = await self._plan(await self._source.read())
                self.spec_error = None
                return self._answer(self.apply(planned, why), None, self.findings)
            except SpecError as error:
                self._refuse(str(error))
                return self._answer([], str(error))
            finally:
                self._notify.ready(f"generation {self._box.desired.generation}")

    async def _preview(self, source: Source) -> dict[str, Any]:
        try:
            planned = await self._plan(await source.read())
        except SpecError as error:
            return self._answer([], str(error))
        return self._answer(self._reconciler.preview(planned), None, advice.findings(planned, self.seen))

    async def compare(self) -> dict[str, Any]:
        """The file as it lies there against what was applied: as text, and what applying it would do."""
        assert self._source is not None and self.applied is not None
        answer = await self.reload("", dry_run=True)
        try:
            disk, stat = (await asyncio.to_thread(read_spec, self._source.path))[0], os.stat(self._source.path)
        except (SpecError, OSError):
            disk, stat = None, None
        diff = difflib.unified_diff(
            self.applied.text.splitlines(), (disk or "").splitlines(), "applied", "on disk", n=2, lineterm=""
        )
        return {
            **answer,
            "path": os.fspath(self._source.path),
            "changed": None if stat is None else stat.st_mtime,
            "diff": None if disk is None else list(diff)[:DIFF_LINES],
        }

    def _answer(self, changes: list[Change], error: str | None, found: Sequence[Finding] = ()) -> dict[str, Any]:
        return {
            "generation": self._box.desired.generation,
            "changes": told(changes),
            "error": error,
            "findings": [finding.to_json() for finding in found],
        }

    async def fix(self, ids: Sequence[str], base: str | None, why: str, dry_run: bool) -> dict[str, Any]:
        """The changes of these findings, in the text that lies on the disk: shown, or written and applied."""
        assert self._source is not None and self.applied is not None
        async with self._one_at_a_time:
            text = advice.fixed(self.applied, self.findings, ids, base)
            planned = await self._plan(await self._source.parse(text))
            changes = self._reconciler.preview(planned)
            answer = advice.staged(
                os.fspath(self._source.path), self.applied, planned, self.seen, self.findings, changes
            )
            if not dry_run:
                await asyncio.to_thread(rewrite, self._source.path, self.applied.sha256, text)
                self.spec_error = None
                self.apply(planned, why)
            return answer | {"generation": self._box.desired.generation, "applied": not dry_run}

    def _refuse(self, error: str) -> None:
        if error != self.spec_error:
            self.spec_error = error
            self._box.emit({"service": None, "kind": "refused", "error": error})
        self._ring()

    def apply(self, planned: Planned, why: str) -> list[Change]:
        desired, applied = self._box.desired, planned.applied
        if desired.down:  # a reload that was under way: what it began, nobody would end
            return []
        desired.generation += desired.generation == 0 or self.applied is None or self.applied.sha256 != applied.sha256
        self.applied = applied
        self._box.memory.lessons.facts = planned.facts
        self._box.logs = applied.spec.logs
        self._box.edge, self._box.keys = applied.spec.gateway, planned.keys
        changes = self._reconciler.apply(planned)
        self._judge(planned)
        failpoint("applied")
        self._keep(applied)
        self._box.save()
        said = (desired.generation, changes)
        if changes and said != self._said:
            event = {"why": why, "generation": desired.generation, "changes": told(changes)}
            self._box.emit({"service": None, "kind": "reload", **event})
            self.turned |= turns({**event, "time": time.time()})
        self._said = said
        self._ring()
        return changes

    def observe(self, seen: Look) -> None:
        self.seen = seen
        if self._reconciler.planned is not None:
            self._judge(self._reconciler.planned)

    def _judge(self, planned: Planned) -> None:
        self.findings = advice.findings(planned, self.seen)
        advice.show(self._box.runners, self.findings)

    def _keep(self, applied: Applied) -> None:
        if self.spec_error is None and applied.sha256 != self._last_good:
            with contextlib.suppress(OSError):
                atomic_write(Path(self._box.layout.last_good), applied.text.encode())
                self._last_good = applied.sha256

    # --- what makes it reload ------------------------------------------------------------------------------------

    async def obey_hangups(self) -> None:
        """SIGHUP: paced, and always one reload after the last signal."""
        while True:
            await self.hangup.wait()
            self.hangup.clear()
            await self.reload("SIGHUP")
            await asyncio.sleep(PACE)

    async def watch_files(self) -> None:
        async for changed in watch(self._watched, since=self._read_at):
            await self.reload(f"{', '.join(sorted(os.path.basename(p) for p in changed))} changed")

    def _watched(self) -> list[str]:
        assert self._source is not None
        paths = {os.fspath(self._source.path)}
        with contextlib.suppress(OSError):
            paths |= {os.fspath(p) for p in self._source.definitions_folder.glob("*.toml")}
        for runner in self._box.runners.values():
            paths |= set(runner.plan.watched)
        if self._box.edge is not None:
            paths |= {path for key in self._box.edge.keys.values() if (path := secret_path(key.file, os.environ))}
        return sorted(paths)

    async def recheck(self) -> None:
        """What refused and failed services wait for, and drift: the same spec over the facts of now."""
        while True:
            await asyncio.sleep(RECHECK)
            if self.applied is None:
                continue
            async with self._one_at_a_time:
                self.apply(await self._plan(self.applied), "the box changed")
            for runner in self._box.runners.values():
                runner.look_outside()


def told(changes: list[Change]) -> list[dict[str, str]]:
    return [{"service": c.service, "action": c.action, "why": c.why} for c in changes]
