"""The daemon's side: locks, facts, adoption, respawn with the listening socket."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from support.shimkit import PYTHON, Box, exists
from support.wait import PATIENCE, wait_until

from llmsupervisor.host import records, spawn, tree
from llmsupervisor.host.shimcall import ShimFailed
from llmsupervisor.host.spawn import BadFolder, Busy, Found, adoption


@pytest.fixture
def box(tmp_path: Path):
    made = Box(tmp_path)
    yield made
    made.close()


def adopt(box: Box) -> Found:
    found = asyncio.run(spawn.adopt(box.folder))
    if found.run:
        box.runs.append(found.run)
    return found


TABLE = {  # lock free, run.json, exit.json, main dead
    (True, False, False, False): "empty",
    (True, False, False, True): "empty",
    (True, False, True, False): "clean",
    (True, False, True, True): "clean",
    (True, True, False, False): "lost",
    (True, True, False, True): "lost",
    (True, True, True, False): "clean",
    (True, True, True, True): "clean",
    (False, False, False, False): "born",
    (False, False, False, True): "born",
    (False, False, True, False): "exited",
    (False, False, True, True): "exited",
    (False, True, False, False): "running",
    (False, True, False, True): "ending",
    (False, True, True, False): "exited",
    (False, True, True, True): "exited",
}


def test_adoption_table() -> None:
    assert len(TABLE) == 16
    assert {facts: adoption(*facts) for facts in TABLE} == TABLE


# --- the lock -----------------------------------------------------------------------------------------------------


def test_second_start_is_busy_until_the_shim_is_gone(box: Box) -> None:
    run = box.start("/bin/sleep", "60")
    with pytest.raises(Busy):
        box.begin("/bin/sleep", "60")
    assert box.folder.facts().run["run"] == run.run_id
    spawn.kill_tree(run)
    box.over(run)
    next_run = box.begin("/bin/sleep", "60")
    assert not os.path.exists(box.folder.names.exit), "the record of the run before"
    asyncio.run(spawn.wait_run(next_run))
    assert not next_run.main_dead


DAEMON = """
import asyncio, json, sys
from pathlib import PurePosixPath
from llmsupervisor.base.layout import ServiceFolder
from llmsupervisor.host import spawn
async def main():
    folder = spawn.RunFolder(ServiceFolder(PurePosixPath(sys.argv[1])))
    await spawn.wait_run(folder.start(json.loads(sys.argv[2]), {}))
asyncio.run(main())
"""


def daemon_dies(box: Box, point: str) -> None:
    command = [PYTHON, "-c", DAEMON, str(box.folder.path), json.dumps(box.launch("/bin/sleep", "60"))]
    done = subprocess.run(command, env={**os.environ, "LLMSUPERVISOR_FAILPOINT": point}, timeout=30)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("point", ["before-intent", "after-intent", "before-spawn", "random:7:1"])
def test_daemon_that_died_before_the_spawn_left_nothing(box: Box, point: str) -> None:
    daemon_dies(box, point)
    found = adopt(box)
    assert found.state == "empty" and found.facts.lock_free


@pytest.mark.parametrize("point", ["after-spawn", "after-record", "after-record:1"])
def test_daemon_that_died_after_the_spawn_is_succeeded(box: Box, point: str) -> None:
    daemon_dies(box, point)
    assert not box.folder.lock_free()
    with pytest.raises(Busy):
        box.begin("/bin/true")
    begun = time.monotonic()
    found = adopt(box)
    print(f"adopted in {(time.monotonic() - begun) * 1000:.1f} ms")
    assert found.state == "running" and not found.run.main_dead and found.run.reap() is None
    assert spawn.terminate(found.run)
    wait_until(lambda: found.run.shim_dead, 5, "the end")
    assert adopt(box).state == "clean"
    assert spawn.read_exit(found.run)["signal"] == signal.SIGTERM


# --- adoption -----------------------------------------------------------------------------------------------------


def test_never_used_folder_is_empty(box: Box) -> None:
    assert adopt(box).state == "empty"


def test_end_without_a_daemon_is_found_with_its_cause(box: Box) -> None:
    box.over(box.begin("/bin/sh", "-c", "exit 3"))
    found = adopt(box)
    assert found.state == "clean" and found.facts.exit["code"] == 3


def test_after_a_killed_shim_its_orphans_are_killed_and_named(box: Box) -> None:
    path = str(box.root / "pid")
    run = box.start("/bin/sh", "-c", f"setsid sh -c 'echo $$ > {path}; exec sleep 61' & exec sleep 60")
    orphan = int(box.file("pid"))
    wait_until(lambda: "sleep" in tree.command_of(orphan), 5, "the exec")
    shell = subprocess.Popen(["sleep", "60"])  # not in the folder
    older = subprocess.Popen(["sleep", "60"], cwd=box.folder.path)
    os.kill(run.shim.pid, signal.SIGKILL)
    wait_until(lambda: run.main_dead and run.shim_dead, 20, "the end of main and shim")
    try:
        record = box.folder.facts().run
        record["shim"]["start"] = tree.read_start(older.pid) + 1
        Path(box.folder.names.run).write_text(json.dumps(record))
        adopt(box)
        assert older.poll() is None
        record["shim"]["start"] = run.shim.start
        Path(box.folder.names.run).write_text(json.dumps(record))
        found = adopt(box)
        assert found.state == "lost" and not found.alive
        assert older.wait(20) == -signal.SIGKILL and shell.poll() is None
        wait_until(lambda: not tree.read_stat(orphan) or tree.read_stat(orphan).state == "Z", 5, "the orphan's end")
    finally:
        for each in (shell, older):
            each.kill()
            each.wait()


def test_orphans_of_a_killed_shim_are_killed_by_cgroup(box: Box) -> None:
    parent = tree.usable_cgroup()
    if parent is None:
        pytest.skip("no cgroup can be made here")
    group = tree.make_cgroup(parent, f"test-{os.getpid()}")
    path = str(box.root / "pid")
    script = f"setsid sh -c 'cd /; echo $$ > {path}; exec sleep 61' & exec sleep 60"
    run = box.start("/bin/sh", "-c", script, cgroup=group)
    orphan = int(box.file("pid"))
    os.kill(run.shim.pid, signal.SIGKILL)
    wait_until(lambda: run.main_dead and run.shim_dead, 20, "the end of main and shim")
    found = adopt(box)
    assert found.state == "lost" and [k.pid for k in found.killed] == [orphan] and not found.alive
    wait_until(lambda: not tree.read_stat(orphan) or tree.read_stat(orphan).state == "Z", 5, "the orphan's end")
    assert not os.path.exists(group)


def test_shim_empties_its_cgroup(box: Box) -> None:
    parent = tree.usable_cgroup()
    if parent is None:
        pytest.skip("no cgroup can be made here")
    group = tree.make_cgroup(parent, f"test2-{os.getpid()}")
    run = box.start("/bin/sh", "-c", "sleep 61 & exec sleep 60", cgroup=group)
    wait_until(lambda: tree.cgroup_populated(group), 5, "main in its cgroup")
    spawn.kill_tree(run)
    assert box.over(run)["signal"] == 9
    assert not tree.cgroup_populated(group) and tree.remove_cgroup(group)


def test_a_pid_with_a_new_owner_is_not_adopted_and_not_signalled(box: Box) -> None:
    run = box.start("/bin/sleep", "60")
    spawn.kill_tree(run)
    box.over(run)
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        record = box.folder.facts().run
        record["main"] = {"pid": stranger.pid, "start": tree.read_start(stranger.pid) - 1}
        Path(box.folder.names.run).write_text(json.dumps(record))
        Path(box.folder.names.exit).unlink()
        assert adopt(box).state == "lost"
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_run_of_another_boot_is_not_touched(box: Box) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        box.folder.prepare()
        launch = box.launch("/bin/sleep", "60")
        mine = {"pid": stranger.pid, "start": tree.read_start(stranger.pid)}
        record = {"v": 1, "run": launch["run"], "boot": "another", "shim": mine, "main": mine, "time": 0.0}
        records.save(box.folder.names.launch, launch)
        records.save(box.folder.names.run, record)
        assert adopt(box).state == "rebooted"
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_alien_and_broken_files_do_not_exist(box: Box) -> None:
    run = box.start("/bin/sleep", "60")
    path = Path(box.folder.names.exit)
    for text in ("", "{", "[]", '{"run": "another"}', "\xff"):
        path.write_text(text, encoding="latin-1")
        assert box.folder.facts().exit is None and spawn.read_exit(run) is None
    path.unlink()
    record = Path(box.folder.names.run).read_text()
    Path(box.folder.names.run).write_text(record.replace(run.run_id, "another"))
    assert box.folder.facts().run is None
    Path(box.folder.names.launch).write_text("{")
    facts = box.folder.facts()
    assert (facts.lock_free, facts.launch, facts.run) == (False, None, None)


def test_run_folder_is_ours_alone(box: Box) -> None:
    box.folder.path.mkdir(parents=True, mode=0o777)
    box.folder.path.chmod(0o777)
    box.over(box.begin("/bin/true", hidden={"KEY": "hush-hush"}))
    assert box.folder.path.stat().st_mode & 0o777 == 0o700
    for file in box.folder.path.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600, file
    assert "hush-hush" not in Path(box.folder.names.launch).read_text()


def test_link_as_run_folder_is_refused(box: Box) -> None:
    box.folder.path.parent.mkdir(parents=True)
    box.folder.path.symlink_to(box.root)
    with pytest.raises(BadFolder, match="is a link"):
        box.begin("/bin/true")


def test_shim_that_cannot_work_is_told(box: Box) -> None:
    run = box.begin("/bin/true", cwd="relative")
    with pytest.raises(ShimFailed, match="111"):
        asyncio.run(spawn.wait_run(run))


# --- respawn ------------------------------------------------------------------------------------------------------

SERVER = """
import os, socket
assert os.environ["LISTEN_PID"] == str(os.getpid()) and os.environ["LISTEN_FDS"] == "1"
fds = sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1]
assert fds == [0, 1, 2, 3], fds
listener = socket.socket(fileno=3)
while True:
    connection, _ = listener.accept()
    connection.sendall(b"%d" % os.getpid())
    connection.close()
"""


def listener() -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", 0))
    made.listen(4096)
    return made


def test_no_connection_is_refused_while_the_listening_child_is_killed(box: Box) -> None:
    with listener() as held:
        address = held.getsockname()
        run = box.start(PYTHON, "-c", SERVER, listen=[held], respawn=True)
    refused: list[OSError] = []
    answered: list[int] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            try:
                with socket.create_connection(address, timeout=PATIENCE) as connection:
                    if text := connection.recv(32):
                        answered.append(int(text))
            except ConnectionResetError:
                pass  # accepted by the one that was killed
            except OSError as e:
                refused.append(e)
            stop.wait(0.002)

    thread = threading.Thread(target=client)
    thread.start()
    try:
        for n in range(3):
            wait_until(lambda: run.main.pid in answered, 10, f"answers of child {n}")
            spawn.signal_main(run, signal.SIGKILL)
            wait_until(lambda: spawn.follow_main(run), 10, f"the successor of child {n}")
        wait_until(lambda: run.main.pid in answered, 10, "answers of the last child")
    finally:
        stop.set()
        thread.join()
    print(f"{len(answered)} answers of {len(set(answered))} children, {len(refused)} refused")
    assert not refused and len(set(answered)) == 4
    assert [(e["signal"], e["code"]) for e in spawn.read_exits(run)] == [(9, None)] * 3
    assert spawn.read_exit(run) is None
    assert spawn.terminate(run)
    record = box.over(run)
    assert record["signal"] == signal.SIGTERM and record["pid"] == run.main.pid and len(spawn.read_exits(run)) == 3
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=1)


@pytest.mark.parametrize("argv", [("/bin/false",), ("/nowhere/at/all",)])
def test_crash_loop_is_slowed_down_and_can_be_ended(box: Box, argv: tuple[str, ...]) -> None:
    run = box.start(*argv, respawn=True)
    exits = wait_until(lambda: len(found := spawn.read_exits(run)) > 4 and found, 10, "5 deaths")
    gaps = [b["time"] - a["time"] for a, b in itertools.pairwise(exits)]
    print("gaps", [f"{g:.2f}" for g in gaps])
    assert gaps[1] >= 0.1 and gaps[2] >= 0.2 and gaps[3] >= 0.4
    spawn.kill_tree(run)
    record = box.over(run, 2)
    assert record["code"] == 1 or record["error"].endswith("no such file")


def test_respawned_child_leaves_no_orphan_to_its_successor(box: Box) -> None:
    path = str(box.root / "pid")
    run = box.start("/bin/sh", "-c", f"setsid sleep 60 & echo $! >> {path}; exec sleep 60", respawn=True)
    first = int(box.file("pid"))
    spawn.signal_main(run, signal.SIGKILL)
    wait_until(lambda: spawn.follow_main(run), 5, "the successor")
    assert not exists(first)
