"""`make bench`: the daemon beside supervisord and a bare floor, in the same run. Exits 1 where a goal is missed.

Figures of one machine in one minute: compare ratios, not milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
COUNT = 8
PORTS = {"ours": 18600, "floor": 18620, "supervisord": 18640}
Pids = dict[str, tuple[int, int]]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--idle", type=float, default=20.0, help="seconds of idling measured")
    args = parser.parse_args()
    goals = Goals()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program has its bytecode
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        root = Path(folder)
        child = root / "child"
        subprocess.run(["gcc", "-O2", "-o", child, HERE / "child.c"], check=True)
        restarts(root, child, args.samples, goals)
        ours(root, child, args.idle, goals)
        peer(root, child, args.idle, goals)
    print()
    return goals.verdict()


class Goals:
    def __init__(self) -> None:
        self._missed: list[str] = []

    def row(self, what: str, value: str, goal: str = "", met: bool = True) -> None:
        sign = "" if not goal else "  ok" if met else "  MISSED"
        print(f"  {what:<58} {value:>14}   {goal}{sign}", flush=True)
        if not met:
            self._missed.append(what)

    def verdict(self) -> int:
        print("every goal met" if not self._missed else f"missed: {'; '.join(self._missed)}")
        return 1 if self._missed else 0


# --- exit to new exec ---------------------------------------------------------------------------------------------


def restarts(root: Path, child: Path, samples: int, goals: Goals) -> None:
    print(f"SIGKILL of a child to main() of its successor, {COUNT} children, {samples} samples, median (p95):")
    figures: dict[str, list[float]] = {}
    for name, start in (("floor", floor), ("ours", llmsupervisor), ("supervisord", supervisord)):
        log = root / f"{name}.log"
        with start(root, child, log):
            wait(lambda log=log: len(latest(log)) == COUNT, 30, f"{name}: all children up")
            time.sleep(2.5)
            figures[name] = kills(log, samples if name != "supervisord" else max(8, samples // 2))
    medians = {name: statistics.median(values) for name, values in figures.items()}
    for name, values in figures.items():
        goals.row(name, f"{medians[name]:.1f} ms ({sorted(values)[int(len(values) * 0.95)]:.1f})")
    ratio = medians["ours"] / medians["floor"]
    goals.row("ours / floor", f"{ratio:.1f} x", "goal: at most 40 x", ratio <= 40)
    ahead = medians["supervisord"] / medians["ours"]
    goals.row("supervisord / ours", f"{ahead:.1f} x", "goal: at least 20 x", ahead >= 20)


def kills(log: Path, samples: int) -> list[float]:
    """Milliseconds. Children in turn, at random moments, so that no loop's tick is met in phase."""
    found = []
    for number in range(samples):
        name = f"c{number % COUNT}"
        pid = latest(log)[name][0]
        begin = time.monotonic_ns()
        os.kill(pid, signal.SIGKILL)
        wait(lambda name=name, pid=pid: latest(log)[name][0] != pid, 15, f"successor of {name}")
        found.append((latest(log)[name][1] - begin) / 1e6)
        time.sleep(random.uniform(0.3, 0.8))
    return found


def latest(log: Path) -> Pids:
    found: Pids = {}
    if log.exists():
        for line in log.read_text().splitlines():
            match line.split():
                case [name, pid, stamp] if not name.endswith(".term"):
                    found[name] = (int(pid), int(stamp))
    return found


# --- the three ----------------------------------------------------------------------------------------------------


@contextmanager
def floor(root: Path, child: Path, log: Path) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, HERE / "floor.py", log, child, str(COUNT), str(PORTS["floor"])])
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def supervisord(root: Path, child: Path, log: Path) -> Iterator[None]:
    (root / "supervisord.conf").write_text(supervisord_text(root, child, log))
    words = [BIN / "supervisord", "-c", root / "supervisord.conf"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def supervisord_text(root: Path, child: Path, log: Path, word: str = "x") -> str:
    text = [
        f"[supervisord]\nnodaemon=true\nlogfile={root}/supervisord.log\npidfile={root}/supervisord.pid\n"
        f"[unix_http_server]\nfile={root}/supervisor.sock\n[supervisorctl]\nserverurl=unix://{root}/supervisor.sock\n"
        "[rpcinterface:supervisor]\nsupervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
    ]
    for number in range(COUNT):
        command = f"{child} {log} c{number} {PORTS['supervisord'] + number} {word if number == 0 else 'x'}"
        text.append(f"[program:c{number}]\ncommand={command}\nautorestart=true\n")
    return "\n".join(text)


def spec_text(child: Path, log: Path, word: str = "x") -> str:
    text = [f'ports = "{PORTS["ours"]}-{PORTS["ours"] + COUNT - 1}"']
    for number in range(COUNT):
        extra = word if number == 0 else "x"
        text.append(
            f'[services.c{number}]\nruntime = "command"\ncommand = ["{child}", "{log}", "c{number}", "{{port}}", "{extra}"]\n'
            f'ready = "/health"\ngpus = []\nrestart = {{ healthy_after = "1s" }}\n'
        )
    return "\n".join(text)


@contextmanager
def llmsupervisor(root: Path, child: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    spec = root / "spec.toml"
    spec.write_text(spec_text(child, log))
    process = daemon(root)
    try:
        yield process
    finally:
        subprocess.run(
            [BIN / "llmsupervisor", "down", "--state-dir", root / "state"], stdout=subprocess.DEVNULL, check=True
        )
        process.wait(30)
        shutil.rmtree(root / "state")


def daemon(root: Path) -> subprocess.Popen[bytes]:
    words = [BIN / "llmsupervisor", "up", "--quiet", "-c", root / "spec.toml", "--state-dir", root / "state"]
    return subprocess.Popen(words)


def status(root: Path) -> dict[str, dict[str, object]]:
    words = [BIN / "llmsupervisor", "status", "--json", "--state-dir", root / "state"]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return {s["name"]: s for s in json.loads(done.stdout)["services"]} if done.returncode == 0 else {}


def all_ready(root: Path) -> bool:
    found = status(root)
    return len(found) == COUNT and all(service["state"] == "READY" for service in found.values())


# --- ours alone ---------------------------------------------------------------------------------------------------


def ours(root: Path, child: Path, idle: float, goals: Goals) -> None:
    log = root / "alone.log"
    print(f"\nours, {COUNT} services:")
    with llmsupervisor(root, child, log) as process:
        wait(lambda: all_ready(root), 30, "all READY")
        edits(root, child, log, goals)
        walls = [timed(root) for _ in range(11)]
        goals.row(
            "status, wall", f"{statistics.median(walls):.0f} ms", "goal: under 80 ms", statistics.median(walls) < 80
        )
        resting(process.pid, idle, goals)
        pids = {name: service["pid"] for name, service in status(root).items()}
        process.kill()
        process.wait()
        begin = time.monotonic()
        again = daemon(root)
        wait(lambda: all_ready(root), 30, "re-adopted")
        goals.row(
            "daemon SIGKILLed and started anew: all 8 adopted, READY", f"{(time.monotonic() - begin) * 1000:.0f} ms"
        )
        assert pids == {name: service["pid"] for name, service in status(root).items()}, "started anew, not adopted"
        again_pid(process, again)


def again_pid(old: subprocess.Popen[bytes], new: subprocess.Popen[bytes]) -> None:
    old.wait = new.wait  # type: ignore[method-assign]


def edits(root: Path, child: Path, log: Path, goals: Goals) -> None:
    """Save of the spec to SIGTERM in the one service that it changes."""
    found = []
    for number in range(9):
        wait(lambda: all_ready(root), 30, "all READY")
        time.sleep(2.1)
        before = log.read_text().count(".term ")
        new = root / "spec.new"
        new.write_text(spec_text(child, log, f"w{number}"))
        begin = time.monotonic_ns()
        os.replace(new, root / "spec.toml")
        wait(lambda before=before: log.read_text().count(".term ") > before, 15, "SIGTERM")
        lines = [line.split() for line in log.read_text().splitlines() if ".term " in line]
        assert {line[0] for line in lines} == {"c0.term"}, "an untouched service was signalled"
        found.append((int(lines[-1][2]) - begin) / 1e6)
    goals.row("save to the changed service signalled (7 others untouched)", f"{statistics.median(found):.0f} ms")


def timed(root: Path) -> float:
    begin = time.monotonic()
    subprocess.run(
        [BIN / "llmsupervisor", "status", "--state-dir", root / "state"], stdout=subprocess.DEVNULL, check=True
    )
    return (time.monotonic() - begin) * 1000


# --- supervisord alone --------------------------------------------------------------------------------------------


def peer(root: Path, child: Path, idle: float, goals: Goals) -> None:
    """The same jobs; its `update` is an order, not a look at the file."""
    log = root / "peer.log"
    ctl = [BIN / "supervisorctl", "-c", root / "supervisord.conf"]
    print(f"\nsupervisord, {COUNT} children:")
    with supervisord(root, child, log):
        wait(lambda: len(latest(log)) == COUNT, 30, "all children up")
        time.sleep(2.5)
        found = []
        for number in range(3):
            before = log.read_text().count(".term ")
            (root / "supervisord.conf").write_text(supervisord_text(root, child, log, f"w{number}"))
            begin = time.monotonic_ns()
            subprocess.run([*ctl, "update"], stdout=subprocess.DEVNULL, check=True)
            wait(lambda before=before: log.read_text().count(".term ") > before, 15, "SIGTERM")
            lines = [line.split() for line in log.read_text().splitlines() if ".term " in line]
            found.append((int(lines[-1][2]) - begin) / 1e6)
        goals.row("`supervisorctl update` to the changed child signalled", f"{statistics.median(found):.0f} ms")
        walls = []
        for _ in range(5):
            begin = time.monotonic()
            subprocess.run([*ctl, "status"], stdout=subprocess.DEVNULL, check=True)
            walls.append((time.monotonic() - begin) * 1000)
        goals.row("`supervisorctl status`, wall", f"{statistics.median(walls):.0f} ms")
        pid = int((root / "supervisord.pid").read_text())
        before_ns = cpu_ns(pid)
        time.sleep(idle)
        goals.row("idle CPU, % of a core", f"{(cpu_ns(pid) - before_ns) / 1e9 / idle * 100:.2f}")
        goals.row("memory (RSS)", f"{rss_mb(pid):.0f} MB")


def resting(pid: int, seconds: float, goals: Goals) -> None:
    shims = [other for other in children(pid) if b"/shim." in Path(f"/proc/{other}/cmdline").read_bytes()]
    before = {p: cpu_ns(p) for p in (pid, *shims)}
    time.sleep(seconds)
    share = {p: (cpu_ns(p) - before[p]) / 1e9 / seconds * 100 for p in before}
    goals.row("idle CPU of the daemon, % of a core", f"{share[pid]:.2f}", "goal: under 1", share[pid] < 1)
    goals.row("idle CPU of a shim, the busiest", f"{max(share[p] for p in shims):.2f}")
    goals.row("memory of the daemon (RSS)", f"{rss_mb(pid):.0f} MB", "goal: under 80 MB", rss_mb(pid) < 80)
    largest = max(rss_mb(p) for p in shims)
    goals.row("memory of a shim (RSS), the largest", f"{largest:.1f} MB", "goal: under 15 MB", largest < 15)


def children(pid: int) -> list[int]:
    return [int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]


def cpu_ns(pid: int) -> int:
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir())


def rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def wait(found: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: gave up waiting for: {what}")
        time.sleep(0.002)


if __name__ == "__main__":
    raise SystemExit(main())
