"""Faults D3 to D19: the daemon without disk, clock, descriptors or time, with bugs of its own and with bad clients.

Its death and its successor: test_daemon_faults_adopt.py, test_random_kills.py, test_upgrade.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import control, process
from support.daemon import Daemon, clean_environ
from support.faults import PATIENT_STOPS, Box, Stopwatch, gone
from support.http import Stream
from support.pair import NAMES, Two
from support.wait import Spent, wait_until

CLOCK = Path(__file__).parents[1] / "fixtures" / "clock" / "clock.c"


@pytest.fixture
def box(daemon: Daemon) -> Two:
    return Two(daemon)


class Manager:
    """What systemd would hear."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.sock.bind(str(self.path))
        self.heard: list[tuple[float, str]] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while text := self.sock.recv(65536).decode():
                self.heard.append((time.monotonic(), text))

    def times(self, word: str) -> list[float]:
        return [at for at, text in self.heard if word in text.splitlines()]


@pytest.fixture
def manager(daemon: Daemon) -> Iterator[Manager]:
    manager = Manager(daemon.folder)
    daemon.environ |= {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "1000000"}
    yield manager
    manager.sock.close()


# --- what it needs is not there -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_d3_a_full_disk_costs_no_service(box: Two) -> None:
    """State on a small file system of its own; the run folder is elsewhere, as under systemd."""
    state = box.daemon.state
    state.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(state)], capture_output=True).returncode:
        pytest.skip("a file system of our own cannot be mounted here: needs root")
    try:
        (box.folder / "run").mkdir()
        (state / "run").symlink_to(box.folder / "run")
        box.daemon.run = box.folder / "run"
        box.two_up()
        with (state / "fill").open("wb", buffering=0) as fill, contextlib.suppress(OSError):
            while fill.write(bytes(4096)):
                pass
        desired = state / "desired.json"
        content = desired.read_bytes()
        box.kill("chat")
        assert box.daemon.cli("stop", "other").returncode == 0
        box.again()
        while not {"journal", "state"} <= (told := box.own_conditions()).keys():
            box.daemon.call("start", service="chat", by="x" * 64, wait=False)
        assert "no space left on device" in told["state"] and "no space left on device" in told["journal"]
        assert "no space left" in box.daemon.cli("status").stdout
        assert desired.read_bytes() == content, "the old file is whole"
        events = box.daemon.cli("events", "--lines", "200").stdout
        assert "SIGKILL" in events, "kept in memory"

        (state / "fill").unlink()
        watch = Stopwatch()
        box.at_rest(45)
        watch.lap("space to written")
        assert json.loads(desired.read_text())["services"]["other"]["stopped_by"]
        assert [e["signal"] for e in box.wait_exits(1)] == ["SIGKILL"]
        box.daemon.kill9()
        box.daemon.restart()
        box.daemon.wait_state("other", "STOPPED")
        box.once(2)
        box.daemon.down()
    finally:
        box.daemon.close()
        subprocess.run(["umount", "-l", str(state)], check=False)


@pytest.mark.slow
def test_d4_a_jump_of_the_clock_moves_nothing(box: Two, manager: Manager) -> None:
    library, offset = box.folder / "clock.so", box.folder / "offset"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(CLOCK), "-ldl"], check=True)
    offset.write_text("0")
    box.daemon.environ |= {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(offset)}
    box.daemon.write(
        {
            "chat": box.fake(),
            "other": box.fake({"ready_after": 6, "quiet": 1}, start_timeout="30s"),
            "broken": box.fake({"exit_after": 0, "code": 1}, restart={"burst": 2}),
        }
    )
    box.daemon.up()
    pid = box.ready()["pid"]
    failed = box.daemon.wait_state("broken", "FAILED", 15)
    until = failed["retry_at"] - time.time()
    for jump in (3600, -3600):
        offset.write_text(str(jump))
        began = time.monotonic()
        wait_until(lambda by=jump: abs(_ago(box) - by) < 600, 5, "the jump to be seen")
        wait_until(lambda at=began: len([t for t in manager.times("WATCHDOG=1") if t > at]) >= 3, 5, "the watchdog")
        assert box.daemon.service("broken")["state"] == "FAILED"
        assert box.daemon.service("other")["state"] in ("STARTING", "READY")
    offset.write_text("0")
    gaps = [b - a for a, b in zip(manager.times("WATCHDOG=1"), manager.times("WATCHDOG=1")[1:], strict=False)]
    assert max(gaps) < 10, "an hour is not waited for"
    box.ready("other")
    assert abs(box.daemon.service("broken")["retry_at"] - time.time() - until) < 30
    assert box.ready()["pid"] == pid
    box.at_rest()
    for name, starts in (("chat", 1), ("other", 1), ("broken", 2)):
        box.once(starts, name)


def _ago(box: Two) -> float:
    """Of READY, by the daemon's clock."""
    return float(box.daemon.service("chat")["since"] - time.time())


def test_d5_clients_cannot_take_the_descriptors_of_the_services(box: Two) -> None:
    box.write()
    daemon = [sys.executable, "-m", "llmsupervisor", "up", "-c", str(box.daemon.spec_path)]
    with box.daemon.output.open("ab") as output:
        box.daemon.process = subprocess.Popen(
            ["sh", "-c", 'ulimit -n 128; exec "$@"', "sh", *daemon, "--state-dir", str(box.daemon.state)],
            env=clean_environ(),
            stdout=output,
            stderr=output,
        )
    box.daemon.wait_answering()
    box.before = {name: box.ready(name) for name in NAMES}
    with contextlib.ExitStack() as held:
        for _ in range(200):
            client = held.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(box.daemon.socket))
        box.kill()
        box.wait_starts(2, timeout=10)
        watch = Stopwatch()
    wait_until(lambda: _answers(box.daemon), 5, "an answer to somebody else")
    watch.lap("released to answered")
    box.again()
    box.same("other")


def _answers(daemon: Daemon) -> bool:
    with contextlib.suppress(OSError, ConnectionError):
        return bool(daemon.call("ping", timeout=1))
    return False


def test_d6_whatever_lies_where_the_socket_should_be_is_replaced(box: Two) -> None:
    box.two_up()
    box.daemon.kill9()
    assert box.daemon.socket.is_socket(), "left behind"
    box.daemon.up()
    box.daemon.kill9()
    box.daemon.socket.unlink()
    box.daemon.socket.write_text("no socket")
    box.daemon.up()
    assert box.daemon.socket.is_socket() and box.daemon.socket.stat().st_mode & 0o777 == 0o600
    for name in NAMES:
        box.ready(name)
    box.same()


# --- it stands still, or has bugs ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_d9_five_seconds_of_standstill_lose_nothing(box: Two, manager: Manager) -> None:
    box.daemon.environ["WATCHDOG_USEC"] = "4000000"  # a lag is shown until the next ping, two seconds later
    box.two_up({"token_ms": 20}, probe={"timeout": "3s", "stall_timeout": "2s"})
    with Stream(box.before["chat"]["endpoint"], box.daemon.key("chat"), tokens=600) as stream:
        stream.first()
        assert box.daemon.process
        box.daemon.signal(signal.SIGSTOP)
        time.sleep(1.0)
        with contextlib.suppress(OSError):
            box.inject(box.before["other"], log="the last words")
            box.inject(box.before["other"], exit=9)
        gone([box.before["other"]["pid"]])
        time.sleep(4.0)
        woken = time.monotonic()
        box.daemon.signal(signal.SIGCONT)
        text = wait_until(lambda: box.own_conditions().get("slow"), 5, "the lag to be shown")
        wait_until(lambda: [t for t in manager.times("WATCHDOG=1") if t > woken], 2, "the watchdog's next ping")
        assert "s late" in text
        after = box.daemon.wait_service("other", lambda s: s["restarts"] == 1 and s["state"] == "READY", 20, "again")
        assert after["last_exit"]["code"] == 9 and "the last words" in box.daemon.log("other")
        assert stream.first()
        time.sleep(3.0)
        assert stream.first()
    box.same("chat")
    assert set(box.states()) <= {"PENDING", "STARTING", "READY"}, box.states()
    box.at_rest()


def test_d9_the_watchdogs_signal_dumps_the_stacks_and_touches_no_service(box: Two) -> None:
    """The manager's side: tests/fault/test_systemd_user.py."""
    box.two_up()
    box.daemon.signal(signal.SIGABRT)
    assert box.daemon.wait_exit() == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in box.daemon.told() and "base_events.py" in box.daemon.told()
    box.daemon.up()
    for name in NAMES:
        box.ready(name)
    box.same()


def test_d10_a_task_that_fails_is_tried_again(box: Two) -> None:
    box.daemon.environ["LLMSUPERVISOR_FAILPOINT"] = "raise:watch_files:2"
    box.two_up()
    box.write(context_length=2048)
    box.wait_starts(2)
    failed = box.daemon.events(kind="daemon", what="failed")
    assert [row["error"] for row in failed] == ["watch_files: RuntimeError: failpoint watch_files"] * 2
    box.ready()
    box.same("other")


def test_d10_a_task_that_fails_for_good_ends_the_daemon_and_no_service(box: Two) -> None:
    box.two_up()
    box.daemon.kill9()
    box.daemon.environ["LLMSUPERVISOR_FAILPOINT"] = "raise:watch_files:3"
    box.daemon.launch()
    assert box.daemon.wait_exit(20) == 1
    assert "failpoint watch_files" in box.daemon.told()
    assert len(box.daemon.events(what="adopted")) == 2, "it had both"
    assert all(process.alive(box.before[name]["pid"]) for name in NAMES)
    del box.daemon.environ["LLMSUPERVISOR_FAILPOINT"]
    box.daemon.up()
    for name in NAMES:
        box.ready(name)
    box.same()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["startup", "watch", "drain", "follow"])
def test_d10_a_task_of_a_service_that_fails_leaves_it_watched(box: Box, task: str) -> None:
    box.daemon.environ["LLMSUPERVISOR_FAILPOINT"] = f"raise:{task}:2"
    box.up()
    box.ready()
    box.daemon.wait_service("chat", lambda s: s["targets"][0]["requests_running"] == 0, 15, "figures of the watch")
    os.kill(box.starts()[-1].pid, signal.SIGKILL)
    box.again()
    assert box.daemon.cli("stop", "chat").returncode == 0
    assert f"failpoint {task}" in box.told_conditions()["internal"]
    box.once(2)


# --- it is told something -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["loading", "draining", "reloading"])
def test_d13_sigterm_stops_in_order(box: Two, when: str) -> None:
    with contextlib.ExitStack() as open_:
        if when == "loading":
            box.write({"ready_after": 60})
            box.daemon.up()
            box.wait_starts(1)
            box.ready("other")
        else:
            box.two_up({"token_ms": 100}, drain_timeout="4s")
            stream = open_.enter_context(Stream(box.before["chat"]["endpoint"], box.daemon.key("chat")))
            stream.first()
            if when == "draining":
                box.daemon.cli("stop", "chat", "--no-wait")
            else:
                box.write({"token_ms": 100}, context_length=2048, drain_timeout="4s")
            wait_until(lambda: "DRAINING" in box.states(), 5, "DRAINING")
        watch = Stopwatch()
        box.daemon.signal(signal.SIGTERM)
        assert box.daemon.wait_exit() == 0
        watch.lap(f"SIGTERM while {when}")
    assert box.daemon.leftovers() == []
    assert not any(process.alive(start.pid) for name in NAMES for start in box.starts(name))
    box.once(1)


def test_d13_a_second_sigterm_is_at_once(box: Two) -> None:
    """Drain and stop steps would take a minute each."""
    box.stops(PATIENT_STOPS)
    box.two_up({"ignore_term": 1, "children": 2, "token_ms": 100}, drain_timeout="60s")
    children = box.inject(box.before["chat"])["children"]
    with Stream(box.before["chat"]["endpoint"], box.daemon.key("chat")) as stream:
        stream.first()
        box.daemon.signal(signal.SIGTERM)
        box.daemon.wait_state("chat", "DRAINING", 5)
        watch = Stopwatch()
        box.daemon.signal(signal.SIGTERM)
        assert box.daemon.wait_exit(40) == 0, "before the stop steps are over"
        watch.lap("second SIGTERM to the end")
    gone([box.before["chat"]["pid"], *children], 1)
    assert box.daemon.leftovers() == []


@pytest.mark.slow
def test_d14_a_storm_of_hangups_is_a_few_reloads(box: Two, manager: Manager) -> None:
    box.two_up()
    began = time.monotonic()
    for _ in range(1000):
        last = time.monotonic()
        box.daemon.signal(signal.SIGHUP)
        time.sleep(0.004)

    def over() -> bool:
        """One after the last signal, and none for longer than their pace."""
        times = manager.times("RELOADING=1")
        return bool(times) and times[-1] >= last and time.monotonic() - times[-1] > 4

    wait_until(over, 10, "the last")
    reloads = len(manager.times("RELOADING=1"))
    print(f"1,000 signals in {last - began:.1f} s: {reloads} reloads")
    assert 2 <= reloads <= (last - began) / 2 + 3
    wait_until(lambda: len(manager.times("READY=1")) == reloads + 1, 5, "READY after each")
    box.same()


# --- others go wrong ----------------------------------------------------------------------------------------------


def test_d15_a_killed_shim_is_a_crash_of_its_own_class(box: Two) -> None:
    box.two_up({"children": 2})
    children = box.inject(box.before["chat"])["children"]
    os.kill(box.shim(), signal.SIGKILL)
    after = box.again()
    assert after["last_exit"]["cause"] == "shim-killed"
    gone([box.before["chat"]["pid"], *children], 1)
    box.wait_exits(1)
    box.once(2)
    box.same("other")


@pytest.mark.slow
def test_d19_a_client_that_does_not_read_is_dropped(box: Two) -> None:
    box.two_up()
    assert box.daemon.process
    memory = _resident(box.daemon.process.pid)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(str(box.daemon.socket))
        call = {"v": 1, "id": 1, "call": "logs", "args": {"service": "chat", "follow": True}}
        deaf.sendall(json.dumps(call).encode() + b"\n")
        box.inject(box.before["chat"], spew=5)
        watch = Stopwatch()
        for _ in range(20):
            spent = Spent()
            assert control.call(box.daemon.socket, "ping")
            assert spent() < 1.0, "others are served meanwhile"
            time.sleep(0.05)
        wait_until(lambda: _hung_up(deaf), 20, "the daemon to hang up")
        assert 8 < watch.lap("dropped") < 30
        grown = _resident(box.daemon.process.pid) - memory
        print(f"daemon grew by {grown >> 20} MiB")
        assert grown < 32 << 20
    box.same()


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def _hung_up(sock: socket.socket) -> bool:
    """Seen without reading."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
    return any(what & (select.POLLRDHUP | select.POLLHUP | select.POLLERR) for _, what in poll.poll(0))
