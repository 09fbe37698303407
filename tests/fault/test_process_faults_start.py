"""Faults of a start, each against a real daemon: P1, P2, P7, P20 to P22. Numbers: README.md beside this file."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from support.daemon import Json
from support.faults import Box, Stopwatch
from support.spec import FAKE
from support.wait import wait_until

DIES = {"exit_after": 0, "ready_after": 60, "code": 1}
SHARE = 0.8
"""A delay is ± 20 %."""


def gaps(box: Box) -> list[float]:
    """Seconds from each unrequested end to the start that follows it."""
    wait_until(lambda: len(box.exits()) >= len(box.starts()) - 1, 30, "each end on record")
    ends = [exit["time"] for exit in box.exits()]
    return [start.time - end for end, start in zip(ends, box.starts()[1:], strict=False)]


def given(box: Box) -> float:
    """Seconds that the first start got."""
    rows = box.daemon.events(service="chat", kind="state")
    began, ended = (next(row["time"] for row in rows if row["to"] == state) for state in ("STARTING", "STOPPING"))
    print(f"ended {ended - began:.2f} s after the start")
    return float(ended - began)


def test_P1_exit_during_start(faults: Box) -> None:
    """Two starts that end with code 1, then one that works: 1 and 2 s between them, each end with its cause."""
    faults.up(DIES | {"times": 2})
    first = faults.daemon.wait_service("chat", lambda s: s["state"] == "BACKOFF", 20, "BACKOFF")
    assert first["last_exit"]["code"] == 1 and first["last_exit"]["cause"] == "exited"
    assert "last log line: " in first["last_exit"]["text"]
    assert first["retry_at"] > time.time() - 30 and first["reason"] == first["last_exit"]["text"]

    faults.again(2)
    faults.once(3)
    waited = gaps(faults)
    print("waited", [f"{gap:.2f}" for gap in waited])
    assert [gap >= SHARE * due for gap, due in zip(waited, (1, 2), strict=True)] == [True] * 2
    faults.wait_exits(2)

    records = sorted((faults.daemon.state / "crashes").glob("*.json"))
    assert len(records) == 2
    record = json.loads(records[0].read_text())
    assert record["exit"]["code"] == 1 and any("initializing" in line for line in record["log"])


def test_P2_argument_error_waits_for_a_change(faults: Box) -> None:
    """A build whose help says nothing, so that only the start itself can tell."""
    mute = faults.folder / "engine"
    shutil.copy(FAKE, mute)
    faults.up({"strict": 1}, command=[str(mute)])
    status = faults.daemon.wait_state("chat", "FAILED", 20)
    assert status["last_exit"]["cause"] == "bad-argument" and status["retry_at"] is None
    assert "error: invalid argument: --" in status["last_exit"]["text"]
    assert "does not take that argument" in status["last_exit"]["advice"]
    assert faults.states().count("STARTING") == 1

    watch = Stopwatch()
    faults.daemon.write({"chat": faults.fake({}, command=[str(mute)])})
    assert faults.ready()["last_exit"]["cause"] == "bad-argument"
    watch.lap("from the change to READY")
    assert faults.states().count("STARTING") == 2


def test_P7_a_start_without_progress_ends_at_its_deadline(faults: Box) -> None:
    faults.up({"ready_after": 600, "quiet": 1, "times": 1}, start_timeout="3s")
    faults.again(1)
    faults.once(2)
    (exit,) = faults.wait_exits(1)
    spent = given(faults)
    assert exit["cause"] == "start-timeout" and 3 <= spent < 12, "given no more"


def test_P7_progress_extends_the_deadline(faults: Box) -> None:
    """Longer than the time it is given, with growing memory: one start."""
    faults.up({"ready_after": 7, "grow": 20, "quiet": 1}, start_timeout="5s")
    watch = Stopwatch()
    faults.ready()
    assert watch.lap("READY") > 5
    faults.once(1)
    assert faults.exits() == []


@pytest.mark.slow
def test_P7_progress_extends_it_three_times_at_most(faults: Box) -> None:
    faults.up({"ready_after": 600, "grow": 5, "times": 1}, start_timeout="4s")
    faults.again(1, timeout=80)
    (exit,) = faults.wait_exits(1)
    spent = given(faults)
    assert exit["cause"] == "start-timeout" and 11.9 < spent < 40
    faults.once(2)


@pytest.mark.slow
def test_P20_a_crash_loop_is_given_up(faults: Box) -> None:
    faults.up(DIES, restart={"burst": 5, "window": "10m", "max_delay": "100ms"})
    status = faults.daemon.wait_state("chat", "FAILED", 30)
    faults.once(5)
    assert 240 < status["retry_at"] - time.time() < 310, "tried again 5 min later"
    assert status["reason"].startswith("5 failures in 10m") and status["pid"] is None
    faults.wait_exits(5)

    pid, (before, at) = faults.daemon.status()["daemon"]["pid"], (0.0, time.monotonic())
    before = faults.cpu_seconds(pid)
    wait_until(lambda: time.monotonic() - at > 2, 5, "two seconds")
    print(f"daemon while it waits: {(faults.cpu_seconds(pid) - before) / (time.monotonic() - at):.1%} of a core")
    faults.once(5)

    assert faults.daemon.cli("restart", "chat", timeout=60).returncode == 1, "FAILED again, and said so"
    faults.once(10)


@pytest.mark.slow
def test_P21_a_crash_before_it_is_healthy_does_not_reset_the_count(faults: Box) -> None:
    """READY for less than `healthy_after`, each time: the delays grow and the burst counts."""
    faults.up({}, restart={"burst": 3, "healthy_after": "10m"})
    for restarts in (0, 1, 2):
        faults.kill(faults.again(restarts))
    status = faults.daemon.wait_state("chat", "FAILED", 20)
    assert status["reason"].startswith("3 failures")
    faults.once(3)
    waited = gaps(faults)
    print("waited", [f"{gap:.2f}" for gap in waited])
    assert waited[0] >= SHARE * 1 and waited[1] >= SHARE * 2


@pytest.mark.slow
def test_P21_a_healthy_run_resets_it(faults: Box) -> None:
    faults.up({}, restart={"burst": 2, "healthy_after": "1s"})
    for restarts in (0, 1, 2):
        status = faults.again(restarts)
        wait_until(lambda since=status["since"]: time.time() - since > 1.2, 5, "a healthy run")
        faults.kill(status)
    faults.again(3)
    faults.once(4)
    print("waited", [f"{gap:.2f}" for gap in gaps(faults)])
    assert "BACKOFF" not in faults.states(), "at once, every time"


@pytest.mark.parametrize("policy", ["always", "on-failure"])
def test_P22_a_daemonising_server_is_a_failed_start(faults: Box, policy: str) -> None:
    """It forks and ends with code 0; the fork holds its journal's lock, so a second start beside it would be told."""
    faults.up({"daemonize": 1, "ready_after": 60, "times": 1}, restart={"policy": policy})
    after = faults.again(1)
    (exit,) = faults.wait_exits(1)
    assert exit["code"] == 0 and exit["cause"] == "exited"
    faults.once(2)
    assert faults.below_shim() == [after["pid"]]


def test_P20_never_means_never(faults: Box) -> None:
    faults.up(DIES, restart={"policy": "never"})
    status = faults.daemon.wait_state("chat", "FAILED", 20)
    assert status["retry_at"] is None and 'restart policy is "never"' in status["reason"]
    faults.once(1)


# --- what cannot be executed --------------------------------------------------------------------------------------


def spoil_missing(path: Path) -> None: ...


def spoil_mode(path: Path) -> None:
    shutil.copy(FAKE, path)
    path.chmod(0o644)


def spoil_empty(path: Path) -> None:
    path.write_bytes(b"")
    path.chmod(0o755)


def spoil_garbage(path: Path) -> None:
    path.write_bytes(b"\x7fELF nothing")
    path.chmod(0o755)


def spoil_interpreter(path: Path) -> None:
    path.write_text("#!/opt/nowhere/python\n")
    path.chmod(0o755)


SPOILT = {
    "missing": (spoil_missing, "PENDING", "No such file"),
    "mode": (spoil_mode, "PENDING", "is not executable for this user (chmod +x"),
    "empty": (spoil_empty, "FAILED", "the file is empty"),
    "garbage": (spoil_garbage, "FAILED", "not a program for this machine"),
    "interpreter": (spoil_interpreter, "FAILED", "its interpreter /opt/nowhere/python is missing"),
}


@pytest.mark.slow
def test_P17_P18_what_cannot_be_executed_is_told_and_started_once_repaired(faults: Box) -> None:
    """Five binaries and a working folder, each wrong in its own way, side by side."""
    services: dict[str, Json] = {}
    for name, (spoil, _, _) in SPOILT.items():
        path = faults.folder / f"engine-{name}"
        spoil(path)
        services[name] = faults.fake(command=[str(path)])
    services["cwd"] = faults.fake(cwd=str(faults.folder / "nowhere"))
    faults.daemon.write(services)
    faults.daemon.up()
    texts = {}
    for name, (state, text) in ({n: (s, t) for n, (_, s, t) in SPOILT.items()} | {"cwd": ("PENDING", "cwd")}).items():
        status = faults.daemon.wait_service(
            name, lambda s, w=state, t=text: s["state"] == w and t in s["reason"], 20, text
        )
        assert status["retry_at"] is None, status["reason"]
        assert status["state"] == "PENDING" or status["last_exit"]["cause"] == "exec-failed"
        texts[name] = status["reason"].replace(name, "")
    assert len(set(texts.values())) == 6, "a text of its own for each"
    for name, ends in zip(services, (0, 0, 1, 1, 1, 0), strict=True):
        faults.wait_exits(ends, name)
    assert faults.starts("mode") == []

    watch = Stopwatch()
    for name in SPOILT:
        new = faults.folder / "new"
        shutil.copy(FAKE, new)
        new.replace(faults.folder / f"engine-{name}")
    (faults.folder / "nowhere").mkdir()
    for name in services:
        faults.ready(name)
        faults.once(1, name)
    watch.lap("all repaired")


def test_P19_a_binary_that_is_being_written_is_tried_again(faults: Box) -> None:
    engine = faults.folder / "engine"
    shutil.copy(FAKE, engine)
    with engine.open("ab"):
        faults.up({}, command=[str(engine)])
        status = faults.daemon.wait_state("chat", "BACKOFF", 20)
        assert "being written" in status["reason"] and status["last_exit"]["cause"] == "exec-failed"
    after = faults.ready()  # after one more try, or several
    faults.once(1)
    ends = faults.wait_exits(after["restarts"])
    assert {exit["cause"] for exit in ends} == {"exec-failed"} and after["restarts"] <= 4


@pytest.mark.slow
def test_P19_a_replaced_binary_does_not_touch_what_runs(faults: Box) -> None:
    engine = faults.folder / "engine"
    shutil.copy(FAKE, engine)
    before = faults.up({}, command=[str(engine)]).ready()
    new = faults.folder / "new"
    new.write_bytes(FAKE.read_bytes() + b"\n")
    new.chmod(0o755)
    new.replace(engine)
    after = faults.daemon.wait_service("chat", lambda s: s["drift"], 20, "drift")
    assert after["pid"] == before["pid"] and after["state"] == "READY"
    assert any(str(engine) in text for text in after["drift"])
    faults.once(1)
