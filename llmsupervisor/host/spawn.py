"""The daemon's side of a shim: the run folder, a start, an adoption, orders."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmsupervisor.base.errors import LlmsupervisorError
from llmsupervisor.base.layout import ServiceFolder
from llmsupervisor.host import records, tree
from llmsupervisor.host.failpoints import failpoint
from llmsupervisor.host.shimcall import ShimFailed, interpreter, program
from llmsupervisor.host.tree import Identity, Leftover

POLL = 0.002
BORN_WAIT = 10.0
"""Seconds that a shim may hold the lock without having told whom it runs."""
LOST_WAIT = 1.0
"""Seconds that main may outlive a killed shim (parent-death signal)."""


class Busy(LlmsupervisorError):
    """The service's lock is held: a shim lives."""


class BadFolder(LlmsupervisorError):
    """The run folder is not one that a shim may be started in."""


Adoption = Literal["empty", "born", "running", "ending", "exited", "clean", "lost"]


def adoption(lock_free: bool, has_run: bool, has_exit: bool, main_dead: bool) -> Adoption:
    """What a run is, from four facts and nothing else.

    empty: nothing was started, or it left no trace · born: a shim has not yet told whom it runs · running ·
    ending: main is dead, its record is due · exited: recorded, the shim empties the tree ·
    clean: recorded and all gone · lost: the shim was killed
    """
    if has_exit:
        return "clean" if lock_free else "exited"
    if not has_run:
        return "empty" if lock_free else "born"
    if lock_free:
        return "lost"
    return "ending" if main_dead else "running"


@dataclass(frozen=True, slots=True)
class RunFacts:
    """`run` and `exit` belong to `launch`; a file of another run, or one that cannot be read, is None."""

    lock_free: bool
    launch: dict[str, Any] | None
    run: dict[str, Any] | None
    exit: dict[str, Any] | None


@dataclass(slots=True)
class Run:
    """A living shim. `popen` is None for an adopted one: its parent was an earlier daemon. `main` is known after
    `wait_run`; `main_pidfd` is None where main was gone before it could be opened."""

    folder: RunFolder
    run_id: str
    launch: dict[str, Any]
    shim: Identity
    shim_pidfd: int
    popen: subprocess.Popen[bytes] | None = None
    main: Identity | None = None
    main_pidfd: int | None = None

    @property
    def main_dead(self) -> bool:
        return self.main is not None and (self.main_pidfd is None or tree.pidfd_dead(self.main_pidfd))

    @property
    def shim_dead(self) -> bool:
        return tree.pidfd_dead(self.shim_pidfd)

    def reap(self) -> int | None:
        """The shim's exit code once it is over, else None. An adopted shim is another's child: always None."""
        return self.popen.poll() if self.popen else None

    def close(self) -> None:
        """Reaps what can be reaped and closes the descriptors. Ends nothing."""
        self.reap()
        for fd in (self.shim_pidfd, self.main_pidfd):
            if fd is not None:
                os.close(fd)
        self.shim_pidfd, self.main_pidfd = -1, None


@dataclass(frozen=True, slots=True)
class Found:
    """What an adoption found. `run` is set for running, ending and exited. `stuck`: the lock is held and nothing
    says by whom. `rebooted`: the run belongs to another boot."""

    state: Literal["empty", "running", "ending", "exited", "clean", "lost", "stuck", "rebooted"]
    facts: RunFacts
    run: Run | None = None
    killed: list[Leftover] = field(default_factory=list)
    """lost: what had to be killed after the shim's death."""
    alive: list[Leftover] = field(default_factory=list)
    """lost: what would not die."""


class RunFolder:
    def __init__(self, folder: ServiceFolder) -> None:
        self.names = folder
        self.path = Path(folder.path)

    def prepare(self) -> None:
        """Makes the folder, for us alone."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700, exist_ok=True)
        found = self.path.lstat()
        if self.path.is_symlink():
            raise BadFolder(
                f"{self.path} is a link; a service's run folder must be a folder of its own: remove the link"
            )
        if found.st_uid != os.getuid():
            raise BadFolder(f"{self.path} belongs to user {found.st_uid}, not to {os.getuid()}: remove it")
        if found.st_mode & 0o077:
            self.path.chmod(0o700)

    def lock_free(self) -> bool:
        try:
            fd = os.open(self.names.lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True

    def facts(self) -> RunFacts:
        """The lock first: what a shim wrote before it let go of it is then seen."""
        free = self.lock_free()
        launch = records.load(self.names.launch)
        if launch is None or not isinstance(launch.get("run"), str):
            return RunFacts(free, None, None, None)
        run, ended = records.load(self.names.run), records.load(self.names.exit)
        return RunFacts(
            free,
            launch,
            run
            if run
            and run.get("run") == launch["run"]
            and records.identity(run, "main")
            and records.identity(run, "shim")
            else None,
            ended if ended and ended.get("run") == launch["run"] else None,
        )

    def start(self, launch: Mapping[str, Any], secrets: Mapping[str, str], listen: Sequence[socket.socket] = ()) -> Run:
        """`launch["run"]` is a new id; `secrets` is filled in here. The caller keeps, and closes, its sockets.
        Busy, BadFolder or ShimFailed: nothing was started."""
        try:
            self.prepare()
            failpoint("before-intent")
            lock = os.open(self.names.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as e:
            raise BadFolder(f"the run folder {self.path} cannot be used: {e}") from e
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(f"{self.path}: a shim holds the lock: the service runs or is being stopped") from None
            for old in (self.names.run, self.names.exit):
                Path(old).unlink(missing_ok=True)
            if secrets:
                records.save(self.names.secrets, secrets)
            else:
                Path(self.names.secrets).unlink(missing_ok=True)
            record = {"v": 1, **launch, "secrets": str(self.names.secrets) if secrets else None}
            records.save(self.names.launch, record)
            failpoint("after-intent")
            return self._spawn(record, lock, [s.fileno() for s in listen])
        except OSError as e:
            raise ShimFailed(f"cannot start the shim of {self.path.name}: {e}") from e
        finally:
            os.close(lock)

    def _spawn(self, launch: dict[str, Any], lock: int, listen: list[int]) -> Run:
        failpoint("before-spawn")
        popen = subprocess.Popen(
            [interpreter(), "-I", "-S", "-E", program(), str(self.path), str(lock), *map(str, listen)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=True,
            pass_fds=[lock, *listen],
            start_new_session=True,
            cwd="/",
            env={},
        )
        failpoint("after-spawn")
        start = tree.read_start(popen.pid)
        pidfd = os.pidfd_open(popen.pid)
        return Run(self, launch["run"], launch, Identity(popen.pid, start or 0), pidfd, popen)


# --- waiting ------------------------------------------------------------------------------------------------------


async def wait_run(run: Run, within: float = BORN_WAIT) -> Identity:
    """Until the shim has told whom it runs. ShimFailed where it ended before, or told nothing in `within` seconds."""
    deadline = time.monotonic() + within
    while run.main is None:
        dead = run.shim_dead
        if follow_main(run):
            break
        if dead:
            code = run.reap()
            raise ShimFailed(f"the shim of {run.folder.path.name} ended ({code}) before it had started a process")
        if time.monotonic() > deadline:
            raise ShimFailed(
                f"the shim of {run.folder.path.name} (pid {run.shim.pid}) started no process in {within:g} s"
            )
        await asyncio.sleep(POLL)
    failpoint("after-record")
    assert run.main is not None
    return run.main


def follow_main(run: Run) -> bool:
    """Takes main from run.json: True where it is another one than before (with `respawn` it changes)."""
    record = records.load(run.folder.names.run)
    main = records.identity(record, "main") if record and record.get("run") == run.run_id else None
    if main is None or main == run.main:
        return False
    if run.main_pidfd is not None:
        os.close(run.main_pidfd)
    run.main, run.main_pidfd = main, tree.open_pidfd(main)
    return True


def read_exit(run: Run) -> dict[str, Any] | None:
    """exit.json of this run."""
    record = records.load(run.folder.names.exit)
    return record if record and record.get("run") == run.run_id else None


def read_exits(run: Run) -> list[dict[str, Any]]:
    """exits.jsonl of this run: the deaths after which `respawn` went on."""
    return [r for r in records.load_lines(run.folder.names.exits) if r.get("run") == run.run_id]


async def wait_exit(run: Run, within: float = 10.0) -> dict[str, Any] | None:
    """The record that is due after main's death. None: the shim was killed, or `within` seconds were not enough."""
    deadline = time.monotonic() + within
    while (record := read_exit(run)) is None:
        if run.shim_dead or time.monotonic() > deadline:
            return read_exit(run)
        await asyncio.sleep(POLL)
    return record


# --- orders -------------------------------------------------------------------------------------------------------


def _send(fd: int | None, *numbers: int) -> bool:
    if fd is None:
        return False
    try:
        for number in numbers:
            signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    return True


def terminate(run: Run) -> bool:
    """SIGTERM to main, by way of the shim, which with `respawn` starts no further one. False: the shim is gone."""
    return _send(run.shim_pidfd, signal.SIGTERM)


def kill_tree(run: Run) -> bool:
    """The shim kills everything below it now. False: the shim is gone."""
    return _send(run.shim_pidfd, signal.SIGUSR2)


def signal_main(run: Run, number: int) -> bool:
    """SIGCONT follows: a stopped process takes no other signal. False: main is gone."""
    return _send(run.main_pidfd, number, signal.SIGCONT)


# --- adoption -----------------------------------------------------------------------------------------------------


async def adopt(folder: RunFolder) -> Found:
    """Finds out what an earlier daemon left and attaches to it. `lost` (also while this daemon ran: a shim ended and
    left no record): whatever outlived the shim is killed, first main, then the cgroup, then what works in the run
    folder. The cgroup of a run that is over is removed; files are left as they are."""
    deadline = time.monotonic() + BORN_WAIT
    while True:
        facts = folder.facts()
        main = records.identity(facts.run, "main") if facts.run else None
        shim = records.identity(facts.run, "shim") if facts.run else None
        if facts.run and facts.run.get("boot") != tree.boot_id():
            if facts.lock_free:
                return Found("clean" if facts.exit else "rebooted", facts)
            main = shim = None  # written by nobody who lives now
        fd = tree.open_pidfd(main) if main else None
        dead = fd is None or tree.pidfd_dead(fd)
        state = adoption(facts.lock_free, facts.run is not None, facts.exit is not None, dead)
        if state == "lost":
            return await _clear(folder, facts, fd)
        if state == "empty" or state == "clean":
            _close(fd)
            cgroup = facts.launch.get("cgroup") if facts.launch else None
            if isinstance(cgroup, str):
                tree.remove_cgroup(cgroup)
            return Found(state, facts)
        if state != "born" and shim and main and facts.launch and (shim_fd := tree.open_pidfd(shim)) is not None:
            run = Run(folder, facts.launch["run"], facts.launch, shim, shim_fd, main=main, main_pidfd=fd)
            return Found(state, facts, run)
        _close(fd)
        if time.monotonic() > deadline:
            return Found("stuck", facts)
        await asyncio.sleep(POLL)


async def _clear(folder: RunFolder, facts: RunFacts, main_pidfd: int | None) -> Found:
    assert facts.launch is not None and facts.run is not None
    killed: list[Leftover] = []
    alive: list[Leftover] = []
    main = records.identity(facts.run, "main")
    if main_pidfd is not None and main is not None:
        if not await tree.wait_dead(main_pidfd, LOST_WAIT):
            entry = Leftover(main.pid, main.start, tree.command_of(main.pid))
            _send(main_pidfd, signal.SIGKILL)
            (killed if await tree.wait_dead(main_pidfd, LOST_WAIT) else alive).append(entry)
        os.close(main_pidfd)
    cgroup = facts.launch.get("cgroup")
    if isinstance(cgroup, str):
        inside = tree.in_cgroup(cgroup)
        gone = await tree.kill_cgroup(cgroup)
        rest = [] if gone else tree.in_cgroup(cgroup)
        killed += [each for each in inside if each not in rest]
        alive += rest
        tree.remove_cgroup(cgroup)
    shim = records.identity(facts.run, "shim")
    if shim is not None:
        more, rest = await tree.kill_leftovers(str(folder.path), shim.start)
        killed += more
        alive += rest
    return Found("lost", facts, None, killed, alive)


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
