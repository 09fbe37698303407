"""The verbs that only look, as a person or a script runs them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.daemon import clean_environ
from tui.stand_in import StandIn
from tui.test_tui import CHAT, EMBED

EVENT = {"v": 1, "time": 1790000000.0, "service": "chat", "kind": "state", "from": "STARTING", "to": "READY"}


@pytest.fixture
def stand_in(short_folder: Path) -> Iterator[StandIn]:
    daemon = StandIn(short_folder / "s", [CHAT, EMBED])
    yield daemon
    daemon.die()


def start(stand_in: StandIn, *words: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "llmsupervisor", *words, "--socket", str(stand_in.path)],
        env=clean_environ(**{"LANG": "C.UTF-8", **environ}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(stand_in: StandIn, *words: str, **environ: str) -> tuple[int, str, str]:
    process = start(stand_in, *words, **environ)
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


def test_status_for_people(stand_in: StandIn) -> None:
    stand_in.say(error="a.toml:3: services.chat.parallel: must be over 0")
    code, out, err = run(stand_in, "status")
    assert (code, err) == (0, "")
    assert out.splitlines()[1:3] == [
        "SPEC ERROR: the file was not applied; generation 3 goes on",
        "  a.toml:3: services.chat.parallel: must be over 0",
    ]
    assert "● READY" in out and "condition not-as-asked" in out
    assert "last exit cudaMalloc failed: out of memory" in out and "advice lower context_length" in out
    assert run(stand_in, "status", LANG="C")[1].isascii()


def test_status_for_scripts_is_the_answer_itself(stand_in: StandIn) -> None:
    code, out, _ = run(stand_in, "status", "--json")
    assert code == 0
    assert json.loads(out)["services"] == [CHAT, EMBED]


@pytest.mark.parametrize("words", [["status", "--watch"], ["status", "--watch", "--json"], ["logs", "chat", "-f"]])
def test_a_stream_to_a_pipe_comes_at_once_and_ends_with_ctrl_c(stand_in: StandIn, words: list[str]) -> None:
    stand_in.log("chat", "one", "two", "three")
    process = start(stand_in, *words)
    assert process.stdout
    seen = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=100)[1] == ""
    assert process.returncode == 0
    assert all("\x1b" not in line for line in seen)
    assert len([line for line in seen if line.strip()]) == 3


def test_logs_are_safe_to_look_at(stand_in: StandIn) -> None:
    stand_in.log("chat", "a\x1b[2Jb", "ü\u202e")
    assert run(stand_in, "logs", "chat") == (0, "a\\x1b[2Jb\nü\\u202e\n", "")


def test_events_for_people_and_scripts(stand_in: StandIn) -> None:
    stand_in.events = [EVENT]
    assert run(stand_in, "events", "-n", "5")[1].endswith("  chat          STARTING → READY\n")
    assert json.loads(run(stand_in, "events", "--json")[1]) == EVENT


def test_gpus(stand_in: StandIn) -> None:
    assert run(stand_in, "gpus") == (0, "no GPU on this box: services run on the CPU\n", "")
    assert run(stand_in, "gpus", "--json") == (0, "[]\n", "")


@pytest.mark.parametrize(
    ("words", "expected"), [(["logs", "-n", "many"], "'many' is not a number of lines"), (["status", "--jsn"], "--jsn")]
)
def test_wrong_usage_is_2(stand_in: StandIn, words: list[str], expected: Any) -> None:
    code, out, err = run(stand_in, *words)
    assert (code, out) == (2, "")
    assert expected in err


def test_no_daemon_is_5(stand_in: StandIn) -> None:
    stand_in.die()
    code, out, err = run(stand_in, "status")
    assert (code, out) == (5, "")
    assert "is gone" in err and "llmsupervisor up" in err


def test_status_loads_nothing_that_it_does_not_need(stand_in: StandIn) -> None:
    """Measured on the run itself; the wall time is the benchmark's."""
    program = (
        "import sys\nfrom llmsupervisor.cli.main import main\n"
        f"code = main(['status', '--json', '--socket', {str(stand_in.path)!r}])\n"
        "slow = {'asyncio', 'pydantic', 'httpx', 'textual', 'rich', 'subprocess', 'logging', 'tomllib', 'tomlkit'}\n"
        "print(code, sorted(slow & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


@pytest.mark.parametrize(
    "words",
    [["status", "--watch"], ["status", "--watch", "--json"], ["top", "--once"], ["top", "--interval", "0.2"]],
    ids=" ".join,
)
def test_what_is_told_to_a_pipe_again_and_again_needs_no_textual(stand_in: StandIn, words: list[str]) -> None:
    """Looked at when the command is done, so that what it imports while it works counts."""
    stand_in.tell(host=None, nvml={"error": None, "time": None, "driver": None})
    stand_in.answers["series"] = {"v": 1, "start": 0, "step_s": 60, "count": 0, "series": {}, "events": [], "reason": None}  # fmt: skip
    program = (
        "import sys\nfrom llmsupervisor.cli.main import main\n"
        f"code = main({[*words, '--socket', str(stand_in.path)]!r})\n"
        "print('loaded', code, sorted({'textual', 'rich', 'asyncio', 'pydantic'} & set(sys.modules)), flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=clean_environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stderr
    first = process.stdout.readline()
    if "--once" not in words:
        process.send_signal(signal.SIGINT)
    out, err = process.stdout.read(), process.stderr.read()  # `communicate` would not see what came with the first line
    process.wait(30)
    assert first.strip() and (first + out).splitlines()[-1] == "loaded 0 []", err
