"""Ollama as a supervised citizen: a daemon, its gateway and `ollama serve` (the stand-in on the real llama-server, or the
real one), with one model loaded and one that is loaded on demand. One box for the module; each test leaves both usable."""

from __future__ import annotations

import http.client
import os
import signal
from collections.abc import Iterator
from typing import Any

import ollama
import openai
import pytest
from gateway.box import Answer
from support import process
from support.http import get_json, request
from support.ollama import REAL
from support.ollamabox import HI, STORY, TALE, WAIT, Box, ollama_box
from support.wait import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

ENDS = (b"[DONE]", b"message_stop", b'"done":true')
"""Of streams that are complete."""
LONG = [{"role": "user", "content": "word " * 3000}]


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    with ollama_box() as box:
        yield box


# --- targets ------------------------------------------------------------------------------------------------------


def test_each_model_is_a_target(box: Box) -> None:
    smol, lazy = box.loaded(), box.target("lazy")
    assert (smol["tag"], smol["runner"]["context_length"], smol["runner"]["parallel"]) == (
        "smol:latest-ctx1024",
        1024,
        2,
    )
    assert smol["names"] == ["box", "smol"] and lazy["names"] == ["lazy"]
    assert (lazy["state"], lazy["runner"], lazy["keep_alive_s"]) == ("unloaded", None, None)
    assert smol["kv_cache_usage"] is not None and smol["requests_running"] == 0
    states = [e["state"] for e in box.daemon.events(kind="target", target="smol")]
    assert states[:3] == ["creating", "loading", "loaded"]
    service = box.daemon.service("box")
    assert not [c for c in service["conditions"] if "OLLAMA_FAKE_REGISTRY" not in c["text"]]
    assert service["got"]["kv_cache_type"] == "q8_0"
    assert {m["name"] for m in get_json(f"{service['endpoint']}/api/tags")["models"]} == {smol["tag"], lazy["tag"]}


def test_one_is_loaded_by_its_first_request_and_unloaded_when_idle(box: Box) -> None:
    box.write(keep="2s")
    answer = box.client.chat("lazy", HI, options={"num_predict": 3})
    assert answer.message.content and box.record(model="lazy")["load_ms"] > 0
    gone = box.wait(lambda t: t["state"] == "unloaded", "idle", "lazy")
    assert gone["reason"] == "idle for 2s" and gone["runner"] is None
    assert box.target()["state"] == "loaded"
    box.write()


def test_another_context_is_no_restart(box: Box) -> None:
    before, serve = box.pid(), box.daemon.service("box")["pid"]
    box.write(context=768)
    after = box.loaded(other=before)
    assert (after["tag"], after["runner"]["context_length"]) == ("smol:latest-ctx768", 768)
    assert box.client.chat("smol", HI, options={"num_predict": 3}).message.content
    service = box.daemon.service("box")
    assert (service["pid"], service["restarts"]) == (serve, 0) and not process.alive(before)

    def tags() -> set[str]:
        return {m["name"] for m in get_json(f"{service['endpoint']}/api/tags")["models"]}

    kept = {after["tag"], box.target("lazy")["tag"]}
    wait_until(lambda: tags() == kept, 30, lambda: f"the old one is gone: {tags()}")
    box.write()
    box.wait(lambda t: t["tag"] == "smol:latest-ctx1024" and t["state"] == "loaded", "back")


def test_what_is_missing_is_not_pulled(box: Box) -> None:
    """And a model that cannot be had is the trouble of those who ask for it."""
    box.write(
        models=[
            {"name": "smol", "file": str(box.weights), "context_length": 1024},
            {"name": "nope", "context_length": 9},
        ]
    )
    failed = box.wait(lambda t: t["state"] == "failed", "failed", "nope")
    assert "`ollama pull nope:latest`, or pull = true" in failed["reason"] and failed["retry_at"]
    assert "nope" in box.conditions()["model-failed"]
    box.daemon.wait_state("box", "READY", WAIT)
    box.loaded()
    assert box.post("/api/generate", prompt="Hi", stream=False, options={"num_predict": 2})[0] == 200
    if not REAL:
        pulled = {"name": "pulled", "context_length": 256, "pull": True, "preload": False}
        box.write(models=[{"name": "smol", "file": str(box.weights), "context_length": 1024}, pulled])
        assert box.wait(lambda t: t["state"] == "unloaded", "pulled", "pulled")["tag"] == "pulled:latest-ctx256"
    box.write()
    box.wait(lambda t: t["state"] == "unloaded", "there again", "lazy")
    box.loaded()


# --- the gateway --------------------------------------------------------------------------------------------------


def test_the_official_client(box: Box) -> None:
    client = box.client
    pieces = list(client.chat("smol", STORY, stream=True, options={"num_predict": 6}))
    assert pieces[-1].done and {piece.model for piece in pieces} == {"smol"}
    assert "".join(piece.message.content or "" for piece in pieces) and pieces[-1].eval_count == 6
    whole = client.generate("box", TALE, options={"num_predict": 3})
    assert whole.model == "box" and whole.done_reason == "length"
    assert [m.model for m in client.list().models] == ["box", "smol", "lazy"]
    assert {m.model for m in client.ps().models} >= {"smol"} and client.list().models[0].size
    assert client.show("smol").modelinfo
    endpoint = box.daemon.service("box")["endpoint"]
    assert get_json(f"{box.url}/api/version") == get_json(f"{endpoint}/api/version")
    with pytest.raises(ollama.ResponseError, match="no model 'nope'") as error:
        client.chat("nope", HI)
    assert error.value.status_code == 404
    record = box.record(api="api.chat", model="smol", stream=True)
    assert record["completion_tokens"] == 6 and record["finish_reason"] == "length" and record["ttft_ms"] > 0
    assert record["sources"]["prefill_ms"] in ("engine", "both") and record["engine_queue_ms"] is not None


def test_no_client_reloads_it_for_all(box: Box) -> None:
    before = box.pid()
    options = {"num_predict": 3, "num_ctx": -5, "num_thread": 1}
    assert box.client.chat("smol", HI, options=options, keep_alive=0).done
    assert box.client.generate("smol", "", keep_alive=0).done
    assert box.client.chat("smol", HI, options={"num_predict": 3, "num_ctx": 4096}).done
    assert box.pid() == before and process.alive(before)


def test_options_may_be_passed(box: Box) -> None:
    def asked(context: int) -> bool:
        """Until the edit is applied the other rule holds."""
        assert box.client.chat("smol", HI, options={"num_predict": 1, "num_ctx": 512}).done
        found = box.target()
        return bool(found["state"] == "loaded" and found["runner"] and found["runner"]["context_length"] == context)

    before = box.pid()
    box.write(client_options="passed")
    wait_until(lambda: asked(512), WAIT, lambda: f"a context of 512: {box.target()}")
    assert box.pid() != before
    options = {"num_predict": 2, "num_ctx": 512}
    status, said = box.post("/api/generate", prompt=LONG[0]["content"], stream=False, truncate=True, options=options)
    assert status == 200, said
    assert box.record(api="api.generate", truncated=True)["prompt_tokens"] <= 512
    box.write()
    wait_until(lambda: asked(1024), WAIT, lambda: f"the context of the spec: {box.target()}")


def test_nothing_is_cut(box: Box) -> None:
    before = box.pid()
    for path in ("/api/chat", "/v1/chat/completions"):
        status, said = box.post(path, messages=LONG, stream=False)
        assert status == 400 and "1024" in str(said["error"])
    status, said = box.post("/api/generate", prompt=LONG[0]["content"], stream=False)
    assert status == 400, said
    assert box.pid() == before
    many = [{"role": "user" if i % 2 == 0 else "assistant", "content": "word " * 60} for i in range(31)]
    assert box.post("/v1/chat/completions", messages=many)[0] == 400, "the oldest messages would be dropped"


def test_true_times_of_v1(box: Box) -> None:
    client = openai.OpenAI(base_url=f"{box.url}/v1", api_key="x", max_retries=0, timeout=120)
    messages: Any = [{"role": "user", "content": "Tell me of the sea, in one long sentence, please."}]
    for session in ("cold", "warm"):
        stream = client.chat.completions.create(
            model="smol", messages=messages, max_tokens=5, stream=True, user=session
        )
        assert all(chunk.usage is None for chunk in stream), "a usage that was not asked for"
    warm = box.record(session_id="warm")
    assert warm["sources"]["prefill_ms"] in ("engine", "both") and warm["prefill_ms"] > 0
    assert warm["cached_tokens"] > 0 and warm["cached_tokens"] < warm["prompt_tokens"]
    assert warm["completion_tokens"] == 5 and warm["sources"]["completion_tokens"] == "engine"


# --- supervision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/v1/chat/completions", b"upstream_failed"),
        ("/v1/messages", b"upstream_failed"),
        ("/api/chat", b'"error"'),
    ],
)
def test_a_dead_runner_is_noticed_and_its_streams_end_in_an_error(box: Box, path: str, error: bytes) -> None:
    before = box.pid()
    many = {"options": {"num_predict": 900}} if path == "/api/chat" else {"max_tokens": 900}
    with Answer(box.listen, {"model": "smol", "messages": STORY, "stream": True, **many}, path=path) as stream:
        assert stream.response.status == 200 and stream.response.readline()
        os.kill(before, signal.SIGKILL)
        try:
            rest = stream.rest()
        except http.client.IncompleteRead as cut:
            rest = cut.partial
    assert error in rest and not any(end in rest for end in ENDS), rest[-300:]
    after = box.loaded(other=before)
    assert any("its process died" in e["reason"] for e in box.daemon.events(kind="target", target="smol"))
    assert box.client.chat("smol", HI, options={"num_predict": 3}).done and box.pid() == after["runner"]["pid"]
    assert box.daemon.service("box")["restarts"] == 0


def test_an_eviction_is_no_crash(box: Box) -> None:
    """By who goes past the gateway and wants another context."""
    before = box.pid()
    endpoint = box.daemon.service("box")["endpoint"]
    body = {
        "model": box.target()["tag"],
        "prompt": "Hi",
        "stream": False,
        "options": {"num_ctx": 512, "num_predict": 1},
    }
    assert request(f"{endpoint}/api/generate", body, timeout=120)[0] == 200
    box.wait(lambda t: t["state"] != "loaded" or t["runner"]["pid"] != before, "evicted")
    assert box.client.chat("smol", HI, options={"num_predict": 3}).done
    assert box.loaded(other=before)["runner"]["context_length"] == 1024
    assert any(
        e["reason"].startswith("Ollama unloaded it by itself") for e in box.daemon.events(kind="target", target="smol")
    )


def test_a_hung_runner_behind_a_service_that_answers(box: Box) -> None:
    before = box.pid()
    os.kill(before, signal.SIGSTOP)
    try:
        after = box.loaded(other=before)
    finally:
        if process.alive(before):
            os.kill(before, signal.SIGCONT)
    assert not process.alive(before) and after["runner"]["pid"] != before
    (hung,) = [e for e in box.daemon.events(kind="target", target="smol") if e["reason"].startswith("hung")][-1:]
    assert "no CPU time" in hung["reason"]
    assert box.daemon.service("box")["restarts"] == 0
    assert box.client.chat("smol", HI, options={"num_predict": 3}).done


def test_the_next_daemon_finds_what_runs(box: Box) -> None:
    before = box.pid()
    box.daemon.kill9()
    box.daemon.up(timeout=90)
    assert box.loaded()["runner"]["pid"] == before
    assert box.client.chat("smol", HI, options={"num_predict": 3}).done
    assert box.pid() == before and box.daemon.service("box")["restarts"] == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_no_runner_outlives_ollama(box: Box, number: signal.Signals) -> None:
    before, serve = box.pid(), box.daemon.service("box")["pid"]
    os.kill(serve, number)
    wait_until(lambda: not process.alive(before), 20, "the end of the runner")
    after = box.loaded(other=before)
    assert box.runners() == [after["runner"]["pid"]]
    box.daemon.wait_state("box", "READY", WAIT)
    assert box.client.chat("smol", HI, options={"num_predict": 3}).done


def test_at_the_end_nothing_is_left(box: Box) -> None:
    box.pid()
    box.daemon.down()
    assert box.runners() == []
