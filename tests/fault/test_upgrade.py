"""Fault D17, as far as the daemon goes: another version of the package, really installed, over services that run.

The first wheel is removed while they do; the second renders one flag more.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from support import process
from support.daemon import Daemon
from support.engines import REPOSITORY
from support.journal import duplicates, starts
from support.spec import fake
from support.wait import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
NAMES = ("chat", "other")
FLAG = "--no-warmup"


def copy_of_the_tree(folder: Path) -> Path:
    """What a wheel is made of."""
    folder.mkdir()
    for name in ("llmsupervisor", "runtimes", "systemd"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    return folder


def newer(tree: Path) -> Path:
    """The next version: it says so, and every llama-server gets one more flag."""
    replace(tree / "pyproject.toml", 'version = "0.1.0"', 'version = "0.1.1"')
    replace(tree / "llmsupervisor" / "__init__.py", '"0.1.0"', '"0.1.1"')
    fixed = f'[[fixed]]\nargs = ["{FLAG}"]\nreason = "an upgrade"\n\n[gpu]\n'
    replace(tree / "runtimes" / "llama-server.toml", "[gpu]\n", fixed)
    return tree


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path}: {old!r}"
    path.write_text(text.replace(old, new))


def wheel(tree: Path) -> Path:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tree / "dist"), str(tree)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = (tree / "dist").glob("*.whl")
    return found


class Venv:
    """An environment of its own for the package; what the package needs is borrowed from the tests' own."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.python = folder / "bin" / "python"
        (self.packages,) = folder.glob("lib/python*/site-packages")
        (self.packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def pip(self, *args: str) -> None:
        target = ["--python", str(self.python), "--disable-pip-version-check"]
        done = subprocess.run([sys.executable, "-m", "pip", *target, *args], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def install(self, wheel: Path) -> None:
        self.pip("install", "--no-deps", "--no-index", str(wheel))

    def uninstall(self) -> None:
        self.pip("uninstall", "--yes", "llmsupervisor")
        assert not list(self.packages.glob("llmsupervisor*")), "the first wheel is gone"


def installed(folder: Path, ports: range, venv: Venv) -> Daemon:
    daemon = Daemon(folder, ports)
    daemon.python = str(venv.python)
    daemon.write({name: fake(folder / "model.gguf", daemon.journal) for name in NAMES})
    return daemon


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("wheels")
    return wheel(copy_of_the_tree(folder / "first")), wheel(newer(copy_of_the_tree(folder / "second")))


@pytest.mark.parametrize("how", ["leave", "SIGKILL"])
def test_an_upgrade_restarts_nothing(
    short_folder: Path, ports: range, wheels: tuple[Path, Path], tmp_path: Path, how: str
) -> None:
    first, second = wheels
    venv = Venv(tmp_path / "venv")
    venv.install(first)
    daemon = installed(short_folder, ports, venv)
    try:
        daemon.up()
        before = {name: daemon.wait_state(name, "READY") for name in NAMES}
        assert daemon.call("ping")["version"] == "0.1.0" and all(status["drift"] == [] for status in before.values())
        assert str(venv.packages) in Path(f"/proc/{shim(daemon, 'chat')}/cmdline").read_text()

        daemon.signal(signal.SIGKILL if how == "SIGKILL" else signal.SIGUSR1)
        daemon.wait_exit(20)
        venv.uninstall()
        assert all(process.alive(status["pid"]) for status in before.values())
        venv.install(second)
        daemon.up()
        assert daemon.call("ping")["version"] == "0.1.1"
        for name in NAMES:
            status = daemon.wait_service(name, lambda s: s["state"] == "READY" and s["drift"], 15, "READY, with drift")
            assert status["pid"] == before[name]["pid"] and status["endpoint"] == before[name]["endpoint"]
            assert status["drift"] == [f"argv: {FLAG} added"] and status["restarts"] == 0
            assert len(starts(daemon.journal, name)) == 1
        assert f"{FLAG} added" in daemon.cli("status").stdout

        daemon.write_text(daemon.spec_path.read_text() + "# an edit that says nothing\n")
        assert daemon.cli("reload").returncode == 0
        assert [daemon.service(name)["pid"] for name in NAMES] == [before[name]["pid"] for name in NAMES]

        done = daemon.cli("restart", "--drifted", timeout=60)
        assert done.returncode == 0, done.stderr
        for name in NAMES:
            status = daemon.wait_state(name, "READY")
            assert status["pid"] != before[name]["pid"] and status["drift"] == []
            assert FLAG in starts(daemon.journal, name)[-1].argv and len(starts(daemon.journal, name)) == 2
        assert duplicates(daemon.journal) == []
        daemon.down()
    finally:
        left = daemon.close()
    assert not left


def test_a_shim_of_the_first_version_serves_the_second(
    short_folder: Path, ports: range, wheels: tuple[Path, Path], tmp_path: Path
) -> None:
    """Its file is gone; it still records an end, and obeys a stop."""
    first, second = wheels
    venv = Venv(tmp_path / "venv")
    venv.install(first)
    daemon = installed(short_folder, ports, venv)
    try:
        daemon.up()
        before = {name: daemon.wait_state(name, "READY") for name in NAMES}
        old = {name: shim(daemon, name) for name in NAMES}
        daemon.kill9()
        venv.uninstall()
        venv.install(second)
        daemon.up()
        process.kill({before["chat"]["pid"]: ""})
        after = daemon.wait_service("chat", lambda s: s["restarts"] == 1 and s["state"] == "READY", 20, "a restart")
        assert after["last_exit"]["signal"] == "SIGKILL"
        assert daemon.cli("stop", "other").returncode == 0
        wait_until(lambda: not any(map(process.alive, old.values())), 5, "the end of the old shims")
        assert json.loads((daemon.run_folder("chat") / "launch.json").read_text())["argv"].count(FLAG) == 1
        daemon.down()
    finally:
        left = daemon.close()
    assert not left


def shim(daemon: Daemon, name: str) -> int:
    return int(daemon.run_file(name, "run.json")["shim"]["pid"])
