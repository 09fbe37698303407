"""A person's way: tmux, the real daemon, its gateway and the real llama-server under load, every page looked at."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from gateway.box import Box
from support.daemon import Daemon, clean_environ
from support.spec import served
from support.wait import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


class Tmux:
    """A server of its own, so that nobody's session is met."""

    def __init__(self, folder: Path, command: str) -> None:
        self._base = ["tmux", "-S", str(folder / "tmux"), "-f", "/dev/null"]
        environ = clean_environ(LANG="C.UTF-8", LC_ALL="C.UTF-8", HOME=str(folder))
        size = ["-x", "80", "-y", "24"]
        subprocess.run([*self._base, "new-session", "-d", *size, command], check=True, env=environ, cwd=folder)

    def do(self, *words: str) -> str:
        return subprocess.run([*self._base, *words], check=True, capture_output=True, text=True, timeout=60).stdout

    def press(self, *keys: str) -> None:
        self.do("send-keys", *keys)

    def see(self, wanted: str, seconds: float = 60.0) -> str:
        last = [""]

        def shown() -> bool:
            last[0] = self.do("capture-pane", "-p")
            return wanted in last[0]

        wait_until(shown, seconds, lambda: f"{wanted!r} on the screen:\n{last[0]}")
        return last[0]

    def reach(self, key: str, wanted: str, seconds: float = 60.0) -> None:
        """Pressed again and again: a page may grow while it is read."""

        def shown() -> bool:
            self.press(key)
            time.sleep(0.3)
            return wanted in self.do("capture-pane", "-p")

        wait_until(shown, seconds, lambda: f"{wanted!r} on the screen:\n{self.do('capture-pane', '-p')}")

    def pid(self) -> int:
        return int(self.do("display-message", "-p", "#{pane_pid}"))

    def kill(self) -> None:
        subprocess.run([*self._base, "kill-server"], capture_output=True, check=False)


@pytest.fixture
def box(daemon: Daemon, llama_server: Path, model: Path) -> Iterator[Box]:
    box = Box(daemon)
    box.write({"chat": served(llama_server, model, parallel=1, threads=1)})
    daemon.up()
    daemon.wait_state("chat", "READY", 90)
    yield box


@pytest.mark.skipif(shutil.which("tmux") is None and not os.environ.get("CI"), reason="tmux is not installed")
def test_every_page_under_load_a_stopped_daemon_and_a_killed_terminal(box: Box) -> None:
    daemon = box.daemon
    command = [sys.executable, "-m", "llmsupervisor", "tui", "--state-dir", str(daemon.state)]
    tmux = Tmux(daemon.folder, f"exec {shlex.join(command)}")
    load = Load(box)
    try:
        tmux.see("LIVE")
        assert "READY" in tmux.see("chat")
        load.start()
        tmux.press("2")
        tmux.see("REQUESTS")
        tmux.see("LIVE 1 run, 1 wait")
        tmux.see(" of ")
        load.one_ended.wait(60)
        seen = tmux.see("length")
        assert ">" in seen and "REQUESTS" in seen
        tmux.press("Enter")
        tmux.see("CONTEXT")
        tmux.press("3")
        tmux.see("CPU")
        tmux.press("4")
        tmux.see("LOG chat")
        tmux.press("/")
        tmux.see("search: words")
        tmux.press(*"slot", "Enter")
        tmux.see("/slot")
        tmux.press("5")
        tmux.see("STARTING → READY")
        tmux.press("6")
        tmux.see("IN SYNC")
        tmux.press("7")
        tmux.see("ASKED AGAINST GOT")
        tmux.reach("G", "gpus none: the CPU")
        tmux.press("8")
        tmux.see("ADVICE")
        daemon.signal(signal.SIGSTOP)
        tmux.press("1")
        tmux.see("LOG chat")
        tmux.see("STALE")
        tmux.press("2")
        tmux.see("REQUESTS")
        daemon.signal(signal.SIGCONT)
        tmux.see("LIVE ")
        tmux.press("1")
        tmux.do("resize-window", "-x", "140", "-y", "40")
        tmux.see("7 service")
        client = psutil.Process(tmux.pid())
        tmux.kill()
        client.wait(60)
        assert daemon.service("chat")["state"] == "READY", "nobody who looks stops anything"
    finally:
        daemon.signal(signal.SIGCONT)
        tmux.kill()
        load.stop()


class Load:
    """Two streams for one slot"""

    def __init__(self, box: Box) -> None:
        self._box, self._end = box, threading.Event()
        self.one_ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(2)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._end.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(60)

    def _run(self) -> None:
        while not self._end.is_set():
            with self._box.stream(tokens=40) as answer:
                answer.rest()
            self.one_ended.set()
