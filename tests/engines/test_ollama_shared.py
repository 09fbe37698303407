"""Two Ollamas on one folder of models: what edits leave behind there, and what the death of one is to the other."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from gateway.box import Answer
from support import process
from support.http import get_json
from support.ollama import program
from support.ollamabox import HI, STORY, WAIT, Box, ollama_box
from support.wait import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]


class Two(Box):
    """`box` and `twin`, each with `smol` of the same file."""

    def write(
        self, context: int = 1024, keep: str = "forever", twin: int = 1024, box: bool = True, **keys: Any
    ) -> None:
        """`context` and `keys` of `box`, where it is there, `twin` that of the other."""
        common = {"runtime": "ollama", "command": [str(program(self.daemon.folder)), "serve"], "env": self.environ()}
        common |= {"parallel": 1, "kv_cache_type": "f16", "gpus": []}
        first, second = (
            [{"name": "smol", "file": str(self.weights), "context_length": n, "keep_alive": keep}]
            for n in (context, twin)
        )
        services = {"box": {**common, "models": first, **keys}} if box else {}
        services["twin"] = {**common, "models": second}
        self.daemon.write(services, gateway={"listen": self.listen})

    def of(self, service: str, context: int, other: int | None = None) -> int:
        """The process of its model, in memory with this context, and not `other`."""

        def loaded() -> int:
            targets = self.daemon.service(service)["targets"]
            runner = targets and targets[0]["state"] == "loaded" and targets[0]["runner"]
            fits = runner and runner["context_length"] == context and runner["pid"] != other
            return int(runner["pid"]) if fits else 0

        return wait_until(loaded, WAIT, lambda: f"{service} with {context}: {self.daemon.told(service)}")

    def serve(self, service: str) -> int:
        pid: int = self.daemon.service(service)["pid"]
        return pid

    def tags(self) -> set[str]:
        """In the folder that both have."""
        rows = get_json(f"{self.daemon.service('twin')['endpoint']}/api/tags", timeout=60)["models"]
        return {row["name"].removeprefix("smol:latest-") for row in rows}

    def keeps(self, *tags: str) -> None:
        wait_until(lambda: self.tags() == set(tags), 40, lambda: f"{tags}: {self.tags()}\n{self.daemon.told('box')}")

    def answers(self, *services: str) -> None:
        for service in services:
            assert self.client.chat(service, HI, options={"num_predict": 2}).done


@pytest.fixture(scope="module")
def two() -> Iterator[Two]:
    with ollama_box(kind=Two) as two:
        yield two


def test_a_tag_goes_with_the_last_that_has_it(two: Two) -> None:
    before, other = two.of("box", 1024), two.of("twin", 1024)
    two.keeps("ctx1024")
    two.write(twin=768)
    two.of("twin", 768)
    assert two.tags() == {"ctx1024", "ctx768"} and two.of("box", 1024) == before and not process.alive(other)
    two.write(context=512, twin=768)
    two.of("box", 512)
    two.keeps("ctx512", "ctx768")
    two.answers("box", "twin")


def test_the_tag_of_before_a_restart_goes_though_the_new_one_was_there(two: Two) -> None:
    two.write(context=512, twin=768)
    two.of("box", 512)
    serve, twin = two.serve("box"), two.of("twin", 768)
    body = {"model": "box", "messages": STORY, "stream": True, "options": {"num_predict": 60}}
    with Answer(two.listen, body, path="/api/chat") as stream:
        assert stream.response.readline()
        two.write(context=768, twin=768, parallel=2)
        rest = stream.rest()
    assert b'"done":true' in rest, f"what runs ends first; Ollama would cut it: {rest[-300:]!r}"
    two.of("box", 768)
    assert two.serve("box") != serve
    two.keeps("ctx768")
    assert two.of("twin", 768) == twin
    two.answers("box", "twin")


def test_a_death_of_one_harms_nothing_of_the_other(two: Two) -> None:
    two.write(context=768, twin=768, parallel=2)
    twin, serve = two.of("twin", 768), two.serve("twin")
    before = two.of("box", 768)
    os.kill(before, signal.SIGKILL)
    before = two.of("box", 768, other=before)
    os.kill(two.serve("box"), signal.SIGKILL)
    wait_until(lambda: not process.alive(before), 30, "the end of its runner")
    two.answers("twin")
    two.of("box", 768, other=before)
    assert (two.of("twin", 768), two.serve("twin"), two.tags()) == (twin, serve, {"ctx768"})
    two.answers("box", "twin")


def test_what_was_edited_while_no_daemon_was_there_goes_too(two: Two) -> None:
    two.write(context=768, twin=768, parallel=2)
    pids = two.of("box", 768), two.of("twin", 768)
    serve = two.serve("box")
    two.daemon.kill9()
    two.write(context=640, twin=640, parallel=2)
    two.daemon.up(timeout=90)
    two.of("box", 640)
    two.of("twin", 640)
    two.keeps("ctx640")
    assert two.serve("box") == serve and not any(map(process.alive, pids))
    two.answers("box", "twin")


def test_what_a_service_made_goes_when_it_leaves_the_spec(two: Two) -> None:
    two.write(context=512, twin=640)
    two.of("box", 512)
    two.keeps("ctx512", "ctx640")
    two.write(twin=640, box=False)
    two.keeps("ctx640")
    two.answers("twin")
