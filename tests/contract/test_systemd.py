"""The unit and its user and folders, read by systemd's own tools."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from support.engines import REPOSITORY

SYSTEMD = REPOSITORY / "systemd"
INSTALLED = "/opt/llmsupervisor/bin/llmsupervisor"


def tool(name: str) -> str:
    found = shutil.which(name)
    assert found, f"{name} is missing: install the package systemd"
    return found


def directives(name: str) -> list[str]:
    lines = (SYSTEMD / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith(("#", "["))]


def verify(folder: Path, text: str) -> str:
    """What `systemd-analyze verify` says about our unit; it looks for the programs, so one that is here stands in."""
    unit = folder / "llmsupervisor.service"
    unit.write_text(text.replace(INSTALLED, "/bin/true"))
    done = subprocess.run(
        [tool("systemd-analyze"), "verify", "--man=no", unit], capture_output=True, text=True, timeout=60
    )
    ours = [line for line in done.stderr.splitlines() if "llmsupervisor" in line]
    return "\n".join(ours) if ours or not done.returncode else done.stderr


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    text = (SYSTEMD / "llmsupervisor.service").read_text()
    assert verify(tmp_path, text) == ""
    assert "KillModus" in verify(tmp_path, text.replace("KillMode=process", "KillModus=process"))


def test_the_program_lies_where_the_unit_says_that_it_is_installed() -> None:
    text = (SYSTEMD / "llmsupervisor.service").read_text()
    assert f"python3 -m venv {INSTALLED.removesuffix('/bin/llmsupervisor')} " in text
    commands = [line.partition("=")[2].split()[0] for line in directives("llmsupervisor.service") if line[:4] == "Exec"]
    assert sorted(commands) == ["-+/usr/bin/nvidia-modprobe", "/bin/kill", INSTALLED, INSTALLED]


def test_what_would_break_a_gpu_or_the_adoption_is_not_in_the_unit() -> None:
    breaks = {"PrivateDevices", "DeviceAllow", "DevicePolicy", "ProtectClock", "MemoryDenyWriteExecute"}
    breaks |= {"ProtectKernelTunables", "ProtectProc", "ProcSubset", "SystemCallFilter", "PrivateTmp", "DynamicUser"}
    assert not breaks & {line.partition("=")[0] for line in directives("llmsupervisor.service")}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make users, also in a folder")
def test_user_groups_and_folders_are_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    subprocess.run([tool("systemd-sysusers"), f"--root={tmp_path}", SYSTEMD / "sysusers.conf"], check=True, timeout=60)
    (user,) = [line.split(":") for line in (tmp_path / "etc" / "passwd").read_text().splitlines() if "llms" in line]
    assert (user[0], user[5], user[6].rpartition("/")[2]) == ("llmsupervisor", "/var/lib/llmsupervisor", "nologin")
    groups = {line.split(":")[0]: line.split(":")[3] for line in (tmp_path / "etc" / "group").read_text().splitlines()}
    assert (groups["video"], groups["render"]) == ("llmsupervisor", "llmsupervisor")
    subprocess.run(
        [tool("systemd-tmpfiles"), f"--root={tmp_path}", "--create", SYSTEMD / "tmpfiles.conf"], check=True, timeout=60
    )
    keys = (tmp_path / "etc" / "llmsupervisor" / "keys").stat()
    assert (stat.S_IMODE(keys.st_mode), keys.st_uid, keys.st_gid) == (0o750, 0, int(user[3]))
