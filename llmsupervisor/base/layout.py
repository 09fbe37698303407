"""Every path of the run folder and the state folder (`docs/contracts.md`), as names only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath as P


@dataclass(frozen=True, slots=True)
class ServiceFolder:
    """The run folder of one service: the shim's interface."""

    path: P

    @property
    def lock(self) -> P:
        return self.path / "lock"

    @property
    def launch(self) -> P:
        return self.path / "launch.json"

    @property
    def run(self) -> P:
        return self.path / "run.json"

    @property
    def exit(self) -> P:
        return self.path / "exit.json"

    @property
    def exits(self) -> P:
        return self.path / "exits.jsonl"

    @property
    def secrets(self) -> P:
        return self.path / "secrets"

    @property
    def segments(self) -> P:
        return self.path / "segments"

    @property
    def left(self) -> P:
        return self.path / "left"

    @property
    def temporary(self) -> P:
        return self.path / "tmp"


@dataclass(frozen=True, slots=True)
class Layout:
    """`run` is gone at reboot (tmpfs under systemd), `state` stays."""

    run: P
    state: P

    @property
    def daemon_lock(self) -> P:
        return self.run / "daemon.lock"

    @property
    def control(self) -> P:
        return self.run / "control.sock"

    def service(self, name: str) -> ServiceFolder:
        return ServiceFolder(self.run / "services" / name)

    def log(self, name: str) -> P:
        return self.state / "services" / name / "log"

    @property
    def desired(self) -> P:
        return self.state / "desired.json"

    @property
    def last_good(self) -> P:
        return self.state / "last_good.toml"

    @property
    def events(self) -> P:
        return self.state / "events.jsonl"

    @property
    def binaries(self) -> P:
        return self.state / "binaries.json"

    @property
    def learned(self) -> P:
        return self.state / "learned.json"

    @property
    def crashes(self) -> P:
        return self.state / "crashes"

    @property
    def requests(self) -> P:
        return self.state / "requests.db"

    @property
    def series(self) -> P:
        return self.state / "series.db"


def default_layout(environ: Mapping[str, str], state_dir: str | None = None) -> Layout:
    """State: `--state-dir`, `$LLMSUPERVISOR_STATE_DIR`, `$STATE_DIRECTORY`, else the XDG state folder.

    Run: `$RUNTIME_DIRECTORY` (systemd), else `run` inside the state folder: a user-level runtime folder
    vanishes at logout, and with it the locks of living shims.
    """
    home = environ.get("HOME", "").rstrip("/")
    xdg = environ.get("XDG_STATE_HOME") or f"{home}/.local/state"
    given = state_dir or environ.get("LLMSUPERVISOR_STATE_DIR")
    state = P(given or environ.get("STATE_DIRECTORY", "").split(":")[0] or f"{xdg}/llmsupervisor")
    runtime = "" if given else environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return Layout(run=P(runtime) if runtime else state / "run", state=state)
