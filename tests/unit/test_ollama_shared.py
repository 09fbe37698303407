"""Two Ollamas have one folder by default, and a tag does not say whose it is."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.planned import box, llama, ollama_of

from llmsupervisor.daemon import modelwork, reconcile
from llmsupervisor.daemon.desired import Desired
from llmsupervisor.daemon.models import Models
from llmsupervisor.daemon.modelwork import Entry, Work
from llmsupervisor.daemon.process import Process
from llmsupervisor.daemon.runner import Runner
from llmsupervisor.host.digest import sha256_of
from llmsupervisor.host.http import Answer
from llmsupervisor.runtime.models import Model
from llmsupervisor.service.states import State
from llmsupervisor.service.target import Found, Target, TargetState

OLD, NEW = "smol:latest-ctx1024", "smol:latest-ctx768"
FROM_FILE, FROM_BASE, UNSEEN = ("/m/smol.gguf", "12ab"), ("", ""), ("/m/smol.gguf", "")
"""`file` and `sha256` of what is known of a tag."""


@dataclass
class Engine:
    """It has every tag that it is asked about. `loaded`: what is in its memory."""

    loaded: str = ""
    refuses: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)

    async def call(self, method: str, path: str, body: Any, seconds: float) -> Answer:
        if path == "/api/ps":
            return Answer(200, {"models": [{"name": self.loaded, "size": 1, "size_vram": 0}] if self.loaded else []})
        if path == "/api/show":
            return Answer(200, {"parameters": f"num_ctx {body['model'].rpartition('ctx')[2]}"})
        if path == "/api/generate" and body["keep_alive"] == 0:
            self.loaded = ""
        if method == "DELETE" or path == "/api/generate":
            self.asked.append((path, body["model"]))
        return Answer(500 if self.refuses else 200, {})

    async def stream(self, *args: Any) -> Answer:
        return Answer(200, {})

    @property
    def deleted(self) -> list[str]:
        return [tag for path, tag in self.asked if path == "/api/delete"]


class Box:
    """Services with one model each, `smol` of the file, with this context; all is loaded."""

    def __init__(self, file: str = "/m/smol.gguf", **contexts: int) -> None:
        self.desired, self.saves = Desired(), 0
        self.runners: dict[str, Any] = {}
        self.engines = {name: Engine() for name in contexts}
        self.loop = SimpleNamespace(statuses={name: SimpleNamespace(state=State.READY) for name in contexts})
        for name, context in contexts.items():
            process = SimpleNamespace(engine=self.engines[name])
            runner = SimpleNamespace(name=name, box=self, plan=plan(context), process=process)
            runner.models = Models(cast(Runner, runner))
            runner.models._process = process
            runner.models._entries = {"smol": Entry(model(context, file), Target(TargetState.LOADED))}
            self.runners[name] = runner

    def save(self) -> None:
        self.saves += 1

    def entry(self, name: str) -> Entry:
        entry: Entry = self.runners[name].models._entries["smol"]
        return entry

    def knows(self, name: str, tag: str, said: tuple[str, str], identity: str = "1:2:3:4") -> None:
        file, digest = said
        self.desired.wish(name).made[tag] = {"file": file, "identity": identity, "sha256": digest}

    def work(self, name: str) -> Work:
        runner = self.runners[name]
        return Work(runner.models, cast(Runner, runner), cast(Process, runner.models._process))

    def tidy(self, name: str) -> list[str]:
        """What is deleted at one look."""
        runner, before = self.runners[name], len(self.engines[name].deleted)
        asyncio.run(runner.models._tags.tidy(runner.process))
        return self.engines[name].deleted[before:]


def plan(context: int, **keys: Any) -> Any:
    return box(ollama_of({"smol": context}, **keys))[0].services["chat"]


def model(context: int, file: str = "") -> Model:
    return Model("smol", f"smol:latest-ctx{context}", context, None, True, file, False, "chat")


# --- what an edit left behind --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("said", "goes"), [(FROM_FILE, True), (FROM_BASE, True), (UNSEEN, False)])
def test_only_what_we_made_goes(said: tuple[str, str], goes: bool) -> None:
    """One that was there, and whose making nobody saw, may be the user's."""
    two = Box(a=768)
    two.knows("a", OLD, said)
    two.knows("a", NEW, FROM_FILE)
    assert two.tidy("a") == [OLD] * goes and NEW in two.desired.wish("a").made
    assert (OLD in two.desired.wish("a").made) is not goes and two.saves == goes
    assert two.tidy("a") == [], "once"


def test_what_another_has_stays_until_it_has_left_too() -> None:
    two = Box(a=768, b=1024)
    two.knows("a", OLD, FROM_FILE)
    assert two.tidy("a") == []
    two.runners["b"].plan = plan(512)
    assert two.tidy("a") == [], "b has it still"
    two.entry("b").model, two.entry("b").superseded = model(512), OLD
    assert two.tidy("a") == [], "b has not left it yet"
    two.entry("b").superseded = ""
    assert two.tidy("b") == [], "b did not make it"
    assert two.tidy("a") == [OLD]


@pytest.mark.parametrize(
    "spelt", ["Smol:latest-ctx768", "library/smol:latest-ctx768", "Registry.ollama.ai/library/SMOL:latest-ctx768"]
)
def test_another_spelling_is_no_other_model(spelt: str) -> None:
    box = Box(chat=768)
    box.knows("chat", spelt, FROM_FILE)
    assert box.tidy("chat") == []


def test_what_another_needs_at_its_next_start_stays() -> None:
    two = Box(a=768, b=512)
    two.knows("a", OLD, FROM_FILE)
    two.runners["b"].plan = plan(1024)
    assert two.tidy("a") == [], "b is about to be restarted for it"
    two.runners["b"].models._process = None
    assert two.tidy("a") == [], "b is down"
    two.runners["b"].plan = plan(512)
    assert two.tidy("a") == [OLD]


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("state", list(TargetState))
def test_nothing_goes_while_a_model_is_made_or_loaded(name: str, state: TargetState) -> None:
    """It may need the same weights."""
    two = Box(a=768, b=512)
    two.knows("a", OLD, FROM_FILE)
    two.entry(name).target = Target(state)
    settled = {TargetState.UNLOADED, TargetState.LOADED, TargetState.FAILED}
    assert two.tidy("a") == [OLD] * (state in settled)


def test_nothing_goes_before_the_service_is_ready() -> None:
    """Until then the generation before may come back."""
    two = Box(a=768)
    two.knows("a", OLD, FROM_FILE)
    two.loop.statuses["a"].state = State.STARTING
    assert two.tidy("a") == []


def test_what_is_still_in_memory_leaves_that_first() -> None:
    two = Box(a=768)
    two.knows("a", OLD, FROM_FILE)
    two.engines["a"].loaded = OLD
    assert two.tidy("a") == [] and two.engines["a"].asked == [("/api/generate", OLD)]
    assert two.tidy("a") == [OLD]


def test_what_could_not_be_deleted_is_tried_again() -> None:
    two = Box(a=768)
    two.knows("a", OLD, FROM_FILE)
    two.engines["a"].refuses = True
    assert two.tidy("a") == two.tidy("a") == [OLD]
    two.engines["a"].refuses = False
    assert (two.tidy("a"), two.tidy("a")) == ([OLD], [])


def test_what_a_service_made_that_leaves_the_spec_is_tidied_by_another_of_its_folder() -> None:
    three = Box(a=768, b=512, other=512)
    three.runners["other"].plan = plan(512, env={"OLLAMA_MODELS": "/elsewhere"})
    for tag, said in ((OLD, FROM_FILE), (NEW, UNSEEN), ("smol:latest-ctx512", FROM_FILE)):
        three.knows("a", tag, said)
    three.knows("b", "smol:latest-ctx512", UNSEEN)
    gone = three.runners.pop("a")
    gone.models.made.bequeath(reversed(three.runners.values()))
    assert three.tidy("other") == [] and three.tidy("b") == [OLD], "the user's stays, and what b has"
    three.entry("b").model, three.runners["b"].plan = model(256), plan(256)
    three.runners.pop("other")
    assert three.tidy("b") == ["smol:latest-ctx512"]


@pytest.mark.parametrize(("stands", "heir"), [(True, False), (False, True)], ids=["disabled", "out of the spec"])
def test_what_a_service_made_stays_while_it_is_only_disabled(
    stands: bool, heir: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = Box(a=768, b=512)
    two.knows("a", OLD, FROM_FILE)
    monkeypatch.setattr(reconcile, "sweep", lambda layout, name: None)
    two.layout, two.loop.remove = None, lambda name: None  # type: ignore[attr-defined]
    reconciler = reconcile.Reconciler(cast(Any, two), "boot")
    spec = SimpleNamespace(services={"a": None, "b": None} if stands else {"b": None})
    reconciler.planned = cast(Any, SimpleNamespace(applied=SimpleNamespace(spec=spec)))
    reconciler.forget(two.runners["a"])
    assert (OLD in two.desired.wish("b").made) is heir and "a" not in two.desired.services


def test_the_last_of_its_folder_leaves_what_it_made() -> None:
    """There is nobody to ask for it."""
    two = Box(a=768, b=512)
    two.knows("a", OLD, FROM_FILE)
    two.runners["b"].plan = box(llama("b"))[0].services["b"]
    two.runners["a"].models.made.bequeath([two.runners["b"]])
    assert two.desired.wish("b").made == {}


def test_a_model_that_somebody_deleted_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def call(*args: Any) -> Answer:
        return Answer(404, {"error": "model 'smol:latest-ctx768' not found"})

    async def complaint(*args: Any) -> str:
        return ""

    two = Box(a=768)
    monkeypatch.setattr(two.engines["a"], "call", call)
    monkeypatch.setattr(Work, "_complaint", complaint)
    two.runners["a"].models.policy = lambda model: SimpleNamespace(load_timeout=1.0)
    with pytest.raises(modelwork.Stopped, match="not found") as failure:
        asyncio.run(two.work("a").load(two.entry("a")))
    assert not failure.value.lasting


# --- making and finding --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("context", "deleted"), [(768, []), (512, [NEW])])
def test_what_is_made_anew_of_a_file_is_not_taken_from_another(
    tmp_path: Path, context: int, deleted: list[str]
) -> None:
    file = tmp_path / "smol.gguf"
    file.write_bytes(b"GGUF")
    two = Box(str(file), a=768, b=context)
    two.entry("a").superseded = OLD
    asyncio.run(two.work("a").create(two.entry("a")))
    assert two.engines["a"].deleted == deleted and two.entry("a").superseded == ""
    assert two.desired.wish("a").made[NEW]["sha256"] == sha256_of(str(file), lambda done: None)


def test_one_that_is_there_already_is_as_good_as_made() -> None:
    two = Box("", a=768)
    two.entry("a").superseded = OLD
    assert asyncio.run(two.work("a").look(two.entry("a"))) == Found(present=True, loaded=False)
    assert two.entry("a").superseded == "" and two.desired.wish("a").made == {}, "and nobody saw how"


def test_another_file_of_the_same_name_makes_another_model(tmp_path: Path) -> None:
    def present(said: str) -> bool:
        entry = replace(two.entry("a"), model=model(768, said))
        found = asyncio.run(two.work("a").look(entry))
        assert isinstance(found, Found) and not found.loaded
        return found.present

    first, copy, other = (str(tmp_path / name) for name in ("first", "copy", "other"))
    for path in (first, copy, other):
        Path(path).write_text("other" if path == other else "first")
    two = Box(first, a=768)
    asyncio.run(two.work("a").create(two.entry("a")))
    assert present(first) and present(copy), "the same content"
    assert not present(other) and not present(""), "another one, and one that the engine has"
    os.unlink(first)
    assert present(copy) and not present(str(tmp_path / "none")), "its making says what is missing"


def test_a_hash_that_nobody_waits_for_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a large file it takes minutes, and the daemon's end would wait for it."""
    file, begun = tmp_path / "large", threading.Event()
    ends: list[str] = []

    def slow(path: str, told: Callable[[int], None]) -> str:
        begun.set()
        until = time.monotonic() + 30
        try:
            while time.monotonic() < until:
                told(1)
                time.sleep(0.01)
        except InterruptedError:
            ends.append("given up")
        return ""

    async def give_up() -> None:
        work = asyncio.create_task(two.work("a").create(two.entry("a")))
        assert await asyncio.to_thread(begun.wait, 20)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    monkeypatch.setattr(modelwork, "sha256_of", slow)
    file.write_bytes(b"x")
    two = Box(str(file), a=768)
    asyncio.run(give_up())
    assert ends == ["given up"]
