"""Models of an Ollama through the life of their files and processes: replaced, hung, for embeddings, partly on the CPU."""

from __future__ import annotations

import contextlib
import http.client
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway.box import Answer
from support import nvml, process
from support.freeze import frozen
from support.http import request
from support.ollama import REAL, embedding_model
from support.ollamabox import HI, STORY, WAIT, Box, ollama_box
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


def test_what_is_too_long_is_refused_on_every_route(box: Box) -> None:
    """Before Ollama could cut it; what fits is answered."""
    before, text = box.pid(), "word " * 3000
    tokens = {"max_tokens": 3, "max_output_tokens": 3}
    for path, name in (("/v1/messages", "messages"), ("/v1/responses", "input")):
        status, said = box.post(path, **{name: [{"role": "user", "content": text}]}, **tokens)
        assert status == 400 and "1024" in str(said["error"]), said
        refused = box.record(api=path.removeprefix("/v1/"), status=400)
        assert refused["prompt_tokens"] > 3000 and refused["finish_reason"] == "rejected"
        status, said = box.post(path, **{name: HI}, **tokens)
        assert status == 200, said
        assert box.record(api=path.removeprefix("/v1/"), status=200)["prompt_tokens"] < 1024
    assert box.pid() == before


def test_embeddings(box: Box) -> None:
    file = embedding_model(box.weights, box.daemon.folder / "embed.gguf")
    box.write(task="embed", models=[{"name": "emb", "file": str(file), "context_length": 512}])
    runner = box.loaded("emb")["runner"]
    assert (runner["context_length"], runner["parallel"]) == (512, 1), "Ollama gives such a model one place"
    vectors = box.client.embed("emb", ["one", "another"]).embeddings
    assert len(vectors) == 2 and len(vectors[0]) == len(vectors[1]) > 100 and vectors[0] != vectors[1]
    status, said = box.post("/v1/embeddings", model="emb", input="one")
    assert status == 200 and said["data"][0]["embedding"] == pytest.approx(vectors[0], abs=1e-4)
    status, said = box.post("/api/embed", model="emb", input="word " * 3000)
    assert status == 400, said
    assert box.pid("emb") == runner["pid"]
    box.write()
    box.loaded()


@pytest.mark.skipif(bool(REAL), reason="only the stand-in can be told how many layers to claim")
def test_layers_left_on_the_cpu_are_a_condition(tmp_path: Path) -> None:
    scenario = nvml.Scenario(tmp_path / "scenario")
    scenario.play("gpu GPU-a 24576 1000 0")
    environ = {"LD_LIBRARY_PATH": str(nvml.build(tmp_path)), "NVML_SCENARIO": str(scenario.path)}
    with ollama_box(environ, gpus=[0], env={"OLLAMA_FAKE_OFFLOAD": "20/33"}) as box:
        told = "asked 33/33 layers on the GPU, got 20"
        assert box.conditions()["offload"] == f"smol: {told}"
        assert box.daemon.service("box")["state"] == "READY", "it works"
        assert box.client.chat("lazy", HI, options={"num_predict": 2}).done
        assert box.conditions()["offload"] == f"smol: {told}; lazy: {told}"
        box.write(env={"OLLAMA_FAKE_OFFLOAD": "33/33"})
        wait_until(lambda: "offload" not in box.conditions() and box.target()["state"] == "loaded", WAIT, "all of them")


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
    before, serve = box.pid(), box.daemon.service("box")["pid"]
    endpoint = box.target()["runner"]["endpoint"]
    body = {"model": "smol", "messages": STORY, "stream": True, "max_tokens": 900}
    with contextlib.ExitStack() as stack:
        if at == "the first token":
            stack.enter_context(frozen(before))
            assert request(f"{endpoint}/health")[0] == 200
        answer = stack.enter_context(Answer(box.listen, body))
        if at == "later":
            answer.first()
            stack.enter_context(frozen(before))
            assert request(f"{endpoint}/health")[0] == 200
        after = box.loaded(other=before)
        try:
            rest = answer.rest()
        except http.client.IncompleteRead as broken:
            rest = broken.partial
    assert not process.alive(before) and after["runner"]["pid"] != before
    assert answer.response.status == 500 if at == "the first token" else b"upstream_failed" in rest, rest[-300:]
    (hung,) = [e for e in box.daemon.events(kind="target", target="smol") if e["reason"].startswith("hung")][-1:]
    assert "no progress" in hung["reason"] and box.daemon.service("box")["pid"] == serve
    assert box.client.chat("smol", HI, options={"num_predict": 3}).done
