"""Event journal and state file: what a crash, a full disk and a newer version leave of them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmsupervisor.host.journal import RING, Journal, NewerState, StateFile


class Hands:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


def numbers(items: list[dict[str, Any]]) -> list[int]:
    return [item["n"] for item in items]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


# --- journal ---


def test_what_is_appended_is_there_for_the_next_daemon(path: Path) -> None:
    first = Journal(path)
    for n in range(3):
        first.append({"v": 1, "n": n, "text": "é\n"})
    first.close()
    second = Journal(path)
    second.append({"v": 1, "n": 3})
    assert numbers(second.tail(3)) == [1, 2, 3]
    assert second.degraded is None
    assert path.stat().st_mode & 0o777 == 0o600
    second.close()


def test_rotation_keeps_one_old_file_and_the_tail_reads_across(path: Path) -> None:
    journal = Journal(path, rotate_at=1000)
    for n in range(100):
        journal.append({"v": 1, "n": n, "fill": "x" * 80})
    journal.close()
    assert sorted(file.name for file in path.parent.iterdir()) == ["events.jsonl", "events.jsonl.1"]
    assert max(file.stat().st_size for file in path.parent.iterdir()) <= 1000
    assert numbers(journal.tail(5)) == list(range(95, 100))


def test_bad_lines_and_those_of_a_newer_version_are_skipped_and_a_cut_one_spoils_no_other(path: Path) -> None:
    path.write_bytes(b'{"v":1,"n":1}\n\xff\xfe\n[1]\n{"v":2,"n":2}\n{"v":"x","n":3}\n{"v":1,"n":4,"cut')
    journal = Journal(path)
    journal.append({"v": 1, "n": 5})
    assert numbers(journal.tail(10)) == [1, 5]
    journal.close()


def test_followers_get_what_comes_and_a_slow_one_loses_the_oldest(path: Path) -> None:
    async def case() -> None:
        journal = Journal(path)
        journal.append({"v": 1, "n": 0})
        with journal.follow() as quick, journal.follow(size=2) as slow:
            for n in range(1, 6):
                journal.append({"v": 1, "n": n})
            assert [(await anext(quick))["n"] for _ in range(5)] == [1, 2, 3, 4, 5]
            assert ([(await anext(slow))["n"] for _ in range(2)], slow.dropped) == ([4, 5], 3)
        journal.append({"v": 1, "n": 6})
        assert slow.dropped == 3
        journal.close()

    asyncio.run(case())


FULL = """
import json, os, sys
sys.path.insert(0, sys.argv[2])
from llmsupervisor.host.journal import Journal, StateFile
class Clock:
    now = 0.0
    def monotonic(self): return self.now
    wall = monotonic
clock, folder = Clock(), sys.argv[1]
journal, state = Journal(folder + "/events.jsonl", clock=clock), StateFile(folder + "/desired.json", 1, clock=clock)
state.save({"goal": "first"})
journal.append({"v": 1, "n": 0})
with open(folder + "/fill", "wb", buffering=0) as fill:
    try:
        while fill.write(bytes(4096)): pass
    except OSError: pass
n = 0
while journal.degraded is None:
    n += 1
    journal.append({"v": 1, "n": n, "fill": "x" * 500})
state.save({"goal": "x" * 8192})
for _ in range(10):
    n += 1
    journal.append({"v": 1, "n": n, "fill": "x" * 500})
told = [journal.degraded, state.degraded, state.load()["goal"], [e["n"] for e in journal.tail(1000)] == list(range(n + 1))]
os.unlink(folder + "/fill")
clock.now = 29.0
journal.flush(), state.flush()
told += [journal.degraded is None, state.degraded is None]
clock.now = 31.0
journal.flush(), state.flush()
told += [journal.degraded, state.degraded, len(state.load()["goal"])]
lines = [json.loads(line)["n"] for line in open(folder + "/events.jsonl")]
print(json.dumps([*told, lines == list(range(n + 1))]))
"""


def test_d3_full_disk_keeps_events_in_memory_and_the_state_file_whole(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    probe = [unshare or "unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
    if unshare is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("a file system of our own cannot be mounted here")
    script = f'mount -t tmpfs -o size=64k tmpfs {tmp_path} && exec {sys.executable} -c "$CODE" {tmp_path} {os.getcwd()}'
    done = subprocess.run(
        [unshare, "-rm", "sh", "-c", script],
        env={**os.environ, "CODE": FULL},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    events, state, goal, whole, *rest = json.loads(done.stdout)
    assert events.startswith(f"{tmp_path}/events.jsonl: no space left on device; 11 events are kept in memory")
    assert state == f"{tmp_path}/desired.json: cannot be written (no space left on device)"
    assert (goal, whole) == ("first", True)
    assert rest == [False, False, None, None, 8192, True]


def test_more_than_memory_holds_is_counted(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "missing" / "events.jsonl", clock=Hands())
    for n in range(RING + 5):
        journal.append({"v": 1, "n": n})
    assert journal.degraded is not None
    assert journal.degraded.endswith(f"no such file or directory; {RING} events are kept in memory, 5 older ones lost")


# --- state file ---


def test_state_is_replaced_whole_and_the_generation_before_stays(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "desired.json", 1)
    assert state.load() is None
    state.save({"n": 1})
    state.save({"n": 2})
    assert StateFile(tmp_path / "desired.json", 1).load() == {"v": 1, "n": 2}
    assert json.loads((tmp_path / "desired.json.prev").read_text())["n"] == 1
    assert not (tmp_path / "desired.json.new").exists()
    assert (tmp_path / "desired.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b'{"v":1,"n":', b"[]", b"{}", b'{"v":"1"}', b"\xff\x00"])
def test_d11_corrupt_state_is_set_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "desired.json"
    path.write_bytes(content)
    state = StateFile(path, 1)
    assert state.load() is None
    assert state.recovered == f"{path} was corrupt and is now desired.json.bad"
    assert (tmp_path / "desired.json.bad").read_bytes() == content
    state.save({"n": 1})
    assert state.load() == {"v": 1, "n": 1}


def test_d11_newer_state_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    path.write_text('{"v":2,"n":1}')
    with pytest.raises(NewerState, match=r"desired\.json: version 2, this llmsupervisor reads up to 1; run the newer"):
        StateFile(path, 1).load()
    assert path.read_text() == '{"v":2,"n":1}'


def test_a_folder_that_takes_nothing_is_told_and_not_raised(tmp_path: Path) -> None:
    clock = Hands()
    state = StateFile(tmp_path / "later" / "desired.json", 1, clock=clock)
    state.save({"n": 1})
    assert state.degraded == f"{tmp_path}/later/desired.json: cannot be written (no such file or directory)"
    (tmp_path / "later").mkdir()
    state.flush()
    assert state.degraded is not None
    clock.now += 30
    state.flush()
    assert (state.degraded, state.load()) == (None, {"v": 1, "n": 1})
