"""What is loaded on demand, unloaded when idle, and unloaded for others. Decides by `service/room.py`; posts to the loop."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmsupervisor.base.units import format_duration
from llmsupervisor.service.admit import FITS
from llmsupervisor.service.room import Claim, Need, Resident, Room, make_room
from llmsupervisor.service.states import HAS_PROCESS, Changed, Demand, State, Status, Unload

if TYPE_CHECKING:
    from llmsupervisor.daemon.box import Box
    from llmsupervisor.daemon.runner import Runner

LOOK = 1.0
"""Seconds; the gateway tells its figures as often."""
WITHDRAWN = 5.0
"""Seconds without a waiting request after which a service that waits for memory only because of one is not loaded."""


@dataclass(frozen=True)
class _Claim:
    """Who waits for memory that `asked` were told to give back."""

    gpus: dict[str, int | None]
    asked: frozenset[str]


class Swapper:
    def __init__(self, box: Box) -> None:
        self._box = box
        self._claims: dict[str, _Claim] = {}
        """In the order in which they came."""
        self._demanded: dict[str, float] = {}
        """Loaded, or about to be, only because a request waits → when one last did."""
        self._starved: set[str] = set()
        """Their last start did not find enough memory, and nothing has been given back since."""
        self._looks: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                await asyncio.sleep(LOOK)
                self.look()
        finally:
            for task in self._looks.values():
                task.cancel()

    def look(self) -> None:
        self._box.memory.look()
        self._box.memory.lessons.look()
        now = self._box.clock.monotonic()
        for name, runner in list(self._box.runners.items()):
            status = self._box.loop.statuses[name]
            self._tell_what_has_no_effect(runner)
            runner.models.look()
            if status.state is State.READY:
                self._unload_if_idle(runner, status, now)
                self._unload_idle_models(runner, now)
            elif status.state is State.PENDING and not self._withdraw(name, now) and runner.plan.gpus:
                self._box.loop.post(name, Changed("a look at the GPU memory"))

    # --- demand --------------------------------------------------------------------------------------------------

    def demand(self, service: str, oldest_ms: float) -> None:
        """Requests wait for it. Told each second: only the first one finds it unloaded."""
        status = self._box.loop.statuses.get(service)
        if status is None:
            return
        self._box.traffic.demand(service, oldest_ms)
        if service in self._demanded or (status.goal == "up" and (status.state is State.IDLE or not status.loaded)):
            self._demanded[service] = self._box.clock.monotonic()
        self._box.loop.post(service, Demand())

    def _withdraw(self, name: str, now: float) -> bool:
        """Everybody who waited for it has gone, and it has not begun."""
        last = self._demanded.get(name)
        if last is None or not self._box.traffic.known or now - last < WITHDRAWN:
            return False
        self._box.loop.post(name, Unload("no request waits for it any more"))
        return True

    # --- keep_alive ----------------------------------------------------------------------------------------------

    def _unload_if_idle(self, runner: Runner, status: Status, now: float) -> None:
        keep, load = runner.plan.service.keep_alive, self._box.traffic.of(runner.name)
        if keep is None or runner.retired or self._box.edge is None or load is None:
            return
        since = self.idle_since(runner, status)
        if load.settled and load.idle and since is not None and now - since > keep:
            self._box.loop.post(runner.name, Unload(f"idle for {format_duration(keep)}"))

    def _unload_idle_models(self, runner: Runner, now: float) -> None:
        for name, entry in runner.models.entries.items():
            key, keep = runner.models.key(name), entry.model.keep_alive
            load, used = self._box.traffic.of(key), self._box.traffic.used(key)
            if keep is None or load is None or used is None or self._box.edge is None:
                continue
            if load.settled and load.idle and now - max(used, entry.target.since) > keep:
                runner.models.idle(name, f"idle for {format_duration(keep)}")

    def idle_since(self, runner: Runner, status: Status) -> float | None:
        """Monotonic seconds; None: nobody would know of a request."""
        used = self._box.traffic.used(runner.name)
        ready = runner.ready_at if runner.ready_at is not None else status.ready_since
        return None if used is None or ready is None else max(used, ready)

    def _tell_what_has_no_effect(self, runner: Runner) -> None:
        service, without = runner.plan.service, self._box.edge is None
        keep = service.keep_alive if without else None
        text = (
            ""
            if keep is None
            else f"keep_alive = {format_duration(keep)} has no effect: only a gateway knows what is idle"
        )
        runner.conditions.set("keep-alive", f"{text}; add [gateway] to the spec" if text else "")
        alone = without and service.start == "demand"
        text = f'start = "demand": without [gateway] in the spec only `llmsupervisor start {runner.name}` starts it'
        runner.conditions.set("demand", text if alone else "")

    # --- room ----------------------------------------------------------------------------------------------------

    def room(self, runner: Runner) -> Room:
        """Whether a service that waits in PENDING fits now. Where others have to go for that, they are told."""
        name, claim = runner.name, self._claims.get(runner.name)
        if runner.plan.refusals or not runner.plan.gpus:
            self._claims.pop(name, None)
            return FITS
        if other := self._box.memory.unseen(runner.plan):
            self._look_soon(name)
            return Room(False, f"waits for a look at the memory that {other} holds now", comes=True)
        if claim is not None and not any(self._gives_back(other) for other in claim.asked):
            self._starved.discard(name)
        answer = self._answer(runner)
        if answer.unload:
            asked = frozenset(answer.unload) | (claim.asked if claim else frozenset())
            self._claims[name] = _Claim(self._claimed(runner), asked)
            for other in answer.unload:
                self._box.loop.post(other, Unload(f"makes room for {name}"))
        elif not answer.fits and not answer.comes:
            self._claims.pop(name, None)
        return answer

    def forgo(self, name: str) -> None:
        """It cannot start for another reason than memory: what was made for it is anybody's."""
        self._claims.pop(name, None)

    def _look_soon(self, name: str) -> None:
        async def look() -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._box.gpu.fresh()
            self._box.memory.look()
            self._box.loop.post(name, Changed("a look at the GPU memory"))

        if name not in self._looks or self._looks[name].done():
            self._looks[name] = asyncio.get_running_loop().create_task(look())

    def _answer(self, runner: Runner) -> Room:
        memory, plan = self._box.memory, runner.plan
        since = self._box.traffic.waits_since(runner.name)
        waited = None if since is None else self._box.clock.monotonic() - since
        return make_room(
            Need(runner.name, memory.needs(plan), waited, runner.name in self._starved, memory.sums(plan)),
            memory.free(plan),
            [resident for other in self._box.runners.values() if (resident := self._resident(other, runner))],
            self._claims_before(runner.name),
            {uuid: memory.label(uuid) for uuid in plan.gpus},
        )

    def _claimed(self, runner: Runner) -> dict[str, int | None]:
        """All of it where nobody knows how much it will be."""
        if runner.name in self._starved:
            return dict.fromkeys(runner.plan.gpus)
        return self._box.memory.needs(runner.plan)

    def _claims_before(self, name: str) -> list[Claim]:
        found: list[Claim] = []
        for other, claim in self._claims.items():
            if other == name:
                break
            found.append(Claim(other, claim.gpus))
        return found

    def _resident(self, runner: Runner, asking: Runner) -> Resident | None:
        status = self._box.loop.statuses[runner.name]
        if runner is asking or runner.process is None or status.state not in HAS_PROCESS:
            return None
        now, load = self._box.clock.monotonic(), self._box.traffic.of(runner.name)
        known = load is not None and load.settled
        since = self.idle_since(runner, status)
        return Resident(
            name=runner.name,
            holds=self._box.memory.holds(runner),
            keep_alive=None if self._box.edge is None else runner.plan.service.keep_alive,
            idle=load.idle if known and load is not None else None,
            unused=0.0 if since is None else now - since,
            ready_for=None
            if status.state is not State.READY or status.ready_since is None
            else now - status.ready_since,
            load=self._box.desired.wish(runner.name).load_s,
            leaves=self._gives_back(runner.name),
        )

    def _gives_back(self, name: str) -> bool:
        """Its memory comes back, and is not for its own next start."""
        runner, status = self._box.runners.get(name), self._box.loop.statuses.get(name)
        if runner is None or status is None or runner.process is None:
            return False
        ends = status.state in (State.DRAINING, State.STOPPING, State.KILLING)
        return ends and not status.again and status.fault is None

    # --- what happens to a service --------------------------------------------------------------------------------

    def entered(self, runner: Runner, old: Status, new: Status) -> None:
        name = runner.name
        if new.state not in (State.PENDING, State.FAILED):
            self._claims.pop(name, None)
        if new.state in (State.READY, State.IDLE, State.STOPPED):
            self._demanded.pop(name, None)
            self._starved.discard(name)
        if new.state is State.FAILED and old.state is not State.FAILED:
            self._failed(runner, new)

    def _failed(self, runner: Runner, status: Status) -> None:
        """It did not find enough memory: tried again where somebody can give some back, one after the other."""
        exit = status.last_exit
        if (
            exit is None
            or exit.retry != "when-vram-changes"
            or not runner.plan.gpus
            or runner.policy.restart == "never"
        ):
            self._claims.pop(runner.name, None)
            return
        self._starved.add(runner.name)
        answer = self._answer(runner)
        if answer.unload or answer.comes:
            self._box.loop.post(runner.name, Changed("others can make room"))
        else:
            self._starved.discard(runner.name)
            self._claims.pop(runner.name, None)
