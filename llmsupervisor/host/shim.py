"""One start of one service: `PYTHON -I -S -E shim.py FOLDER LOCKFD [LISTENFD ...]` (docs/contracts.md, section 1).

It outlives the daemon that started it and every upgrade of the package. Hence the standard library only, everything
imported here at the top, and an interface of files and signals that is only ever added to.
Three threads: this one waits for signals, one reads the runtime's output, one writes it to disk: a stalled disk must
never block the runtime. Every signal stays blocked and is taken with `sigtimedwait`; there are no handlers.
"""

from __future__ import annotations

import _queue
import _thread
import ctypes
import errno
import fcntl
import json
import os
import re
import resource
import signal
import sys
import time
import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs 1 MB
    from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
FAILED = 111
PIPE = 1 << 20
READ = 256 << 10
QUEUE = 16 << 20
ITEM = 128
"""What one piece in the queue costs beside its bytes."""
DISK_RETRY = 30.0
DRAIN = 0.5
SHORT_LIFE = 5.0
MAX_DELAY = 5.0
EXITS_SIZE = 1 << 20
SHORTEST_SECRET = 6
"""A shorter value is not redacted: it would black out ordinary words."""
HIDDEN = b"***"

libc = ctypes.CDLL(None, use_errno=True)


# --- small things -------------------------------------------------------------------------------------------------


def load(path: str) -> dict[str, Any]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(fd, "rb") as file:
        value = json.loads(file.read())
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


def save(path: str, value: dict[str, Any]) -> None:
    temporary = path + ".tmp"
    data = json.dumps(value).encode()
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.write(fd, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, path)


def put(path: str, text: str) -> None:
    """For /proc and cgroup files: the error of a refused write is raised here."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def prctl(option: int, value: int) -> None:
    if libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def stat(pid: int) -> tuple[str, int, int] | None:
    """State, parent and start time (field 22, clock ticks since boot)."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(fd, 4096)
        finally:
            os.close(fd)
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    return fields[0].decode(), int(fields[1]), int(fields[19])


def descendants(root: int) -> list[tuple[int, int]]:
    """(pid, start time) of everything below `root` that is not a zombie."""
    children: dict[int, list[tuple[int, int]]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (found := stat(int(name))) and found[0] not in "ZX":
            children.setdefault(found[1], []).append((int(name), found[2]))
    below = list(children.get(root, ()))
    for pid, _ in below:
        below.extend(children.get(pid, ()))
    return below


def send(pid: int, start: int, number: int) -> None:
    """A signal that cannot reach another process that got the same pid."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        found = stat(pid)
        if found and found[2] == start:
            signal.pidfd_send_signal(fd, number)
    except OSError:
        pass
    finally:
        os.close(fd)


def exec_error(stage: str, number: int, text: str, argv: list[str], cwd: str) -> str:
    """One sentence for a person."""
    if stage == "cwd":
        reasons = {errno.ENOENT: "no such folder", errno.ENOTDIR: "not a folder", errno.EACCES: "permission denied"}
        return f"cannot enter the working folder {cwd}: {reasons.get(number, text)}"
    return f"cannot start {argv[0]}: {exec_reason(number, text, argv[0]) if stage == 'exec' else f'{stage}: {text}'}"


def exec_reason(number: int, text: str, program: str) -> str:
    try:
        fd = os.open(program, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            head = os.read(fd, 256)
        finally:
            os.close(fd)
    except OSError:
        head = b""
    if number == errno.ENOENT:
        if not os.path.lexists(program):
            return "no such file"
        if not os.path.exists(program):
            return "it is a link to a file that does not exist"
        if head[:2] == b"#!":
            words = head[2:].split(b"\n")[0].decode(errors="replace").split()
            return f"its interpreter {words[0] if words else '(none named)'} is missing"
        return "its dynamic loader is missing (built for another system?)"
    if number == errno.EACCES:
        if os.path.isdir(program):
            return "it is a folder"
        if os.path.exists(program) and not os.access(program, os.X_OK):
            return f"it is not executable (chmod +x {program})"
        return "permission denied (a folder above it, its interpreter, or a noexec mount)"
    if number == errno.ENOEXEC:
        return "not a program for this machine, and not a script with a #! line" if head else "the file is empty"
    return "the file is being written to" if number == errno.ETXTBSY else text


# --- the log ------------------------------------------------------------------------------------------------------


class Log:
    """Output of the runtime on its way to disk. `dropped` counts bytes that will never get there."""

    def __init__(self, limits: dict[str, Any], secrets: list[bytes]) -> None:
        self.path: str = limits["path"]
        self.size: int = max(4096, limits.get("size", 20 << 20))
        self.keep: int = limits.get("keep", 5)
        self.burst: int = limits.get("burst", 64 << 20)
        self.rate: int = limits.get("rate", 4 << 20)
        self.secrets = sorted({s for s in secrets if len(s) >= SHORTEST_SECRET}, key=len, reverse=True)
        self.pattern = re.compile(b"|".join(map(re.escape, self.secrets)))
        self.queue: _queue.SimpleQueue[tuple[int, bytes | None, int]] = _queue.SimpleQueue()
        self.queued = self.taken = 0  # one writer each
        self.unread = self.shed = 0  # dropped by the reader, by the writer
        self.done = _thread.allocate_lock()
        self.done.acquire()
        self.fd = -1
        self.position = 0
        self.line_open = False
        self.retry_at = 0.0
        self.tokens = float(self.burst)
        self.filled = time.monotonic()
        self.shedding = False
        self.gap = 0  # bytes dropped and not yet told in the log
        self.torn = False  # the line that a gap cut goes on
        self.tail = b""  # may be the beginning of a secret

    @property
    def dropped(self) -> int:
        return self.unread + self.shed

    def say(self, text: str) -> None:
        self.queue.put((0, text.encode(errors="replace"), 0))

    def read(self, pipe: int) -> None:
        """Thread. Never waits for anything but output: what does not fit into the queue is dropped."""
        buffer = bytearray(READ)
        view = memoryview(buffer)
        lost = 0
        while n := os.readv(pipe, [buffer]):
            if self.queued - self.taken > QUEUE:
                lost += n
                self.unread += n
            else:
                self.queued += n + ITEM
                self.queue.put((lost, bytes(view[:n]), n + ITEM))
                lost = 0
        self.queue.put((lost, None, 0))

    def write(self) -> None:
        """Thread."""
        while True:
            try:
                lost, data, cost = self.queue.get(True, 1.0 if self.gap else None)
            except _queue.Empty:
                self.tell()
                continue
            if lost:
                self.cut(lost, True)
            if data is None:
                break
            self.taken += cost
            if cost:
                self.accept(data)
            else:
                self.tell()
                self.line(data)
        if self.tail:
            self.emit(HIDDEN)
        self.tell()
        self.done.release()

    def accept(self, data: bytes) -> None:
        now = time.monotonic()
        self.tokens = min(self.burst, self.tokens + (now - self.filled) * self.rate)
        self.filled = now
        if self.tokens <= 0:
            self.shedding = True
        elif self.tokens >= min(self.rate, self.burst):
            self.shedding = False
        if self.shedding or now < self.retry_at:
            return self.drop(data)
        if self.torn:
            # Half a line could end in the second half of a secret.
            start = data.find(b"\n") + 1 or len(data)
            self.drop(data[:start])
            data = data[start:]
            if self.torn:
                return None
        self.tell()
        return self.emit(self.redact(data))

    def drop(self, data: bytes) -> None:
        self.shed += len(data)
        self.cut(len(data), data[-1:] != b"\n")

    def cut(self, n: int, torn: bool) -> None:
        self.gap += n + len(self.tail)
        self.shed += len(self.tail)
        self.tail = b""
        self.torn = torn

    def tell(self) -> None:
        if self.gap and self.line(b"dropped %d bytes" % self.gap):
            self.gap = 0

    def line(self, text: bytes) -> bool:
        return not self.store((b"\n" if self.line_open else b"") + b"[llmsupervisor] " + text + b"\n")

    def redact(self, data: bytes) -> bytes:
        """`data` without secrets and without an end that could be the beginning of one: that waits for what follows."""
        if not self.secrets:
            return data
        data = self.tail + data
        hold = len(data)
        for secret in self.secrets:
            at = data.find(secret[:1], max(0, len(data) - len(secret) + 1))
            while at >= 0 and not secret.startswith(data[at:]):
                at = data.find(secret[:1], at + 1)
            if at >= 0:
                hold = min(hold, at)
        clean = []
        end = 0
        for match in self.pattern.finditer(data):
            if match.start() >= hold:
                break
            clean += [data[end : match.start()], HIDDEN]
            end = match.end()
        hold = max(hold, end)
        clean.append(data[end:hold])
        self.tail = data[hold:]
        return b"".join(clean)

    def emit(self, data: bytes) -> None:
        if rest := self.store(data):
            self.drop(data[-rest:])

    def store(self, data: bytes) -> int:
        """The number of bytes that did not reach the disk. After a failure the disk is left alone for a while."""
        try:
            if time.monotonic() < self.retry_at:
                return len(data)
            while data:
                if self.fd < 0:
                    self.open()
                room = self.size - self.position
                piece = data
                if len(data) > room:
                    piece = data[: data.rfind(b"\n", 0, max(room, 0)) + 1]
                    if not piece and not self.position:
                        piece = data[:room]
                if piece:
                    n = os.write(self.fd, piece)
                    self.line_open = piece[n - 1 : n] != b"\n"
                    self.position += n
                    self.tokens -= n
                    data = data[n:]
                else:
                    self.rotate()
        except OSError:
            self.retry_at = time.monotonic() + DISK_RETRY
            self.close()
        return len(data)

    def open(self) -> None:
        os.makedirs(os.path.dirname(self.path), 0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self.fd = os.open(self.path, flags, 0o600)
        self.position = os.fstat(self.fd).st_size

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def rotate(self) -> None:
        self.close()
        for n in range(self.keep, 0, -1):
            old = f"{self.path}.{n - 1}" if n > 1 else self.path
            if os.path.lexists(old):
                os.replace(old, f"{self.path}.{n}")
        if not self.keep:
            os.unlink(self.path)


# --- the runtime --------------------------------------------------------------------------------------------------


class Shim:
    def __init__(self, folder: str, listen: list[int]) -> None:
        self.folder = folder
        self.listen = listen
        launch = load(f"{folder}/launch.json")
        values: dict[str, Any] = load(launch["secrets"]) if launch.get("secrets") else {}
        self.run: str = launch["run"]
        self.argv: list[str] = launch["argv"]
        self.env: dict[str, str] = {**launch["env"], **values}
        self.cwd: str = launch["cwd"]
        self.cgroup: str | None = launch.get("cgroup")
        self.oom_score_adj: int = launch.get("oom_score_adj") or 0
        self.cpus: list[int] | None = launch.get("cpus")
        self.nofile: int | None = launch.get("nofile")
        self.respawn: bool = launch.get("respawn", False)
        self.log = Log(launch["log"], [v.encode(errors="surrogateescape") for v in values.values()])
        self.output, self.input = os.pipe()
        try:
            fcntl.fcntl(self.input, fcntl.F_SETPIPE_SZ, PIPE)
        except OSError:
            pass  # over the user's share of pipe memory: the default size works, a stall comes earlier
        self.logging = False
        self.main = 0
        self.verdict = -1  # what a failed exec says
        self.stopping = False  # no further child
        self.killing = False

    # - one child -

    def spawn(self) -> None:
        if not self.argv or not self.cwd.startswith("/"):
            raise ValueError(f"argv must not be empty and cwd must be absolute, found {self.argv} and {self.cwd!r}")
        me = os.getpid()
        self.verdict, errors = os.pipe()
        try:
            self.main = os.fork()
            if not self.main:
                self.become(errors, me)
        finally:
            os.close(errors)
        boot, own, child = boot_id(), stat(me), stat(self.main)
        save(
            f"{self.folder}/run.json",
            {
                "v": 1,
                "run": self.run,
                "boot": boot,
                "shim": {"pid": me, "start": own[2] if own else 0},
                "main": {"pid": self.main, "start": child[2] if child else 0},
                "time": time.time(),
            },
        )

    def become(self, errors: int, shim: int) -> NoReturn:
        """The child, up to its exec. The parent-death signal follows the thread that forked: the shim's main thread."""
        stage = "setup"
        try:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != shim:
                os._exit(FAILED)
            os.setsid()
            for each in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(each, signal.SIG_DFL)
            try:
                put("/proc/self/oom_score_adj", str(self.oom_score_adj))
            except OSError:
                pass  # lowering it needs a right; the runtime then has what the shim has
            env = dict(self.env)
            if self.listen:
                env |= {"LISTEN_FDS": str(len(self.listen)), "LISTEN_PID": str(os.getpid())}
            if self.cgroup:
                stage = f"joining the cgroup {self.cgroup}"
                put(f"{self.cgroup}/cgroup.procs", "0")
                stage = "setup"
            if self.cpus:
                stage = f"binding to the CPUs {self.cpus}"
                os.sched_setaffinity(0, self.cpus)
                stage = "setup"
            errors = fcntl.fcntl(errors, fcntl.F_DUPFD_CLOEXEC, 64)
            listen = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in self.listen]
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            for target, fd in enumerate((null, self.input, self.input, *listen)):
                os.dup2(fd, target)
            if self.nofile:
                _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                soft = self.nofile if hard == resource.RLIM_INFINITY else min(self.nofile, hard)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            stage = "cwd"
            os.chdir(self.cwd)
            stage = "exec"
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.execve(self.argv[0], self.argv, env)
        except BaseException as e:
            number = getattr(e, "errno", None) or errno.EINVAL
            text = getattr(e, "strerror", None) or str(e)
            os.write(errors, f"{stage}\n{number}\n{text}".encode(errors="replace")[:4096])
        os._exit(127)

    def look(self) -> os.waitid_result | None:
        """Reaps orphans. Main's end is only looked at: its pid stays taken until its exit is on disk."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return None
            if found is None or found.si_pid == self.main:
                return found
            os.waitpid(found.si_pid, 0)

    def wait(self, timeout: float) -> None:
        """For a child's end or an order."""
        order = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGUSR2}, timeout)
        if order is None or order.si_signo == signal.SIGCHLD:
            return
        self.stopping = True
        while self.listen:  # nobody would ever accept what comes when the last child has closed its own
            os.close(self.listen.pop())
        if order.si_signo == signal.SIGUSR2:
            self.killing = True
        elif self.main:
            os.kill(self.main, signal.SIGTERM)
            os.kill(self.main, signal.SIGCONT)

    def watch(self) -> dict[str, Any]:
        """Until main has ended: how. Main is reaped by `bury`."""
        since = 0.0
        while (ended := self.look()) is None:
            if self.killing:
                since = since or time.monotonic()
                self.kill()
            self.wait(pause(since) if self.killing else 3600)
        record = self.record()
        os.set_blocking(self.verdict, False)
        try:
            said = os.read(self.verdict, 4096)
        except BlockingIOError:
            said = b""
        if said:
            stage, number, text = said.decode().split("\n", 2)
            sentence = exec_error(stage, int(number), text, self.argv, self.cwd)
            self.log.say(sentence)
            return {**record, "errno": int(number), "error": sentence}
        if ended.si_code == os.CLD_EXITED:
            return {**record, "code": ended.si_status}
        return {**record, "signal": ended.si_status, "core": ended.si_code == os.CLD_DUMPED}

    def record(self) -> dict[str, Any]:
        return {
            "v": 1,
            "run": self.run,
            "pid": self.main or None,
            "code": None,
            "signal": None,
            "errno": None,
            "error": None,
            "core": False,
            "time": time.time(),
            "dropped_bytes": self.log.dropped,
        }

    def bury(self) -> None:
        """Reaps main and empties the tree. Does not return while anything lives."""
        self.main = 0
        if self.verdict >= 0:
            os.close(self.verdict)
            self.verdict = -1
        since = time.monotonic()
        while True:
            self.look()
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            self.kill()
            self.wait(pause(since))

    def kill(self) -> None:
        """One pass. A stopped process forks no more, so the second walk is complete but for what raced with the first."""
        if self.cgroup:
            try:
                put(f"{self.cgroup}/cgroup.kill", "1")
            except OSError:
                pass
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid, start in descendants(os.getpid()):
                send(pid, start, number)

    # - from the first child to the last -

    def supervise(self) -> int:
        early = 0  # children in a row that lived shortly
        while True:
            born = time.monotonic()
            try:
                self.spawn()
            except OSError as e:
                if not self.respawn:
                    raise
                record = {**self.record(), "errno": e.errno, "error": f"cannot start {self.argv[0]}: {e}"}
            else:
                self.start_logging()
                record = self.watch()
            last = not self.respawn or self.stopping
            recorded = self.keep(record, last)
            self.bury()
            if not last:
                early = 0 if time.monotonic() - born >= SHORT_LIFE else early
                self.rest(0.0 if not early else min(MAX_DELAY, 0.1 * 2 ** min(early - 1, 10)))
                early += 1
                if not self.stopping:
                    continue
                recorded = self.keep(record, True)
            return 0 if recorded or self.keep(record, True) else FAILED

    def keep(self, record: dict[str, Any], last: bool) -> bool:
        try:
            if last:
                save(f"{self.folder}/exit.json", record)
                return True
            path = f"{self.folder}/exits.jsonl"
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                if os.fstat(fd).st_size > EXITS_SIZE:
                    os.ftruncate(fd, 0)
                os.write(fd, json.dumps(record).encode() + b"\n")
            finally:
                os.close(fd)
        except OSError as e:
            self.log.say(f"shim: cannot record the exit: {e}")
            return False
        return True

    def rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.stopping and (left := until - time.monotonic()) > 0:
            self.wait(left)
        self.wait(0)

    def start_logging(self) -> None:
        if not self.logging:
            self.logging = True
            _thread.start_new_thread(self.log.read, (self.output,))
            _thread.start_new_thread(self.log.write, ())

    def end(self) -> None:
        """Closes the pipe: all that was written reaches the disk, if it does so soon."""
        self.start_logging()
        os.close(self.input)
        self.log.done.acquire(True, DRAIN)


def boot_id() -> str:
    fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64).decode().strip()
    finally:
        os.close(fd)


def pause(since: float) -> float:
    """Seconds between two kill passes; a process that cannot die is not worth a busy loop."""
    return 0.01 if time.monotonic() - since < 2 else 0.5


def main(argv: list[str]) -> int:
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    folder, lock, listen = argv[1], int(argv[2]), [int(fd) for fd in argv[3:]]
    for fd in (lock, *listen):
        os.set_inheritable(fd, False)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in (lock, *listen):
            try:
                os.close(int(name))
            except OSError:
                pass
    try:
        os.setsid()
    except OSError:
        pass  # it is the leader
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        put("/proc/self/oom_score_adj", "-900")
    except OSError:
        pass
    shim = Shim(folder, listen)
    try:
        code = shim.supervise()
    except Exception as e:
        shim.log.say(f"shim: {type(e).__name__}: {e}")
        shim.bury()
        code = FAILED
    shim.end()
    return code


if __name__ == "__main__":
    try:
        os._exit(main(sys.argv))
    except BaseException as e:
        os.write(2, f"{type(e).__name__}: {e}\n".encode())
        os._exit(FAILED)
