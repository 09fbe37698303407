"""`python -m bench.tui`: the terminal UI under a real pseudo terminal, against a daemon whose figures change each
second, beside an empty Textual app. Exits 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bench.__main__ import Goals

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from tui.samples import live, record, service
from tui.stand_in import StandIn
from tui.terminal import Terminal

EMPTY = "from textual.app import App\nfrom textual.widgets import Static\n" + (
    "class Empty(App):\n    def compose(self):\n        yield Static('\\n'.join(['x' * 20] * 20))\nEmpty().run(mouse=False)"
)
"""With as many cells as count as a first picture."""
SETTLE = 3.0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--starts", type=int, default=7)
    parser.add_argument("--peers", type=Path, help="folder of programs made from bench/tui.txt")
    args = parser.parse_args()
    goals = Goals()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program is compiled once, as Textual is
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        daemon = StandIn(Path(folder) / "s", busy(0))
        daemon.paced = True
        for n in range(200):
            daemon.ended(record(f"{n:026}", time=time.time() - 200 + n))
        command = [sys.executable, "-m", "llmsupervisor", "tui", "--socket", str(daemon.path)]
        first_paint(command, args.starts, goals)
        traffic(daemon, command, args.seconds, goals)
        stalled(daemon, command, goals)
    if args.peers:
        peers(args.peers, args.seconds, goals)
    print()
    return goals.verdict()


def busy(round: int) -> list[dict[str, Any]]:
    """Four services whose figures all change."""
    found = []
    for n in range(4):
        one = service(f"model-{n}", since=time.time() - 600)
        one["targets"][0].update(
            kv_cache_usage=(round * 7 + n * 20) % 100 / 100,
            requests_running=(round + n) % 8,
            requests_waiting=(round * 3 + n) % 5,
        )
        found.append(one)
    return found


def first_paint(command: list[str], starts: int, goals: Goals) -> None:
    print(f"first picture at 80x24, median of {starts} starts in turn:")
    times: dict[str, list[float]] = {"empty Textual app": [], "llmsupervisor tui": []}
    for _ in range(starts):
        for name, words in (("empty Textual app", [sys.executable, "-c", EMPTY]), ("llmsupervisor tui", command)):
            with Terminal(words, (80, 24)) as terminal:
                terminal.read(20, lambda terminal=terminal: terminal.painted is not None)
                assert terminal.painted is not None, f"{name} painted nothing:\n{terminal.text}"
                times[name].append(terminal.painted)
    empty, ours = (statistics.median(values) for values in times.values())
    goals.row("empty Textual app", f"{empty * 1000:.0f} ms")
    goals.row("llmsupervisor tui", f"{ours * 1000:.0f} ms")
    goals.row("ratio", f"{ours / empty:.2f} x", "goal: at most 1.5 x", ours <= 1.5 * empty)


def traffic(daemon: StandIn, command: list[str], seconds: float, goals: Goals) -> None:
    print(f"bytes a second over {seconds:g} s, and share of a core:")
    cases: list[tuple[str, list[str], tuple[int, int], str, Callable[[int], None], float | None]] = [
        ("nothing changes, 80x24", command, (80, 24), "", lambda n: None, 0),
        ("four busy services, 80x24", command, (80, 24), "", lambda n: daemon.say(*busy(n)), 2000),
        ("four busy services, 140x40", command, (140, 40), "", lambda n: daemon.say(*busy(n)), 4000),
        ("and a log line each second, 80x24", command, (80, 24), "", lambda n: chatty(daemon, n), 2000),
        ("requests, two ending each second, 80x24", command, (80, 24), "2", lambda n: ending(daemon, n), 2000),
        ("and six requests that run, 80x24", command, (80, 24), "", lambda n: running(daemon, n), 2000),
        ("and six requests that run, 140x40", command, (140, 40), "", lambda n: running(daemon, n), 4000),
        ("four busy services, --slow, 80x24", [*command, "--slow"], (80, 24), "", lambda n: daemon.say(*busy(n)), 300),
        ("and six requests, --slow, 80x24", [*command, "--slow"], (80, 24), "", lambda n: running(daemon, n), 300),
    ]
    for name, words, size, keys, change, most in cases:
        daemon.live = None
        with Terminal(words, size) as terminal, each_second(change):
            terminal.wait("LIVE")
            terminal.press(keys)
            terminal.read(SETTLE)
            before, began = terminal.cpu(), time.monotonic()
            count = terminal.read(seconds)
            took = time.monotonic() - began
            rate, share = count / took, (terminal.cpu() - before) / took
        met = most is None or rate <= most
        goals.row(name, f"{rate:.0f} B/s", "" if most is None else f"goal: at most {most:g} B/s", met)
        goals.row("", f"{share:.1%}", "goal: at most 3 % of a core", share <= 0.03)


def stalled(daemon: StandIn, command: list[str], goals: Goals) -> None:
    """A key while the daemon says nothing, as under SIGSTOP."""
    print("from a key to its page at 80x24, median of 10:")
    for name, silent in (("the daemon answers", False), ("the daemon is silent", True)):
        with Terminal(command, (80, 24)) as terminal:
            terminal.wait("LIVE")
            daemon.silence(silent)
            if silent:
                terminal.wait("STALE")
            times = []
            for n in range(10):
                key, wanted = (("5", "EVENTS"), ("1", "LOG model-0"))[n % 2]
                began = time.monotonic()
                terminal.press(key)
                terminal.wait(wanted)
                times.append(time.monotonic() - began)
            daemon.silence(False)
        took = statistics.median(times)
        goals.row(name, f"{took * 1000:.0f} ms", "goal: at most 100 ms", took <= 0.1)


PEERS = [
    ("llamastat", ["--mock"]),
    ("vllmstat", ["--mock", "--no-gpu"]),
    ("vllm-htop", ["--url", "{vllm}", "--interval", "1", "--no-gpu-detect"]),
]
"""On their own made-up traffic, each second; the last has none and reads that of `Engine`."""
METRICS = Path(__file__).parents[1] / "tests" / "fixtures" / "vllm" / "metrics_load.txt"


class Engine(BaseHTTPRequestHandler):
    """The figures of a vLLM under load; counters go on growing, and what runs and waits changes."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        text = re.sub(r"(?m)^(vllm:\S+(?:_total|_sum|_count|_bucket)\S* )(\S+)$", self._grown, METRICS.read_text())
        text = re.sub(r"(?m)^(vllm:num_requests_\w+\S* )\S+$", rf"\g<1>{self.asked % 8}", text)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def _grown(self, line: re.Match[str]) -> str:
        return f"{line[1]}{float(line[2]) * (1 + self.asked / 100)}"

    def log_message(self, *_: object) -> None:
        pass


def peers(folder: Path, seconds: float, goals: Goals) -> None:
    """What they show is not the same, so these are sizes, not ranks; no goal is set for others."""
    print(f"peers at 80x24, over {seconds:g} s:")
    engine = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    threading.Thread(target=engine.serve_forever, daemon=True).start()
    vllm = f"http://127.0.0.1:{engine.server_port}"
    for name, words in PEERS:
        with Terminal([str(folder / name), *(word.format(vllm=vllm) for word in words)], (80, 24)) as terminal:
            terminal.read(30, lambda terminal=terminal: terminal.painted is not None)
            terminal.read(SETTLE)
            before, began = terminal.cpu(), time.monotonic()
            count = terminal.read(seconds)
            took = time.monotonic() - began
            share = (terminal.cpu() - before) / took
        painted = "–" if terminal.painted is None else f"{terminal.painted * 1000:.0f} ms"
        goals.row(f"{name} (first picture {painted}, {share:.1%} of a core)", f"{count / took:.0f} B/s")
    engine.shutdown()


def running(daemon: StandIn, n: int) -> None:
    """Six streams of which one ends and another begins each 10 s."""
    now = time.time()
    daemon.say(*busy(n))
    six = range(n // 10, n // 10 + 6)
    daemon.runs(*(live(f"{k}", "decode", now - 60 + k % 50, now - 50 + k % 50, tokens=n * 20) for k in six))


def chatty(daemon: StandIn, n: int) -> None:
    daemon.say(*busy(n))
    daemon.log("model-0", f"slot {n % 4}: id {n} | task {n * 17} | prompt done, n_tokens = {n * 31 % 4000}")


def ending(daemon: StandIn, n: int) -> None:
    daemon.say(*busy(n))
    daemon.ended(*(record(f"r{n}-{k}", time=time.time() - 3, total_ms=900.0 + n * 13 % 700) for k in range(2)))


class each_second:
    def __init__(self, do: Callable[[int], None]) -> None:
        self._do, self._end = do, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        n = 0
        while not self._end.wait(1.0):
            n += 1
            self._do(n)


if __name__ == "__main__":
    raise SystemExit(main())
