"""A card that is lent to another job: a real daemon over the NVML stand-in."""

from __future__ import annotations

import time

import pytest
from support import process
from support.control import Refused
from support.faults import ON_GPU, Box, gpu, pending
from support.http import Stream, answer_of
from support.nvml import Scenario
from support.wait import wait_until

from llmsupervisor.gateway.route import SOMEBODY

pytestmark = pytest.mark.slow


def test_a_card_is_lent_and_taken_back(faults: Box, card: Scenario) -> None:
    card.play("gpu GPU-a 24576 1000 0", "gpu GPU-b 24576 1000 0")
    faults.daemon.write({"chat": faults.fake({}, **ON_GPU), "other": faults.fake({}, **ON_GPU | {"gpus": [1]})})
    faults.daemon.up()
    faults.ready()
    other = faults.ready("other")["pid"]
    wrong = faults.daemon.cli("lend", "0", "--for", "soon")
    assert wrong.returncode == 2 and "'soon' is not a duration" in wrong.stderr
    done = faults.daemon.cli("lend", "0", "--for", "2h", timeout=60)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("chat ")][-1] == "PENDING"
    waiting = faults.daemon.service("chat")
    assert waiting["pid"] is None and "GPU 0 is lent to " in waiting["reason"] and " until " in waiting["reason"]
    lent = (gpu(faults) or {})["lent"]
    assert lent["until"] - lent["since"] == 7200
    (event,) = faults.daemon.events(kind="operator", call="lend")
    assert (event["gpu"], event["by"], event["until"]) == ("GPU-a", lent["by"], lent["until"])
    assert f"lent to {lent['by']}" in faults.daemon.cli("gpus").stdout

    faults.daemon.kill9()
    faults.daemon.restart()
    pending(faults, "GPU 0 is lent to ")
    with pytest.raises(Refused, match=r"no GPU '7'; this box has 0 .GPU-a., 1 .GPU-b."):
        faults.daemon.call("lend", gpu=7, by="test")
    faults.daemon.call("start", service="chat", by="test", wait=False)
    pending(faults, "GPU 0 is lent to ")
    faults.once(1)
    assert "was lent to" in faults.daemon.cli("take", "0").stdout
    faults.ready()
    assert "neither lent nor quarantined" in faults.daemon.cli("take", "0").stdout
    assert faults.daemon.service("other")["pid"] == other


def test_a_loan_ends_by_itself_and_survives_a_death_in_its_drain(faults: Box, card: Scenario) -> None:
    """The daemon dies while it drains; the next one goes on with that, and gives the card back when the time is over."""
    slow = {**ON_GPU, "drain_timeout": "90s"}
    before = faults.up({"token_ms": 100}, **slow).ready()
    key = faults.daemon.key("chat")
    with Stream(before["endpoint"], key) as stream:
        stream.first()
        faults.daemon.call("lend", gpu=0, by="alice", wait=False)
        faults.daemon.wait_state("chat", "DRAINING")
        faults.daemon.kill9()
        faults.daemon.restart()
        faults.daemon.wait_state("chat", "DRAINING")
    assert " until `llmsupervisor take 0`" in pending(faults, "GPU 0 is lent to alice")["reason"]
    faults.daemon.call("lend", gpu=0, by="alice", for_s=1)
    faults.daemon.wait_service("chat", lambda s: s["state"] == "READY" and s["pid"] != before["pid"], 60, "its return")
    assert (gpu(faults) or {})["lent"] is None
    assert any("the time is over for which alice had it" in e["text"] for e in faults.daemon.events(kind="gpu"))
    faults.once(2)


def test_who_asks_for_a_model_on_a_lent_card_hears_when_it_is_back(faults: Box, card: Scenario) -> None:
    listen = f"127.0.0.1:{process.free_ports(1)[0]}"
    url, body = f"http://{listen}/v1/chat/completions", {"model": "chat", "messages": [], "max_tokens": 1}
    faults.daemon.write({"chat": faults.fake({}, **ON_GPU)}, gateway={"listen": listen})
    faults.daemon.up()
    faults.ready()
    faults.daemon.call("lend", gpu=0, by="alice", for_s=1800)
    pending(faults, "GPU 0 is lent to alice")
    until = (gpu(faults) or {})["lent"]["until"]
    before = time.time()
    status, seconds, text = answer_of(url, body)
    assert status == 503 and "GPU 0 is lent to alice until " in text
    assert seconds is not None and before - 3 <= until - seconds <= time.time() + 1

    faults.daemon.call("lend", gpu=0, by="alice")
    wait_until(lambda: answer_of(url, body)[1] == SOMEBODY, 30, "an end that nobody knows")
    faults.daemon.call("take", gpu=0, by="alice")
    faults.ready()
    wait_until(lambda: answer_of(url, body)[0] == 200, 30, "its answer")
