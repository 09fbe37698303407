"""Processes as /proc shows them: identity, descendants, leftovers, cgroups, and who owns a port."""

from __future__ import annotations

import asyncio
import os
import pwd
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

POLL = 0.002
"""Seconds between two looks at something that has no descriptor to wait on."""


# --- identity -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Identity:
    """`start` is field 22 of /proc/PID/stat: clock ticks since boot."""

    pid: int
    start: int


@dataclass(frozen=True, slots=True)
class Stat:
    state: str
    parent: int
    tty: int
    start: int


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def read_stat(pid: int) -> Stat | None:
    """None where there is no such process. A zombie has one too."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (
        FileNotFoundError,
        ProcessLookupError,
        PermissionError,
    ):  # the last: somebody else's, where /proc hides them
        return None
    fields = text[text.rindex(b")") + 2 :].split()  # the name before it may hold spaces and brackets
    return Stat(fields[0].decode(), int(fields[1]), int(fields[4]), int(fields[19]))


def read_start(pid: int) -> int | None:
    found = read_stat(pid)
    return found.start if found else None


def age(pid: int) -> float | None:
    """Seconds; None: gone."""
    start = read_start(pid)
    if start is None:
        return None
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - start / os.sysconf("SC_CLK_TCK"))


def open_pidfd(identity: Identity) -> int | None:
    """None where that process is gone and reaped, also if its pid has a new owner. The descriptor first, then the
    comparison: what the descriptor points at cannot change any more."""
    try:
        fd = os.pidfd_open(identity.pid)
    except (ProcessLookupError, ValueError):
        return None
    if read_start(identity.pid) == identity.start:
        return fd
    os.close(fd)
    return None


def pidfd_dead(fd: int) -> bool:
    """Zombies count as dead."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


async def wait_dead(fd: int, within: float) -> bool:
    deadline = time.monotonic() + within
    while not pidfd_dead(fd):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL)
    return True


# --- trees and leftovers ------------------------------------------------------------------------------------------


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def descendants(pid: int) -> list[Identity]:
    """Everything below `pid`, zombies left out, parents before children."""
    children: dict[int, list[Identity]] = {}
    for each in _pids():
        found = read_stat(each)
        if found and found.state not in "ZX":
            children.setdefault(found.parent, []).append(Identity(each, found.start))
    below = list(children.get(pid, ()))
    for child in below:
        below.extend(children.get(child.pid, ()))
    return below


def ancestors(pid: int) -> Iterator[int]:
    """`pid`, its parent and so on, as far as they can be read."""
    while found := read_stat(pid):
        yield pid
        pid = found.parent


def command_of(pid: int) -> str:
    """The command line, or the name where there is none; empty for a process that is gone or not ours to read."""
    for path in (f"/proc/{pid}/cmdline", f"/proc/{pid}/comm"):
        try:
            with open(path, "rb") as file:
                text = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            return ""
        if text:
            return text
    return ""


def user_of(pid: int) -> str | None:
    """The login name, or the number where there is none; None for a process that is gone."""
    try:
        return _login(os.stat(f"/proc/{pid}").st_uid)
    except OSError:
        return None


@lru_cache(maxsize=256)
def _login(uid: int) -> str:
    """Asked once: a directory service may take its time."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@dataclass(frozen=True, slots=True)
class Leftover:
    pid: int
    start: int
    command: str


def leftovers(cwd_marker: str, not_before: int) -> list[Leftover]:
    """Our user's processes that work in the folder `cwd_marker` and are not older than `not_before` (clock ticks).
    A process with a terminal is a person's shell in that folder, not a leftover."""
    marker = os.path.realpath(cwd_marker)
    uid = os.getuid()
    found = []
    for pid in _pids():
        try:
            if os.stat(f"/proc/{pid}").st_uid != uid or os.readlink(f"/proc/{pid}/cwd") != marker:
                continue
        except OSError:
            continue
        seen = read_stat(pid)
        if seen and seen.state not in "ZX" and not seen.tty and seen.start >= not_before and pid != os.getpid():
            found.append(Leftover(pid, seen.start, command_of(pid)))
    return found


async def kill_leftovers(
    cwd_marker: str, not_before: int, within: float = 2.0
) -> tuple[list[Leftover], list[Leftover]]:
    """(what was killed, what still lives after `within` seconds). Stopped first, so that nothing forks away."""
    killed: dict[tuple[int, int], Leftover] = {}
    deadline = time.monotonic() + within
    while True:
        for number in (signal.SIGSTOP, signal.SIGKILL):
            rest = leftovers(cwd_marker, not_before)
            for each in rest:
                killed[each.pid, each.start] = each
                send(Identity(each.pid, each.start), number)
        if not rest or time.monotonic() > deadline:
            return [k for k in killed.values() if k not in rest], rest
        await asyncio.sleep(0.01)


def send(identity: Identity, number: int) -> bool:
    """False where that process is gone."""
    fd = open_pidfd(identity)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


# --- cgroups ------------------------------------------------------------------------------------------------------


def own_cgroup() -> str | None:
    """Folder of this process in the v2 tree, also where v2 is the `unified` part of a hybrid set-up."""
    with open("/proc/self/cgroup") as file:
        path = next((line[3:].rstrip("\n") for line in file if line.startswith("0::")), None)
    if path is None:
        return None
    with open("/proc/self/mountinfo") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            if right.split()[0] != "cgroup2":
                continue
            root, point = left.split()[3:5]
            if root == "/" or path == root or path.startswith(root + "/"):
                folder = os.path.normpath(f"{point}/{path.removeprefix(root.rstrip('/'))}")
                if os.path.isdir(folder):
                    return folder
    return None


def _put(path: str, text: str) -> None:
    """os.write, because a file object would raise the refusal at its close."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def usable_cgroup(parent: str | None = None) -> str | None:
    """`parent` (default: our own cgroup) where groups can be made, joined, killed and removed below it: found out by
    doing it once with a short-lived child. Blocks for some milliseconds."""
    parent = parent or own_cgroup()
    if parent is None:
        return None
    null = subprocess.DEVNULL
    probe = f"{parent}/llmsupervisor-probe-{os.getpid()}"
    child: subprocess.Popen[bytes] | None = None
    try:
        os.mkdir(probe)
        child = subprocess.Popen(["sleep", "5"], stdin=null, stdout=null, stderr=null, env={"PATH": "/usr/bin:/bin"})
        _put(f"{probe}/cgroup.procs", str(child.pid))
        _put(f"{probe}/cgroup.kill", "1")
        return parent if child.wait(1.0) == -signal.SIGKILL else None
    except (OSError, subprocess.TimeoutExpired):
        return None
    finally:
        if child:
            child.kill()
            child.wait()
        remove_cgroup(probe)


def make_cgroup(parent: str, name: str) -> str:
    """FileExistsError where it is there already: a name belongs to one run."""
    path = f"{parent}/llmsupervisor-{name}"
    os.mkdir(path)
    return path


def cgroup_populated(path: str) -> bool:
    try:
        with open(f"{path}/cgroup.events") as file:
            return "populated 1" in file.read()
    except FileNotFoundError:
        return False


def in_cgroup(path: str) -> list[Leftover]:
    """Everything in it and in the groups below it."""
    found = []
    for folder, _, _ in os.walk(path):
        try:
            with open(f"{folder}/cgroup.procs") as file:
                pids = [int(line) for line in file]
        except OSError:
            continue
        found += [Leftover(pid, seen.start, command_of(pid)) for pid in pids if (seen := read_stat(pid))]
    return found


async def kill_cgroup(path: str, within: float = 2.0) -> bool:
    """False where something in it still lives after `within` seconds."""
    deadline = time.monotonic() + within
    while cgroup_populated(path):
        if time.monotonic() > deadline:
            return False
        try:
            _put(f"{path}/cgroup.kill", "1")
        except FileNotFoundError:
            break
        await asyncio.sleep(POLL)
    return True


def remove_cgroup(path: str) -> bool:
    """With the groups below it; False where one is still populated."""
    for folder, _, _ in os.walk(path, topdown=False):
        for attempt in range(3):
            try:
                os.rmdir(folder)
                break
            except FileNotFoundError:
                break
            except OSError:
                if attempt == 2:
                    return False
                time.sleep(POLL)
    return True


# --- ports --------------------------------------------------------------------------------------------------------

LISTEN = "0A"
_REACHED = frozenset(
    {
        "0100007F",
        "00000000",
        "00000000000000000000000000000000",
        "0000000000000000FFFF00000100007F",
    }
)
"""127.0.0.1, 0.0.0.0, ::, ::ffff:127.0.0.1 as /proc/net/tcp{,6} spell them on a little-endian machine."""


def listening_inodes(port: int) -> set[int]:
    """Sockets that a connection to 127.0.0.1:`port` may reach."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as file:
                lines = file.readlines()[1:]
        except FileNotFoundError:
            continue
        for line in lines:
            fields = line.split()
            address, _, number = fields[1].partition(":")
            if fields[3] == LISTEN and int(number, 16) == port and address in _REACHED:
                found.add(int(fields[9]))
    return found


def _sockets(pid: int) -> set[int]:
    """OSError where they cannot be read."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            found.add(int(target[8:-1]))
    return found


def owns_port(pids: Iterable[int], port: int) -> bool | None:
    """True where every listener of 127.0.0.1:`port` is held by one of `pids`; False where one is not (a twin with
    SO_REUSEPORT takes a share of the connections). None: nobody listens, or the descriptors cannot be read."""
    wanted = listening_inodes(port)
    if not wanted:
        return None
    held: set[int] = set()
    unreadable = False
    for pid in pids:
        try:
            held |= _sockets(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
        except PermissionError:
            unreadable = True
    return True if wanted <= held else None if unreadable else False


def port_owner(port: int) -> tuple[int, str] | None:
    """(pid, command) of one process that listens there; None where nobody does or it is not ours to see."""
    wanted = listening_inodes(port)
    for pid in _pids() if wanted else ():
        try:
            if wanted & _sockets(pid):
                return pid, command_of(pid)
        except OSError:
            continue
    return None
