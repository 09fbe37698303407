"""The daemon's side of the gateway: its shim, its listening socket, and the link. Where the spec has no `[gateway]`, none of it.

Level-triggered: `run` compares what is wanted with what is, at every `wake` and each second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from llmsupervisor.base.errors import LlmsupervisorError
from llmsupervisor.base.layout import ServiceFolder
from llmsupervisor.daemon.conditions import Conditions
from llmsupervisor.daemon.edge import bind, cannot_listen, death, launch_of, moving, other_version, stop_within
from llmsupervisor.daemon.keys import told
from llmsupervisor.daemon.live import LiveRequests
from llmsupervisor.daemon.targets import belongs, endpoint_of, limits_of, targets_of
from llmsupervisor.daemon.traffic import service_of
from llmsupervisor.host import spawn, tree
from llmsupervisor.host.pidfd import readable
from llmsupervisor.link.frames import LIMIT, FrameError, decode, encode
from llmsupervisor.link.gateway import GATEWAY_SOCKET, EndpointStats, Finished
from llmsupervisor.link.services import StateName
from llmsupervisor.link.status import GatewayInfo
from llmsupervisor.link.view import GATEWAY_VIEW, ViewTarget
from llmsupervisor.spec import model as spec

if TYPE_CHECKING:
    from llmsupervisor.daemon.box import Box
    from llmsupervisor.daemon.process import Process
    from llmsupervisor.daemon.runner import Runner

LOOK = 1.0
"""Seconds between two looks where nothing wakes it."""
FIRST_RETRY, LAST_RETRY = 0.02, 1.0
"""Seconds between two tries to connect the link."""
SILENT = 5.0
"""Seconds; it tells its figures each second."""
KILLED = 5.0
UNWANTED = spec.Gateway()
"""Stands in where the spec has no gateway any more, or cannot be read."""


class Gateway:
    """`wanted` is the listen address of the spec, None for no gateway; `changed` is called when there is news."""

    def __init__(self, box: Box, wanted: Callable[[], str | None], changed: Callable[[], None]) -> None:
        self._box = box
        self._wanted = wanted
        self._changed = changed
        self._folder = spawn.RunFolder(ServiceFolder(box.layout.run / "gateway"))
        self._log = box.layout.state / "gateway" / "log"
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        """Set, and replaced, whenever the gateway said something or the link ended."""
        self._run: spawn.Run | None = None
        self._ending = self._stuck = False
        self.listening: str | None = None
        self.conditions = Conditions(box.clock.wall, self._tell)
        self._link: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._pid: int | None = None
        self._generation = 0
        self._applied = 0
        self._content: dict[str, Any] | None = None
        """Of the view that was sent last on this connection."""
        self._leases: dict[str, int] = {}
        self.stats: dict[str, EndpointStats] = {}
        self.live = LiveRequests(self.tell)

    # --- life ----------------------------------------------------------------------------------------------------

    async def adopt(self) -> None:
        """A gateway that an earlier daemon started goes on."""
        found = await spawn.adopt(self._folder)
        if found.run is None:
            if found.state != "stuck":
                self._sweep()
            return
        self._take(found.run, str(found.run.launch.get("listen") or ""))
        if found.state == "exited":
            await self._stop()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            self._wake.clear()
            await self._converge()
            self.refresh()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._wake.wait()

    def wake(self) -> None:
        """Something that a view shows, or the spec, changed."""
        self._wake.set()

    def end(self) -> None:
        """For good; `changed` is called when it is `stopped`."""
        self._ending = True
        self._wake.set()

    @property
    def stopped(self) -> bool:
        return self._run is None or self._stuck

    async def let_go(self) -> None:
        """The daemon ends, the gateway goes on."""
        await self._close_link()
        if self._run is not None:
            self._run.close()

    # --- the shim ------------------------------------------------------------------------------------------------

    async def _converge(self) -> None:
        if self._run is not None and self._run.shim_dead:
            await self._ended()
        wanted = None if self._ending else self._wanted()
        if wanted == self.listening:
            self.conditions.clear("gateway-listen")
            return
        listener = None
        if wanted is not None:
            try:
                listener = bind(wanted, self.listening)
            except OSError as error:
                self.conditions.set("gateway-listen", cannot_listen(wanted, error))
                return
        try:
            if self._run is not None:
                await self._stop()
            if self._run is None and listener is not None and wanted is not None and not self._ending:
                self._start(listener, wanted)
        finally:
            if listener is not None:
                listener.close()
        self._changed()

    def _start(self, listener: socket.socket, listen: str) -> None:
        self._sweep()
        try:
            run = self._folder.start(
                launch_of(self._folder.path, self._log, self._box.layout.requests, listen, self._box.logs),
                {},
                [listener],
            )
        except (OSError, LlmsupervisorError) as error:
            self.conditions.set("gateway-listen", f"the gateway cannot be started: {error}")
            return
        self.conditions.clear("gateway-listen")
        self._take(run, listen)

    def _take(self, run: spawn.Run, listen: str) -> None:
        self._run, self.listening = run, listen
        self._link = asyncio.get_running_loop().create_task(self._keep_link(run))

    async def _stop(self) -> None:
        assert self._run is not None
        drains = [runner.plan.service.drain_timeout for runner in self._box.runners.values()]
        within = stop_within(drains, (self._box.edge or UNWANTED).queue_deadline)
        if not self._ending and (to := self._wanted()) not in (None, self.listening):
            self.conditions.set("gateway-moves", moving(self.listening, to, within))
        spawn.terminate(self._run)
        for kill, seconds in ((False, within), (True, KILLED)):
            if kill:
                spawn.kill_tree(self._run)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await readable(self._run.shim_pidfd)
            if self._run.shim_dead:
                await self._ended()
                return
        self._stuck = True
        self.conditions.set("gateway-stop", f"the gateway does not end, killed or not: shim pid {self._run.shim.pid}")

    async def _ended(self) -> None:
        assert self._run is not None
        await self._close_link()
        self._run.close()
        self._run = self.listening = None
        self._stuck = False
        self.conditions.clear("gateway", "gateway-moves", "gateway-stop")
        await spawn.adopt(self._folder)
        self._sweep()

    def _sweep(self) -> None:
        names = self._folder.names
        own = (names.path / GATEWAY_SOCKET, names.path / GATEWAY_VIEW)
        for path in (names.launch, names.run, names.exit, names.exits, *own):
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _main_pid(self) -> int | None:
        if self._run is not None:
            spawn.follow_main(self._run)
        return self._run.main.pid if self._run is not None and self._run.main is not None else None

    # --- the link ------------------------------------------------------------------------------------------------

    async def _keep_link(self, run: spawn.Run) -> None:
        path, retry = Path(self._folder.path) / GATEWAY_SOCKET, FIRST_RETRY
        while True:
            try:
                reader, self._writer = await asyncio.open_unix_connection(path, limit=LIMIT)
                while True:
                    async with asyncio.timeout(SILENT):
                        line = await reader.readline()
                    if not line:
                        break
                    self._heard(decode(line))
                    retry = FIRST_RETRY
            except (OSError, FrameError, ValueError, KeyError, TypeError) as error:
                why = str(error) or f"not a word in {SILENT:g} s"
            else:
                why = "it closed the link"
            self._hang_up()
            if (pid := self._pid) is not None:
                self._pid = None
                why = await death(run, pid) or f"does not answer: {why}"
                self.conditions.set("gateway", f"the gateway (pid {pid}) {why}; its log: {self._log}")
                self._changed()
            self._wake.set()
            await asyncio.sleep(retry)
            retry = min(2 * retry, LAST_RETRY)

    def _heard(self, message: dict[str, Any]) -> None:
        match message.get("type"):
            case "hello":
                self._pid = int(message["pid"])
                self._generation = max(self._generation, int(message["generation"]))
                self._applied = 0
                self._leases = {str(k): int(v) for k, v in message["leases"].items()}
                self._box.traffic.hello(tree.age(self._pid) or 0.0)
                self._content = None
                self.conditions.clear("gateway")
                self.conditions.set("gateway-version", other_version(self._pid, message.get("version")))
                self.refresh()
                self.live.hello()
                self._changed()
            case "applied":
                self._applied = int(message["generation"])
                if self._applied >= self._generation:
                    self._box.traffic.applied(t["endpoint"] for t in self._targets() if t["state"] == "open")
            case "lease":
                self._leases[str(message["endpoint"])] = int(message["n"])
            case "stats":
                self.stats = message["endpoints"]
                self._box.traffic.stats(self.stats)
                self.live.told(message.get("live") or [])
            case "demand":
                self._demand(str(message["target"]), float(message["oldest_ms"]))
            case "finished":
                if (runner := self._runner(str(message["endpoint"]))) is not None:
                    runner.models.finished(cast(Finished, message))
            case "bad":
                self._hint(str(message.get("endpoint")), str(message.get("kind")))
        self._ring()

    def _demand(self, said: str, oldest_ms: float) -> None:
        asked = [target for target in self._targets() if said in (target["target"], target["service"])]
        for service in {target["service"] for target in asked}:
            self._box.swapper.demand(service, oldest_ms)
        for target in asked:
            if said == target["target"] and (runner := self._box.runners.get(target["service"])) is not None:
                runner.models.demand(said.partition("/")[2])

    def _runner(self, endpoint: str) -> Runner | None:
        """None: it belongs to no present start."""
        runner = self._box.runners.get(service_of(endpoint))
        process = runner.process if runner is not None else None
        return runner if process is not None and belongs(endpoint, service_of(endpoint), process.attempt) else None

    def _hint(self, endpoint: str, kind: str) -> None:
        """Never a verdict: the service is looked at now."""
        if (runner := self._runner(endpoint)) is not None:
            runner.hint.set()
        print(f"llmsupervisor: gateway: {endpoint}: {kind}", file=sys.stderr)

    def _targets(self) -> list[ViewTarget]:
        """Of the view that was sent last."""
        targets: list[ViewTarget] = self._content["targets"] if self._content else []
        return targets

    def tell(self, message: Mapping[str, Any]) -> None:
        """What the gateway may miss: nothing where it is not connected, or does not read."""
        if self._writer is None or self._pid is None or self._writer.transport.get_write_buffer_size() > LIMIT:
            return
        try:
            self._writer.write(encode(message))
            self.conditions.clear("gateway-link")
        except FrameError as error:
            self.conditions.set("gateway-link", f"{message['type']}: {error}")

    def refresh(self) -> None:
        """Sends a view where the last one is no longer true."""
        box, said = self._box, self._box.edge or UNWANTED
        self.conditions.set("gateway-key", told(box.keys))
        if self._writer is None or self._pid is None:
            return
        zero = box.clock.wall() - (now := box.clock.monotonic())
        pairs = [(runner, box.loop.statuses[name]) for name, runner in box.runners.items()]
        targets = [
            target
            for runner, status in pairs
            for on, deadline in ((runner.cards(), said.queue_deadline),)
            for target in targets_of(
                runner,
                status,
                now + deadline,
                box.cards.closed(on, deadline),
                box.cards.reopen(on),
                zero,
                box.desired.wish(runner.name).load_s,
            )
        ]
        if box.edge is None:
            targets = [{**target, "state": "gone", "reason": "the gateway is going"} for target in targets]
        content = {"targets": targets, "keys": list(box.keys.known), "limits": limits_of(said)}
        if content == self._content:
            return
        self._generation += 1
        self._content = content
        self._writer.write(encode({"type": "view", "generation": self._generation, **content}))

    def _ring(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    def _hang_up(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._content = None
        self.stats = {}
        self._box.traffic.lost()
        self._ring()

    async def _close_link(self) -> None:
        if self._link is not None:
            self._link.cancel()
            await asyncio.gather(self._link, return_exceptions=True)
            self._link = None
        self._hang_up()
        self._pid = None

    # --- drain ---------------------------------------------------------------------------------------------------

    @property
    def serves(self) -> bool:
        return self._run is not None and not self._run.shim_dead

    async def drained(self, runner: Runner, process: Process, model: str = "") -> None:
        """Until no new request can reach this start, or this model of it, and none runs there. Without a link (the gateway
        restarts) it waits."""
        one = endpoint_of(runner.name, process.attempt, model if len(runner.models.entries) > 1 else "")
        self.refresh()
        since = self._generation
        while self.serves:
            if self._pid is None:
                runner.seen.phase = "waits for the gateway"
            elif self._applied >= since:
                running = sum(
                    n for of, n in self._leases.items() if of == one or (not model and of.startswith(f"{one}/"))
                )
                if not running:
                    return
                runner.seen.phase = f"{running} running through the gateway"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._moved.wait()

    # --- telling -------------------------------------------------------------------------------------------------

    def status(self) -> GatewayInfo | None:
        listen = self.listening or self._wanted()
        if listen is None:
            return None
        return {"listen": listen, "pid": self._pid or self._main_pid(), "state": self._state()}

    def _state(self) -> StateName:
        if self._run is None:
            return "STOPPED" if self._ending else "PENDING"
        if self._ending:
            return "STOPPING"
        if self._pid is not None:
            return "READY"
        return "BACKOFF" if self.conditions.has("gateway") else "STARTING"

    def _tell(self, id: str, text: str, on: bool) -> None:
        self._box.emit({"service": None, "kind": "condition", "id": id, "text": text, "on": on})
