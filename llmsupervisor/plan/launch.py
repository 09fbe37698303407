"""The plan: exactly what would be executed, with the origin of every item."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from llmsupervisor.base.ids import Json, canonical, sha256
from llmsupervisor.plan.sums import Sums
from llmsupervisor.runtime.command import Arg, EnvVar
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.spec.model import Service


@dataclass(frozen=True, slots=True)
class Refusal:
    """A fact of this box that holds one service back. `retry`: what would have to change."""

    kind: str
    text: str
    retry: Literal["file", "binary", "gpu", "vram", "port", "secret"]


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """One service, ready to start unless `refusals` says otherwise."""

    name: str
    service: Service
    definition: Definition
    argv: tuple[Arg, ...]
    env: tuple[EnvVar, ...]
    cwd: str
    host: str
    port: int
    gpus: tuple[str, ...]
    """UUIDs."""
    inputs: tuple[tuple[str, str], ...] = ()
    """(path, SHA-256) of files whose content belongs to the spec: templates. Not the model."""
    watched: tuple[str, ...] = ()
    """Files outside the spec whose change means: plan again (templates, key files, user definitions)."""
    artefacts: tuple[tuple[str, str], ...] = ()
    """(path, identity) of binary and model: a change is drift, never a restart by itself."""
    asked: dict[str, Json] = field(default_factory=dict)
    """What the engine is asked for, under the names that `got` uses."""
    wanted: dict[str, Json] = field(default_factory=dict)
    """The applied spec of the service with the content of its templates and user definition: enough to render it again."""
    memory: Sums | None = None
    """What it takes of each GPU and of the host; None: nobody looked at its model, or its runtime has no formulas."""
    warnings: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(word for arg in self.argv for word in arg.words)

    @property
    def rendered(self) -> dict[str, Json]:
        """What the process is started with; two equal ones need no restart between them."""
        return {
            "argv": list(self.words),
            "env": {e.name: e.value for e in self.env if e.secret != "generated"},
            "cwd": self.cwd,
            "inputs": [list(i) for i in self.inputs],
            "cpus": self.service.cpus,
        }

    @property
    def fingerprint(self) -> str:
        return sha256(canonical(self.rendered))


@dataclass(frozen=True, slots=True)
class Plan:
    services: dict[str, ServicePlan]
    """In the order of the spec; disabled services are not in it."""
