"""Faults of the output, each against a real daemon: P15 and P16. Numbers: README.md. The shim alone: test_shim_log.py."""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.daemon import clean_environ
from support.faults import Box
from support.shimkit import memory_kib
from support.wait import Spent, wait_until

MIB = 1 << 20
GROWTH = 64 * 1024
"""KiB by which the daemon and a shim may grow in a flood."""
SECONDS = 3.0
FLOOD = 256 * MIB
"""Bytes at least, however slow the machine: far more than is kept."""
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")
"""What a terminal obeys; the newline between two lines of ours is none of it."""
NOISE = {
    "nul": r"before\x00\x00\x00after",
    "utf8": r"\xff\xfe\xc3( invalid",
    "ansi": r"\x1b]52;c;ZXZpbA==\x07\x1b[2J\x1b[31mred\x1b[0m",
    "partial": "no newline at the end",
}
"""Kind → how it may be shown."""


def written(pid: int) -> int:
    """Bytes so far."""
    return int(Path(f"/proc/{pid}/io").read_text().split("wchar: ")[1].split()[0])


@pytest.mark.slow
def test_P15_log_flood(faults: Box) -> None:
    """200 MB/s, a client that follows the log, and another service that must not notice."""
    faults.daemon.write({"chat": faults.fake({}), "other": faults.fake({})})
    faults.daemon.up()
    status, other = faults.ready("chat"), faults.ready("other")
    watched = {"daemon": faults.daemon.status()["daemon"]["pid"], "shim": faults.shim("chat")}
    before = {name: memory_kib(pid, "VmRSS") for name, pid in watched.items()}
    follow = [sys.executable, "-m", "llmsupervisor", "logs", "chat", "-f"]
    environ = clean_environ(LLMSUPERVISOR_STATE_DIR=str(faults.daemon.state))
    with subprocess.Popen(follow, env=environ, cwd=faults.folder, stdout=subprocess.DEVNULL) as client:
        try:
            spent, end = Spent(), written(status["pid"]) + FLOOD
            faults.inject(status, spew=200)
            until, answers = time.monotonic() + SECONDS, []
            while time.monotonic() < until or written(status["pid"]) < end:
                asked = time.monotonic()
                faults.daemon.call("status")
                answers.append(time.monotonic() - asked)
            told, lost = faults.inject(status, spew=-1), spent.lost()
            assert client.poll() is None
        finally:
            client.kill()
    peak = {name: memory_kib(pid, "VmHWM") for name, pid in watched.items()}
    quantiles = statistics.quantiles(answers, n=100)
    print(f"longest write of the child {told['slowest_write_s'] * 1000:.0f} ms, {len(answers)} answers, "
          f"p50 {quantiles[49] * 1000:.1f} ms, p99 {quantiles[98] * 1000:.1f} ms, KiB {before} -> {peak}")  # fmt: skip
    assert told["slowest_write_s"] - lost < 1.0, "the child was held up"
    assert all(peak[name] - before[name] < GROWTH for name in watched)
    assert quantiles[49] < 0.5, "the daemon still answers"

    now = faults.daemon.status()
    assert [s["pid"] for s in now["services"]] == [status["pid"], other["pid"]]
    faults.daemon.call("stop", service="chat", by="test", timeout=30)
    dropped = faults.daemon.run_file("chat", "exit.json")["dropped_bytes"]
    print(f"dropped {dropped / MIB:.0f} MiB")
    assert dropped > 64 * MIB
    kept = sum(path.stat().st_size for path in (faults.daemon.state / "services" / "chat").glob("log*"))
    assert kept < 6 * 20 * MIB + MIB
    assert "[llmsupervisor] dropped " in faults.daemon.cli("logs", "chat", "--lines", "2000").stdout
    faults.once(1)
    faults.once(1, "other")


def lines(box: Box, **args: object) -> list[str]:
    return [item["text"] for item in box.items("logs", service="chat", **args)]


def test_P16_what_a_terminal_obeys_never_reaches_one(faults: Box) -> None:
    """NULs, broken UTF-8, a clipboard write, colours: shown as text in the log, the status, the events, the records."""
    status = faults.up({}).ready()
    for kind in NOISE:
        faults.inject(status, noise=kind)
    faults.inject(status, log="\n\x1b]0;owned\x07 dying \x9b31m words")
    with contextlib.suppress(OSError):
        faults.inject(status, exit=3)
    faults.again(1)
    raw = (faults.daemon.state / "services" / "chat" / "log").read_bytes()
    assert b"\x1b]52;c;" in raw and b"\0\0\0" in raw and b"\xff\xfe" in raw, "the file holds what was written"

    shown = lines(faults, lines=1000, previous=True)
    assert not [line for line in shown if CONTROL.search(line) or "\n" in line]
    for text in NOISE.values():
        assert any(text in line for line in shown), text

    after = faults.daemon.service("chat")
    assert after["last_exit"]["code"] == 3 and "dying" in after["last_exit"]["text"]
    texts = {
        "status": faults.daemon.cli("status").stdout,
        "status --json": faults.daemon.cli("status", "--json").stdout,
        "logs": faults.daemon.cli("logs", "chat", "--lines", "1000").stdout,
        "events": faults.daemon.cli("events").stdout,
        "up": faults.daemon.output.read_text(errors="surrogateescape"),
    }
    for name, text in texts.items():
        assert text and not CONTROL.search(text), (name, CONTROL.search(text))
    spoken = json.dumps([after["last_exit"]["text"], *(e["reason"] for e in faults.daemon.events(kind="state"))])
    assert not re.search(r"\\u00[0189]", spoken), spoken


def test_P16_a_line_of_one_mebibyte(faults: Box) -> None:
    """Whole on disk; in an answer, whose lines are bounded, as much of it as fits; what follows it is there too."""
    status = faults.up({}).ready()
    faults.inject(status, noise="line")
    faults.inject(status, log="after it")
    path = faults.daemon.state / "services" / "chat" / "log"
    wait_until(lambda: b"after it\n" in path.read_bytes() and b"x" * MIB in path.read_bytes(), 10, "both lines on disk")
    shown = lines(faults, lines=10)
    longest = max(shown, key=len)
    print(f"{len(shown)} lines, the longest {len(longest)} characters")
    assert "after it" in shown and set(longest) <= set("x…") and len(longest) >= 10_000
    assert faults.daemon.cli("logs", "chat").returncode == 0
    assert faults.daemon.service("chat")["pid"] == status["pid"]


def test_P16_a_follower_gets_long_and_cut_lines(faults: Box) -> None:
    status = faults.up({}).ready()
    seen: list[str] = []
    following = faults.items("logs", service="chat", lines=1, follow=True)
    with contextlib.closing(following):
        seen.append(next(following)["text"])
        faults.inject(status, noise="partial")
        faults.inject(status, log=" and its end")
        while not seen[-1].endswith("and its end"):
            seen.append(next(following)["text"])
        faults.inject(status, noise="line")
        faults.inject(status, log="after it")
        while seen[-1] != "after it":
            seen.append(next(following)["text"])
    assert seen[1] == "no newline at the end and its end"
    whole = "".join(seen[2:-1])
    print(f"the long line came in {len(seen) - 3} pieces")
    assert set(whole) == {"x"} and len(whole) == MIB
