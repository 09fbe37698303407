"""Models of an Ollama through the life of their files and processes: replaced, hung, for embeddings, partly on the CPU."""

from __future__ import annotations

import contextlib
import http.client
import os
from collections.abc import Iterator

import pytest
from gateway.box import Answer
from support import process
from support.freeze import frozen
from support.http import request
from support.ollamabox import HI, WAIT, Box, ollama_box
from support.wait import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    with ollama_box() as box:
        yield box


def test_a_replaced_file_is_noticed_and_made_anew_at_its_next_load(box: Box) -> None:
    def blob() -> str:
        shown = box.post_to_engine("/api/show", model=box.target("lazy")["tag"])
        lines: list[str] = shown["modelfile"].splitlines()
        return next(line for line in lines if line.startswith("FROM "))

    def drift() -> list[str]:
        found: list[str] = box.daemon.service("box")["drift"]
        return found

    def made() -> int:
        return len([e for e in box.daemon.events(kind="target", target="lazy") if e["state"] == "creating"])

    box.write(keep="2s")
    box.wait(lambda t: t["state"] == "unloaded" and t["keep_alive_s"] == 2, "unloaded", "lazy")
    serve, before, times, stat = box.daemon.service("box")["pid"], blob(), made(), box.other.stat()
    os.utime(box.other, (stat.st_atime, stat.st_mtime + 60))
    replaced = [f"model file of lazy replaced: {box.other}"]
    wait_until(lambda: drift() == replaced, 30, lambda: f"drift: {drift()}")
    assert box.client.chat("lazy", HI, options={"num_predict": 2}).done
    assert (blob(), made(), drift()) == (before, times, []), "the same content is the same model"
    box.wait(lambda t: t["state"] == "unloaded", "idle", "lazy")
    with box.other.open("ab") as file:
        file.write(b"another" + bytes(57))
    wait_until(lambda: drift() == replaced, 30, lambda: f"drift: {drift()}")
    assert box.client.chat("lazy", HI, options={"num_predict": 2}).done
    assert blob() != before and (made(), drift()) == (times + 1, [])
    assert box.daemon.service("box")["pid"] == serve
    blobs = len(list((box.daemon.folder / "models" / "blobs").iterdir()))
    box.wait(lambda t: t["state"] == "unloaded", "idle", "lazy")
    box.other.write_bytes(box.weights.read_bytes() + bytes(64))
    assert box.client.chat("lazy", HI, options={"num_predict": 2}).done, "before anybody has looked"
    assert blob() == before and made() == times + 2
    assert len(list((box.daemon.folder / "models" / "blobs").iterdir())) == blobs, "old weights stay"
    box.write()


def test_a_single_model_is_loaded_by_its_first_request(box: Box) -> None:
    """It is asked for by the name of its service."""
    single = {"name": "lazy", "file": str(box.other), "context_length": 512, "preload": False, "keep_alive": "2s"}
    box.write(models=[single])
    wait_until(lambda: len(box.daemon.service("box")["targets"]) == 1, WAIT, "one target")
    box.wait(lambda t: t["state"] == "unloaded", "unloaded", "lazy")
    assert box.client.chat("box", HI, options={"num_predict": 2}).done
    box.write()
    box.loaded()


@pytest.mark.parametrize("at", ["the first token", "later"])
def test_a_decode_that_hangs_behind_a_living_health(box: Box, at: str) -> None:
    """Its main thread stands still, its HTTP answers: before anybody has seen the request run, and in its midst."""
    before = box.pid()
    endpoint = box.target()["runner"]["endpoint"]
    body = {"model": "smol", "messages": HI, "stream": True, "max_tokens": 900, "ignore_eos": True}
    with contextlib.ExitStack() as stack:
        if at == "the first token":
            stack.enter_context(frozen(before))
            assert request(f"{endpoint}/health", timeout=5)[0] == 200
        answer = stack.enter_context(Answer(box.listen, body))
        if at == "later":
            answer.first()
            wait_until(lambda: box.target()["requests_running"], 20, "the request at the engine")
            stack.enter_context(frozen(before))
            assert request(f"{endpoint}/health", timeout=5)[0] == 200
        after = box.loaded(other=before)
        try:
            rest = answer.rest()
        except http.client.IncompleteRead as broken:
            rest = broken.partial
    assert not process.alive(before) and after["runner"]["pid"] != before
    assert answer.response.status == 500 if at == "the first token" else b"upstream_failed" in rest, rest[-300:]
    (hung,) = [e for e in box.daemon.events(kind="target", target="smol") if e["reason"].startswith("hung")][-1:]
    assert "no progress" in hung["reason"] and box.daemon.service("box")["restarts"] == 0
    assert box.client.chat("smol", HI, options={"num_predict": 3}).done
