"""The spec as this daemon reads it: text, problems, and a plan for the box of now. Slow work runs in threads."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llmsupervisor.base.errors import LlmsupervisorError, SpecError
from llmsupervisor.base.ids import Json, sha256
from llmsupervisor.daemon.keys import Keys, read_keys
from llmsupervisor.host.binaries import Cache
from llmsupervisor.host.files import gather, read_definitions, read_spec
from llmsupervisor.host.gpu import GpuReader
from llmsupervisor.host.gpufacts import gpu_facts
from llmsupervisor.host.headers import Headers
from llmsupervisor.host.journal import StateFile
from llmsupervisor.plan.check import check
from llmsupervisor.plan.facts import Facts, needs, needs_of
from llmsupervisor.plan.launch import Plan
from llmsupervisor.plan.learned import Lessons
from llmsupervisor.plan.plan import plan
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.spec.load import Loaded, load
from llmsupervisor.spec.model import Service, Spec
from llmsupervisor.spec.resolve import resolve


@dataclass(frozen=True)
class Applied:
    """A valid spec with what it was read with."""

    text: str
    sha256: str
    spec: Spec
    definitions: dict[str, Definition]
    loaded: Loaded


@dataclass(frozen=True)
class Planned:
    applied: Applied
    plan: Plan
    facts: Facts
    keys: Keys


CACHE_VERSION = 1


def _cached(file: StateFile) -> Cache:
    try:
        return Cache.from_json(file.load() or {})
    except LlmsupervisorError:
        return Cache()


class Source:
    """`cache` is where the output of binaries (`--help`, `--version`) is kept: a daemon's start asks none of them anew."""

    def __init__(self, path: Path, gpu: GpuReader, cache: Path) -> None:
        self.path = path
        self._gpu = gpu
        self._cache_file = StateFile(cache, CACHE_VERSION)
        self._headers = Headers()
        self._cache = _cached(self._cache_file)
        self._asked = set(self._cache.texts)

    @property
    def definitions_folder(self) -> Path:
        return self.path.parent / "runtimes"

    async def read(self) -> Applied:
        """SpecError with every problem; nothing is changed then."""
        return await asyncio.to_thread(self._read, None)

    async def parse(self, text: str) -> Applied:
        """The same for a text that lies elsewhere (`last_good.toml`)."""
        return await asyncio.to_thread(self._read, text)

    async def nothing(self) -> Applied:
        """No service at all: for `down` without a daemon, which no error of a spec may stop."""
        definitions, _ = await asyncio.to_thread(read_definitions, [self.definitions_folder])
        return Applied("", sha256(""), Spec(), definitions, load("", ""))

    def _read(self, text: str | None) -> Applied:
        if text is None:
            text, _ = read_spec(self.path)
        definitions, problems = read_definitions([self.definitions_folder])
        checked = check(text, os.fspath(self.path), definitions)
        if problems or checked.spec is None:
            raise SpecError([*problems, *checked.problems])
        spec = resolve(checked.spec, PurePosixPath(self.path.parent), PurePosixPath(Path.home()))
        return Applied(text, sha256(text), spec, definitions, checked.loaded)

    async def plan(
        self,
        applied: Applied,
        running: Iterable[Mapping[str, Json]],
        kept_ports: dict[str, int],
        kept_gpus: dict[str, tuple[str, ...]],
        kept_gpu_words: dict[str, list[Json]],
        own_ports: frozenset[int],
        learned: Lessons = (),
        digests: Mapping[str, str] | None = None,
        asking: Callable[[list[str]], None] | None = None,
    ) -> Planned:
        """`running`: the `wanted` of what runs, so that it can be rendered again with the same facts.

        `asking` hears which executables are being run for what they know, and an empty list once they answered. None:
        none is run, and what an earlier daemon did not learn stays unknown.
        """
        wanted = needs(applied.spec, applied.definitions)
        for old in running:
            try:
                service = Service.model_validate(old["service"])
                said = old["definition"]
                definition = (
                    Definition.model_validate(said) if isinstance(said, dict) else applied.definitions[str(said)]
                )
            except (KeyError, ValueError, TypeError):
                continue
            wanted |= needs_of(service, definition)
        sample = self._gpu.latest
        before = Facts(
            gpus=gpu_facts(sample),
            gpu_error=sample.error or "",
            kept_ports=kept_ports,
            kept_gpus=kept_gpus,
            kept_gpu_words=kept_gpu_words,
            learned=learned,
            digests=digests or {},
        )

        def gathered(ask: bool) -> Facts:
            return gather(wanted, self._cache, before, ask=ask, own_ports=own_ports, headers=self._headers)

        facts = await asyncio.to_thread(gathered, False)
        if asking is not None and facts.unasked:
            asking(facts.unasked)
            try:
                facts = await asyncio.to_thread(gathered, True)
            finally:
                asking([])
        if self._asked != set(self._cache.texts):
            self._asked = set(self._cache.texts)
            self._cache_file.save(self._cache.to_json())
        clients = applied.spec.gateway.keys if applied.spec.gateway else {}
        keys = await asyncio.to_thread(read_keys, clients, os.environ)
        made = await asyncio.to_thread(plan, applied.spec, applied.definitions, facts, applied.loaded.origins)
        return Planned(applied, made, facts, keys)
