"""What the control socket answers: one function per call (`docs/contracts.md` §2)."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsupervisor import __version__
from llmsupervisor.base.errors import LlmsupervisorError, UsageError
from llmsupervisor.base.text import printable
from llmsupervisor.daemon import crashes, logsearch, requests, store
from llmsupervisor.daemon.control import Args, Call, Peer, Stream
from llmsupervisor.daemon.logsearch import LogSearch
from llmsupervisor.host import logtail, processes
from llmsupervisor.plan import show
from llmsupervisor.plan.launch import Plan
from llmsupervisor.service.states import HAS_PROCESS, Restart, Start, State, Stop

if TYPE_CHECKING:
    from llmsupervisor.daemon.daemon import Daemon
    from llmsupervisor.daemon.runner import Runner

READS = frozenset(
    {"ping", "status", "watch", "logs", "crashes", "events", "plan", "spec", "requests", "requests_summary", "live"}
    | {"processes", "advice", "series", "log_search", "log_at"}
)
FOLLOW = 0.1
"""Seconds between two looks at a log that is followed."""
NO_PROCESS = frozenset(State) - HAS_PROCESS
SETTLED_UP = frozenset({State.READY, State.FAILED, State.IDLE})


class Calls:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._searches = LogSearch()
        self.calls: dict[str, Call] = {
            "ping": self.ping,
            "status": self.status,
            "plan": self.plan,
            "processes": self.processes,
            "log_at": self.log_at,
            "spec": self.spec,
            "requests_summary": self.requests_summary,
            "series": self.series,
            "advice": self.advice,
            "fix": self.fix,
            "reload": self.reload,
            "take": self.take,
            "forget": self.forget,
            "leave": self.leave,
        }
        self.streams: dict[str, Stream] = {
            "watch": self.watch,
            "logs": self.logs,
            "log_search": self.log_search,
            "crashes": self.crashes,
            "events": self.events,
            "requests": self.requests,
            "live": self.live,
            "start": self.start,
            "stop": self.stop,
            "drain": self.stop,
            "restart": self.restart,
            "down": self.down,
            "lend": self.lend,
        }

    # --- reading -------------------------------------------------------------------------------------------------

    async def ping(self, args: Args, peer: Peer) -> Any:
        return {"pid": os.getpid(), "version": __version__}

    async def status(self, args: Args, peer: Peer) -> Any:
        return self._daemon.status()

    async def watch(self, args: Args, peer: Peer) -> AsyncIterator[Any]:
        """At once, then each `interval` seconds, and at once when a state changes."""
        interval = max(0.1, _seconds(args, "interval", 1.0))
        while True:
            yield self._daemon.status()
            await self._daemon.news(interval)

    async def logs(self, args: Args, peer: Peer) -> AsyncIterator[Any]:
        runner = self._runner(args)
        path = self._daemon.layout.log(runner.name)
        follower = logtail.Follower(path)
        since, most = runner.log_mark(), _lines(args)
        lines = logtail.lines(path, most, since)
        if args.get("previous") and since is not None:
            ours, lines = len(lines), logtail.lines(path, most)
            for line in lines[: len(lines) - ours]:
                yield {"service": runner.name, "text": printable(line), "earlier": True}
            lines = lines[len(lines) - ours :]
        for line in lines:
            yield {"service": runner.name, "text": printable(line)}
        while args.get("follow"):
            for line in follower.read():
                yield {"service": runner.name, "text": printable(line)}
            await asyncio.sleep(FOLLOW)

    async def log_search(self, args: Args, peer: Peer) -> AsyncIterator[Any]:
        path = Path(self._daemon.layout.log(self._runner(args).name))
        async with contextlib.aclosing(self._searches.search(path, args)) as looks:
            async for said in looks:
                yield said

    async def log_at(self, args: Args, peer: Peer) -> Any:
        return await logsearch.around(Path(self._daemon.layout.log(self._runner(args).name)), args)

    async def events(self, args: Args, peer: Peer) -> AsyncIterator[Any]:
        journal = self._daemon.journal
        with journal.follow() as follower:
            for event in journal.tail(_lines(args)):
                yield event
            if args.get("follow"):
                async for event in follower:
                    yield event

    async def plan(self, args: Args, peer: Peer) -> Any:
        runners = [self._runner(args)] if args.get("service") else list(self._daemon.box.runners.values())
        return show.to_json(Plan({r.name: r.process.plan if r.process else r.plan for r in runners}))

    async def crashes(self, args: Args, peer: Peer) -> AsyncIterator[Any]:
        folder, record = Path(self._daemon.layout.crashes), args.get("record")
        if record is not None:
            yield await asyncio.to_thread(crashes.one, folder, str(record))
            return
        for item in await asyncio.to_thread(crashes.listed, folder, args.get("service")):
            yield item

    async def processes(self, args: Args, peer: Peer) -> Any:
        process = self._runner(args).process
        main = process.pid if process is not None else None
        return {"processes": [] if main is None else await asyncio.to_thread(processes.listed, main)}

    async def spec(self, args: Args, peer: Peer) -> Any:
        return await self._daemon.reloader.compare()

    async def requests(self, args: Args, peer: Peer) -> AsyncIterator[Any]:
        wanted = requests.Wanted.read(args)
        async for record in requests.records(self._requests_db, wanted):
            yield record

    async def live(self, args: Args, peer: Peer) -> AsyncIterator[Any]:
        async with contextlib.aclosing(self._daemon.gateway.live.watch()) as looks:
            async for found in looks:
                yield {"requests": found}

    async def requests_summary(self, args: Args, peer: Peer) -> Any:
        service, window = requests.service_of(args), requests.window_of(args)
        limits = {name: _limits(runner) for name, runner in self._daemon.box.runners.items()}
        since = self._daemon.clock.wall() - window
        return await requests.summary(self._requests_db, limits, since, window, service)

    async def advice(self, args: Args, peer: Peer) -> Any:
        service, window = requests.service_of(args), requests.window_of(args)
        reloader = self._daemon.reloader
        reason = await self._daemon.reloader.observer.look(window)
        return {
            "path": self._daemon.desired.spec_path,
            "sha256": reloader.applied.sha256 if reloader.applied else None,
            "window_s": window,
            "reason": reason,
            "findings": [f.to_json() for f in reloader.findings if service in (None, f.service)],
        }

    async def series(self, args: Args, peer: Peer) -> Any:
        return await self._daemon.store.read(store.Wanted.read(args))

    @property
    def _requests_db(self) -> Path:
        return Path(self._daemon.layout.requests)

    # --- orders --------------------------------------------------------------------------------------------------

    async def reload(self, args: Args, peer: Peer) -> Any:
        self._stays()
        return await self._daemon.reloader.reload("reload", dry_run=bool(args.get("dry_run")))

    async def forget(self, args: Args, peer: Peer) -> Any:
        """What starts taught the memory planner."""
        service = self._runner(args).name if args.get("service") else None
        forgotten = self._daemon.box.memory.lessons.forget(service)
        self._daemon.save()
        return {"forgotten": forgotten}

    async def fix(self, args: Args, peer: Peer) -> Any:
        self._stays()
        ids, base = args.get("ids"), args.get("sha256")
        if not isinstance(ids, list) or not ids or not all(isinstance(id, str) for id in ids):
            raise UsageError(f'ids is {ids!r}: findings of `advice` are expected, for example ["C13:chat"]')
        if not (base is None or isinstance(base, str)):
            raise UsageError(f"sha256 is {base!r}: that of the text which the advice is about is expected, or null")
        why = f"advice {', '.join(ids)}"
        await self._daemon.reloader.observer.look(requests.window_of(args))
        answer = await self._daemon.reloader.fix(ids, base, why, dry_run=bool(args.get("dry_run", True)))
        if answer["applied"]:
            self._daemon.emit({"service": None, "kind": "operator", "call": why, "by": self._by(args, peer)})
        return answer

    async def start(self, args: Args, peer: Peer) -> AsyncIterator[Any]:
        self._stays()
        runner = self._runner(args)
        wish = self._daemon.desired.wish(runner.name)
        wish.stopped_by = wish.stopped_boot = ""
        self._told("start", args, runner)
        self._daemon.loop.post(runner.name, Start(self._by(args, peer)))
        async for item in self._until(args, [runner], SETTLED_UP):
            yield item

    async def stop(self, args: Args, peer: Peer) -> AsyncIterator[Any]:
        runner, by = self._runner(args), self._by(args, peer)
        wish = self._daemon.desired.wish(runner.name)
        wish.stopped_by, wish.stopped_boot = by, self._daemon.boot
        self._told("stop", args, runner)
        self._daemon.loop.post(runner.name, Stop(by, now=bool(args.get("now"))))
        async for item in self._until(args, [runner], frozenset({State.STOPPED})):
            yield item

    async def restart(self, args: Args, peer: Peer) -> AsyncIterator[Any]:
        self._stays()
        by = self._by(args, peer)
        if args.get("drifted"):
            runners = [r for r in self._daemon.box.runners.values() if r.drift or r.models.drift]
        else:
            runners = [self._runner(args)]
        for runner in runners:
            wish = self._daemon.desired.wish(runner.name)
            wish.stopped_by = wish.stopped_boot = ""
            self._told("restart", args, runner)
            self._daemon.reconciler.take_current(runner)
            self._daemon.loop.post(runner.name, Restart(f"restarted by {by}", revive=True))
            if args.get("now"):
                self._daemon.loop.post(runner.name, Stop(by, now=True))
                self._daemon.loop.post(runner.name, Start(by))
        async for item in self._until(args, runners, SETTLED_UP):
            yield item

    async def lend(self, args: Args, peer: Peer) -> AsyncIterator[Any]:
        """The states of what sits there, until nothing does."""
        cards, by, seconds = self._daemon.box.cards, self._by(args, peer), None
        if args.get("for_s") is not None:
            seconds = _seconds(args, "for_s", 3600.0)
        card = cards.find(args.get("gpu"))
        there = [r for r in self._daemon.box.runners.values() if r.process and card.uuid in r.process.plan.gpus]
        lent = cards.lend(card, by, seconds)
        self._told_of_gpu("lend", by, card.uuid, until=lent["until"])
        async for item in self._until(args, there, NO_PROCESS):
            yield item

    async def take(self, args: Args, peer: Peer) -> Any:
        cards, by = self._daemon.box.cards, self._by(args, peer)
        card = cards.find(args.get("gpu"))
        lifted = cards.take(card)
        if lifted.lent or lifted.quarantine:
            self._told_of_gpu("take", by, card.uuid)
        place = {"uuid": card.uuid, "index": card.gpu.index if card.gpu else None}
        quarantine = lifted.quarantine and {key: lifted.quarantine[key] for key in ("reason", "since")}
        return {"gpu": place, "lent": lifted.lent, "quarantine": quarantine}

    async def down(self, args: Args, peer: Peer) -> AsyncIterator[Any]:
        self._daemon.emit({"service": None, "kind": "operator", "call": "down", "by": self._by(args, peer)})
        self._daemon.begin_down(self._by(args, peer), now=bool(args.get("now")))
        seen: dict[str, str] = {}
        while True:
            for name, status in list(self._daemon.loop.statuses.items()):
                if seen.get(name) != status.state:
                    seen[name] = status.state
                    yield {"service": name, "state": status.state.value, "reason": status.reason}
            if self._daemon.all_down():
                return
            await self._daemon.news(1.0)

    async def leave(self, args: Args, peer: Peer) -> Any:
        self._daemon.begin_leave()
        return {}

    # --- common --------------------------------------------------------------------------------------------------

    def _runner(self, args: Args) -> Runner:
        name = args.get("service")
        runners = self._daemon.box.runners
        if name is None and len(runners) == 1:
            return next(iter(runners.values()))
        if name is None or name not in runners:
            known = ", ".join(runners) or "none"
            raise UsageError(f"no service {name!r}; the spec has: {known}" if name else f"which service? {known}")
        return runners[str(name)]

    def _stays(self) -> None:
        """What is begun during a `down`, nobody would end."""
        if (by := self._daemon.down_by) is not None:
            raise LlmsupervisorError(
                f"the daemon goes down, ordered by {by}: nothing is begun; afterwards `llmsupervisor up`"
            )

    def _by(self, args: Args, peer: Peer) -> str:
        return printable(str(args.get("by") or f"uid {peer.uid}"))[:64]

    def _told_of_gpu(self, call: str, by: str, uuid: str, **more: Any) -> None:
        self._daemon.emit({"service": None, "kind": "operator", "call": call, "by": by, "gpu": uuid, **more})

    def _told(self, call: str, args: Args, runner: Runner) -> None:
        self._daemon.save()
        self._daemon.emit({"service": runner.name, "kind": "operator", "call": call, "by": args.get("by")})

    async def _until(self, args: Args, runners: list[Runner], settled: frozenset[State]) -> AsyncIterator[Any]:
        """State changes until every one is settled; with `wait` false only the first."""
        deadline = asyncio.get_running_loop().time() + _seconds(args, "wait_s", 900.0)
        seen: dict[str, State] = {}
        while True:
            for runner in runners:
                status = self._daemon.loop.statuses.get(runner.name)
                if status is not None and seen.get(runner.name) is not status.state:
                    seen[runner.name] = status.state
                    yield {"service": runner.name, "state": status.state.value, "reason": status.reason}
            if not args.get("wait", True) or all(state in settled for state in seen.values()):
                break
            if asyncio.get_running_loop().time() > deadline:
                raise LlmsupervisorError("gave up waiting; it goes on (llmsupervisor status)")
            await self._daemon.news(1.0)
        failed = [name for name, state in seen.items() if state is State.FAILED]
        if failed:
            raise LlmsupervisorError(f"{', '.join(failed)} FAILED: llmsupervisor status says why")


def _limits(runner: Runner) -> dict[str | None, int | None]:
    """`context_length` by model; with one model (None) as the engine says it got it, else as it was started."""
    plan, live = (runner.process.plan if runner.process else runner.plan), runner.plan.service
    models: dict[str | None, int | None] = {m.name: m.context_length for m in plan.service.models or ()}
    first = next(iter(models.values()), plan.service.context_length)
    if len(models) > 1:
        return dict.fromkeys([runner.name, *live.aliases, *live.names], first) | models
    got = (runner.got or {}).get("context_length")
    return {None: got if isinstance(got, int) else first}


def _lines(args: Args) -> int:
    value = args.get("lines", 100)
    if type(value) is not int or value < 0:
        raise UsageError(f"lines is {value!r}: a whole number from 0 is expected, for example 100")
    return value


def _seconds(args: Args, name: str, default: float) -> float:
    value = args.get(name, default)
    if type(value) not in (int, float) or not value >= 0:
        raise UsageError(f"{name} is {value!r}: seconds from 0 are expected, for example {default:g}")
    return float(value)
