"""`up`: the daemon, in the foreground with progress, or `--detach`ed."""

from __future__ import annotations

import argparse
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

from llmsupervisor.base.errors import Exit, Unreachable
from llmsupervisor.cli.progress import Printer, Progress
from llmsupervisor.cli.terminal import Output
from llmsupervisor.link.status import Status

SETTLED = frozenset({"READY", "STOPPED", "IDLE", "FAILED", "BACKOFF", "PENDING"})


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--detach", action="store_true", help="go to the background once every service has settled")
    parser.add_argument("--quiet", action="store_true", help="print errors only")


def run(args: argparse.Namespace) -> int:
    return _detach(args) if args.detach else _foreground(args)


def _foreground(args: argparse.Namespace) -> int:
    from llmsupervisor.daemon.daemon import Options, run_daemon

    teller = None if args.quiet else Teller()
    try:
        return run_daemon(Options.from_args(args), teller.put if teller else None)
    finally:
        if teller is not None:
            teller.close()


class Teller:
    """Prints what changed, in a thread of its own: a paused terminal stops the printing and nothing else."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Status | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._print, name="progress", daemon=True)
        self._thread.start()

    def put(self, status: Status) -> None:
        self._queue.put(status)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(timeout=1.0)

    def _print(self) -> None:
        out = Output()
        progress, printer = Progress(piped=not out.tty), Printer(out)
        try:
            while True:
                try:
                    status = self._queue.get(timeout=0.1)
                except queue.Empty:
                    printer.live(progress.live(time.time()))
                    continue
                if status is None:
                    printer.close()
                    return
                printer.lines(progress.status(status))
        except OSError:
            return


def _detach(args: argparse.Namespace) -> int:
    from llmsupervisor.base.layout import default_layout
    from llmsupervisor.host.files import find_spec
    from llmsupervisor.link.client import connect

    layout = default_layout(os.environ, args.state_dir)
    os.makedirs(layout.state, mode=0o700, exist_ok=True)
    spec = os.fspath(find_spec(args.config, os.environ, Path.cwd()))
    words = [sys.executable, "-m", "llmsupervisor", "up", "--quiet", "-c", spec]
    if args.state_dir:
        words += ["--state-dir", os.path.abspath(args.state_dir)]
    log = os.fspath(layout.state / "daemon.log")
    with open(log, "ab") as sink:
        child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True)
    teller = Teller()
    while True:
        try:
            client = connect(os.fspath(layout.control))
            break
        except Unreachable:
            code = child.poll()
            if code is not None:
                with open(log, encoding="utf-8", errors="replace") as text:
                    print("".join(text.readlines()[-20:]), file=sys.stderr, end="")
                return code or Exit.FAILURE
            time.sleep(0.05)
    with client:
        for status in client.stream("watch", interval=0.2):
            teller.put(status)
            asking = any(condition["id"] == "asking" for condition in status["daemon"]["conditions"])
            if not asking and all(service["state"] in SETTLED for service in status["services"]):
                break
    teller.close()
    print(f"llmsupervisor runs in the background, pid {child.pid}; end it with: llmsupervisor down")
    return Exit.OK
