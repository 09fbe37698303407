"""The NVIDIA driver's device nodes: at boot `nvidia-uvm` comes after the rest, and without it CUDA finds no GPU."""

from __future__ import annotations

import os
import shutil
import subprocess

FOLDER = os.environ.get("LLMSUPERVISOR_DEVICES", "/dev")
NODE = "nvidia-uvm"


def missing() -> str:
    """Path of the node that is not there yet; empty: complete, or none of that driver (WSL, no NVIDIA card)."""
    there = os.path.exists(os.path.join(FOLDER, "nvidiactl"))
    node = os.path.join(FOLDER, NODE)
    return node if there and not os.path.exists(node) else ""


def ask_for_them() -> None:
    """As CUDA does at its first use: NVIDIA's own helper, which is setuid where it is installed. Waits for it."""
    helper = shutil.which("nvidia-modprobe", path=f"{os.environ.get('PATH', '')}:/usr/bin:/sbin:/usr/sbin")
    if helper is None or FOLDER != "/dev":
        return
    null = subprocess.DEVNULL
    try:
        subprocess.run([helper, "-u", "-c", "0"], stdin=null, stdout=null, stderr=null, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return
