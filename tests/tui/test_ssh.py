"""`tui --ssh` against a real sshd on loopback, with keys and a configuration of its own in a temporary folder."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import process
from support.wait import Spent, wait_until
from tui.samples import service
from tui.stand_in import StandIn
from tui.terminal import Terminal

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-m", "llmsupervisor"]


class Sshd:
    """Its client configuration is `ssh -F`: the user's own is not read, no file of the machine is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = process.free_ports(1)[0]
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        shutil.copy(folder / "user.pub", folder / "authorized")
        self.log = folder / "sshd.log"
        config = folder / "sshd_config"
        config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nUsePAM no\nStrictModes no\n"
            f"AuthorizedKeysFile {folder}/authorized\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "PermitRootLogin prohibit-password\nAllowStreamLocalForwarding yes\nUseDNS no\n"
        )
        (folder / "config").write_text(
            f"Host box\n  HostName 127.0.0.1\n  Port {self.port}\n  User {getpass.getuser()}\n  IdentityFile {folder}/user\n"
            f"  IdentitiesOnly yes\n  IdentityAgent none\n  UserKnownHostsFile {folder}/known\n  StrictHostKeyChecking accept-new\n"
        )
        self.start()

    def start(self) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it locks itself into before the login
        assert SSHD
        with self.log.open("ab") as log:
            self.child = subprocess.Popen([SSHD, "-D", "-e", "-f", self.folder / "sshd_config"], stdout=log, stderr=log)
        wait_until(
            lambda: process.listening(range(self.port, self.port + 1)),
            10,
            lambda: f"sshd listens: {self.log.read_text()}",
        )

    def stop(self) -> None:
        """And all that it serves, as when the machine is gone."""
        family = (
            [self.child, *psutil.Process(self.child.pid).children(recursive=True)] if self.child.poll() is None else []
        )
        for each in family:
            each.kill()
        self.child.wait()


@pytest.fixture
def stand_in(short_folder: Path) -> Iterator[StandIn]:
    daemon = StandIn(short_folder / "s", [service("chat"), service("embed")])
    yield daemon
    daemon.die()


@pytest.fixture
def sshd(short_folder: Path) -> Iterator[Sshd]:
    if SSHD is None or shutil.which("ssh") is None:
        assert not os.environ.get("CI"), "sshd is needed: apt-get install openssh-server openssh-client"
        pytest.skip("no sshd on this machine")
    server = Sshd(short_folder)
    yield server
    server.stop()


def environ(sshd: Sshd) -> dict[str, str]:
    return {"LLMSUPERVISOR_SSH": f"ssh -F {sshd.folder}/config", "TMPDIR": str(sshd.folder)}


def remote(daemon: StandIn) -> str:
    """Over there the socket is found as ever; here a variable says where."""
    return f"cd {REPOSITORY} && LLMSUPERVISOR_SOCKET={daemon.path} {shlex.join(PROGRAM)}"


def test_the_screen_is_drawn_here_and_comes_back_after_the_link_broke(stand_in: StandIn, sshd: Sshd) -> None:
    command = [*PROGRAM, "tui", "--ssh", "box", "--remote", remote(stand_in)]
    with Terminal(command, (80, 24), environ(sshd)) as terminal:
        terminal.wait("LIVE")
        assert "chat" in terminal.text and "READY" in terminal.text
        sshd.stop()
        terminal.wait("STALE")
        sshd.start()
        stand_in.say(service("chat", restarts=7), service("embed"))
        terminal.wait("LIVE")
        terminal.press("q")
        terminal.wait("run on")
        assert "on box" in terminal.text
        assert terminal.child.wait(20) == 0
    assert not list(sshd.folder.glob("llmsupervisor-*")), "nothing is left of the tunnel"
    family = [
        p.info["cmdline"]
        for p in psutil.process_iter(["cmdline"])
        if f"{sshd.folder}/config" in (p.info["cmdline"] or [])
    ]
    assert family == []


def test_a_host_that_cannot_be_reached_or_has_no_daemon_is_told_before_the_screen(
    stand_in: StandIn, sshd: Sshd
) -> None:
    def ended(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [*PROGRAM, "tui", *words], env={**os.environ, **environ(sshd)}, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )  # fmt: skip
        return done.returncode, done.stderr

    code, text = ended("--ssh", "box", "--remote", "/nowhere/llmsupervisor")
    assert code == 5 and "--remote" in text
    code, text = ended("--ssh", "-oProxyCommand=touch x")
    assert code == 2 and "not a host" in text
    sshd.stop()
    spent = Spent()
    code, text = ended("--ssh", "box")
    assert code == 5 and "Connection refused" in text and spent() < 50, "not as long as a person may type a password"
