"""G faults, each against a real daemon and the real NVML binding over the stand-in library. Numbers: README.md."""

from __future__ import annotations

import contextlib
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_type_hints

import pytest
from support import process
from support.faults import ON_GPU, QUICK, Box, Stopwatch, conditions, gpu, pending, wait_gpu
from support.http import Stream, post_json, request
from support.nvml import Scenario
from support.wait import Spent, wait_until

from llmsupervisor.link.gpus import Gpu
from llmsupervisor.link.status import Host, Nvml

pytestmark = pytest.mark.slow
CLOCK = Path(__file__).parents[1] / "fixtures" / "clock" / "clock.c"
OOM = "allocating 512.00 MiB on device 0: cudaMalloc failed: out of memory"


def test_G1_no_memory_at_load_is_told_and_waits_for_memory(faults: Box, card: Scenario) -> None:
    card.play("gpu GPU-a 24576 23000 0")
    faults.up({"oom": 1, "times": 1}, gpus=[0])
    failed = faults.daemon.wait_state("chat", "FAILED")
    assert failed["last_exit"]["cause"] == "oom-load" and failed["retry_at"] is None
    assert "GPU 0: 1.0 GiB were free when it started" in failed["last_exit"]["advice"]
    faults.once(1)
    card.play("gpu GPU-a 24576 1000 0")
    faults.again(1)
    faults.once(2)


def test_G2_no_memory_in_requests_of_an_engine_that_lives(faults: Box, card: Scenario) -> None:
    before = faults.up({}, **ON_GPU).ready()
    faults.inject(before, log=OOM)
    told = faults.daemon.wait_service("chat", lambda s: "out-of-memory" in conditions(s), 20, "the condition")
    assert OOM in conditions(told)["out-of-memory"] and "leave more room" in conditions(told)["out-of-memory"]
    assert (told["state"], told["pid"]) == ("READY", before["pid"])
    faults.inject(before, log=OOM)
    after = faults.again(1)
    assert after["last_exit"]["cause"] == "oom-run" and "twice within a minute" in after["last_exit"]["text"]
    assert "out-of-memory" not in conditions(after)


def test_G3_no_memory_in_a_request_ends_the_engine(faults: Box, card: Scenario) -> None:
    before = faults.up({}, **ON_GPU).ready()
    with pytest.raises(OSError):
        faults.inject(before, oom=1)
    after = faults.again(1)
    assert after["last_exit"]["cause"] == "oom-run" and after["last_exit"]["code"] == 1
    assert "GPU 0: 22.5 GiB were free when it started, it was expected to take 4.0 GiB" in after["last_exit"]["advice"]


def test_G3_the_prompts_in_prefill_are_told(faults: Box, card: Scenario) -> None:
    """The gateway knows how long they are: a request that it relayed was in prefill when the engine died."""
    listen = f"127.0.0.1:{process.free_ports(1)[0]}"
    slow = ON_GPU | {"probe": {"timeout": "5s", "stall_timeout": "60s"}, "context_length": 8192}
    faults.daemon.write({"chat": faults.fake({}, **slow)}, gateway={"listen": listen})
    faults.daemon.up()
    before = faults.ready()
    wait_until(lambda: _status(f"http://{listen}/readyz") == 200, 20, "the gateway to be open")
    faults.inject(before, prompt_ms=1_000_000)
    body = {"model": "chat", "messages": [{"role": "user", "content": "word " * 3000}], "max_tokens": 2}
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(request, f"http://{listen}/v1/chat/completions", body)
        wait_until(lambda: faults.inject(before)["in_flight"] == 1, 10, "the request in the engine")
        told = lambda s: (s["targets"][0]["requests_running"], s["targets"][0]["requests_queued"]) == (1, 0)  # noqa: E731
        faults.daemon.wait_service("chat", told, 10, "what the gateway says of it")
        with pytest.raises(OSError):
            faults.inject(before, oom=1)
        assert answer.result()[0] == 502
    advice = faults.again(1)["last_exit"]["advice"]
    told = re.search(r"it was expected to take 4.0 GiB; (\d+) prompt tokens were in prefill", advice)
    assert told and 750 < int(told[1]) < 15_000, advice


def _status(url: str) -> int:
    """0 of nobody."""
    with contextlib.suppress(OSError):
        return request(url)[0]
    return 0


def test_G4_G5_somebody_else_on_the_card(faults: Box, card: Scenario, stranger: int) -> None:
    card.play("gpu GPU-a 24576 23000 0", f"proc {stranger} 22000")
    faults.up({}, **ON_GPU)
    waiting = pending(faults, f"pid {stranger} (")
    assert "4.0 GiB on GPU 0, 1.0 GiB free" in waiting["reason"] and "21.5 GiB" in waiting["reason"]
    faults.once(0)
    card.play("gpu GPU-a 24576 1000 0")
    ours = faults.ready()["pid"]
    wait_gpu(faults, lambda g: not g["conditions"], "nobody else")
    for there in (10000, 12000):
        card.play(f"gpu GPU-a 24576 {there + 3000} 0", f"proc {ours} 3000", f"proc {stranger} {there}")
        size = f"{round(there / 256) / 4:.1f} GiB"
        found = wait_gpu(faults, lambda g, size=size: size in conditions(g).get("foreign", ""), f"{size} of a stranger")
        assert f"pid {stranger} (" in conditions(found)["foreign"]
    assert faults.daemon.service("chat")["pid"] == ours
    big = faults.fake({}, gpus=[0], gpu_memory="16GiB")
    faults.daemon.write({"chat": faults.fake({}, **ON_GPU), "big": big})
    wait_until(lambda: len(faults.daemon.status()["services"]) == 2, 20, "the second service")
    assert "16.0 GiB on GPU 0, 8.9 GiB free" in pending(faults, f"pid {stranger} (", "big")["reason"]
    card.play("gpu GPU-a 24576 1000 0")


def test_G7_what_runs_on_a_lost_card_waits_and_the_others_go_on(faults: Box, card: Scenario) -> None:
    card.play("gpu GPU-a 24576 1000 0", "gpu GPU-b 24576 1000 0")
    faults.daemon.write({"chat": faults.fake({}, **ON_GPU), "other": faults.fake({}, **ON_GPU | {"gpus": [1]})})
    faults.daemon.up()
    faults.ready()
    other = faults.ready("other")["pid"]
    card.play("gpu GPU-a 24576 1000 15", "gpu GPU-b 24576 1000 0")
    reason = pending(faults, "GPU 0 is quarantined: it is lost")["reason"]
    assert "GPU is lost" in reason and "`llmsupervisor take 0`" in reason
    assert faults.wait_exits(1)[0]["cause"] == "gpu-lost"
    lost = gpu(faults)
    assert lost and (lost["index"], lost["name"]) == (0, "Stand-in 9000")
    assert "GPU is lost" in lost["error"] and lost["memory_used_bytes"] is None
    assert "it is lost" in lost["quarantine"]["reason"] and "quarantined" in conditions(lost)
    card.play("gpu GPU-b 24576 1000 0")  # not even listed any more, and another one has its index
    wait_gpu(faults, lambda g: "missing" in conditions(g), "the missing card")
    assert faults.daemon.service("other")["pid"] == other
    card.play("gpu GPU-a 24576 1000 0", "gpu GPU-b 24576 1000 0")
    wait_gpu(faults, lambda g: g["error"] is None, "the card back")
    pending(faults, "GPU 0 is quarantined: it is lost")  # a person decides
    faults.once(1)
    assert "was quarantined" in faults.daemon.cli("take", "0").stdout
    assert faults.again(1)["pid"] and faults.daemon.service("other")["pid"] == other
    faults.once(2)


def test_G8_G10_services_are_kept_while_nvml_is_of_no_use(faults: Box, card: Scenario) -> None:
    """It crashes; then driver and library differ: at run time, and for a daemon that begins like that."""
    pid = faults.up({}, **ON_GPU).ready()["pid"]
    wait_until(lambda: faults.daemon.status()["nvml"]["time"], 20, "a first look")
    card.play("abort")
    wait_until(lambda: faults.daemon.status()["gpus"] is None, 20, "unreadable")
    nvml = faults.daemon.status()["nvml"]
    assert nvml["error"] == "the GPU sampler ended by signal 6" and nvml["time"] and nvml["driver"] == "580.95.05"
    card.play("init 18", "count 18")
    own = lambda: conditions(faults.daemon.status()["daemon"]).get("gpus-unread", "")  # noqa: E731
    wait_until(lambda: "until a reboot" in own(), 20, lambda: own())
    faults.daemon.kill9()
    faults.daemon.restart()
    wait_until(lambda: "until a reboot" in own(), 20, lambda: own())
    kept = faults.daemon.wait_state("chat", "READY")
    assert (kept["pid"], kept["restarts"]) == (pid, 0)
    card.play("gpu GPU-a 24576 1000 0")
    wait_gpu(faults, lambda g: g["error"] is None, "the card back", timeout=40)
    wait_until(lambda: not own(), 20, lambda: f"nothing to be told: {own()}")
    assert faults.daemon.service("chat")["pid"] == pid


def test_G9_a_hang_of_nvml_holds_up_nobody(faults: Box, card: Scenario) -> None:
    pid = faults.up({}, **ON_GPU).ready()["pid"]
    wait_until(lambda: faults.daemon.status()["nvml"]["time"], 20, "a first look")
    card.play("sleep 60", "gpu GPU-a 24576 1000 0")
    watch = Stopwatch()
    answers = []

    def unreadable() -> bool:
        spent = Spent()
        status = faults.daemon.status()
        answers.append(spent())
        return status["gpus"] is None

    wait_until(unreadable, 20, "unreadable")
    watch.lap("from the hang to its word")
    status = faults.daemon.status()
    assert status["nvml"]["error"] == "NVML did not answer for 5 s"
    assert "did not answer for 5 s" in conditions(status["daemon"])["gpus-unread"]
    print(f"the slowest of {len(answers)} answers meanwhile: {max(answers) * 1000:.0f} ms")
    assert len(answers) > 5 and max(answers) < 2
    card.play("gpu GPU-a 24576 2000 0")
    wait_gpu(faults, lambda g: g["memory_used_bytes"] == 2000 << 20, "the card back", timeout=80)
    kept = faults.daemon.service("chat")
    assert (kept["state"], kept["pid"], kept["restarts"]) == ("READY", pid, 0)


def test_G11_cards_that_change_places(faults: Box, card: Scenario) -> None:
    faults.daemon.write({"chat": faults.fake({}, **ON_GPU | {"gpus": [1]})})
    card.play("gpu GPU-a 24576 1000 0", "gpu GPU-b 24576 1000 0")
    faults.daemon.up()
    pid = faults.ready()["pid"]
    card.play("gpu GPU-b 24576 4000 0", f"proc {pid} 3000", "gpu GPU-c 24576 1 0", "gpu GPU-a 24576 1000 0")
    moved = wait_gpu(faults, lambda g: g["index"] == 0 and g["processes"], "another index", "GPU-b")
    assert [process["service"] for process in moved["processes"]] == ["chat"]
    assert faults.daemon.service("chat")["pid"] == pid
    card.play("gpu GPU-b 24576 1000 0", "gpu GPU-c 24576 1 0", "gpu GPU-a 24576 1000 0")
    faults.daemon.call("restart", service="chat", by="test", timeout=60)
    faults.again(1)
    assert faults.daemon.run_file("chat", "launch.json")["gpus"] == ["GPU-b"]


def test_G12_what_is_not_told_is_null(faults: Box, card: Scenario) -> None:
    card.play("gpu GPU-a 24576 1000 0", "memory 3", "list 3", "code busy 3", "code temperature 999", "code events 4")
    faults.up({}, **ON_GPU).ready()
    found = wait_gpu(faults, lambda g: True, "the card")
    told = {"uuid", "index", "name", "clocks", "conditions"}
    assert {key for key, value in found.items() if value is not None} == told
    assert set(found["clocks"].values()) == {None} and found["conditions"] == []
    assert faults.daemon.service("chat")["vram_bytes"] is None
    assert "VRAM – of – (–)" in faults.daemon.cli("gpus").stdout


def test_G13_pids_of_another_world(faults: Box, card: Scenario) -> None:
    """As in a container: the memory is what the use of the card rose by, and it says so."""
    alien = f"proc {2**22 + 7} 3000"
    faults.daemon.write({"chat": faults.fake({"ready_after": 600}, gpus=[0])})
    faults.daemon.up()
    address = faults.listens()
    card.play("gpu GPU-a 24576 4000 0", alien)
    wait_gpu(faults, lambda g: g["memory_used_bytes"] == 4000 << 20, "the load's memory")
    post_json(f"{address}/fault", {"ready_after": 0})
    held = faults.daemon.wait_service("chat", lambda s: s["vram_bytes"], 20, "what it holds")
    assert (held["vram_bytes"], held["vram_source"]) == (3000 << 20, "delta")
    found = wait_gpu(faults, lambda g: "pids-hidden" in conditions(g), "the flag")
    assert "foreign" not in conditions(found) and found["processes"][0]["user"] is None


def test_G14_xids(faults: Box, card: Scenario) -> None:
    """An application's: its service is asked, and replaced only where it fails. The card's: nothing more is started there,
    over a restart of the daemon, until somebody takes it back."""
    line = "gpu GPU-a 24576 1000 0"
    before = faults.up({}, **ON_GPU).ready()
    asked = lambda: faults.inject(before)["tasks"]  # noqa: E731
    wait_gpu(faults, lambda g: g["xids"] == [], "a card that is listened to")
    so_far = asked()
    card.play(line, "xid 31", "xid 31")
    told = wait_gpu(faults, lambda g: g["xids"] and g["xids"][0]["count"] > 1, "the XID")["xids"]
    assert [(x["code"], x["kind"], x["count"]) for x in told] == [(31, "application", 2)]
    wait_until(lambda: faults.daemon.events(kind="gpu", code=31), 5, "the event")
    wait_until(lambda: asked() == so_far + 1, 20, "one request of its task")
    faults.inject(before, http_500="CUDA error: an illegal memory access was encountered")
    assert faults.daemon.service("chat")["restarts"] == 0
    card.play(line, "xid 13")
    after = faults.again(1)
    assert "XID 13 (graphics engine exception) on GPU 0; a probe failed: 500" in after["last_exit"]["text"]
    assert (gpu(faults) or {})["quarantine"] is None
    card.play(line, "xid 95")
    found = wait_gpu(faults, lambda g: g["quarantine"], "the quarantine")
    assert found["quarantine"]["reason"] == "XID 95 (uncontained ECC error)"
    kept = faults.daemon.wait_service("chat", lambda s: "gpu-closed" in conditions(s), 20, "the condition")
    assert (kept["state"], kept["pid"]) == ("READY", after["pid"])
    faults.daemon.kill9()
    faults.daemon.restart()
    assert faults.daemon.wait_state("chat", "READY")["pid"] == after["pid"]
    faults.daemon.call("restart", service="chat", by="test", wait=False)
    pending(faults, "GPU 0 is quarantined: XID 95")
    faults.daemon.call("take", gpu="GPU-a", by="test")
    faults.ready()
    assert (gpu(faults) or {})["conditions"] == []


def test_G14_a_busy_engine_is_judged_by_its_progress(faults: Box, card: Scenario) -> None:
    """It is suspected while its only place is taken: the tiny request would wait until it counts as failed. It is sent
    once the engine rests."""
    before = faults.up({"token_ms": 50}, **ON_GPU | {"parallel": 1}).ready()
    told = lambda: faults.inject(before)  # noqa: E731
    wait_gpu(faults, lambda g: g["xids"] == [], "a card that is listened to")
    with Stream(before["endpoint"], faults.daemon.key("chat")) as stream:
        stream.first()
        so_far = told()["calls"]["/v1/chat/completions"]
        card.play("gpu GPU-a 24576 1000 0", "xid 31")
        wait_gpu(faults, lambda g: g["xids"], "the XID")
        looks = told()["calls"].get("/metrics", 0)
        wait_until(lambda: told()["calls"].get("/metrics", 0) >= looks + 8, 20, "eight more looks")
        assert told()["calls"]["/v1/chat/completions"] == so_far
        assert faults.daemon.service("chat")["state"] == "READY"
    wait_until(lambda: told()["calls"]["/v1/chat/completions"] == so_far + 1, 20, "the request of its task")
    kept = faults.daemon.service("chat")
    assert (kept["state"], kept["pid"], kept["restarts"]) == ("READY", before["pid"], 0)


def test_G14_a_card_that_fell_off_the_bus(faults: Box, card: Scenario) -> None:
    """XID 79 is told before any handle fails. What ran there ends and waits; the other card's service is not even asked."""
    lines = "gpu GPU-a 24576 1000 0", "gpu GPU-b 24576 1000 0"
    card.play(*lines)
    faults.daemon.write({"chat": faults.fake({}, **ON_GPU), "other": faults.fake({}, **ON_GPU | {"gpus": [1]})})
    faults.daemon.up()
    faults.ready()
    other = faults.ready("other")
    asked = faults.inject(other)["tasks"]
    wait_gpu(faults, lambda g: g["xids"] == [], "a card that is listened to")
    card.play(lines[0], "xid 79", lines[1])
    reason = pending(faults, "GPU 0 is quarantined: XID 79 (GPU has fallen off the bus)")["reason"]
    assert "`llmsupervisor take 0` ends that" in reason
    assert [end["cause"] for end in faults.wait_exits(1)] == ["gpu-lost"]
    lost = gpu(faults) or {}
    assert conditions(lost) == {"quarantined": "XID 79 (GPU has fallen off the bus)"}
    assert [(x["code"], x["kind"], x["count"]) for x in lost["xids"]] == [(79, "gpu", 1)]
    faults.daemon.call("start", service="chat", by="test", wait=False)
    pending(faults, "GPU 0 is quarantined: XID 79")
    faults.once(1)
    well = gpu(faults, "GPU-b") or {}
    assert well["quarantine"] is None and well["conditions"] == well["xids"] == []
    now = faults.daemon.service("other")
    assert (now["state"], now["pid"], now["restarts"]) == ("READY", other["pid"], 0)
    assert faults.inject(other)["tasks"] == asked and "gpu-closed" not in faults.told_conditions("other")
    faults.daemon.call("take", gpu="GPU-a", by="test")
    faults.ready()
    faults.once(2)


def test_G15_slowed_by_heat_or_power_is_shown(faults: Box, card: Scenario) -> None:
    pid = faults.up({}, **ON_GPU).ready()["pid"]
    card.play(
        "gpu GPU-a 24576 1000 0", "value limits 36", "value power 349000", "value power_limit 350000", "value sm 900"
    )
    found = wait_gpu(faults, lambda g: g["clock_limits"], "the limits")
    assert found["clock_limits"] == ["power_cap", "thermal"] and found["power_w"] == 349.0
    assert wait_gpu(faults, lambda g: g["conditions"], "a condition")["conditions"][0]["id"] == "clocks-limited"
    status = faults.daemon.status()
    for told, kind in (
        (status["gpus"][0], Gpu),
        (status["nvml"], Nvml),
        (status["host"], Host),
    ):
        assert set(told) == set(get_type_hints(kind))
    wait_until(lambda: faults.daemon.status()["host"]["weights"], 20, "a look at the disks")
    (weights,) = faults.daemon.status()["host"]["weights"]
    assert (weights["service"], weights["bytes"]) == ("chat", faults.model.stat().st_size)
    assert "slowed by power_cap, thermal" in faults.daemon.cli("gpus").stdout
    assert faults.daemon.service("chat")["pid"] == pid


def test_G16_suspend_and_resume(faults: Box, card: Scenario) -> None:
    """Every handle is void: NVML begins anew in a fresh process. The services are asked: one of them did not survive."""
    library, asleep = faults.folder / "clock.so", faults.folder / "asleep"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(CLOCK), "-ldl"], check=True)
    asleep.write_text("0")
    faults.daemon.environ |= {"LD_PRELOAD": str(library), "CLOCK_ASLEEP": str(asleep)}
    faults.daemon.write({"chat": faults.fake({}, **ON_GPU), "other": faults.fake({}, **ON_GPU)})
    faults.daemon.up()
    pid, broken = faults.ready()["pid"], faults.ready("other")
    wait_gpu(faults, lambda g: g["memory_used_bytes"] == 1000 << 20, "the card")
    faults.inject(broken, http_500="CUDA error: unknown error")
    card.play("gpu GPU-a 24576 2000 0", "void")
    asleep.write_text("3600")
    after = faults.again(1, "other")
    assert "the machine was suspended; a probe failed: 500" in after["last_exit"]["text"]
    wait_gpu(faults, lambda g: g["memory_used_bytes"] == 2000 << 20, "a fresh look")
    assert [round(e["slept_s"]) for e in faults.daemon.events(what="resumed")] == [3600]
    assert faults.daemon.service("chat")["pid"] == pid and not (gpu(faults) or {})["conditions"]


def test_G17_a_driver_that_is_not_complete_yet(faults: Box, card: Scenario) -> None:
    devices = faults.folder / "dev"
    devices.mkdir()
    (devices / "nvidiactl").touch()
    faults.daemon.environ["LLMSUPERVISOR_DEVICES"] = str(devices)
    faults.up({}, **ON_GPU)
    pending(faults, f"waits for {devices}/nvidia-uvm")
    faults.once(0)
    (devices / "nvidia-uvm").touch()
    faults.ready()


def test_G17_a_card_that_comes_later_than_the_daemon(faults: Box, card: Scenario) -> None:
    """At boot the driver may know fewer cards than the spec needs."""
    faults.up({}, gpus=[1], gpu_memory="4GiB", **QUICK)
    pending(faults, "no GPU has index 1")
    faults.once(0)
    card.play("gpu GPU-a 24576 1000 0", "gpu GPU-b 24576 1000 0")
    faults.ready()
    faults.once(1)
