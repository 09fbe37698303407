"""What is done for one target: looked for, made, loaded, unloaded. Each work ends with the event that came of it, or with
`Stopped`; it decides nothing."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmsupervisor.base.ids import Json
from llmsupervisor.daemon.made import file_identity, tags_of
from llmsupervisor.daemon.runners import RunnerProcess
from llmsupervisor.host.digest import sha256_of
from llmsupervisor.host.http import Answer
from llmsupervisor.runtime import models
from llmsupervisor.runtime.engine import Call
from llmsupervisor.runtime.generic import probe
from llmsupervisor.runtime.llama_server import buffers
from llmsupervisor.runtime.models import Model, Progress
from llmsupervisor.runtime.pace import Pace
from llmsupervisor.service.target import Created, Found, Loaded, Target, TargetEvent, Unloaded

if TYPE_CHECKING:
    from llmsupervisor.daemon.models import Models
    from llmsupervisor.daemon.process import Process
    from llmsupervisor.daemon.runner import Runner

ASK = 10.0
"""Seconds for an answer that needs no model."""
SILENT = 300.0
"""Seconds without a line of a create or a pull, or a byte of an upload taken, after which it has failed."""
APPEARS, AGAIN = 5.0, 0.05
"""Seconds after a load in which its process is looked for, and between two looks."""
SAYS = 1.0
"""Seconds after a load that failed in which its end may still come into the log."""
LOG = 1024 * 1024


@dataclass
class Entry:
    model: Model
    target: Target = field(default_factory=Target)
    progress: Progress | None = None
    pace: Pace = field(default_factory=Pace)
    """Of its progress."""
    blob: str = ""
    process: RunnerProcess | None = None
    superseded: str = ""
    """The tag before an edit, which may still be in memory, until the new one is there."""
    work: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    offload: str = ""
    replaced: str = ""
    """Its file is another one than that it was made from; in words."""


class Stopped(Exception):
    def __init__(self, why: str, lasting: bool = False) -> None:
        super().__init__(why)
        self.lasting = lasting


def stopped(answer: Answer, before: str = "") -> Stopped:
    why = _why(answer)
    return Stopped(before + why, models.lasting(answer.status, why))


def _why(answer: Answer) -> str:
    said: Json = answer.json
    if said is None and answer.text:
        try:
            said = json.loads(answer.text)
        except ValueError:
            pass
    error = said.get("error") if isinstance(said, dict) else None
    text = error.get("message") if isinstance(error, dict) else error
    return str(text or answer.error or f"{answer.status}: {answer.text[:200]}")


def parts(call: Call) -> tuple[str, str, Any]:
    return call.method, call.path, call.body


class Work:
    """For one start of the service."""

    def __init__(self, models: Models, runner: Runner, process: Process) -> None:
        self._models, self._runner, self._process = models, runner, process

    async def look(self, entry: Entry) -> TargetEvent:
        answer = await self._call(models.show(entry.model.tag), missing=True)
        shown = models.shown(answer.json)
        if answer.status == 404 or shown.context_length != entry.model.context_length:
            return Found(present=False, loaded=False)
        entry.blob = shown.blob
        loaded = self._models.watch(entry)
        if not loaded and await self._other_file(entry):
            return Found(present=False, loaded=False)
        entry.superseded = ""
        return Found(present=True, loaded=loaded)

    async def _other_file(self, entry: Entry) -> bool:
        """By its hash, where its identity is another one: a copy of the same is the same."""
        made, now = self._models.made.of(entry.model.tag), file_identity(entry.model.file)
        if not now:
            return made is not None and made["file"] != entry.model.file
        if made is not None and made["identity"] == now:
            return False
        digest = "" if made is None else await self._hash(entry)
        if made is None or made["sha256"] == digest:
            self._remember(entry, now, digest)
            return False
        return True

    def _remember(self, entry: Entry, identity: str, digest: str) -> None:
        self._models.made.remember(entry.model, identity, digest)
        entry.replaced = ""

    async def create(self, entry: Entry) -> TargetEvent:
        model, digest, read = entry.model, "", file_identity(entry.model.file)
        if model.file:
            digest = await self._upload(entry)
        else:
            await self._fetch(entry)
        await self._stream(entry, models.create(model, digest))
        self._remember(entry, read, digest)
        entry.blob = models.shown((await self._call(models.show(model.tag))).json).blob
        entry.superseded = ""
        return Created()

    async def _fetch(self, entry: Entry) -> None:
        """Its base, over the network only where the spec allows it: a create would pull it unasked."""
        base = entry.model.base
        if (await self._call(models.show(base), missing=True)).status != 404:
            return
        if not entry.model.pull:
            raise Stopped(f"Ollama has no model {base}: `ollama pull {base}`, or pull = true for it in models")
        await self._stream(entry, models.pull(entry.model))

    async def _upload(self, entry: Entry) -> str:
        digest = await self._hash(entry)
        if not self._elsewhere(entry.model.tag):  # made over it, the old weights stay on the disk
            await self._call(models.delete(entry.model.tag), missing=True)
        if (await self._call(models.blob(digest), missing=True)).status == 404:
            await self._stream(entry, models.upload(digest, entry.model.file))
        return digest

    def _elsewhere(self, tag: str) -> bool:
        """A service that may have the same folder has it, has not left it yet, or needs it."""
        others = (runner for runner in self._runner.box.runners.values() if runner is not self._runner)
        return any(models.canonical(tag) in tags_of(runner) for runner in others)

    async def _hash(self, entry: Entry) -> str:
        """A thread: given up, it ends too, or the daemon's end would wait for it."""
        path, given_up = entry.model.file, threading.Event()
        try:
            size = os.stat(path).st_size

            def hashed(done: int) -> None:
                if given_up.is_set():
                    raise InterruptedError
                entry.progress = Progress(f"reading {os.path.basename(path)}", done, size)

            return await asyncio.to_thread(sha256_of, path, hashed)
        except OSError as error:
            raise Stopped(f"{path}: {(error.strerror or str(error)).lower()}") from error
        finally:
            given_up.set()

    async def load(self, entry: Entry) -> TargetEvent:
        """Then one tiny request as the traffic is: before it no request comes."""
        answer = await self._process.engine.call(
            *parts(models.load(entry.model)), self._models.policy(entry.model).load_timeout
        )
        if not answer.ok:
            failure = stopped(answer, await self._complaint(entry, answer))
            failure.lasting &= answer.status != 404  # deleted since it was found: the next try makes it anew
            raise failure
        for late in (*[False] * int(APPEARS / AGAIN), True):
            if self._models.watch(entry, late):
                break
            await asyncio.sleep(AGAIN)
        unseen = f"{entry.model.name} is loaded, and no process of it is seen below Ollama: it is not watched"
        self._runner.conditions.set("runner-unseen", "" if entry.process else unseen)
        service = self._runner.plan.service
        call = probe(self._runner.plan.definition, entry.model.task, entry.model.tag)
        if service.probe.enabled and call is not None:
            answer = await self._process.engine.call(*parts(call), service.probe.timeout)
            if not answer.ok:
                raise stopped(answer, "its first request failed: ")
        await self._read_offload(entry)
        return Loaded()

    async def _complaint(self, entry: Entry, answer: Answer) -> str:
        """What the process that was to have the model said of it: Ollama may answer with an exit status alone."""
        said = None
        for _ in range(int(SAYS / AGAIN) if answer.status == 500 else 0):
            await asyncio.sleep(AGAIN)
            if (said := models.load_error(self._process.log_tail(LOG), entry.blob)) is not None:
                break
        return f"{said[:200]}: " if said and said not in _why(answer) else ""

    async def unload(self, entry: Entry) -> TargetEvent:
        gateway = self._runner.box.gateway
        if gateway is not None and gateway.serves:
            await gateway.drained(self._runner, self._process, entry.model.name)
        call = models.unload(entry.superseded or entry.model.tag, entry.model.task)
        answer = await self._process.engine.call(*parts(call), ASK)
        if not answer.ok:
            raise stopped(answer)
        if entry.process is not None:
            await entry.process.dead.wait()
        return Unloaded()

    # --- calls ---------------------------------------------------------------------------------------------------

    async def _call(self, call: Call, missing: bool = False) -> Answer:
        """`missing`: 404 is an answer."""
        answer = await self._process.engine.call(*parts(call), ASK)
        if (answer.status == 404 and missing) or answer.status in (200, 201):
            return answer
        raise stopped(answer)

    async def _stream(self, entry: Entry, call: Call) -> None:
        """Shows its progress. What failed is one of its lines, whatever the status."""
        failed: list[str] = []

        def told(line: Any) -> None:
            said = models.progress(line)
            if isinstance(said, str):
                failed.append(said)
            else:
                entry.progress = said

        def sent(done: int, size: int) -> None:
            entry.progress = Progress("uploading", done, size)

        answer = await self._process.engine.stream(call.method, call.path, call.body, call.file, SILENT, told, sent)
        if failed or not answer.ok:
            why = failed[-1] if failed else _why(answer)
            raise Stopped(f"{call.path}: {why}", models.lasting(answer.status, why))

    async def _read_offload(self, entry: Entry) -> None:
        if entry.process is None:
            return
        log, port = self._process.log_tail(LOG), entry.process.args.port
        entry.process.scraper.allocated = buffers(models.load_of(log, port))
        if not self._process.plan.gpus:
            return
        found = models.offload(log, port)
        entry.offload = found.missing()
        if not entry.offload and found.every is None:
            body = (await self._process.engine.call("GET", "/api/ps", None, ASK)).json
            sizes = models.in_memory(body, entry.model.tag)
            if sizes is not None and sizes[1] < sizes[0]:
                entry.offload = f"asked all of it on the GPU, got {sizes[1]} of {sizes[0]} bytes"
        self._models.tell()
