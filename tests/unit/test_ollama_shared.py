"""Two Ollamas have one folder by default, and a tag does not say whose it is."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmsupervisor.daemon.models import Models
from llmsupervisor.daemon.modelwork import Entry, Work
from llmsupervisor.daemon.process import Process
from llmsupervisor.daemon.runner import Runner
from llmsupervisor.host.http import Answer
from llmsupervisor.runtime.models import Model

OLD, NEW = "smol:latest-ctx1024", "smol:latest-ctx768"


@dataclass
class Engine:
    deleted: list[str]

    async def call(self, method: str, path: str, body: Any, seconds: float) -> Answer:
        if method == "DELETE":
            self.deleted.append(body["model"])
        return Answer(200, {})

    async def stream(self, *args: Any) -> Answer:
        return Answer(200, {})


class Two:
    """`a` and `b`, each with one model, on one box."""

    def __init__(self, **models: Entry) -> None:
        self.entries = models
        self.deleted: list[str] = []
        self.box = SimpleNamespace(runners={name: self.runner(entry) for name, entry in models.items()})

    def runner(self, entry: Entry) -> Any:
        made = SimpleNamespace(remember=lambda *said: None)
        models = SimpleNamespace(shown=lambda: {"smol": entry}, entries={"smol": entry}, made=made)
        return SimpleNamespace(models=models)

    def create(self, name: str) -> None:
        runner, engine = self.box.runners[name], Engine(self.deleted)
        runner.box = self.box
        work = Work(cast(Models, runner.models), cast(Runner, runner), cast(Process, SimpleNamespace(engine=engine)))
        asyncio.run(work.create(self.entries[name]))


def entry(context: int, superseded: str = "", file: str = "") -> Entry:
    model = Model("smol", f"smol:latest-ctx{context}", context, None, True, file, False, "chat")
    return Entry(model, superseded=superseded)


@pytest.mark.parametrize(
    ("other", "deleted"),
    [
        (entry(1024), []),
        (entry(512, superseded=OLD), []),
        (entry(512), [OLD]),
    ],
    ids=["it has it", "it has not left it yet", "it has another one"],
)
def test_the_tag_before_an_edit_stays_where_another_has_it(other: Entry, deleted: list[str]) -> None:
    two = Two(a=entry(768, superseded=OLD), b=other)
    two.create("a")
    assert two.deleted == deleted and two.entries["a"].superseded == ""


def test_the_last_that_leaves_a_tag_deletes_it() -> None:
    two = Two(a=entry(768, superseded=OLD), b=entry(768, superseded=OLD))
    two.create("a")
    assert two.deleted == []
    two.create("b")
    assert two.deleted == [OLD]


@pytest.mark.parametrize(("context", "deleted"), [(768, []), (512, [NEW])])
def test_what_is_made_anew_of_a_file_is_not_taken_from_another(
    tmp_path: Path, context: int, deleted: list[str]
) -> None:
    file = tmp_path / "smol.gguf"
    file.write_bytes(b"GGUF")
    two = Two(a=entry(768, file=str(file)), b=entry(context, file=str(file)))
    two.create("a")
    assert two.deleted == deleted
