"""Faults of what runs and does not answer, each against a real daemon: P4 to P6, P10, P27. Numbers: README.md."""

from __future__ import annotations

import os
import signal

import pytest
from support.daemon import Json
from support.faults import QUICK, Box, Stopwatch, conditions, gone
from support.http import Stream, get_json, request
from support.wait import wait_until


def stream(box: Box, status: Json) -> Stream:
    """An answer of thousands of tokens, its first already here."""
    opened = Stream(status["endpoint"], box.daemon.key("chat"))
    opened.first()
    return opened


def completions(status: Json) -> int:
    """Chat requests that the fake ever got."""
    calls: dict[str, int] = get_json(f"{status['endpoint']}/fault")["calls"]
    return calls.get("/v1/chat/completions", 0)


def stalled(box: Box, before: Json, watch: Stopwatch) -> Json:
    """Replaced once, for a hang; the old one is gone."""
    after = box.again(1)
    watch.lap("from the fault to READY again")
    assert after["last_exit"]["cause"] == "stalled" and after["last_exit"]["text"].startswith("hangs: ")
    assert after["pid"] != before["pid"]
    gone([before["pid"]])
    box.once(2)
    box.wait_exits(1)
    return after


@pytest.mark.slow
def test_P4_hang_behind_a_healthy_health_path(faults: Box) -> None:
    before = faults.up({"token_ms": 20}, **QUICK).ready()
    with stream(faults, before):
        faults.inject(before, hang="decode")
        assert request(f"{before['endpoint']}/health")[0] == 200
        after = stalled(faults, before, Stopwatch())
    text = after["last_exit"]["text"]
    assert "1 request outstanding and no progress for" in text and "a probe failed" in text
    assert completions(after) == 1, "the one request before READY"


@pytest.mark.slow
def test_P4_an_idle_service_is_left_alone(faults: Box) -> None:
    """Without outstanding work nothing is suspected, and no request is ever sent: not a canary."""
    status = faults.up({}, **QUICK).ready()
    before = figures(status)
    wait_until(lambda: figures(status) >= before + 8, 20, "eight looks")
    assert completions(status) == 1, "the one request before READY"
    assert faults.daemon.service("chat")["pid"] == status["pid"]
    faults.once(1)


def figures(status: Json) -> int:
    calls: dict[str, int] = get_json(f"{status['endpoint']}/fault")["calls"]
    return calls.get("/metrics", 0)


@pytest.mark.slow
def test_P4_a_hang_at_the_first_request_is_a_failed_start(faults: Box) -> None:
    """READY is refused, whatever the readiness path says."""
    faults.up({"hang": "decode"}, **QUICK)
    status = faults.daemon.wait_service("chat", lambda s: s["last_exit"], 20, "an end")
    assert status["last_exit"]["cause"] == "stalled" and "READY refused" in status["last_exit"]["text"]
    assert "READY" not in faults.states()


@pytest.mark.slow
def test_P5_all_endpoints_silent(faults: Box) -> None:
    """Stopped by a signal, with work under way: TERM alone would never reach it."""
    patient = {"timeout": "3s", "stall_timeout": "9s"}  # three looks even where the machine stands still meanwhile
    before = faults.up({"token_ms": 20, "children": 1}, probe=patient).ready()
    tree = faults.below_shim()
    with stream(faults, before):
        os.kill(before["pid"], signal.SIGSTOP)
        after = stalled(faults, before, Stopwatch())
    assert "no answer for" in after["last_exit"]["text"]
    assert "UNREADY" in faults.states(), "told before it is acted upon"
    assert len(tree) == 2
    gone(tree)


@pytest.mark.slow
def test_P5_a_silence_that_ends_is_forgiven(faults: Box) -> None:
    """UNREADY, then READY again: the same process."""
    before = faults.up({}, probe={"timeout": "1s", "stall_timeout": "15s"}).ready()
    os.kill(before["pid"], signal.SIGSTOP)
    try:
        status = faults.daemon.wait_state("chat", "UNREADY", 20)
        assert "no answer for" in status["reason"]
    finally:
        os.kill(before["pid"], signal.SIGCONT)
    after = faults.ready()
    assert (after["pid"], after["reason"], after["restarts"]) == (before["pid"], "", 0)
    faults.once(1)


@pytest.mark.slow
def test_P6_a_mute_and_working_engine_is_not_replaced(faults: Box) -> None:
    """Three times `stall_timeout` without any answer, a core at work: a long prefill looks like this."""
    before = faults.up({}, **QUICK).ready()
    faults.inject(before, mute=7)
    phase = faults.daemon.wait_service("chat", lambda s: s["phase"], 20, "a phase")["phase"]
    assert phase.startswith("no answer for") and phase.endswith("it works")
    after = faults.daemon.wait_service("chat", lambda s: not s["phase"], 20, "answers again")
    assert after["pid"] == before["pid"] and faults.states()[-1] == "READY"
    assert "UNREADY" not in faults.states() and faults.exits() == []
    faults.once(1)


@pytest.mark.slow
def test_P6_slow_tokens_are_progress(faults: Box) -> None:
    """One token each 3 s, `stall_timeout` 6 s: for longer than twice that."""
    before = faults.up({"token_ms": 0}, probe={"timeout": "3s", "stall_timeout": "6s"}).ready()
    faults.inject(before, token_ms=3000)
    with stream(faults, before) as opened:
        for _ in range(5):
            opened.first()
    assert faults.daemon.service("chat")["pid"] == before["pid"]
    assert completions(before) == 2, "no probe was needed"
    faults.once(1)


@pytest.mark.slow
def test_P27_a_dead_worker_behind_a_living_main(faults: Box) -> None:
    """The readiness path says 503 and requests fail, figures go on: the whole group is replaced."""
    before = faults.up({"worker": 1, "children": 1}, **QUICK).ready()
    tree = faults.below_shim()
    assert len(tree) == 3
    watch = Stopwatch()
    faults.inject(before, kill_worker=1, http_500="EngineCore died")
    faults.daemon.wait_service("chat", lambda s: s["state"] != "READY" or s["restarts"], 20, "not READY")
    watch.lap("from the fault to the end of READY")
    after = stalled(faults, before, watch)
    assert "EngineCore died" in after["last_exit"]["text"]
    assert conditions(after) == {}
    gone(tree)
    assert len(faults.below_shim()) == 3


def test_P10_it_ignores_sigterm(faults: Box) -> None:
    before = faults.up({"ignore_term": 1, "children": 2}).ready()
    tree = faults.below_shim()
    watch = Stopwatch()
    assert faults.daemon.cli("stop", "chat").returncode == 0
    spent = watch.lap("stopped")
    assert spent > 1, "both steps of the definition were waited for"
    status = faults.daemon.service("chat")
    assert status["state"] == "STOPPED" and status["last_exit"]["signal"] == "SIGKILL"
    assert before["pid"] in tree and len(tree) == 3
    gone(tree, 1)
    assert faults.states()[-4:] == ["DRAINING", "STOPPING", "KILLING", "STOPPED"]
    assert faults.exits() == [], "an end that was ordered is no failure"
    faults.once(1)


def test_P10_stop_with_an_open_stream(faults: Box) -> None:
    """The client never hangs up: drain_timeout, the stop steps, and the second TERM ends it before the KILL."""
    faults.stops('steps = [["TERM", "500ms"], ["TERM", "30s"]]')
    before = faults.up({"token_ms": 100}, drain_timeout="500ms").ready()
    with stream(faults, before):
        assert faults.daemon.cli("stop", "chat").returncode == 0
    status = faults.daemon.service("chat")
    assert status["state"] == "STOPPED" and (status["last_exit"]["code"], status["last_exit"]["signal"]) == (1, None)
    faults.once(1)


def test_a_drain_without_a_gateway_says_what_it_cannot_do(faults: Box) -> None:
    before = faults.up({"token_ms": 100}, drain_timeout="120s").ready()
    with stream(faults, before):
        assert faults.daemon.cli("drain", "chat", "--no-wait").returncode == 0
        told = lambda s: s["state"] == "DRAINING" and s["phase"] and "1 running" in s["phase"]  # noqa: E731
        phase = faults.daemon.wait_service("chat", told, 30, "what it waits for")["phase"]
        assert phase == "1 running, 0 waiting; without a gateway new requests cannot be held back"
    faults.daemon.wait_state("chat", "STOPPED", 60)
    faults.once(1)
