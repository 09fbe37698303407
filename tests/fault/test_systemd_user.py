"""The unit as it is shipped, under a real systemd: a user manager in namespaces and a cgroup of its own.

Only what needs a machine is replaced: where program and spec lie, and the user and groups. The watchdog is shortened.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import control
from support.daemon import clean_environ
from support.engines import REPOSITORY
from support.process import free_ports
from support.spec import fake, spec
from support.wait import wait_until

SYSTEMD = next(
    (path for path in ("/lib/systemd/systemd", "/usr/lib/systemd/systemd") if os.access(path, os.X_OK)), None
)
UNIT = "llmsupervisor.service"
WATCHDOG = 12.0

INSIDE = """
set -e
echo 0 > "$CGROUP/cgroup.procs"
exec unshare --mount --pid --cgroup --fork --kill-child sh -ec '
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
"$0" --user &
wait
' "$SYSTEMD"
"""

pytestmark = pytest.mark.slow


class Manager:
    """systemd's user manager. What it starts dies with it, and its cgroups go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "run"
        self.units = folder / "units"
        for each in (self.run, self.units):
            each.mkdir(mode=0o700)
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        self._cgroup = Path(next(m[1] for m in mounts if m[2] == "cgroup2")) / f"llmsupervisor-{secrets.token_hex(4)}"
        self._cgroup.mkdir()
        self._output = folder / "manager.log"
        self._environ = clean_environ(
            HOME=str(folder / "home"),
            XDG_RUNTIME_DIR=str(self.run),
            SYSTEMD_UNIT_PATH=f"{self.units}:/usr/lib/systemd/user",
            SYSTEMD_LOG_TARGET="console",
            CGROUP=str(self._cgroup),
            SYSTEMD=str(SYSTEMD),
        )
        self._environ.pop("DBUS_SESSION_BUS_ADDRESS", None)
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                ["sh", "-c", INSIDE], env=self._environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def wait_running(self) -> None:
        def running() -> bool:
            assert self._process.poll() is None, f"the manager ended\n{self.told()}"
            return self._first() is not None and self.ctl("is-system-running").stdout.strip() in ("running", "degraded")

        wait_until(running, 20, lambda: f"the user manager runs\n{self.told()}")

    def _first(self) -> int | None:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def inside(self, *command: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """A command that sees what the manager sees."""
        return subprocess.run(
            ["nsenter", f"--target={self._first()}", "--mount", "--pid", "--cgroup", *command],
            env=self._environ,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def ctl(self, *words: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        return self.inside("systemctl", "--user", "--no-pager", *words, timeout=timeout)

    def told(self) -> str:
        return self._output.read_text(errors="replace")[-4000:]

    def processes(self) -> list[str]:
        """Command lines in the unit's cgroup."""
        found: list[str] = []
        for procs in self._cgroup.rglob(f"{UNIT}/**/cgroup.procs"):
            with contextlib.suppress(OSError):  # a cgroup or a process that is just gone
                for pid in procs.read_text().split():
                    with contextlib.suppress(OSError):
                        found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        (self._cgroup / "cgroup.kill").write_text("1")
        wait_until(lambda: "populated 0" in (self._cgroup / "cgroup.events").read_text(), 10, "the cgroup is empty")
        for path in sorted((p for p in self._cgroup.rglob("*") if p.is_dir()), reverse=True):
            path.rmdir()
        self._cgroup.rmdir()


class Unit:
    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.folder = manager.folder / f"box-{secrets.token_hex(2)}"
        self.folder.mkdir()
        self.spec_path = self.folder / "llmsupervisor.toml"
        self.ports = free_ports(10)
        self.journal = self.folder / "starts"
        self.state = manager.folder / "home" / ".config" / "llmsupervisor"
        self.run = manager.run / "llmsupervisor"
        text = (REPOSITORY / "systemd" / UNIT).read_text()
        for shipped, here in (
            ("/opt/llmsupervisor/bin/llmsupervisor ", f"{sys.executable} -m llmsupervisor "),
            ("/etc/llmsupervisor/llmsupervisor.toml", str(self.spec_path)),
            ("WatchdogSec=30", f"WatchdogSec={WATCHDOG}"),
            ("User=llmsupervisor", ""),
            ("Group=llmsupervisor", ""),
            ("SupplementaryGroups=video render", ""),
        ):
            assert shipped in text
            text = text.replace(shipped, here)
        (manager.units / UNIT).write_text(text)
        assert manager.ctl("daemon-reload").returncode == 0

    def services(self, *names: str, **knobs: Any) -> str:
        model = self.folder / "model.gguf"
        return spec({name: fake(model, self.journal, {"ready_after": 0.1, **knobs}) for name in names}, self.ports)

    def show(self, name: str) -> str:
        return self.manager.ctl("show", "--value", "-p", name, UNIT).stdout.strip()

    def ctl(self, verb: str) -> None:
        done = self.manager.ctl(verb, UNIT)
        assert done.returncode == 0, f"systemctl {verb}: {done.stderr}{self.told()}"

    def kill(self, number: signal.Signals) -> None:
        done = self.manager.ctl("kill", "--kill-who=main", f"--signal={number.name}", UNIT)
        assert done.returncode == 0, done.stderr

    def wait_show(self, name: str, value: str, seconds: float = 30.0) -> None:
        wait_until(
            lambda: self.show(name) == value, seconds, lambda: f"{name}={value}, is {self.show(name)}{self.told()}"
        )

    def wait_daemon(self, former: str) -> str:
        """The main pid once it is another than `former`, and the unit is active."""
        wait_until(
            lambda: self.show("ActiveState") == "active" and self.show("MainPID") not in ("0", former),
            30,
            lambda: f"another daemon than {former}{self.told()}",
        )
        return self.show("MainPID")

    def wait_ready(self, *names: str) -> dict[str, int]:
        """Main pid of the model servers (as seen inside) once all are READY."""
        pids: dict[str, int] = {}

        def ready() -> bool:
            with contextlib.suppress(OSError):
                services = control.call(self.run / "control.sock", "status")["services"]
                pids.clear()
                pids.update({s["name"]: s["pid"] for s in services if s["state"] == "READY"})
            return set(pids) == set(names)

        wait_until(ready, 30, lambda: f"{names} READY, only {pids}{self.told()}")
        return pids

    def starts(self) -> int:
        return len(self.journal.read_text().splitlines())

    def events(self, **match: Any) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (self.state / "events.jsonl").read_text().splitlines()]
        return [row for row in rows if all(row.get(key) == value for key, value in match.items())]

    def left(self) -> list[str]:
        """Processes of the unit and run files, save empty locks."""
        files = [path for path in self.run.rglob("*") if not path.is_dir() and not path.name.endswith("lock")]
        return [*self.manager.processes(), *map(str, files)]

    def told(self) -> str:
        return f"\n{self.manager.ctl('status', UNIT).stdout}\n{self.manager.told()}"


@pytest.fixture(scope="module")
def manager() -> Iterator[Manager]:
    if SYSTEMD is None or not shutil.which("nsenter"):
        pytest.fail("systemd and util-linux are needed: install the packages systemd and util-linux")
    namespaces = subprocess.run(["unshare", "--mount", "--pid", "--cgroup", "--fork", "true"], capture_output=True)
    if os.geteuid() != 0 or namespaces.returncode:
        pytest.skip("namespaces and cgroups of its own need root")
    folder = Path("/tmp") / f"lsd-{secrets.token_hex(3)}"
    folder.mkdir(mode=0o700)
    manager = Manager(folder)
    try:
        manager.wait_running()
        yield manager
    finally:
        manager.close()
        shutil.rmtree(folder)


@pytest.fixture
def unit(manager: Manager) -> Iterator[Unit]:
    unit = Unit(manager)
    yield unit
    manager.ctl("stop", UNIT)
    manager.ctl("reset-failed", UNIT)
    for folder in (unit.state, unit.run):
        shutil.rmtree(folder, ignore_errors=True)


def test_start_reload_crash_restart_hang_and_stop(unit: Unit) -> None:
    unit.spec_path.write_text(unit.services("chat"))
    unit.ctl("start")
    first, model = unit.show("MainPID"), unit.wait_ready("chat")["chat"]
    wait_until(lambda: "1" in unit.show("StatusText"), 10, "STATUS= tells the number of ready services")
    print(f"\nStatusText={unit.show('StatusText')}")

    with open(unit.spec_path, "r+") as held_open:  # so that the watch waits, and only the signal reads it
        held_open.write(unit.services("chat", "more"))
        held_open.flush()
        unit.ctl("reload")
        pids = unit.wait_ready("chat", "more")
    assert [event["why"] for event in unit.events(kind="reload")] == ["started", "SIGHUP"]
    unit.wait_show("ActiveState", "active", 15)  # the watch has its say too once the file is closed
    assert (unit.show("MainPID"), pids["chat"]) == (first, model)

    began = time.monotonic()
    unit.kill(signal.SIGKILL)
    second = unit.wait_daemon(first)
    assert unit.wait_ready("chat", "more") == pids
    print(f"a new daemon {time.monotonic() - began:.2f} s after the SIGKILL of the first")
    assert unit.show("NRestarts") == "1"

    began = time.monotonic()
    unit.ctl("restart")
    third = unit.wait_daemon(second)
    assert unit.wait_ready("chat", "more") == pids
    print(f"systemctl restart with adoption: {time.monotonic() - began:.2f} s")

    unit.kill(signal.SIGSTOP)
    unit.wait_daemon(third)
    assert unit.wait_ready("chat", "more") == pids
    assert unit.show("NRestarts") == "1", "counted anew since `systemctl restart`"
    assert unit.starts() == 2, "no model was started again by any of this"
    assert {event["service"] for event in unit.events(what="adopted")} == {"chat", "more"}
    assert len(unit.events(what="adopted")) == 6

    began = time.monotonic()
    unit.ctl("stop")
    print(f"systemctl stop: {time.monotonic() - began:.2f} s")
    assert (unit.show("ActiveState"), unit.show("Result")) == ("inactive", "success")
    assert not unit.left()
    assert unit.run.is_dir(), "RuntimeDirectoryPreserve"


def test_a_stop_whose_daemon_dies_is_finished(unit: Unit) -> None:
    unit.spec_path.write_text(unit.services("chat", term_after=60))
    unit.ctl("start")
    unit.wait_ready("chat")
    assert unit.manager.ctl("stop", "--no-block", UNIT).returncode == 0
    wait_until(lambda: unit.events(to="STOPPING"), 10, lambda: f"the model is being stopped{unit.told()}")
    unit.kill(signal.SIGKILL)
    unit.wait_show("ActiveState", "failed")
    assert (unit.show("Result"), unit.show("NRestarts")) == ("signal", "0")
    assert not unit.left()
    assert unit.starts() == 1


def test_a_spec_that_was_never_good_is_not_tried_again(unit: Unit) -> None:
    unit.spec_path.write_text("[services.chat]\nruntime = 'nothing'\n")
    assert unit.manager.ctl("start", UNIT).returncode != 0
    assert (unit.show("ActiveState"), unit.show("ExecMainStatus"), unit.show("NRestarts")) == ("failed", "3", "0")
    assert not unit.left()
