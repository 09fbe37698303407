"""`doctor`: what on this box would go wrong, one line each, with what to do."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from llmsupervisor.base.errors import Exit, SpecError
from llmsupervisor.base.layout import default_layout
from llmsupervisor.base.units import format_size

if TYPE_CHECKING:
    from llmsupervisor.runtime.definition import Definition

Level = Literal["ok", "note", "bad"]
SIGNS = {"ok": "ok  ", "note": "note", "bad": "BAD "}


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    what: str
    text: str


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="findings as JSON")


def run(args: argparse.Namespace) -> int:
    findings = [*_box(args), *_gpus(), *_runtimes(), *_servers(), *_spec(args)]
    if args.json:
        print(json.dumps({"v": 1, "findings": [asdict(f) for f in findings]}, indent=1))
    else:
        for finding in findings:
            print(f"{SIGNS[finding.level]} {finding.what}: {finding.text}")
    return Exit.FAILURE if any(f.level == "bad" for f in findings) else Exit.OK


def _box(args: argparse.Namespace) -> Iterator[Finding]:
    from llmsupervisor.host import tree

    yield Finding("ok", "python", f"{platform.python_version()} at {sys.executable}")
    kernel = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])
    yield Finding("ok" if kernel >= (5, 3) else "bad", "kernel", f"{platform.release()} (pidfd needs 5.3)")
    cgroup = tree.usable_cgroup()
    text = f"usable at {cgroup}" if cgroup else "not usable here: process trees are found through their parents instead"
    yield Finding("ok" if cgroup else "note", "cgroup", text)
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    unlimited = soft == resource.RLIM_INFINITY
    lock = (
        "unlimited" if unlimited else f"{format_size(soft)}: pinned host memory may be refused (LimitMEMLOCK=infinity)"
    )
    yield Finding("ok" if unlimited else "note", "memlock", lock)
    state = default_layout(os.environ, args.state_dir).state
    place = os.path.abspath(state)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    good = os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK)
    yield Finding("ok" if good else "bad", "state", f"{state} {'can' if good else 'cannot'} be written")


def _gpus() -> Iterator[Finding]:
    from llmsupervisor.host.gpu import once

    sample = once(15.0)
    for gpu in sample.gpus or ():
        if gpu.error:
            yield Finding("bad", f"GPU {gpu.index}", gpu.error)
        else:
            used = f"{format_size(gpu.memory_used_bytes)} of {format_size(gpu.memory_total_bytes)} used"
            yield Finding("ok", f"GPU {gpu.index}", f"{gpu.name}, {used}, {gpu.uuid}")
    if sample.gpus is None:
        yield Finding("bad", "GPUs", f"cannot be read: {sample.error}")
    elif not sample.gpus:
        yield Finding("note", "GPUs", f"none: {sample.error or 'no NVIDIA driver'}; services need gpus = []")


def _runtimes() -> Iterator[Finding]:
    from llmsupervisor.host.binaries import Cache
    from llmsupervisor.host.discover import runtimes
    from llmsupervisor.host.files import gather, read_definitions
    from llmsupervisor.plan.facts import Facts, Needs

    definitions, problems = read_definitions()
    for problem in problems:
        yield Finding("bad", "definition", str(problem))
    found = runtimes(definitions)
    for name, definition in definitions.items():
        if not definition.command:
            continue
        if name not in found:
            yield Finding(
                "note", name, f"{definition.command[0]} is not on the PATH; `command` or `venv` in a service names it"
            )
            continue
        version = definition.version
        need = (found[name], definition.help, version.command if version else (), version.pattern if version else "")
        binary = gather(Needs(binaries=frozenset({need})), Cache(), Facts()).binaries[found[name]]
        written = f", its definition is written for {version.written_for}" if version else ""
        missing = sorted(_unknown(definition, binary.flags))
        if missing:
            yield Finding(
                "bad", name, f"{found[name]} {binary.version or '?'} does not know {', '.join(missing)}{written}"
            )
        elif binary.version is None:
            yield Finding("note", name, f"{found[name]} does not say its version{written}: it may be another program")
        else:
            yield Finding("ok", name, f"{found[name]} {binary.version}{written}")


def _unknown(definition: Definition, flags: frozenset[str] | None) -> set[str]:
    """Flags that the definition may render and this build does not list."""
    if flags is None:
        return set()
    ours = {flag for setting in definition.settings.values() for flag in setting.flags}
    ours |= {word for fixed in definition.fixed for word in fixed.args if word.startswith("-")}
    return ours - flags


def _servers() -> Iterator[Finding]:
    from llmsupervisor.host.discover import servers

    for server in servers():
        owner = f"pid {server.pid} ({server.command})" if server.pid else server.command
        yield Finding(
            "note",
            f"port {server.port}",
            f"usually {server.usual}'s, held by {owner}: it shares GPUs and memory unseen",
        )


def _spec(args: argparse.Namespace) -> Iterator[Finding]:
    from llmsupervisor.cli.specs import planned, read
    from llmsupervisor.host.files import NoSpec

    try:
        found = read(args.config)
    except NoSpec as error:
        yield Finding("note", "spec", str(error))
        return
    except SpecError as error:
        yield Finding("bad", "spec", str(error))
        return
    if found.checked.spec is None:
        for problem in found.checked.problems:
            yield Finding("bad", "spec", str(problem))
        return
    yield Finding("ok", "spec", f"{found.path}: no errors")
    for name, service in planned(found, args)[0].services.items():
        for refusal in service.refusals:
            yield Finding("bad", name, refusal.text)
        for warning in service.warnings:
            yield Finding("note", name, warning)
        if not service.refusals:
            yield Finding("ok", name, "can start on this box now")
