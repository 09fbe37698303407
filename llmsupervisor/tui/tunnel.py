"""A daemon on another machine: its socket forwarded by ssh, so that only its answers cross the link, not the screen."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from llmsupervisor.base.errors import LlmsupervisorError, Unreachable, UsageError
from llmsupervisor.base.text import printable

OPTIONS = (
    "-o", "ExitOnForwardFailure=yes", "-o", "StreamLocalBindUnlink=yes",
    "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3",
)  # fmt: skip
FIRST = 60.0
"""Seconds for the first connection: a person may type a password."""
AGAIN = 10.0


class Tunnel:
    """`socket` gives the path of the forwarded socket, and brings the tunnel up again where it broke."""

    def __init__(self, host: str, program: str, environ: Mapping[str, str]) -> None:
        """`program`: llmsupervisor on the other side. `$LLMSUPERVISOR_SSH`: the command, with options, instead of `ssh`."""
        if host.startswith("-"):
            raise UsageError(
                f"--ssh {host!r} is an option, not a host: user@machine, or a name of your ssh configuration"
            )
        self._ssh = shlex.split(environ.get("LLMSUPERVISOR_SSH") or "ssh")
        self._host = host
        self._lock = threading.Lock()
        self._folder = Path(tempfile.mkdtemp(prefix="llmsupervisor-"))
        self._local = self._folder / "s"
        self._words = self._folder / "ssh.log"
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = False
        try:
            self._remote = self._ask(program)
            self._bring_up(FIRST, [])
        except BaseException:
            self.close()
            raise

    def socket(self) -> str:
        with self._lock:
            if self._closed:
                raise Unreachable(f"the tunnel to {self._host} is closed")
            if self._child is None or self._child.poll() is not None:
                # The terminal is the screen's now: nobody could answer a question for a password.
                self._bring_up(AGAIN, ["-o", "BatchMode=yes"])
        return str(self._local)

    def close(self) -> None:
        self._closed = True
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(2.0)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _ask(self, program: str) -> str:
        """The path of the socket there, by the rules of that side."""
        command = [*self._ssh, "--", self._host, f"{program} tui --where"]
        try:
            done = subprocess.run(command, stdin=None, stdout=subprocess.PIPE, check=False, timeout=FIRST)
        except OSError as error:
            raise LlmsupervisorError(f"{self._ssh[0]}: {error.strerror or error}; it is what --ssh needs") from None
        except subprocess.TimeoutExpired:
            raise Unreachable(f"{self._host} did not tell the path of its socket within {FIRST:g} s") from None
        lines = done.stdout.decode(errors="replace").strip().splitlines()
        if done.returncode != 0 or not lines or not lines[-1].startswith("/"):
            raise Unreachable(
                f"{self._host} did not tell where its daemon's socket is: `{program} tui --where` there ended with "
                f"{done.returncode}; if {program} is not on its PATH, name it: --remote /path/to/llmsupervisor"
            )
        return lines[-1]

    def _bring_up(self, within: float, more: list[str]) -> None:
        self._local.unlink(missing_ok=True)
        command = [*self._ssh, "-N", *OPTIONS, *more, "-L", f"{self._local}:{self._remote}", "--", self._host]
        with self._words.open("wb") as words:
            # In a session of its own once the screen is drawn: no key of the terminal is a signal to it.
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=None if not more else words,
                start_new_session=bool(more),
            )
        deadline = time.monotonic() + within
        while not self._local.exists():
            if self._child.poll() is not None:
                raise Unreachable(f"no tunnel to {self._host}: {self._last_words()}")
            if time.monotonic() > deadline or self._closed:
                self._child.kill()
                self._child.wait()
                raise Unreachable(f"no tunnel to {self._host} within {within:g} s")
            time.sleep(0.05)

    def _last_words(self) -> str:
        try:
            lines = self._words.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return (
            printable(lines[-1]) if lines else f"ssh ended with {self._child.returncode if self._child else 'nothing'}"
        )
