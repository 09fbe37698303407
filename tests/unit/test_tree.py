"""What /proc says about processes, cgroups and ports, asked of real ones."""

from __future__ import annotations

import asyncio
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.wait import wait_until

from llmsupervisor.host import tree
from llmsupervisor.host.tree import Identity


@pytest.fixture
def spawn():
    children: list[subprocess.Popen[bytes]] = []

    def start(*argv: str, **options) -> subprocess.Popen[bytes]:
        children.append(subprocess.Popen(argv, **options))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.wait()


def test_name_with_brackets_and_spaces_does_not_confuse_the_start_time(tmp_path: Path, spawn) -> None:
    program = tmp_path / "a ) S 1 (b"
    shutil.copy("/bin/sleep", program)
    before = tree.read_start(spawn("/bin/sleep", "60").pid)
    child = spawn(str(program), "60")
    found = tree.read_stat(child.pid)
    assert found.parent == os.getpid() and before <= found.start < before + 1000
    wait_until(lambda: tree.command_of(child.pid).endswith("a ) S 1 (b 60"), 5, "the exec")


def test_pidfd_only_of_the_same_process(spawn) -> None:
    child = spawn("/bin/sleep", "60")
    start = tree.read_start(child.pid)
    assert tree.open_pidfd(Identity(child.pid, start + 1)) is None
    fd = tree.open_pidfd(Identity(child.pid, start))
    assert not tree.pidfd_dead(fd)
    child.send_signal(signal.SIGKILL)
    wait_until(lambda: tree.pidfd_dead(fd), 5, "the death")
    assert tree.read_stat(child.pid).state == "Z", "dead before it is reaped"
    child.wait()
    assert tree.pidfd_dead(fd) and tree.open_pidfd(Identity(child.pid, start)) is None
    assert tree.read_start(child.pid) is None
    assert not tree.send(Identity(child.pid, start), signal.SIGTERM)
    os.close(fd)


def test_descendants_are_found_below_setsid(spawn) -> None:
    child = spawn("/bin/sh", "-c", "setsid sh -c 'sleep 60; :' & wait")
    below = wait_until(lambda: len(found := tree.descendants(child.pid)) == 2 and found, 5, "two descendants")
    assert [tree.read_stat(d.pid).parent for d in below] == [child.pid, below[0].pid]
    for each in below:
        assert tree.send(each, signal.SIGKILL)


def test_leftovers_are_younger_processes_in_the_folder_without_a_terminal(tmp_path: Path, spawn) -> None:
    inside = spawn("/bin/sleep", "60", cwd=tmp_path)
    spawn("/bin/sleep", "60", cwd=tmp_path.parent)
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(tmp_path)
        os.execv("/bin/sleep", ["sleep", "60"])
    try:
        wait_until(lambda: "sleep" in tree.command_of(pid) and tree.read_stat(pid).tty, 5, "the terminal's process")
        wait_until(lambda: tree.command_of(inside.pid).endswith("sleep 60"), 5, "the exec")
        start = tree.read_start(inside.pid)
        assert [(f.pid, f.start) for f in tree.leftovers(str(tmp_path), start)] == [(inside.pid, start)]
        assert tree.leftovers(str(tmp_path), start + 1) == []
        killed, alive = asyncio.run(tree.kill_leftovers(str(tmp_path), start))
        assert [k.pid for k in killed] == [inside.pid] and not alive
        assert killed[0].command.endswith("sleep 60")
        assert inside.wait(20) == -signal.SIGKILL and tree.read_stat(pid).state != "Z"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def test_cgroup_is_found_used_and_removed(spawn) -> None:
    parent = tree.usable_cgroup()
    if parent is None:
        pytest.skip("no cgroup can be made here")
    group = tree.make_cgroup(parent, f"unit-{os.getpid()}")
    with pytest.raises(FileExistsError):
        tree.make_cgroup(parent, f"unit-{os.getpid()}")
    os.mkdir(f"{group}/below")
    child = spawn("/bin/sleep", "60")
    Path(f"{group}/below/cgroup.procs").write_text(str(child.pid))
    assert tree.cgroup_populated(group) and not tree.remove_cgroup(group)
    assert asyncio.run(tree.kill_cgroup(group))
    assert child.wait(20) == -signal.SIGKILL
    assert tree.remove_cgroup(group) and not os.path.exists(group) and not tree.cgroup_populated(group)


def test_no_cgroup_where_none_can_be_made(tmp_path: Path) -> None:
    assert tree.usable_cgroup(str(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []


# --- ports --------------------------------------------------------------------------------------------------------

LISTENER = """
import socket, sys, time
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
s.bind((sys.argv[1], int(sys.argv[2])))
s.listen()
time.sleep(60)
"""


def listen(spawn, address: str, port: int) -> subprocess.Popen[bytes]:
    before = len(tree.listening_inodes(port))
    child = spawn(sys.executable, "-c", LISTENER, address, str(port))
    wait_until(lambda: len(tree.listening_inodes(port)) > before or child.poll() is not None, 10, "the listener")
    assert child.poll() is None
    return child


@pytest.fixture
def port():
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        s.bind(("127.0.0.1", 0))
        yield s.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])
def test_owner_of_a_port_is_proven(spawn, port: int, address: str) -> None:
    other = spawn("/bin/sleep", "60")
    assert tree.owns_port([other.pid], port) is None and tree.port_owner(port) is None
    child = listen(spawn, address, port)
    assert tree.owns_port([other.pid, child.pid], port) is True
    assert tree.owns_port([other.pid], port) is False
    pid, command = tree.port_owner(port)
    assert pid == child.pid and command.startswith(sys.executable)


def test_twin_on_the_same_port_is_seen(spawn, port: int) -> None:
    ours, twin = listen(spawn, "127.0.0.1", port), listen(spawn, "127.0.0.1", port)
    assert tree.owns_port([ours.pid], port) is False
    assert tree.owns_port([ours.pid, twin.pid], port) is True


def test_another_address_is_another_matter(spawn, port: int) -> None:
    child = spawn(sys.executable, "-c", LISTENER, "127.0.0.2", str(port))
    wait_until(lambda: _connects("127.0.0.2", port), 10, "the listener")
    assert tree.owns_port([child.pid], port) is None


def _connects(address: str, port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex((address, port)) == 0
