"""What people ask when something went wrong, of a real daemon: crash records, processes, the spec on disk, earlier logs."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
from typing import Any

import pytest
from support import control
from support.daemon import Daemon, clean_environ
from support.faults import Box
from support.spec import fake
from support.wait import wait_until

from llmsupervisor.base.text import ascii_only


def listed(daemon: Daemon, name: str, **args: Any) -> list[Any]:
    return list(control.items(daemon.socket, name, **args))


def test_after_a_crash_and_a_wrong_edit(daemon: Daemon) -> None:
    service = fake(daemon.folder / "model.gguf")
    daemon.write({"chat": service})
    daemon.up()
    first = daemon.wait_state("chat", "READY")
    assert listed(daemon, "crashes") == []

    [main, *_] = daemon.call("processes", service="chat")["processes"]
    assert main["pid"] == first["pid"] and main["rss_bytes"] > 0 and main["started"] > 0
    same = daemon.call("spec")
    assert (same["error"], same["changes"], same["diff"]) == (None, [], [])
    assert same["path"] == str(daemon.spec_path) and same["changed"] == pytest.approx(daemon.spec_path.stat().st_mtime)

    before = len(listed(daemon, "logs", service="chat", lines=1000, follow=False))
    os.kill(first["pid"], signal.SIGKILL)
    daemon.wait_service("chat", lambda s: s["state"] == "READY" and s["pid"] != first["pid"], what="READY again")
    [crash] = wait_until(lambda: listed(daemon, "crashes", service="chat"), 10, "a crash record")
    assert crash["service"] == "chat" and crash["exit"]["signal"] in (9, "SIGKILL") and "log" not in crash
    assert listed(daemon, "crashes", service="other") == []
    [whole] = listed(daemon, "crashes", record=crash["record"])
    assert whole["rendered"]["argv"] and whole["log"] and whole["record"] == crash["record"]
    with pytest.raises(control.Refused, match="no crash record"):
        listed(daemon, "crashes", record="../desired.json")

    lines = listed(daemon, "logs", service="chat", lines=1000, follow=False, previous=True)
    earlier = [bool(line.get("earlier")) for line in lines]
    assert sum(earlier) >= before > 0 and earlier == sorted(earlier, reverse=True) and not earlier[-1]

    daemon.write({"chat": {**service, "parallel": "many"}})
    wrong = daemon.call("spec")
    assert "parallel" in wrong["error"] and any(line.startswith("+parallel") for line in wrong["diff"])
    assert daemon.service("chat")["state"] == "READY"


def test_how_long_each_phase_of_a_start_took_and_what_the_last_look_found(faults: Box) -> None:
    chat = faults.up({"ready_after": 5.0, "worker": 1}).ready()
    starting, ready = (faults.daemon.events(kind="state", to=to)[-1] for to in ("STARTING", "READY"))
    took = {each["phase"]: each["seconds"] for each in ready["phases"]}
    assert {"answers 503", "first request"} <= set(took), took
    assert took["answers 503"] > 0.5 and "phases" not in starting
    assert sum(took.values()) == pytest.approx(ready["time"] - starting["time"], abs=2.0)
    probe = faults.daemon.wait_service("chat", lambda s: s["probe"]["failures"] == 0, 30, "a look")["probe"]
    assert (probe["path"], probe["status"], probe["error"]) == ("/health", 200, None)
    faults.inject(chat, kill_worker=1)
    told = lambda probe: probe["failures"] >= 2 and probe["status"] == 503  # noqa: E731
    dead = faults.daemon.wait_service("chat", lambda s: told(s["probe"]), 30, "failed looks")["probe"]
    assert dead["time"] > probe["time"]
    faults.daemon.call("stop", service="chat", by="test", timeout=60)
    assert faults.daemon.service("chat")["probe"] is None


STEPS = r"steps = [{ pattern = 'loads (?P<done>\d+)%', says = 'loads weights, {done} %' }]"


def test_up_tells_how_far_a_start_is(faults: Box) -> None:
    definition = faults.folder / "runtimes" / "llama-server.toml"
    said = definition.read_text()
    assert said.count("\n[ready]\n") == 1
    definition.write_text(said.replace("\n[ready]\n", f"\n[ready]\n{STEPS}\n"))
    daemon = faults.up({"ready_after": 600.0}).daemon
    path = daemon.state / "services" / "chat" / "log"
    wait_until(path.exists, 30, "a log")
    for share, tenths in ((12, 1), (57, 5), (99, 9)):
        with path.open("a") as log:
            log.write(f"loads {share}%\n")
        words = f"loads weights {share} % [{'#' * tenths}-"
        wait_until(lambda words=words: words in ascii_only(daemon.output.read_text()), 60, lambda: daemon.told("chat"))


# --- figures as text ----------------------------------------------------------------------------------------------


def table(lines: list[str]) -> dict[str, dict[str, str]]:
    """Service → what stands below each head: text columns begin with their head, figures end with it."""
    (at,) = [i for i, line in enumerate(lines) if line.startswith("NAME ")]
    heads = [(found[0], found.start(), found.end()) for found in re.finditer(r"LAST 15 MIN|\S+", lines[at])]
    rows = {}
    for line in lines[at + 1 :]:
        if not line.strip():
            break
        name, sign, state = line.split()[:3]
        row = {"STATE": f"{sign} {state}"}
        for (_, _, before), (head, _, end) in itertools.pairwise(heads[:-1]):
            if head not in ("STATE", "FOR"):
                row[head] = line[before:end].strip()
        rows[name] = row
    return rows


def watched(daemon: Daemon, *words: str) -> tuple[list[str], int]:
    """What a command that goes on prints until something changed and Ctrl-C came, and how it ended."""
    env = clean_environ(LLMSUPERVISOR_STATE_DIR=str(daemon.state), PYTHONUNBUFFERED="1")
    command = [daemon.python, "-m", "llmsupervisor", *words]
    with subprocess.Popen(command, cwd=daemon.folder, env=env, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        lines: list[str] = []
        shown: list[str] = []
        ended = False
        for line in child.stdout:
            lines.append(line.rstrip("\n"))
            if not line.startswith(("chat ", "{")):
                continue
            if "STOPPED" in line:
                if not ended:  # a second one would meet an interpreter that ends
                    child.send_signal(signal.SIGINT)
                ended = True
            elif len(shown) == 0:
                daemon.call("stop", service="chat", by="test", wait=False)
            shown.append(line)
        return lines, child.wait(20)


def test_top_once(daemon: Daemon) -> None:
    none = daemon.cli("top", "--once")
    assert none.returncode == 5 and not none.stdout and "llmsupervisor up" in none.stderr
    daemon.write({"chat": fake(daemon.folder / "model.gguf"), "off": fake(daemon.folder / "model.gguf")})
    daemon.up()
    daemon.wait_state("chat", "READY")
    daemon.wait_service("chat", lambda s: s["rss_bytes"] and s["targets"][0]["figures_time"], 30, "a first look")
    daemon.call("stop", service="off", by="test", timeout=30)
    done = daemon.cli("top", "--once")
    assert done.returncode == 0 and not done.stderr and "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    rows = table(lines)
    chat = rows["chat"]
    assert chat["STATE"].endswith(" READY") and (chat["RUN"], chat["WAIT"]) == ("0", "0")
    assert re.fullmatch(r"\d+\.\d [KM]iB", chat["RAM"])
    unknown = ("QUEUE", "TOK/S", "DECODE", "PREFILL", "HIT", "CTX95", "VRAM")
    assert {head: chat[head] for head in unknown} == dict.fromkeys(unknown, "–")
    assert rows["off"]["STATE"].endswith(" STOPPED") and set(list(rows["off"].values())[1:]) == {"–"}
    assert daemon.cli("top", "--once", "--interval", "0").returncode == 2


@pytest.mark.parametrize(
    "words", [("top", "--interval", "0.2"), ("status", "--watch"), ("status", "--watch", "--json")]
)
def test_what_is_printed_again_until_ctrl_c(daemon: Daemon, words: tuple[str, ...]) -> None:
    daemon.write({"chat": fake(daemon.folder / "model.gguf")})
    daemon.up()
    daemon.wait_state("chat", "READY")
    lines, code = watched(daemon, *words)
    assert code == 0 and "Traceback" not in "".join(lines)
    if "--json" in words:
        assert [json.loads(line)["services"][0]["name"] for line in lines] == ["chat"] * len(lines)
        assert json.loads(lines[0])["services"][0]["state"] == "READY"
    else:
        assert sum("llmsupervisor" in line and "pid" in line for line in lines) >= 2, lines
