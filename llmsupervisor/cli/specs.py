"""What `check`, `plan`, `doctor` and `gpus` share: the spec, its problems and the facts of this box, without a daemon."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from llmsupervisor.base.errors import SpecError
from llmsupervisor.base.layout import default_layout
from llmsupervisor.daemon.lessons import of_file
from llmsupervisor.host.binaries import Cache
from llmsupervisor.host.files import find_spec, gather, read_definitions, read_spec
from llmsupervisor.host.gpu import once
from llmsupervisor.host.gpufacts import gpu_facts
from llmsupervisor.plan.check import Checked, check
from llmsupervisor.plan.facts import Facts, needs
from llmsupervisor.plan.launch import Plan
from llmsupervisor.plan.plan import plan
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.spec.resolve import resolve


@dataclass(frozen=True)
class Read:
    path: Path
    checked: Checked
    definitions: dict[str, Definition]


def read(config: str | None) -> Read:
    """SpecError where the file cannot be read at all; problems of its content are in `checked`."""
    path = Path(find_spec(config, os.environ, Path.cwd()))
    text, _ = read_spec(path)
    definitions, problems = read_definitions([path.parent / "runtimes"])
    checked = check(text, str(path), definitions)
    if problems:
        checked = replace(checked, spec=None, problems=(*problems, *checked.problems))
    return Read(path, checked, definitions)


def read_valid(config: str | None) -> Read:
    """SpecError with every problem."""
    found = read(config)
    if found.checked.spec is None:
        raise SpecError(list(found.checked.problems))
    return found


def planned(found: Read, args: argparse.Namespace) -> tuple[Plan, Facts]:
    """The plan for this box now. Asks binaries for `--help`, reads NVML once."""
    spec = found.checked.spec
    assert spec is not None
    sample = once(10.0)
    learned = of_file(default_layout(os.environ, args.state_dir).learned)
    before = Facts(gpus=gpu_facts(sample), gpu_error=sample.error or "", learned=learned)
    spec = resolve(spec, PurePosixPath(found.path.parent.absolute()), PurePosixPath(Path.home()))
    facts = gather(needs(spec, found.definitions), Cache(), before, own_ports=_own_ports(args))
    return plan(spec, found.definitions, facts, found.checked.loaded.origins), facts


def _own_ports(args: argparse.Namespace) -> frozenset[int]:
    """Ports of services that a daemon of ours runs already: not busy for their own plan."""
    ports = set()
    layout = default_layout(os.environ, args.state_dir)
    for path in Path(layout.run).glob("services/*/launch.json"):
        try:
            ports.add(int(json.loads(path.read_text())["port"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return frozenset(ports)
