"""`start stop restart drain reload leave`, `logs` and `events` as a person gives them, against a real daemon."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import control, process
from support.daemon import Daemon, Json
from support.spec import Table, fake, spec
from support.wait import undisturbed, wait_until

pytestmark = pytest.mark.timeout(120)


def service(daemon: Daemon, **settings: Any) -> Table:
    return fake(daemon.folder / "m.gguf", **settings)


@pytest.fixture
def up(daemon: Daemon) -> Iterator[Daemon]:
    """`chat` is READY, `other` too."""
    daemon.write({"chat": service(daemon), "other": service(daemon)})
    daemon.up()
    for name in ("chat", "other"):
        daemon.wait_state(name, "READY")
    yield daemon


def told(daemon: Daemon, *words: str) -> list[list[str]]:
    done = daemon.cli(*words)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return [line.split()[:2] for line in done.stdout.splitlines()]


def refused(daemon: Daemon, *words: str) -> tuple[int, str]:
    done = daemon.cli(*words)
    assert not done.stdout
    return done.returncode, done.stderr


def test_each_order_tells_the_way_to_its_end(up: Daemon) -> None:
    before = up.service("chat")["pid"]
    for verb in ("stop", "drain"):
        assert told(up, verb, "chat")[-1] == ["chat", "STOPPED"]
        assert up.service("chat")["goal"] == "down" and up.service("other")["state"] == "READY"
        lines = told(up, "start", "chat")
        assert ["chat", "STARTING"] in lines and lines[-1] == ["chat", "READY"]
    middle = up.service("chat")["pid"]
    assert told(up, "restart", "chat")[-1] == ["chat", "READY"]
    after = up.service("chat")["pid"]
    assert len({before, middle, after}) == 3 and not process.alive(middle)
    assert told(up, "restart", "chat", "--now")[-1] == ["chat", "READY"] and up.service("chat")["pid"] != after
    assert told(up, "restart", "--drifted") == []


def test_without_waiting(up: Daemon) -> None:
    (line,) = told(up, "stop", "chat", "--no-wait")
    assert line[0] == "chat" and line[1] != "READY"
    up.wait_state("chat", "STOPPED")


def test_longer_than_the_timeout(up: Daemon) -> None:
    up.write({"chat": service(up, knobs={"ready_after": 600}), "other": service(up)})
    up.wait_state("chat", "STARTING")
    done = up.cli("restart", "chat", "--timeout", "1")
    assert done.returncode == 1
    assert done.stderr == "llmsupervisor: gave up waiting; it goes on (llmsupervisor status)\n"
    code, text = refused(up, "start", "chat", "--timeout", "-1")
    assert code == 2 and "wait_s is -1.0: seconds from 0" in text


def test_a_service_that_fails_is_an_error_of_the_order(daemon: Daemon) -> None:
    daemon.write(
        {"chat": service(daemon, restart={"policy": "never"}, knobs={"ready_after": 30, "exit_after": 0.1, "code": 3})}
    )
    daemon.up()
    daemon.wait_state("chat", "FAILED")
    done = daemon.cli("start", "chat")
    assert done.returncode == 1 and "chat FAILED: llmsupervisor status says why" in done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()][-1] == "FAILED"


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "drain", "logs"])
def test_a_service_that_there_is_not(verb: str, up: Daemon) -> None:
    assert refused(up, verb, "chta") == (2, "llmsupervisor: no service 'chta'; the spec has: chat, other\n")


def test_restart_of_nothing(up: Daemon) -> None:
    assert refused(up, "restart") == (2, "llmsupervisor: restart what? name a service, or say --drifted\n")


@pytest.mark.parametrize("words", [("start", "chat"), ("stop", "chat"), ("restart", "chat"), ("reload",), ("leave",)])
def test_no_daemon(words: tuple[str, ...], daemon: Daemon) -> None:
    code, text = refused(daemon, *words)
    assert code == 5 and text.startswith("llmsupervisor: no daemon is running") and "llmsupervisor up" in text


def test_reload_says_what_it_would_do_and_does_it(up: Daemon) -> None:
    before = up.service("chat")["pid"]
    assert up.cli("reload").stdout == "nothing to change\n"
    lengths = itertools.count(2048, 256)

    def order() -> None:
        with (up.folder / "new").open("w") as file:  # held open: the watch leaves it to the order for ten seconds
            file.write(spec({"chat": service(up, context_length=next(lengths)), "other": service(up)}, up.ports))
            file.flush()
            pid = up.wait_state("chat", "READY")["pid"]
            (up.folder / "new").replace(up.spec_path)
            assert told(up, "reload", "--dry-run") == [["chat", "restart"]]
            assert up.service("chat")["pid"] == pid
            assert told(up, "reload") == [["chat", "restart"]]

    undisturbed(order)
    up.wait_service("chat", lambda s: s["state"] == "READY" and s["pid"] != before)


def test_reload_of_a_wrong_spec_changes_nothing(up: Daemon) -> None:
    before = up.service("chat")["pid"]
    up.write_text("ports = 5\n[services.chat]\nruntime = 'x'\n")
    done = up.cli("reload")
    assert done.returncode == 3
    assert [line.rpartition("/")[2].split(": ")[0] for line in done.stdout.splitlines()] == [
        "llmsupervisor.toml:1",
        "llmsupervisor.toml:3",
    ]
    assert (up.service("chat")["state"], up.service("chat")["pid"]) == ("READY", before)


def test_leave_and_no_item_is_lost(up: Daemon) -> None:
    pid = up.service("chat")["pid"]
    assert told(up, "leave") == []
    assert up.wait_exit() == 0 and process.alive(pid)
    assert refused(up, "start", "chat")[0] == 5
    up.up()
    assert up.wait_state("chat", "READY")["pid"] == pid


def test_how_many_lines(up: Daemon) -> None:
    for words in (("events",), ("logs", "chat")):
        assert up.cli(*words, "-n", "0").stdout == ""
        assert len(up.cli(*words, "-n", "2").stdout.splitlines()) == 2
    assert [json.loads(line)["v"] for line in up.cli("events", "--json", "-n", "3").stdout.splitlines()] == [1, 1, 1]


def test_a_number_of_lines_that_is_none(up: Daemon) -> None:
    for lines in (-1, "5", 1.5, True, None):
        with pytest.raises(control.Refused, match="a whole number from 0 is expected"):
            list(control.items(up.socket, "logs", service="chat", lines=lines))


def test_gpus_and_who_holds_them(daemon: Daemon, tmp_path: Path, library: Path) -> None:
    scenario = tmp_path / "scenario"
    daemon.environ |= {"LD_LIBRARY_PATH": str(library), "NVML_SCENARIO": str(scenario)}

    def play(*lines: str) -> None:
        (tmp_path / "new").write_text("".join(f"{line}\n" for line in lines))
        (tmp_path / "new").replace(scenario)

    play("gpu GPU-a 24576 1024 0")
    daemon.write({"chat": service(daemon)})
    daemon.up()
    pid = daemon.wait_state("chat", "READY")["pid"]
    play("gpu GPU-a 24576 1024 0", f"proc {pid} 900", f"proc {os.getpid()} -1", f"proc {2**22 + 1} 1")

    def processes() -> list[Json]:
        return [process for gpu in daemon.status()["gpus"] or [] for process in gpu["processes"]]

    wait_until(lambda: len(processes()) == 3, 15, "three holders")
    ours, other, gone = json.loads(daemon.cli("gpus", "--json").stdout)[0]["processes"]
    assert (ours["pid"], ours["service"], ours["memory_used_bytes"]) == (pid, "chat", 900 << 20)
    assert ours["name"] and ours["name"] in ours["command"] and ours["user"] == other["user"]
    assert (other["service"], other["memory_used_bytes"]) == (None, None) and other["name"]
    assert [gone[key] for key in ("service", "name", "user", "command")] == [None] * 4
    play("abort")
    wait_until(lambda: daemon.status()["gpus"] is None, 15, "unreadable is null")
    play("init 9")
    wait_until(lambda: daemon.status()["gpus"] == [], 15, "no driver is an empty list")
