"""What a card tells of itself, from NVML to the status of a real daemon, over the stand-in library."""

from __future__ import annotations

import os
import pwd
import time
from typing import get_type_hints

import pytest
from support.faults import ON_GPU, Box, conditions, gpu, wait_gpu
from support.nvml import Scenario
from support.wait import wait_until

from llmsupervisor.link.gpus import Gpu

pytestmark = pytest.mark.slow
MIB = 1 << 20
LINE = "gpu GPU-a 81920 20000 0"
VALUES = {
    "busy": 63,
    "power": 349_500,
    "power_limit": 350_000,
    "sm": 1410,
    "sm_max": 1980,
    "mem": 2600,
    "mem_max": 2619,
    "bus": 5120,
    "limits": 0b100100,
    "temperature": 71,
    "slowdown": 93,
    "ecc": 1,
    "ecc_corrected": 3,
    "rows": 2,
    "rows_uncorrected": 1,
    "gpm": 41,
    "mig": 0,
    "ecc_uncorrected": 0,
    "rows_pending": 0,
    "rows_failed": 0,
}


def values(**more: int) -> list[str]:
    return [f"value {word} {number}" for word, number in (VALUES | more).items()]


def test_every_figure_reaches_the_status_in_its_unit(faults: Box, card: Scenario, stranger: int) -> None:
    card.play(LINE, *values())
    began = time.time()
    ours = faults.up({}, **ON_GPU).ready()["pid"]
    wait_gpu(faults, lambda g: g["xids"] == [], "a card that is listened to")
    card.play(LINE, f"proc {ours} 3000", f"draws {stranger} 200", "xid 31", *values())
    found = wait_gpu(faults, lambda g: g["xids"] and g["processes"] and g["memory_bandwidth"]["usage"], "every figure")
    (xid,), (limited,) = found["xids"], found["conditions"]
    assert began < xid.pop("time") < time.time() and began < limited.pop("since") < time.time()
    commands = [process.pop("command") for process in found["processes"]]
    assert "fake_runtime" in commands[0] and "sys.stdin.read" in commands[1]
    names = [process.pop("name") for process in found["processes"]]
    assert all(name.startswith("python") for name in names)
    user = pwd.getpwuid(os.getuid()).pw_name
    peak = 2619e6 * 2 * 5120 / 8
    assert set(found) == set(get_type_hints(Gpu))
    assert found == {
        "uuid": "GPU-a",
        "index": 0,
        "name": "Stand-in 9000",
        "memory_total_bytes": 81920 * MIB,
        "memory_used_bytes": 20000 * MIB,
        "memory_reserved_bytes": 512 * MIB,
        "processes": [
            {"pid": ours, "service": "chat", "memory_used_bytes": 3000 * MIB, "user": user, "kind": "compute"},
            {"pid": stranger, "service": None, "memory_used_bytes": 200 * MIB, "user": user, "kind": "graphics"},
        ],
        "busy": 0.63,
        "memory_bandwidth": {"source": "gpm", "usage": 0.41, "bytes_per_s": 0.41 * peak, "peak_bytes_per_s": peak},
        "power_w": 349.5,
        "power_limit_w": 350.0,
        "clocks": {"sm_mhz": 1410, "sm_max_mhz": 1980, "memory_mhz": 2600, "memory_max_mhz": 2619},
        "clock_limits": ["power_cap", "thermal"],
        "temperature_c": 71,
        "temperature_slowdown_c": 93,
        "ecc": {"corrected": 3, "uncorrected": 0},
        "remapped_rows": {"corrected": 2, "uncorrected": 1, "pending": False, "failed": False},
        "xids": [{"code": 31, "kind": "application", "text": "GPU memory page fault", "count": 1}],
        "mig": {"enabled": False, "instances": None},
        "error": None,
        "quarantine": None,
        "lent": None,
        "conditions": [{"id": "clocks-limited", "text": limited["text"]}],
    }
    told = faults.daemon.cli("gpus").stdout
    assert "busy 63%" in told and "bandwidth 41%" in told and "350 of 350 W" in told and "71 °C" in told


def test_mig_instances_are_shown_and_refused_as_a_place(faults: Box, card: Scenario) -> None:
    card.play(LINE, "mig MIG-1 40960 100", "mig MIG-2 20480 7")
    pid = faults.up({}, **ON_GPU).ready()["pid"]
    found = wait_gpu(faults, lambda g: g["mig"], "the instances")
    assert found["mig"] == {
        "enabled": True,
        "instances": [
            {"uuid": "MIG-1", "index": 0, "memory_total_bytes": 40960 * MIB, "memory_used_bytes": 100 * MIB},
            {"uuid": "MIG-2", "index": 1, "memory_total_bytes": 20480 * MIB, "memory_used_bytes": 7 * MIB},
        ],
    }
    assert "MIG, 2 instances" in faults.daemon.cli("gpus").stdout
    faults.daemon.write({"chat": faults.fake({}, **ON_GPU | {"gpus": ["MIG-2"]})})
    done = faults.daemon.cli("check", str(faults.daemon.spec_path))
    assert done.returncode and '"MIG-2" is a MIG instance' in done.stdout + done.stderr
    wait_until(lambda: "MIG-2" in (faults.daemon.status()["daemon"]["spec"]["error"] or ""), 20, "the refusal")
    kept = faults.daemon.service("chat")
    assert (kept["pid"], kept["state"]) == (pid, "READY")


@pytest.mark.parametrize("code", [3, 13, 4, 999])
def test_what_fails_stays_null_and_costs_no_card(faults: Box, card: Scenario, code: int) -> None:
    """Not supported, not in this driver, not permitted, an error: neither a zero nor a condition, at any look."""
    card.play(LINE, *(f"code {word} {code}" for word in VALUES), "code events 4")
    faults.up({}, **ON_GPU).ready()
    look = faults.daemon.status()["nvml"]["time"]
    for _ in range(3):
        wait_gpu(faults, lambda g, look=look: faults.daemon.status()["nvml"]["time"] > look, "another look")
        found, look = gpu(faults) or {}, faults.daemon.status()["nvml"]["time"]
        memory = {"memory_total_bytes", "memory_used_bytes", "memory_reserved_bytes"}
        known = memory | {"uuid", "index", "name", "processes", "clocks", "conditions"}
        assert {key for key, value in found.items() if value is not None} == known
        assert set(found["clocks"].values()) == {None} and found["conditions"] == found["processes"] == []


def test_errors_of_the_memory_and_rows_are_conditions_that_come_and_go(faults: Box, card: Scenario) -> None:
    card.play(LINE, *values(limits=0))
    pid = faults.up({}, **ON_GPU).ready()["pid"]
    wait_gpu(faults, lambda g: g["ecc"], "the counters")
    steps = (
        ({"ecc_uncorrected": 2}, {"ecc": "2 uncorrected memory errors since the driver was loaded"}),
        ({"rows_pending": 1}, {"remapped-rows": "a row of memory waits to be remapped: reset the card"}),
        (
            {"rows_pending": 1, "rows_failed": 1, "ecc_uncorrected": 3},
            {
                "ecc": "3 uncorrected memory errors since the driver was loaded",
                "remapped-rows": "a row of memory could not be remapped: the card should be replaced",
            },
        ),
        ({}, {}),
    )
    for more, expected in steps:
        card.play(LINE, *values(limits=0, **more))
        wait_gpu(faults, lambda g, expected=expected: conditions(g) == expected, f"{expected}")
    seen = [(e["id"], e["on"]) for e in faults.daemon.events(kind="condition", gpu="GPU-a")]
    assert {id: on for id, on in seen} == {"ecc": False, "remapped-rows": False}
    kept = faults.daemon.service("chat")
    assert (kept["pid"], kept["restarts"], kept["state"]) == (pid, 0, "READY")


def test_a_card_that_does_not_answer_is_told_and_the_other_goes_on(faults: Box, card: Scenario) -> None:
    other = "gpu GPU-b 81920 7 0"
    card.play(LINE, other)
    pid = faults.up({}, **ON_GPU).ready()["pid"]
    for _ in range(2):
        card.play(LINE, "memory 999", other)
        found = wait_gpu(faults, lambda g: "unreadable" in conditions(g), "the condition")
        assert conditions(found)["unreadable"].startswith("it does not answer (GPU 0: ")
        assert found["memory_used_bytes"] is None and found["quarantine"] is None and found["name"] == "Stand-in 9000"
        wait_gpu(faults, lambda g: g["memory_used_bytes"] == 7 * MIB and not g["conditions"], "the other", "GPU-b")
        card.play(LINE, other)
        back = wait_gpu(faults, lambda g: not g["conditions"], "the card back")
        assert back["error"] is None and back["memory_used_bytes"] == 20000 * MIB
    kept = faults.daemon.service("chat")
    assert (kept["pid"], kept["restarts"]) == (pid, 0)
