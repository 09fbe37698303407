"""Faults D1, D2, D7, D8, D11: the daemon dies or is one too many; the services never notice."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support import process
from support.daemon import Daemon, Json, clean_environ
from support.faults import Box, Stopwatch, gone
from support.http import Stream, post_json
from support.spec import FAKE
from support.wait import Spent, wait_until

NAMES = ("chat", "other")


class Two(Box):
    def two_up(self, knobs: Json | None = None, **settings: Any) -> Two:
        self.daemon.write({"chat": self.fake(knobs, **settings), "other": self.fake()})
        self.daemon.up()
        self.before = {name: self.ready(name) for name in NAMES}
        return self

    def start(self) -> float:
        """Seconds from nothing to two services that are READY: what this machine needs for that."""
        spent = Spent()
        self.two_up()
        return spent()

    def adopted(self, *names: str, starts: int = 1) -> None:
        """READY at once, as it was: same process, same place, no start."""
        for name in names or NAMES:
            status = self.daemon.wait_state(name, "READY", 3)
            assert (status["pid"], status["endpoint"]) == (self.before[name]["pid"], self.before[name]["endpoint"])
            self.once(starts, name)

    def what(self) -> list[str]:
        return [row["what"] for row in self.daemon.events(kind="daemon")]


@pytest.fixture
def box(daemon: Daemon) -> Two:
    return Two(daemon)


@contextmanager
def numbered_lines(box: Box, status: Json) -> Iterator[list[int]]:
    """The engine writes one line after the other, whoever watches; the numbers written so far."""
    written: list[int] = []
    end = threading.Event()

    def write() -> None:
        for number in range(100_000):
            box.inject(status, log=f"line {number}.")
            written.append(number)
            if end.wait(0.005):
                return

    thread = threading.Thread(target=write)
    thread.start()
    try:
        wait_until(lambda: len(written) > 20, 10, "the first lines")
        yield written
    finally:
        end.set()
        thread.join()


# --- it dies ------------------------------------------------------------------------------------------------------


def test_d1_d8_the_next_daemon_adopts_and_the_log_has_no_gap(box: Two) -> None:
    usual = box.start()
    with numbered_lines(box, box.before["chat"]) as written:
        box.daemon.kill9()
        died = len(written)
        wait_until(lambda: len(written) > died + 50, 10, "lines while there is no daemon")
        spent = Spent()
        box.daemon.up()
        box.adopted()
        print(f"adopted both: {spent():.2f} s; both started: {usual:.2f} s")
        assert spent() < max(6, 2 * usual)
        wait_until(lambda: len(written) > died + 100, 10, "lines under the next daemon")
    last = f"line {written[-1]}."
    wait_until(lambda: last in box.daemon.log("chat"), 5, "the last line")
    seen = [int(n) for n in re.findall(r"^line (\d+)\.$", box.daemon.log("chat"), re.MULTILINE)]
    assert seen == written
    shown = box.daemon.cli("logs", "chat", "--lines", "10").stdout
    assert last in shown
    assert [row["pid"] for row in box.daemon.events(kind="daemon", what="adopted")] == [
        box.before[name]["pid"] for name in NAMES
    ]
    box.down_clean()


def test_d1_an_end_without_a_daemon_is_told_with_its_cause_once(box: Two) -> None:
    box.two_up()
    box.daemon.kill9()
    with pytest.raises(OSError):
        box.inject(box.before["chat"], exit=7)
    gone([box.before["chat"]["pid"]])
    wait_until(lambda: (box.daemon.run_folder("chat") / "exit.json").exists(), 5, "the record of the shim")

    box.model.rename(box.folder / "elsewhere")
    box.daemon.up()
    box.daemon.wait_state("chat", "PENDING")
    wait_until(box.exits, 5, "the end to be told")
    desired = box.daemon.state / "desired.json"
    wait_until(lambda: json.loads(desired.read_text())["services"]["chat"]["told_run"], 5, "that to be remembered")
    box.daemon.kill9()
    (box.folder / "elsewhere").rename(box.model)
    box.daemon.up()
    after = box.ready()
    assert (after["last_exit"]["cause"], after["last_exit"]["code"]) == ("exited", 7)
    assert "exited with code 7" in after["last_exit"]["text"]
    box.once(2)
    box.adopted("other")
    (exit,) = box.wait_exits(1)
    assert exit["code"] == 7
    (crash,) = box.daemon.state.glob("crashes/*-chat-*.json")
    assert json.loads(crash.read_text())["exit"]["code"] == 7


def test_d1_a_manual_stop_survives_and_an_edit_does_not_undo_it(box: Two) -> None:
    box.two_up()
    assert box.daemon.cli("stop", "chat").returncode == 0
    by = box.daemon.service("chat")["stopped_by"]
    box.daemon.restart()
    status = box.daemon.wait_state("chat", "STOPPED", 3)
    assert by and (status["goal"], status["stopped_by"]) == ("down", by)
    box.daemon.write({"chat": box.fake(context_length=2048), "other": box.fake(context_length=2048)})
    box.wait_starts(2, "other")
    box.ready("other")
    assert box.daemon.service("chat")["state"] == "STOPPED"
    box.once(1)
    assert box.daemon.cli("start", "chat").returncode == 0
    assert box.ready()["asked"]["context_length"] == 2048


def test_d1_a_stop_that_the_daemon_did_not_live_to_see_is_finished(box: Two) -> None:
    box.two_up({"token_ms": 100}, drain_timeout="60s")
    with Stream(box.before["chat"]["endpoint"], box.daemon.key("chat")) as stream:
        stream.first()
        assert box.daemon.cli("stop", "chat", "--no-wait").returncode == 0
        box.daemon.wait_state("chat", "DRAINING", 5)
        box.daemon.restart()
        draining = box.daemon.wait_service("chat", lambda s: s["state"] == "DRAINING", 5, "DRAINING")
        assert draining["pid"] == box.before["chat"]["pid"] and stream.first()
    box.daemon.wait_state("chat", "STOPPED", 10)
    box.once(1)
    box.adopted("other")


def test_d1_what_left_the_spec_meanwhile_is_stopped(box: Two) -> None:
    """One still runs, one has ended: of neither anything is left."""
    box.daemon.write({name: box.fake() for name in ("chat", "other", "third")})
    box.daemon.up()
    pids = {name: box.ready(name)["pid"] for name in ("chat", "other", "third")}
    box.daemon.kill9()
    os.kill(pids["third"], signal.SIGKILL)
    gone([pids["third"]])
    box.daemon.write({"chat": box.fake()})
    box.daemon.up()
    gone([pids["other"]], 10)
    wait_until(lambda: [s["name"] for s in box.daemon.status()["services"]] == ["chat"], 10, "one service")
    assert box.ready()["pid"] == pids["chat"]
    for name in ("other", "third"):
        left = [path.name for path in box.daemon.run_folder(name).glob("*") if path.stat().st_size]
        assert left == [], name


def test_d1_a_service_that_was_loading_is_loaded_once(box: Two) -> None:
    box.daemon.write({"chat": box.fake({"ready_after": 600}), "other": box.fake()})
    box.daemon.up()
    box.wait_starts(1)
    address = box.listens()
    box.daemon.restart()
    box.daemon.wait_state("chat", "STARTING")
    post_json(f"{address}/fault", {"ready_after": 0})
    box.ready()
    box.once(1)


def test_d2_another_process_with_the_recorded_pid_is_left_alone(box: Two) -> None:
    """Records of shims: tests/fault/test_shim_spawn.py."""
    box.two_up()
    box.daemon.kill9()
    record = box.daemon.run_file("chat", "run.json")
    for who in ("shim", "main"):
        os.kill(record[who]["pid"], signal.SIGKILL)
    gone([record["main"]["pid"], record["shim"]["pid"]])
    decoy = subprocess.Popen(["sleep", "60"], cwd="/")
    try:
        record["main"]["pid"] = record["shim"]["pid"] = decoy.pid
        (box.daemon.run_folder("chat") / "run.json").write_text(json.dumps(record))
        box.daemon.up()
        assert box.ready()["pid"] != decoy.pid
        box.once(2)
        box.adopted("other")
        assert decoy.poll() is None
    finally:
        decoy.kill()
        decoy.wait()


# --- it is told to go ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["leave", "SIGUSR1"])
def test_leave_leaves_everything_running(box: Two, how: str) -> None:
    box.two_up()
    box.daemon.signal(signal.SIGUSR1) if how == "SIGUSR1" else box.daemon.cli("leave")
    assert box.daemon.wait_exit(20) == 0
    assert "leaving" in box.what()
    assert not box.daemon.socket.exists() and box.daemon.cli("status").returncode == 5
    assert all(process.alive(box.before[name]["pid"]) for name in NAMES)
    box.daemon.up()
    box.adopted()


def test_down_without_a_daemon_leaves_nothing(box: Two) -> None:
    box.two_up()
    box.daemon.kill9()
    box.daemon.spec_path.write_text("no error of the spec may hold it up")
    box.daemon.down()
    gone([box.before[name]["pid"] for name in NAMES], 1)


def test_an_unfinished_down_is_finished_and_an_up_takes_it_back(box: Two) -> None:
    def die_in_down() -> None:
        box.daemon.signal(signal.SIGTERM)
        wait_until(lambda: "down" in box.what()[seen:], 5, "the down")
        box.daemon.kill9()

    box.two_up({"term_after": 2})
    seen = len(box.what())
    assert box.daemon.cli("down", "--unfinished").returncode != 0, "the daemon lives"
    die_in_down()
    box.daemon.up()
    for name in NAMES:
        box.ready(name)
    box.daemon.kill9()
    assert box.daemon.cli("down", "--unfinished").returncode == 0
    assert process.inside(box.daemon.state), "a crash is no down"

    box.daemon.up()
    seen = len(box.what())
    die_in_down()
    assert box.daemon.cli("down", "--unfinished", timeout=60).returncode == 0
    assert box.daemon.leftovers() == []


# --- it is one too many -------------------------------------------------------------------------------------------


def test_d7_a_second_daemon_names_the_first(box: Two) -> None:
    box.two_up()
    assert box.daemon.process
    second = box.daemon.cli("up", "-c", str(box.daemon.spec_path))
    assert second.returncode == 6
    assert f"pid {box.daemon.process.pid}" in second.stderr
    box.adopted()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_d7_fifty_at_once(box: Two) -> None:
    box.daemon.write({"chat": box.fake(), "other": box.fake()})
    command = [sys.executable, "-m", "llmsupervisor", "up", "--quiet", "-c", str(box.daemon.spec_path)]
    output = [box.folder / f"out.{n}" for n in range(50)]
    watch = Stopwatch()
    contenders = [
        subprocess.Popen([*command, "--state-dir", str(box.daemon.state)], env=clean_environ(), stderr=path.open("wb"))
        for path in output
    ]
    try:
        wait_until(lambda: sum(c.poll() is None for c in contenders) <= 1, 240, "49 of 50 to give up")
        watch.lap("50 at once")
        (owner,) = (c for c in contenders if c.poll() is None)
        assert [c.returncode for c in contenders if c is not owner] == [6] * 49
        told = [path.read_text() for path, c in zip(output, contenders, strict=True) if c is not owner]
        assert all(f"(pid {owner.pid}) owns" in text for text in told), told
        box.daemon.process = owner  # type: ignore[assignment]
        for name in NAMES:
            box.ready(name)
            box.once(1, name)
    finally:
        for contender in contenders:
            if contender is not box.daemon.process:
                contender.kill()
                contender.wait()


# --- its memory is lost -------------------------------------------------------------------------------------------


def test_d11_corrupt_state_is_rebuilt_from_what_runs(box: Two) -> None:
    """`chat` came second and has the second port, which the order of the spec would not give it."""
    box.daemon.write({"other": box.fake()})
    box.daemon.up()
    box.ready("other")
    box.daemon.write({"chat": box.fake(), "other": box.fake()})
    box.wait_starts(1)
    box.before = {name: box.ready(name) for name in NAMES}
    box.daemon.kill9()
    desired = box.daemon.state / "desired.json"
    content = desired.read_bytes()
    desired.write_bytes(content[: len(content) // 2])
    (box.daemon.state / "events.jsonl").write_bytes(b"\xff\xfe no json\n")
    box.daemon.up()
    box.adopted()
    told = {c["id"]: c["text"] for c in box.daemon.status()["daemon"]["conditions"]}
    assert "desired.json.bad" in told["recovered"] and "desired.json.bad" in box.daemon.cli("status").stdout
    assert (box.daemon.state / "desired.json.bad").read_bytes() == content[: len(content) // 2]
    for name in NAMES:
        assert box.daemon.cli("restart", name).returncode == 0
        assert box.ready(name)["endpoint"] == box.before[name]["endpoint"]


def test_d11_state_of_a_newer_version_is_refused(box: Two) -> None:
    box.two_up()
    box.daemon.kill9()
    desired = box.daemon.state / "desired.json"
    shutil.copy(desired, box.folder / "kept")
    desired.write_text(json.dumps(json.loads(desired.read_text()) | {"v": 99}))
    newer = desired.read_bytes()
    box.daemon.launch()
    assert box.daemon.wait_exit() == 1
    assert "version 99" in box.daemon.told() and "newer llmsupervisor" in box.daemon.told()
    assert desired.read_bytes() == newer
    assert all(process.alive(box.before[name]["pid"]) for name in NAMES)
    shutil.copy(box.folder / "kept", desired)
    box.daemon.up()
    box.adopted()


def test_d12_a_state_folder_that_takes_nothing_is_told(box: Two) -> None:
    box.daemon.write({"chat": box.fake()})
    box.daemon.state.write_text("a file where a folder should be")
    box.daemon.launch()
    assert box.daemon.wait_exit() == 1
    told = box.daemon.told()
    assert "the state cannot be kept" in told and "--state-dir" in told and "Traceback" not in told
    box.daemon.state.unlink()
    spent = Spent()
    box.daemon.up()
    box.ready()
    usual = spent()
    box.daemon.kill9()
    pid = box.daemon.run_file("chat", "run.json")["main"]["pid"]
    for path in (box.daemon.socket, box.daemon.run / "daemon.lock"):
        path.unlink(missing_ok=True)
    spent = Spent()
    box.daemon.up()
    assert box.ready()["pid"] == pid and spent() < max(10, 2 * usual)


# --- what is not known of a build ---------------------------------------------------------------------------------


def test_adoption_does_not_wait_for_a_build_that_is_asked_what_it_knows(box: Two) -> None:
    """vLLM takes a minute for its help on a busy machine."""
    gate, engine = box.folder / "gate", box.folder / "engine"
    engine.write_text(
        f'#!/bin/sh\ncase $1 in --help|--version) while [ -e {gate} ]; do sleep 0.05; done;; esac\nexec {sys.executable} {FAKE} "$@"\n'
    )
    engine.chmod(0o755)
    services = {"chat": box.fake() | {"command": [str(engine)]}}
    box.daemon.write(services)
    box.daemon.up()
    box.before = {"chat": box.ready()}
    box.daemon.kill9()
    (box.daemon.state / "binaries.json").unlink()
    gate.touch()
    try:
        box.daemon.write(services | {"other": box.fake() | {"command": [str(engine)]}})
        box.daemon.restart()
        box.adopted("chat")
        own = lambda: {c["id"] for c in box.daemon.status()["daemon"]["conditions"]} - {"slow"}  # noqa: E731
        wait_until(lambda: own() == {"asking"}, 10, lambda: f"it is told: {own()}")
        names = [s["name"] for s in box.daemon.status()["services"]]
        assert names == ["chat"], "what is new waits for what its build knows"
    finally:
        gate.unlink()
    box.ready("other")
    wait_until(lambda: not own(), 10, lambda: f"it is over: {own()}")
    box.adopted("chat")
