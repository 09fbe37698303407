"""The daemon's life: lock, spec, adoption, reconcile, signals, end. What it starts outlives it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmsupervisor.base.errors import Exit, LlmsupervisorError
from llmsupervisor.base.layout import Layout, default_layout
from llmsupervisor.daemon import exposition, snapshot
from llmsupervisor.daemon.adopt import Survivor, adopt, remember_ports, survey
from llmsupervisor.daemon.box import Box
from llmsupervisor.daemon.calls import READS, Calls
from llmsupervisor.daemon.control import Control
from llmsupervisor.daemon.desired import VERSION, Desired
from llmsupervisor.daemon.gateway import Gateway
from llmsupervisor.daemon.leftovers import watch_leftovers
from llmsupervisor.daemon.loop import Loop
from llmsupervisor.daemon.notify import Notify
from llmsupervisor.daemon.reconcile import Reconciler
from llmsupervisor.daemon.reload import Reloader
from llmsupervisor.daemon.source import Planned
from llmsupervisor.daemon.start import sweep
from llmsupervisor.daemon.store import Store
from llmsupervisor.daemon.telling import Tell, Telling
from llmsupervisor.daemon.trends import Trends
from llmsupervisor.host import tree
from llmsupervisor.host.clock import SystemClock
from llmsupervisor.host.failpoints import failpoint
from llmsupervisor.host.files import find_spec
from llmsupervisor.host.gpu import GpuReader
from llmsupervisor.host.journal import Journal, StateFile
from llmsupervisor.host.lock import DaemonLock
from llmsupervisor.service.states import HAS_PROCESS, Changed, Event, State, Status, Stop

METRICS = 5.0
"""Seconds between two texts that the gateway is given for /metrics."""
GIVES_WAY = frozenset({State.STOPPED, State.FAILED, State.READY, State.IDLE, State.PENDING, State.BACKOFF})
"""What waits for a GPU looks again when another service enters one of these."""
LAG = 1.0
"""Seconds that the loop may come late before it is shown."""


@dataclass(frozen=True)
class Options:
    layout: Layout
    spec: Path | None
    finish: bool = False
    """Adopt, stop everything, exit: `down` without a daemon."""
    only_unfinished: bool = False
    now: bool = False

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Options:
        layout = default_layout(os.environ, os.path.abspath(args.state_dir) if args.state_dir else None)
        return cls(layout, Path(args.config).absolute() if args.config else None, now=getattr(args, "now", False))

    def finishing(self, only_unfinished: bool) -> Options:
        return replace(self, finish=True, only_unfinished=only_unfinished)


def run_daemon(options: Options, tell: Tell | None = None) -> int:
    """Blocks until the daemon's end. `tell` gets each new status; it must not block."""
    lock = DaemonLock(options.layout.daemon_lock)
    try:
        state, run = options.layout.state, options.layout.run
        for folder in (state, state / "services", run, run / "services"):
            Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise LlmsupervisorError(
            f"the state cannot be kept: {error.strerror.lower() if error.strerror else error}: {error.filename}; "
            "give this user the right to write there, or choose another place with --state-dir"
        ) from error
    _raise_open_files()
    faulthandler.enable()
    try:
        return asyncio.run(_run(options, tell))
    finally:
        lock.release()


def _raise_open_files() -> None:
    """Descriptors for clients, probes and shims; what we start gets a limit of its own."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _run(options: Options, tell: Tell | None) -> int:
    return await Daemon(options, tell).run()


class Daemon:
    def __init__(self, options: Options, tell: Tell | None) -> None:
        self.options = options
        self.layout = options.layout
        self.clock = SystemClock()
        self.started = self.clock.monotonic()
        self.boot = tree.boot_id()
        self.journal = Journal(self.layout.events)
        self.state = StateFile(self.layout.desired, VERSION)
        self.desired = Desired.from_json(self.state.load() or {})
        self.loop = Loop(self.clock, self._changed)
        self.gpu = GpuReader(self.clock)
        self.box = Box(self.layout, self.clock, self.loop, self.gpu, self.desired, self.save, self.emit)
        self.box.boot = self.boot
        self.reconciler = Reconciler(self.box, self.boot)
        self.box.roll_back = self.reconciler.roll_back
        self.gateway = self.box.gateway = Gateway(self.box, self._gateway_listen, self._gateway_changed)
        self.notify = Notify(os.environ)
        self.reloader = Reloader(self.box, self.reconciler, self.notify, self._ring)
        self.store, self.trends = Store(self), Trends(self)
        self.reloader.observer.store = self.store
        self.telling = Telling(tell, self.status, lambda: any(r.seen.phase for r in self.box.runners.values()))
        self._news = asyncio.Event()
        self._end: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.down_by: str | None = None
        """Who ordered the `down` that is under way."""
        self._saved: dict[str, Any] = {}
        self.lag: float | None = None
        self._signals = 0

    # --- life ----------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        if self.options.finish and not self._anything_to_finish():
            return Exit.OK
        await self.gpu.start()
        tasks: list[asyncio.Task[None]] = []
        control = Control(Path(self.layout.control), *self._calls(), READS)
        try:
            self.box.cgroups, survivors = await asyncio.gather(
                asyncio.to_thread(tree.usable_cgroup), survey(self.layout)
            )
            remember_ports(survivors, self.desired)
            planned = await self._first_plan(survivors)
            await control.start()
            self._on_signals()
            self.emit({"service": None, "kind": "daemon", "what": "started", "pid": os.getpid()})
            self.reconciler.planned = planned
            adopt(survivors, planned, self.box, self.boot)
            await self.gateway.adopt()
            failpoint("adopted")
            if self.options.finish:
                self.begin_down("llmsupervisor down", self.options.now)
            else:
                self.desired.down = self.down_by is not None  # one of before is taken back by an `up`
                reloader = self.reloader
                works = [reloader.watch_files, reloader.obey_hangups, reloader.recheck, self._watchdog]
                if planned.facts.unasked:
                    works.append(self._begin_asked)
                else:
                    self._begin(planned)
                more = (
                    self.box.swapper.run,
                    self.box.cards.watch_gpus,
                    self.box.machine.watch_machine,
                    self._push_metrics,
                    self.reloader.observer.run,
                    self.store.run,
                    self.trends.run,
                    self.telling.run,
                    self._watch_leftovers,
                )
                tasks = [asyncio.create_task(self._guarded(work)) for work in (*works, *more)]
            tasks.append(asyncio.create_task(self._guarded(self.gateway.run)))
            self.notify.ready(snapshot.summary(self.loop.statuses))
            code = await self._end
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(runner.let_go() for runner in self.box.runners.values()))
            await self.gateway.let_go()
            await self.store.close()
            await control.close()
            await self.gpu.stop()
            self.journal.close()
        return code

    def _anything_to_finish(self) -> bool:
        return self.desired.down if self.options.only_unfinished else True

    def _calls(self) -> tuple[Any, Any]:
        calls = Calls(self)
        return calls.calls, calls.streams

    async def _first_plan(self, survivors: list[Survivor]) -> Planned:
        wanted = [survivor.wanted for survivor in survivors]
        ports = frozenset(survivor.port for survivor in survivors if survivor.run)
        if self.options.finish:
            return await self.reloader.without_spec(wanted, ports)
        path = self.options.spec or find_spec(None, os.environ, Path.cwd())
        return await self.reloader.first(path, wanted, ports, ask=not ports)

    async def _begin_asked(self) -> None:
        """What runs is looked after already while a new build is asked what it knows, which may take a minute."""
        self._begin(await self.reloader.second())

    def _begin(self, planned: Planned) -> None:
        """The spec of now over what was adopted, unless a `down` came first."""
        if self.down_by is not None:
            return
        for name, runner in self.box.runners.items():
            if name in planned.plan.services and self.loop.statuses[name].state not in HAS_PROCESS:
                self.reconciler.begin(runner)
        self.reloader.apply(planned, "started")

    async def _watchdog(self) -> None:
        """Pinged from the loop itself: a loop that stands still is what the watchdog is for."""
        interval = min(self.notify.watchdog_interval or 5.0, 5.0)
        while True:
            self.notify.watchdog()
            self.notify.status(snapshot.summary(self.loop.statuses))
            self.state.flush()
            self.journal.flush()
            if self.down_by is not None:
                self.notify.extend(4 * interval)
            due = self.clock.monotonic() + interval
            await asyncio.sleep(interval)
            late = self.clock.monotonic() - due
            self.lag = late if late >= LAG else None

    async def _watch_leftovers(self) -> None:
        await watch_leftovers(self.box)

    async def _push_metrics(self) -> None:
        while True:
            message = {"type": "metrics", "text": exposition.text(self), "time": self.clock.wall()}
            self.gateway.tell(message)
            await asyncio.sleep(METRICS)

    async def _guarded(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A bug in one of our own tasks: told, tried again; the third in a minute ends the daemon. The services go on."""
        failures: list[float] = []
        while True:
            try:
                failpoint(work.__name__)
                await work()
                return
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                now = self.clock.monotonic()
                failures = [at for at in failures if now - at < 60.0] + [now]
                text = f"{work.__name__.strip('_')}: {type(error).__name__}: {error}"
                self.emit({"service": None, "kind": "daemon", "what": "failed", "error": text})
                if len(failures) >= 3:
                    if not self._end.done():
                        self._end.set_exception(error)
                    return
                await asyncio.sleep(1.0)

    # --- the end -------------------------------------------------------------------------------------------------

    def _on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_end)
        loop.add_signal_handler(signal.SIGHUP, self.reloader.hangup.set)
        loop.add_signal_handler(signal.SIGUSR1, self.begin_leave)

    def _told_to_end(self) -> None:
        self._signals += 1
        self.begin_down("a signal", now=self._signals > 1)
        if self._signals > 1:
            for runner in self.box.runners.values():
                runner.kill_tree()

    def begin_down(self, by: str, now: bool = False) -> None:
        if self.down_by is None:
            self.down_by = by
            self.desired.down = True
            self.save()
            self.notify.stopping()
            self.emit({"service": None, "kind": "daemon", "what": "down", "by": by})
        for name in list(self.loop.statuses):
            self.loop.post(name, Stop(by, now=now))
        self._end_if_down()

    def all_down(self) -> bool:
        return self._services_down() and self.gateway.stopped

    def _services_down(self) -> bool:
        return all(s.state is State.STOPPED or s.unkillable for s in self.loop.statuses.values())

    def _end_if_down(self) -> None:
        if self.down_by is None or self._end.done() or not self._services_down():
            return
        if not self.gateway.stopped:
            self.gateway.end()
            return
        left = [name for name, status in self.loop.statuses.items() if status.unkillable]
        self.desired.down = bool(left)
        for wish in self.desired.services.values():
            wish.stopped_by = wish.stopped_boot = wish.ready_run = ""
        self.save()
        for name in self.loop.statuses:
            if name not in left:
                sweep(self.layout, name)
        self._end.set_result(Exit.FAILURE if left else Exit.OK)

    def begin_leave(self) -> None:
        if not self._end.done():
            self.save()
            self.emit({"service": None, "kind": "daemon", "what": "leaving"})
            self._end.set_result(Exit.OK)

    # --- what others see -----------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        return snapshot.status_json(self)

    def _gateway_listen(self) -> str | None:
        """During a `down` the gateway stays as it is until the services are gone."""
        if self.down_by is not None:
            return self.gateway.listening
        gateway = self.reloader.applied.spec.gateway if self.reloader.applied else None
        return gateway.listen if gateway else None

    def _gateway_changed(self) -> None:
        self._ring()
        self._end_if_down()

    async def news(self, seconds: float) -> None:
        """Until something changed, or for `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    def _ring(self) -> None:
        """Wakes everybody who waits for news."""
        self._news.set()
        self._news = asyncio.Event()
        self.gateway.wake()
        self.telling.now()

    def save(self) -> None:
        """Writes only what changed: a save costs two syncs of the disk."""
        now = self.desired.to_json()
        if now != self._saved:
            self._saved = now
            failpoint("before-save")
            self.state.save(now)
            failpoint("after-save")

    def emit(self, event: dict[str, Any]) -> None:
        said = {"v": 1, "time": time.time(), **event}
        self.journal.append(said)
        self.store.event(said)

    def _changed(self, name: str, event: Event, old: Status, new: Status) -> None:
        if (old.state, old.reason) != (new.state, new.reason):
            ended = old.state is State.STARTING and new.state is not State.STARTING
            self.emit(
                {
                    "service": name,
                    "kind": "state",
                    "from": old.state.value,
                    "to": new.state.value,
                    "reason": new.reason,
                    "attempt": new.attempt,
                    **(self._phases(name, old.started) if ended else {}),
                }
            )
        asyncio.get_running_loop().call_soon(self._after_change, name, new.state is not old.state)

    def _phases(self, name: str, began: float | None) -> dict[str, Any]:
        """Of a start that this daemon saw from its begin."""
        runner = self.box.runners[name]
        if began is None or runner.process is None or runner.process.adopted:
            return {}
        steps = runner.seen.steps(began)
        return {"phases": [{"phase": s.phase, "seconds": round(s.seconds, 3)} for s in steps]} if steps else {}

    def _after_change(self, name: str, turned: bool) -> None:
        runner, status = self.box.runners.get(name), self.loop.statuses.get(name)
        if runner is not None and status is not None and runner.retired and status.state is State.STOPPED:
            self.reconciler.forget(runner)
            self.save()
        if turned and status is not None and status.state in GIVES_WAY:
            for other, waiting in self.loop.statuses.items():
                if other != name and waiting.state is State.PENDING:
                    self.loop.post(other, Changed(f"{name} is {status.state.value}"))
        self._ring()
        self._end_if_down()
