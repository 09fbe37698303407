"""What a start is made of: the launch record and the secrets file of one run, and how they go. Starts nothing."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from dataclasses import dataclass
from typing import Any

from llmsupervisor.base.errors import LlmsupervisorError
from llmsupervisor.base.ids import canonical
from llmsupervisor.base.layout import Layout
from llmsupervisor.host import logtail, tree
from llmsupervisor.host.failpoints import failpoint
from llmsupervisor.host.files import read_secret
from llmsupervisor.host.leavings import clear_files
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.runtime.command import TEMPORARY
from llmsupervisor.spec.model import Logs, cpu_list

BURST = 64 * 1024**2
RATE = 4 * 1024**2
"""Log bytes per second above which the shim sheds, after `BURST`."""


LONGEST = 70
"""Characters of the path of a run's temporary folder: vLLM makes sockets there under names of 36, and a socket's path may
have 107. Above it the runtime's own default stays."""


@dataclass(frozen=True, slots=True)
class Ready:
    launch: dict[str, Any]
    secrets: dict[str, str]


class SecretGone(LlmsupervisorError):
    """A secret that was there when the plan was made."""


def value_of(secret: str) -> str:
    """`file:/path`, `env:NAME` or `generated`."""
    kind, _, place = secret.partition(":")
    if kind == "generated":
        return secrets.token_urlsafe(24)
    value = read_secret((kind, place), os.environ)
    if value is None:
        raise SecretGone(f"the secret {kind} {place} is gone or empty")
    return value


def prepare(
    plan: ServicePlan, attempt: int, generation: int, layout: Layout, logs: Logs, cgroups: str | None = None
) -> Ready:
    """A new run id; values of secrets go to the secrets file only, their names stay in the record.

    `cgroups`: where groups of ours may be made; each run gets one, which is killed as a whole.
    """
    run = secrets.token_hex(8)
    folder = layout.service(plan.name)
    log = layout.log(plan.name)
    hidden = {e.name: value_of(e.secret) for e in plan.env if e.secret}
    mark = logtail.end(log)
    launch: dict[str, Any] = {
        "v": 1,
        "run": run,
        "service": plan.name,
        "argv": list(plan.words),
        "env": _environment(plan, os.fspath(folder.temporary)),
        "cwd": plan.cwd or os.fspath(folder.path),
        "cgroup": _cgroup(cgroups, f"{plan.name}-{run}"),
        "cpus": cpu_list(plan.service.cpus) or None,
        "log": {"path": os.fspath(log), "size": logs.size, "keep": logs.keep, "burst": BURST, "rate": RATE},
        "secrets": os.fspath(folder.secrets) if hidden else None,
        "oom_score_adj": 100,
        "nofile": 65536,
        "respawn": False,
        "attempt": attempt,
        "generation": generation,
        "wanted": plan.wanted,
        "rendered": plan.rendered,
        "artefacts": [list(a) for a in plan.artefacts],
        "port": plan.port,
        "gpus": list(plan.gpus),
        "log_from": [mark.inode, mark.offset],
        "time": time.time(),
    }
    return Ready(launch, hidden)


def _environment(plan: ServicePlan, temporary: str) -> dict[str, str]:
    env = {e.name: e.value for e in plan.env if not e.secret}
    wanted = [name for name, value in env.items() if value == TEMPORARY]
    if len(temporary) > LONGEST:
        return {name: value for name, value in env.items() if name not in wanted}
    if wanted:
        os.makedirs(temporary, mode=0o700, exist_ok=True)
    return env | dict.fromkeys(wanted, temporary)


def _cgroup(parent: str | None, name: str) -> str | None:
    """None where it cannot be made after all: the tree is then found through its parents."""
    try:
        return tree.make_cgroup(parent, name) if parent else None
    except OSError:
        return None


def sweep(layout: Layout, name: str) -> None:
    """The records of a run of which nothing lives; the lock file stays."""
    folder = layout.service(name)
    for path in (folder.launch, folder.run, folder.exit, folder.exits, folder.secrets):
        failpoint("sweep")
        with contextlib.suppress(OSError):
            os.unlink(path)
    clear_files(folder)


def same_wanted(a: dict[str, Any] | None, b: dict[str, Any] | None) -> bool:
    return canonical(a) == canonical(b)
