"""A real daemon in a folder of its own: `python -m llmsupervisor up -c SPEC --state-dir DIR`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support import control, process
from support.spec import spec
from support.wait import PATIENCE, wait_until

Json = dict[str, Any]


def clean_environ(**more: str) -> dict[str, str]:
    """The session's environment without anything that would steer llmsupervisor, an engine or systemd's protocol."""
    steering = ("LLMSUPERVISOR_", "LLAMA_", "FAKE_", "NOTIFY_", "WATCHDOG_", "LISTEN_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(steering)}
    for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CREDENTIALS_DIRECTORY"):
        kept.pop(name, None)
    return kept | more


class Daemon:
    """`ports` is its own range; `folder` is short enough for a socket path."""

    def __init__(self, folder: Path, ports: range) -> None:
        self.folder, self.ports = folder, ports
        self.spec_path = folder / "llmsupervisor.toml"
        self.state = folder / "state"
        self.run = self.state / "run"
        self.socket = self.run / "control.sock"
        self.output = folder / "daemon.log"
        self.journal = folder / "journal"
        self.process: subprocess.Popen[bytes] | None = None
        self.environ: dict[str, str] = {}
        """Added to the environment of the daemon and of the command line."""
        self.python = sys.executable
        """Whose llmsupervisor it is."""

    # --- the spec ---

    def write(self, services: dict[str, Json], **top: Any) -> None:
        """Replaces the spec as an editor does: a new file, renamed over the old one."""
        self.write_text(spec(services, self.ports, **top))

    def write_text(self, text: str) -> None:
        new = self.spec_path.with_suffix(".new")
        new.write_text(text)
        new.replace(self.spec_path)

    def define(self, definition: Path) -> None:
        """A user's runtime definition: a file in `runtimes/` beside the spec."""
        folder = self.folder / "runtimes"
        folder.mkdir(exist_ok=True)
        shutil.copy(definition, folder)

    # --- its life ---

    def up(self, *args: str, timeout: float = 20.0) -> Daemon:
        """Starts it and waits until the control socket answers."""
        self.launch(*args)
        self.wait_answering(timeout)
        return self

    def launch(self, *args: str) -> subprocess.Popen[bytes]:
        """Starts it and waits for nothing."""
        command = [self.python, "-m", "llmsupervisor", "up", "-c", str(self.spec_path)]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, "--state-dir", str(self.state), *args],
                cwd=self.folder,
                env=clean_environ(**self.environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return self.process

    def wait_answering(self, timeout: float = 20.0) -> None:
        child = self.process
        assert child

        def answers() -> bool:
            if child.poll() is not None:
                raise AssertionError(f"the daemon exited with {child.returncode} instead of answering\n{self.told()}")
            with contextlib.suppress(OSError):
                return bool(control.call(self.socket, "ping", timeout=2)["pid"] == child.pid)
            return False

        wait_until(answers, timeout, lambda: f"an answer on the control socket\n{self.stacks()}\n{self.told()}")

    def stacks(self) -> str:
        """Where a daemon stands that does not answer; it ends with that."""
        begun = self.output.stat().st_size
        self.signal(signal.SIGABRT)
        self.wait_exit()
        with self.output.open("rb") as file:
            file.seek(begun)
            return file.read().decode(errors="replace")

    def wait_exit(self, timeout: float = 90.0) -> int:
        assert self.process
        timeout = max(timeout, PATIENCE)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the daemon still runs after {timeout:g} s\n{self.told()}") from None

    def signal(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def kill9(self) -> None:
        """Only the daemon: shims and engines go on."""
        self.signal(signal.SIGKILL)
        self.wait_exit()

    def restart(self) -> Daemon:
        """A new daemon after a death or a `leave`; one that runs is killed."""
        if self.process and self.process.poll() is None:
            self.kill9()
        return self.up()

    def down(self, timeout: float = 90.0) -> None:
        """`llmsupervisor down`, and nothing may be left."""
        done = self.cli("down", timeout=timeout)
        assert done.returncode == 0, f"down: {done.returncode}\n{done.stdout}{done.stderr}\n{self.told()}"
        if self.process:
            self.wait_exit(timeout)
        assert not (left := self.leftovers()), f"left after down: {left}\n{self.told()}"

    # --- asking it ---

    def call(self, name: str, timeout: float = 60.0, **args: Any) -> Any:
        return control.call(self.socket, name, timeout, **args)

    def status(self) -> Json:
        result: Json = self.call("status")
        return result

    def service(self, name: str) -> Json:
        found: Iterator[Json] = (s for s in self.status()["services"] if s["name"] == name)
        return next(found)

    def named(self, name: str) -> Json | None:
        """As `service`; None of one that the daemon has not read of yet."""
        found: Iterator[Json] = (s for s in self.status()["services"] if s["name"] == name)
        return next(found, None)

    def wait_service(self, name: str, fits: Any, timeout: float = 30.0, what: str = "") -> Json:
        """The status of one service once `fits(status)` holds."""
        last: list[Json | None] = []

        def check() -> Json | None:
            if self.process and (code := self.process.poll()) is not None:
                raise AssertionError(f"the daemon exited with {code}\n{self.told(name)}")
            last[:] = [now := self.named(name)]
            return now if now and fits(now) else None

        def told() -> str:
            return f"{name}: {what or 'the awaited status'}; last: {json.dumps(last, indent=1)}\n{self.told(name)}"

        found = wait_until(check, timeout, told)
        assert found
        return found

    def wait_state(self, name: str, state: str, timeout: float = 30.0) -> Json:
        return self.wait_service(name, lambda s: s["state"] == state, timeout, state)

    def cli(self, *args: str, timeout: float = 90.0, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """One command of the command line against this daemon's state folder."""
        return subprocess.run(
            [self.python, "-m", "llmsupervisor", *args],
            cwd=self.folder,
            env=clean_environ(LLMSUPERVISOR_STATE_DIR=str(self.state), **self.environ),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def run_folder(self, name: str) -> Path:
        return self.run / "services" / name

    def run_file(self, name: str, file: str) -> Json:
        """`launch.json`, `run.json` or `exit.json` of one service."""
        content: Json = json.loads((self.run_folder(name) / file).read_text())
        return content

    def key(self, name: str) -> str:
        """The random key of the engine's present start; empty where it has none."""
        path = self.run_folder(name) / "secrets"
        said: Json = json.loads(path.read_text()) if path.exists() else {}
        return next((str(value) for name, value in said.items() if name.endswith("_API_KEY")), "")

    def log(self, name: str) -> str:
        path = self.state / "services" / name / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def events(self, **match: Any) -> list[Json]:
        path = self.state / "events.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        return [row for row in rows if all(row.get(k) == v for k, v in match.items())]

    def told(self, name: str | None = None) -> str:
        """What the daemon and the engines said last, for a failing test's report."""
        logs = [self.state / "services" / name / "log"] if name else sorted(self.state.glob("services/*/log"))
        parts = [f"--- {path}\n{_tail(path)}" for path in (self.output, *logs) if path.exists()]
        return "\n".join(parts)

    # --- the end ---

    def leftovers(self) -> list[str]:
        """Processes, listening ports, sockets and run files that should be gone after `down`."""
        found = [f"process {pid}: {command}" for pid, command in process.inside(self.state).items()]
        found += [f"listening on {port}" for port in sorted(process.listening(self.ports))]
        for path in sorted(self.run.rglob("*")) if self.run.exists() else []:
            if path.is_dir() or (path.name.endswith("lock") and path.stat().st_size == 0):
                continue
            found.append(f"{'socket' if path.is_socket() else 'file'} {path.relative_to(self.folder)}")
        return found

    def close(self) -> list[str]:
        """Ends everything, first the proper way; what survived the proper way is returned, then killed."""
        try:
            if (self.process and self.process.poll() is None) or process.inside(self.state):
                self.cli("down")
                if self.process:
                    self.process.wait(90)
            return self.leftovers()
        except subprocess.TimeoutExpired as error:
            return [f"`down` did not end: {error}", *self.leftovers()]
        finally:
            if self.process and self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            process.kill(process.inside(self.folder))


def _tail(path: Path, size: int = 4000) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode(errors="replace")
