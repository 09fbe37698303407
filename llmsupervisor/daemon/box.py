"""What the runners of all services share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmsupervisor.base.layout import Layout
from llmsupervisor.daemon.cards import Cards
from llmsupervisor.daemon.desired import Desired
from llmsupervisor.daemon.idle import Swapper
from llmsupervisor.daemon.keys import Keys
from llmsupervisor.daemon.loop import Loop
from llmsupervisor.daemon.memory import Memory
from llmsupervisor.daemon.traffic import Traffic
from llmsupervisor.host.clock import SystemClock
from llmsupervisor.host.gpu import GpuReader
from llmsupervisor.host.machine import MachineReader
from llmsupervisor.plan.facts import model_files
from llmsupervisor.service.states import ExitInfo
from llmsupervisor.spec.model import Gateway as GatewaySpec
from llmsupervisor.spec.model import Logs

if TYPE_CHECKING:
    from llmsupervisor.daemon.gateway import Gateway
    from llmsupervisor.daemon.runner import Runner


@dataclass
class Box:
    layout: Layout
    clock: SystemClock
    loop: Loop
    gpu: GpuReader
    desired: Desired
    save: Callable[[], None]
    emit: Callable[[dict[str, Any]], None]
    runners: dict[str, Runner] = field(default_factory=dict)
    logs: Logs = field(default_factory=Logs)
    edge: GatewaySpec | None = None
    """`[gateway]` as it was applied last."""
    keys: Keys = field(default_factory=Keys)
    cgroups: str | None = None
    """Where cgroups of ours may be made; None: nowhere."""
    roll_back: Callable[[Runner, ExitInfo], None] = lambda runner, exit: None
    gateway: Gateway | None = None
    boot: str = ""

    def __post_init__(self) -> None:
        self.traffic = Traffic(self.clock)
        self.memory = Memory(self)
        self.cards = Cards(self)
        self.machine = MachineReader(self._models)
        self.swapper = Swapper(self)

    def _models(self) -> dict[str, list[str]]:
        return {name: [path for _, path in model_files(runner.plan.service)] for name, runner in self.runners.items()}

    def shims(self) -> dict[int, str]:
        """Pid → service."""
        return {runner.process.run.shim.pid: name for name, runner in self.runners.items() if runner.process}
