"""The whole life of a service on real engines, the same cases for each; they run in this order on one daemon."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import uuid
from pathlib import Path
from typing import Any

import pytest
from gateway.box import Answer, Json
from support import process
from support.enginebox import EngineBox
from support.http import request
from support.wait import wait_until

from llmsupervisor.runtime.adapter import adapter_for

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]


def answers(box: EngineBox) -> bool:
    status, said = box.post()
    return status == 200 and bool(said["choices"])


# --- it runs ------------------------------------------------------------------------------------------------------


def test_start_as_asked(box: EngineBox) -> None:
    status = box.fit()
    assert {**status["asked"], **box.asked()} == status["asked"]
    asked, got = status["asked"], status["got"]
    assert not [key for key in asked if got[key] is None] and adapter_for(box.kind.definition).compare(asked, got) == []
    advice = re.compile(r"C\d+")
    assert [c for c in status["conditions"] if not advice.fullmatch(c["id"])] == []
    assert status["restarts"] == 0 and box.loads() == 1
    assert set(status["targets"][0]["names"]) == {"chat", "other"}
    assert box.daemon.run_file("chat", "run.json")["main"]["pid"] == status["pid"]
    assert "READY" in box.daemon.cli("status").stdout
    assert answers(box) and box.post(model="other")[1]["model"] == "other"


@pytest.mark.needs("key")
def test_nobody_asks_it_past_the_gateway(box: EngineBox) -> None:
    endpoint = box.fit()["endpoint"]
    assert request(f"{endpoint}/v1/models", key="wrong")[0] == 401
    assert request(f"{endpoint}/v1/models", key=box.key)[0] == 200


@pytest.mark.needs("steps")
def test_a_start_tells_what_it_is_at(box: EngineBox) -> None:
    """Some are too short to be seen."""
    box.fit()
    steps = [step.says.split("{")[0] for step in box.kind.definition.ready.steps]
    seen = [place for phase in box.phases for place, step in enumerate(steps) if phase.startswith(step)]
    assert len(set(seen)) >= 3 and seen == sorted(seen), box.phases


def test_a_comment_restarts_nothing(box: EngineBox) -> None:
    before = box.fit()
    sha = box.daemon.status()["daemon"]["spec"]["sha256"]
    box.daemon.write_text(box.daemon.spec_path.read_text() + "\n# a comment\n")
    wait_until(lambda: box.daemon.status()["daemon"]["spec"]["sha256"] != sha, 20, "the edit to be read")
    assert box.daemon.cli("reload").returncode == 0
    assert box.daemon.service("chat")["pid"] == before["pid"]


def test_a_wrong_edit_changes_nothing(box: EngineBox) -> None:
    before, text = box.fit(), box.daemon.spec_path.read_text()
    box.daemon.write_text(text.replace("kv_cache_type = ", 'kv_cache_type = "q9_0" #'))
    line = next(n for n, row in enumerate(text.splitlines(), 1) if row.startswith("kv_cache_type"))

    def error() -> str:
        return box.daemon.status()["daemon"]["spec"]["error"] or ""

    wait_until(error, 20, "the error in the status")
    assert f"{box.daemon.spec_path}:{line}: services.chat.kv_cache_type" in error()
    assert box.daemon.service("chat")["pid"] == before["pid"] and answers(box)
    box.daemon.write_text(text)
    wait_until(lambda: not error(), 20, "the right spec to be read")


# --- figures and records ------------------------------------------------------------------------------------------


@pytest.mark.needs("metrics")
def test_figures(box: EngineBox) -> None:
    """Asked of the engine while it works, and when it has nothing to do any more."""
    box.fit()

    def told(running: int) -> Any:
        def fits(status: Json) -> bool:
            (target,) = status["targets"]
            return target["requests_running"] == running and bool(target["kv_cache_usage"]) is bool(running)

        return box.daemon.wait_service("chat", fits, 30, f"figures of {running} running")["targets"][0]

    with box.stream(**box.long()):
        busy = told(1)
    assert busy["requests_waiting"] == 0 and 0 < busy["kv_cache_usage"] <= 1
    assert told(0)["kv_cache_usage"] == 0


@pytest.mark.needs("timing")
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("usage", [True, False])
def test_records(box: EngineBox, stream: bool, usage: bool) -> None:
    """The engine's own times, whether or not the client asked for usage, and nothing that it did not ask for."""
    box.fit()
    mark = uuid.uuid4().hex
    body = {"model": "chat", "messages": [{"role": "user", "content": mark}], "max_tokens": 20, "user": mark}
    body |= {"stream": stream, "ignore_eos": True, "temperature": 0}
    if usage and stream:
        body["stream_options"] = {"include_usage": True}
    with Answer(box.listen, body) as answer:
        assert answer.response.status == 200
        text = answer.rest().decode()
    events = (
        [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        if stream
        else [json.loads(text)]
    )
    assert not [event for event in events if set(event) & set(box.kind.definition.answer.remove)]
    assert any(event.get("usage") for event in events) is (usage or not stream)

    record = box.last_record(session_id=mark)
    sources = record["sources"]
    assert {sources["prefill_ms"], sources["decode_ms"]} <= {"engine", "both"}, record
    assert record["completion_tokens"] == 20 and record["finish_reason"] == "length" and record["prompt_tokens"] > 10
    assert 0 < record["prefill_ms"] < record["total_ms"] and 0 < record["decode_ms"] < record["total_ms"]
    if "queue_ms" in box.kind.definition.timing:
        assert record["engine_queue_ms"] is not None and sources["engine_queue_ms"] == "engine", record
    spoke = stream and any(choice["delta"].get("content") for event in events for choice in event.get("choices", []))
    assert (record["ttft_ms"] is not None) is spoke, "a tiny model's twenty tokens may all be no text"


# --- its ends -----------------------------------------------------------------------------------------------------


def test_the_next_daemon_adopts(box: EngineBox) -> None:
    before = box.fit()
    identity, loads = process.start_time(before["pid"]), box.loads()
    with box.stream(**box.long()) as stream:
        box.daemon.kill9()
        assert stream.first(), "the stream goes on without a daemon"
        box.daemon.restart()
        after = box.ready(30)
        assert stream.first(), "and under the next one"
    assert after["pid"] == before["pid"] and process.start_time(after["pid"]) == identity
    assert after["endpoint"] == before["endpoint"] and box.loads() == loads


def test_a_crash_is_repaired_and_leaves_nothing(box: EngineBox) -> None:
    """Also shared memory and files; what is another's stays."""
    before, tree = box.fit(), box.tree()
    segments, temporary = box.segments(), box.temporary()
    assert bool(segments) is bool(temporary) is ("leavings" in box.kind.capabilities), (segments, temporary)
    foreign = Path(f"/dev/shm/psm_{uuid.uuid4().hex[:8]}")
    foreign.write_bytes(bytes(4096))
    try:
        os.kill(before["pid"], signal.SIGKILL)
        after = box.restarted(before)
        assert foreign.exists()
    finally:
        foreign.unlink(missing_ok=True)
    assert not [pid for pid in tree if process.alive(pid)]
    assert not [path for path in segments if Path(path).exists()]
    assert not temporary & box.temporary()
    assert after["pid"] != before["pid"] and after["endpoint"] == before["endpoint"]
    assert after["last_exit"]["signal"] == "SIGKILL" and answers(box)


def test_who_waits_for_a_place_survives_the_engine(box: EngineBox) -> None:
    """Its turn comes in the moment in which the running ones break off."""
    before = box.fit()
    with box.stream(**box.long()) as one, box.stream(**box.long()) as two:
        waiting, found = box.later()
        queued = lambda service: service["targets"][0]["requests_queued"] == 1  # noqa: E731
        box.daemon.wait_service("chat", queued, 30, "one that waits for a place")
        os.kill(before["pid"], signal.SIGKILL)
        for stream in (one, two):
            with pytest.raises(http.client.IncompleteRead) as cut:
                stream.rest()
            assert b"upstream_failed" in cut.value.partial
    box.restarted(before)
    waiting.join(320)
    assert found == [200]


def test_a_death_without_a_daemon_is_known_to_the_next(box: EngineBox) -> None:
    before, segments = box.fit(), box.segments()
    box.daemon.kill9()
    os.kill(before["pid"], signal.SIGKILL)
    wait_until(lambda: not process.alive(before["pid"]) and not box.tree(), 20, "the death of the engine")
    box.daemon.restart()
    after = box.ready()
    assert after["pid"] != before["pid"] and after["last_exit"]["signal"] == "SIGKILL"
    assert not [path for path in segments if Path(path).exists()]


@pytest.mark.needs("engine-process")
def test_a_dead_engine_whose_server_exits_with_0_is_a_crash(box: EngineBox) -> None:
    before = box.fit()
    os.kill(box.core(), signal.SIGKILL)
    after = box.restarted(before)
    assert (after["last_exit"]["code"], after["last_exit"]["cause"]) == (0, "engine-died"), after["last_exit"]
    assert after["last_exit"]["advice"] and answers(box)


@pytest.mark.slow
def test_a_hang_is_repaired(box: EngineBox) -> None:
    """A request that comes when it hangs already: an engine behind a server has figures of an idle one."""
    before, tree = box.fit(), box.tree()
    core = box.core()
    os.kill(core, signal.SIGSTOP)
    client, _ = box.later()
    if core != before["pid"]:
        assert request(f"{before['endpoint']}/health")[0] == 200, "its server knows nothing"
    after = box.restarted(before)
    client.join(330)
    assert after["pid"] != before["pid"] and not [pid for pid in tree if process.alive(pid)]
    assert after["last_exit"]["cause"] == "stalled", after["last_exit"]
    assert answers(box)


@pytest.mark.needs("context-restart")
def test_a_reload_drains_and_nobody_sees_an_error(box: EngineBox) -> None:
    before = box.fit()
    box.context *= 2
    with box.stream(tokens=box.kind.tokens // 30) as running:
        box.write()
        box.daemon.wait_service("chat", lambda s: s["state"] not in ("READY", "UNREADY"), 60, "the drain")
        late, waited = box.later()
        rest = running.rest().decode()
    assert rest.rstrip().endswith("data: [DONE]") and '"error"' not in rest
    after = box.restarted(before)
    late.join(330)
    assert waited == [200]
    assert after["got"]["context_length"] == box.context and after["pid"] != before["pid"]


def test_stop_with_an_open_stream(box: EngineBox) -> None:
    """The client never hangs up: drain, then the stop steps of the definition, then KILL."""
    before, tree = box.fit(), box.tree()
    box.write({"chat": box.service() | {"drain_timeout": "1s"}})
    assert box.daemon.cli("reload").returncode == 0
    with box.stream(**box.long()):
        done = box.daemon.cli("stop", "chat", timeout=120)
    assert done.returncode == 0, done.stderr
    stopped = box.daemon.wait_state("chat", "STOPPED", 5)
    assert stopped["goal"] == "down" and stopped["stopped_by"] and stopped["pid"] is None
    assert not [pid for pid in tree if process.alive(pid)] and not process.listening(box.daemon.ports)
    assert box.daemon.service("chat")["restarts"] == before["restarts"]


def test_stop_while_it_starts(box: EngineBox) -> None:
    """vLLM swallows the first SIGTERM then."""
    if box.daemon.service("chat")["state"] != "STOPPED":
        assert box.daemon.cli("stop", "chat", "--now", timeout=120).returncode == 0
    box.daemon.call("start", by="test", service="chat", wait=False)
    box.daemon.wait_service("chat", lambda s: s["state"] == "STARTING" and s["pid"], 30, "a start")
    if box.kind.core:
        wait_until(box.cores, 120, "a core")
    if "leavings" in box.kind.capabilities:
        wait_until(box.segments, 120, "shared memory")
    tree, segments = box.tree(), box.segments()
    done = box.daemon.cli("stop", "chat", timeout=120)
    assert done.returncode == 0, done.stderr
    assert box.daemon.service("chat")["state"] == "STOPPED"
    assert not [pid for pid in tree if process.alive(pid)] and not box.temporary()
    assert not [path for path in segments if Path(path).exists()]


def test_down_leaves_nothing(box: EngineBox) -> None:
    box.daemon.down()
