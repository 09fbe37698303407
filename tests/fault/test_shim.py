"""What a shim does with one process tree: birth, orders, end."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.process import alive
from support.shimkit import PYTHON, Box, exists, memory_kib, status
from support.wait import PATIENCE, wait_until

from llmsupervisor.host import records, shim, shimcall, spawn

SHIM = shimcall.SHIM


@pytest.fixture
def box(tmp_path: Path):
    made = Box(tmp_path)
    yield made
    made.close()


# --- the exit record ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 255])
def test_exit_code_is_recorded(box: Box, code: int) -> None:
    record = box.over(box.begin("/bin/sh", "-c", f"exit {code}"))
    assert (record["code"], record["signal"], record["errno"]) == (code, None, None)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM])
def test_signal_is_recorded(box: Box, number: int) -> None:
    record = box.over(box.begin("/bin/sh", "-c", f"kill -{int(number)} $$"))
    assert (record["code"], record["signal"], record["errno"]) == (None, number, None)


def test_exec_failures_have_a_sentence_each(box: Box) -> None:
    files = {
        "plain": ("#!/bin/sh\n", 0o644),
        "empty": ("", 0o755),
        "garbage": ("\x7fELF nothing", 0o755),
        "script": ("#!/opt/nowhere/python\n", 0o755),
    }
    for name, (text, mode) in files.items():
        path = box.root / name
        path.write_text(text)
        path.chmod(mode)
    (box.root / "dangling").symlink_to(box.root / "nothing")
    expected = [
        ("missing", errno.ENOENT, "no such file"),
        ("dangling", errno.ENOENT, "a link to a file that does not exist"),
        ("plain", errno.EACCES, "not executable (chmod +x "),
        ("empty", errno.ENOEXEC, "the file is empty"),
        ("garbage", errno.ENOEXEC, "not a program for this machine"),
        ("script", errno.ENOENT, "its interpreter /opt/nowhere/python is missing"),
        ("", errno.EACCES, "it is a folder"),
    ]
    for name, number, sentence in expected:
        program = os.path.join(box.root, name)
        record = box.over(box.begin(program))
        assert (record["code"], record["signal"], record["errno"]) == (None, None, number), name
        assert record["error"].startswith(f"cannot start {program}: ") and sentence in record["error"], name
        assert record["error"] in box.text()


def test_program_being_written_is_told(box: Box) -> None:
    program = box.root / "new"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    with program.open("ab"):
        record = box.over(box.begin(str(program)))
    assert record["errno"] == errno.ETXTBSY and "being written to" in record["error"]


@pytest.mark.parametrize(("name", "text"), [("missing", "no such folder"), ("file", "not a folder")])
def test_bad_working_folder_is_told(box: Box, name: str, text: str) -> None:
    (box.root / "file").write_text("")
    record = box.over(box.begin("/bin/true", cwd=str(box.root / name)))
    assert record["error"] == f"cannot enter the working folder {box.root / name}: {text}"


def test_cgroup_that_cannot_be_joined_is_told(box: Box) -> None:
    record = box.over(box.begin("/bin/true", cgroup=str(box.root / "nowhere")))
    assert record["errno"] == errno.ENOENT and "joining the cgroup" in record["error"]


def test_relative_cwd_is_refused_with_the_reason_in_the_log(box: Box) -> None:
    run = box.begin("/bin/true", cwd="here")
    wait_until(lambda: run.reap() is not None, 10, "the end of the shim")
    assert run.reap() == 111 and "cwd must be absolute" in box.text()
    assert box.folder.facts().exit is None


# --- the tree -----------------------------------------------------------------------------------------------------

GRANDCHILD = "import os,sys,time; os.setsid(); open(sys.argv[1],'w').write(f'{os.getpid()}\\n'); time.sleep(60)"


def test_setsid_grandchild_dies_with_main(box: Box) -> None:
    path = str(box.root / "pid")
    run = box.start(
        "/bin/sh", "-c", f'{PYTHON} -c "{GRANDCHILD}" {path} & while [ ! -s {path} ]; do :; done; kill -9 $$'
    )
    assert box.over(run)["signal"] == 9
    assert not exists(int(box.file("pid")))


def test_daemonising_child_ends_with_code_0_and_its_daemon_is_killed(box: Box) -> None:
    path = str(box.root / "pid")
    code = (
        "import os,sys,time\n"
        "if os.fork(): os._exit(0)\n"
        "os.setsid()\n"
        "if os.fork(): os._exit(0)\n"
        "open(sys.argv[1],'w').write(f'{os.getpid()}\\n'); time.sleep(60)"
    )
    wrapper = f"import os,time; os.system({PYTHON!r} + ' -c \"$CODE\" ' + {path!r})\nwhile not (os.path.exists({path!r}) and os.path.getsize({path!r})): time.sleep(.01)"
    run = box.python(wrapper, env={"CODE": code, "PATH": "/bin"})
    assert box.over(run)["code"] == 0
    assert not exists(int(box.file("pid")))


def test_orphans_are_reaped_while_main_lives(box: Box) -> None:
    path = str(box.root / "pid")
    run = box.start("/bin/sh", "-c", f"(/bin/sh -c 'echo $$ > {path}; exit 0' &) ; exec sleep 60")
    pid = int(box.file("pid"))
    wait_until(lambda: not exists(pid), 5, "the orphan reaped")
    assert not run.main_dead


def test_record_comes_before_the_tree_is_empty(box: Box) -> None:
    """A traced process that was killed stays a zombie until its tracer looks: the tree cannot become empty."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    path = str(box.root / "pid")
    run = box.start("/bin/sh", "-c", f'{PYTHON} -c "{GRANDCHILD}" {path} & exec sleep 60')
    held = int(box.file("pid"))
    assert libc.ptrace(0x4206, held, None, None) == 0, os.strerror(ctypes.get_errno())  # PTRACE_SEIZE
    assert spawn.signal_main(run, signal.SIGKILL)
    record = wait_until(lambda: spawn.read_exit(run), 5, "exit.json while the tree is not empty")
    wait_until(lambda: not alive(held), 5, "the leftover killed")
    assert record["signal"] == 9 and not run.shim_dead and not box.folder.facts().lock_free
    while not os.WIFSIGNALED(os.waitpid(held, 0x40000000)[1]):  # __WALL
        pass
    box.over(run)
    assert box.folder.facts().lock_free


def test_tree_that_ignores_sigterm_is_killed_by_sigusr2(box: Box) -> None:
    path = box.root / "pids"
    code = (
        "import os,signal,sys,time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "for n in range(3):\n"
        "    if not os.fork(): os.setsid(); break\n"
        "os.write(os.open(sys.argv[1], os.O_WRONLY|os.O_CREAT|os.O_APPEND), f'{os.getpid()}\\n'.encode())\n"
        "time.sleep(60)"
    )
    run = box.python(code, str(path))
    pids = wait_until(lambda: path.exists() and len(path.read_text().split()) == 4 and path.read_text().split(), 5, "4")
    assert spawn.terminate(run)
    assert not run.main_dead
    begun = time.monotonic()
    assert spawn.kill_tree(run)
    assert box.over(run)["signal"] == 9
    print(f"order to everything gone: {(time.monotonic() - begun) * 1000:.0f} ms")
    assert not [pid for pid in pids if exists(int(pid))]


def test_tree_that_forks_all_the_time_is_killed(box: Box) -> None:
    code = (
        "import os,time\n"
        "for _ in range(3):\n"
        "    if not os.fork(): break\n"
        "else: time.sleep(60)\n"
        "while True:\n"
        "    if os.fork(): os._exit(0)\n"
        "    os.setsid(); time.sleep(0.001)"
    )
    run = box.python(code)
    wait_until(lambda: len(spawn.tree.descendants(run.shim.pid)) > 2, 5, "the forkers")
    assert spawn.kill_tree(run)
    assert box.over(run)["signal"] == 9


def test_runtime_that_kills_its_own_group_does_not_reach_the_shim(box: Box) -> None:
    run = box.start("/bin/sh", "-c", "kill -9 0")
    assert box.over(run)["signal"] == 9


@pytest.mark.parametrize("order", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_is_forwarded(box: Box, order: int) -> None:
    run = box.start("/bin/sh", "-c", "trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done")
    wait_until(lambda: box.log.exists() and "up" in box.text(), 5, "the trap")
    os.kill(run.shim.pid, order)
    assert box.over(run)["code"] == 7


def test_sigterm_reaches_a_stopped_main(box: Box) -> None:
    run = box.start("/bin/sleep", "60")
    os.kill(run.main.pid, signal.SIGSTOP)
    wait_until(lambda: status(run.main.pid, "State")[0] == "T", 5, "the stop")
    assert spawn.terminate(run)
    assert box.over(run)["signal"] == signal.SIGTERM


def test_other_signals_are_ignored(box: Box) -> None:
    run = box.start("/bin/sleep", "60")
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT, signal.SIGALRM, signal.SIGPIPE, signal.SIGTSTP):
        os.kill(run.shim.pid, number)
    assert spawn.terminate(run)
    assert box.over(run)["signal"] == signal.SIGTERM and run.reap() == 0


def test_main_dies_with_its_shim(box: Box) -> None:
    run = box.start("/bin/sleep", "60")
    os.kill(run.shim.pid, signal.SIGKILL)
    wait_until(lambda: run.main_dead, 5, "the end of main")
    assert spawn.read_exit(run) is None


def test_closing_stdout_is_no_death(box: Box) -> None:
    path = box.root / "alive"
    run = box.start("/bin/sh", "-c", f"exec >&- 2>&-; echo > {path}; while [ -e {path} ]; do sleep 0.01; done; exit 9")
    box.file("alive")
    assert not run.main_dead and spawn.read_exit(run) is None
    path.unlink()
    assert box.over(run)["code"] == 9


# --- what the runtime gets ----------------------------------------------------------------------------------------


def test_runtime_gets_three_descriptors_and_exactly_the_given_environment(box: Box) -> None:
    os.environ["LEAKED"] = "1"
    leak = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leak, True)
    out = box.root / "env"
    try:
        run = box.start(
            "/bin/sh", "-c", f"/usr/bin/env > {out}.0; mv {out}.0 {out}; exec sleep 60",
            env={"ONE": "1", "TWO": "zwei ü"}, hidden={"KEY": "hush-hush"},
        )  # fmt: skip
    finally:
        os.close(leak)
        del os.environ["LEAKED"]
    given = dict(line.split("=", 1) for line in box.file("env").splitlines())
    shells_own = {"PWD", "_", "SHLVL", "OLDPWD"}
    assert {k: v for k, v in given.items() if k not in shells_own} == {"ONE": "1", "TWO": "zwei ü", "KEY": "hush-hush"}
    wait_until(lambda: status(run.main.pid, "Name") == "sleep", 5, "the exec")
    folder = f"/proc/{run.main.pid}/fd"
    wait_until(
        lambda: sorted(os.listdir(folder)) == ["0", "1", "2"], 5, lambda: f"three descriptors: {os.listdir(folder)}"
    )
    fds = [os.readlink(f"{folder}/{fd}") for fd in range(3)]
    assert fds[0] == "/dev/null" and fds[1] == fds[2] and fds[1].startswith("pipe:")
    pipe = os.open(f"/proc/{run.main.pid}/fd/1", os.O_WRONLY)
    assert fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) == 1 << 20
    os.close(pipe)


def test_runtime_starts_with_clean_signals_and_limits(box: Box) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        run = box.start("/bin/sleep", "60", nofile=777)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    pid = run.main.pid
    wait_until(lambda: status(pid, "Name") == "sleep", 5, "the exec")
    internal = 0b11 << 31  # 32 and 33 are the C library's own: inherited, and nobody can set them
    assert int(status(pid, "SigIgn"), 16) & ~internal == 0 and int(status(pid, "SigBlk"), 16) & ~internal == 0
    limits = " ".join(Path(f"/proc/{pid}/limits").read_text().split())
    assert "Max core file size 0 0 " in limits and "Max open files 777 " in limits
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "100\n"
    assert os.getsid(pid) == pid != os.getsid(run.shim.pid) == run.shim.pid


def test_shim_without_the_lock_does_nothing(box: Box) -> None:
    run = box.start("/bin/sleep", "60")
    lock = os.open(box.folder.names.lock, os.O_RDWR)
    command = [shimcall.interpreter(), "-I", "-S", "-E", str(SHIM), str(box.folder.path), str(lock)]
    done = subprocess.run(command, pass_fds=[lock], capture_output=True, timeout=PATIENCE)
    os.close(lock)
    assert done.returncode == 111 and b"BlockingIOError" in done.stderr
    assert box.folder.facts().run["main"]["pid"] == run.main.pid


def test_signals_reach_only_the_process_that_was_meant() -> None:
    with subprocess.Popen(["/bin/sleep", "60"]) as child:
        _, _, start = shim.stat(child.pid)
        shim.send(child.pid, start + 1, signal.SIGKILL)
        shim.send(child.pid, start, signal.SIGTERM)
        assert child.wait(20) == -signal.SIGTERM


def test_shim_is_small(box: Box) -> None:
    run = box.start("/bin/sh", "-c", "echo x; sleep 60")
    wait_until(box.log.exists, 5, "the log")
    resident = memory_kib(run.shim.pid, "VmRSS")
    print(f"shim: {resident} KiB resident")
    assert resident < 15 * 1024


def test_shim_imports_nothing_after_its_birth(tmp_path: Path) -> None:
    """It must outlive the removal of the interpreter's library."""
    box = Box(tmp_path)
    box.folder.prepare()
    launch = box.launch("/bin/sh", "-c", "echo hush-hush; exec sleep 60", log={"size": 1, "keep": 1})
    secrets = Path(box.folder.names.secrets)
    secrets.write_text('{"A": "hush-hush"}')
    records.save(box.folder.names.launch, {"v": 1, **launch, "secrets": str(secrets)})
    lock = os.open(box.folder.names.lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    leaked = os.open(tmp_path, os.O_RDONLY)
    told = tmp_path / "imports"
    command = [shimcall.interpreter(), "-v", "-I", "-S", "-E", str(SHIM)]
    nothing_done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    with told.open("wb") as file:
        words = [*command, str(box.folder.path), str(lock)]
        born = subprocess.Popen(words, pass_fds=[lock, leaked], stderr=file, env={}, start_new_session=True)
    os.close(lock)
    wait_until(lambda: box.log.exists() and box.text(), 10, "the log")
    fds = []
    for fd in os.listdir(f"/proc/{born.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            fds.append(os.readlink(f"/proc/{born.pid}/fd/{fd}"))
    born.terminate()
    assert born.wait(PATIENCE) == 0
    os.close(leaked)
    assert box.text() == "***\n"
    assert "import '_queue'" in nothing_done.stderr
    assert imports(told.read_text(errors="replace")) <= imports(nothing_done.stderr)
    assert str(tmp_path) not in fds, "a descriptor that the daemon leaked is closed"


def imports(told: str) -> set[str]:
    return set(re.findall(r"^import '?([\w.]+)", told, re.MULTILINE))
