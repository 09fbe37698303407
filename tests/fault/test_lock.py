"""Fault D7: however many daemons begin at once, one owns the state, and the others say who."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.wait import PATIENCE, wait_until

from llmsupervisor.base.errors import Exit, Owned
from llmsupervisor.host import lock
from llmsupervisor.host.lock import DaemonLock

CONTENDER = """
import os, sys, time
from llmsupervisor.base.errors import Owned
from llmsupervisor.host import lock
lock.PID_WAIT = 30.0  # a machine with fifty others on it
while time.time() < float(sys.argv[2]): pass
try:
    lock.DaemonLock(sys.argv[1]).acquire()
    print("mine", os.getpid(), flush=True)
    sys.stdin.read()
except Owned as error:
    print(error, flush=True)
"""


def test_d7_fifty_at_once_and_one_owns_it(tmp_path: Path) -> None:
    path = tmp_path / "daemon.lock"
    path.write_text("999999999\n")  # of an owner long dead
    start = time.time() + 3
    contenders = [
        subprocess.Popen(
            [sys.executable, "-c", CONTENDER, path, str(start)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(50)
    ]
    try:
        said = [contender.stdout.readline() for contender in contenders if contender.stdout]
        winners = [line.split()[1] for line in said if line.startswith("mine")]
        assert len(winners) == 1, said
        assert sum(f"(pid {winners[0]}) owns {tmp_path};" in line for line in said) == 49
    finally:
        for contender in contenders:
            contender.communicate()


def test_a_killed_owner_leaves_the_lock_free_and_the_file_in_place(tmp_path: Path) -> None:
    path = tmp_path / "daemon.lock"
    owner = subprocess.Popen(
        [sys.executable, "-c", CONTENDER, path, "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None and owner.stdout.readline().startswith("mine")
    mine, inode = DaemonLock(path), path.stat().st_ino
    with pytest.raises(Owned, match=rf"pid {owner.pid}\)") as told:
        mine.acquire()
    assert told.value.code == Exit.OWNED
    owner.kill()
    owner.communicate()
    mine.acquire()
    with pytest.raises(Owned):
        DaemonLock(path).acquire()
    mine.release()
    wait_until(lambda: path.read_text() == "", 1, "the pid stayed after the release")
    assert path.stat().st_ino == inode


def test_the_pid_of_an_owner_before_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PID_WAIT", PATIENCE)
    path = tmp_path / "daemon.lock"
    path.write_text("999999999\n")
    with path.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        writer = threading.Timer(0.2, path.write_text, (f"{os.getpid()}\n",))
        writer.start()
        with pytest.raises(Owned, match=rf"pid {os.getpid()}\)"):
            DaemonLock(path).acquire()
        writer.join()


def test_no_program_that_the_owner_starts_inherits_it(tmp_path: Path) -> None:
    mine = DaemonLock(tmp_path / "daemon.lock")
    mine.acquire()
    child = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        mine.release()
        again = DaemonLock(tmp_path / "daemon.lock")
        again.acquire()
        again.release()
    finally:
        child.kill()
        child.wait()
