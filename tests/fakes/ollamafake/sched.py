"""Who is loaded, who waits for a load, who is evicted."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ollamafake.env import FOREVER, Config
from ollamafake.http1 import ApiError
from ollamafake.log import slog
from ollamafake.options import Want
from ollamafake.runner import Runner

BUSY = "server busy, please try again.  maximum pending requests exceeded"
LONGEST = 10**7
"""Seconds above which a timer is none."""


class Loaded:
    def __init__(self, want: Want, runner: Runner, keep: int) -> None:
        self.want, self.runner, self.keep = want, runner, keep
        self.users = 0
        self.expires: int | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.lock = asyncio.Lock()

    @property
    def expires_at(self) -> int:
        """Set when it goes idle, and stale while it works."""
        return self.expires if self.expires is not None else time.time_ns() + self.keep

    def stop_timer(self) -> None:
        if self.timer:
            self.timer.cancel()
        self.timer = None


class Scheduler:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.most = config.max_loaded or 3
        self.loaded: dict[Path, Loaded] = {}
        self.starting: Runner | None = None
        self.pending: deque[tuple[Want, asyncio.Future[Loaded]]] = deque()
        self.idle = True
        self.more, self.unloaded = asyncio.Event(), asyncio.Event()
        self.tasks: set[asyncio.Future[Any]] = set()

    @contextlib.asynccontextmanager
    async def use(self, want: Want) -> AsyncIterator[Loaded]:
        loaded = await self._acquire(want)
        try:
            yield loaded
        finally:
            self._release(loaded)

    async def _acquire(self, want: Want) -> Loaded:
        loaded = self.loaded.get(want.model.weights)
        if loaded and not await self._needs_reload(loaded, want):
            return self._give(loaded, want)
        if len(self.pending) >= self.config.max_queue and not (self.idle and not self.pending):
            raise ApiError(503, BUSY)
        given = asyncio.get_running_loop().create_future()
        self.pending.append((want, given))
        self.more.set()
        try:
            return await given
        except asyncio.CancelledError:
            if given.done() and not given.cancelled() and not given.exception():
                self._release(given.result())
            given.cancel()
            raise

    async def _needs_reload(self, loaded: Loaded, want: Want) -> bool:
        async with loaded.lock:
            slog("DEBUG", "sched.go:1382", "evaluating already loaded", model=loaded.want.model.weights)
            return want.reloads(loaded.want) or bool(await loaded.runner.ping())

    def _give(self, loaded: Loaded, want: Want) -> Loaded:
        loaded.users += 1
        loaded.stop_timer()
        if want.keep is not None:
            loaded.keep = want.keep
        return loaded

    def _release(self, loaded: Loaded) -> None:
        loaded.users -= 1
        if loaded.users or self.loaded.get(loaded.want.model.weights) is not loaded:
            return
        if loaded.keep <= 0:
            self._unload(loaded)
            return
        loaded.stop_timer()
        loaded.expires = time.time_ns() + loaded.keep
        if loaded.keep / 1e9 < LONGEST:
            loaded.timer = asyncio.get_running_loop().call_later(loaded.keep / 1e9, self._unload, loaded)

    async def run(self) -> None:
        while True:
            while not self.pending:
                self.idle = True
                self.more.clear()
                await self.more.wait()
            self.idle = False
            want, given = self.pending.popleft()
            if given.cancelled():
                slog("DEBUG", "sched.go:260", "pending request cancelled or timed out, skipping scheduling")
                continue
            try:
                loaded = await self._schedule(want, given)
            except ApiError as error:
                if not given.cancelled():
                    given.set_exception(error)
                continue
            if given.cancelled():
                self._release(loaded)
            else:
                given.set_result(loaded)

    async def _schedule(self, want: Want, given: asyncio.Future[Loaded]) -> Loaded:
        while True:
            loaded = self.loaded.get(want.model.weights)
            if loaded:
                if not await self._needs_reload(loaded, want):
                    return self._give(loaded, want)
                if self.loaded.get(want.model.weights) is not loaded:
                    continue
            elif len(self.loaded) >= self.most:
                slog(
                    "DEBUG",
                    "sched.go:283",
                    "max runners achieved, unloading one to make room",
                    runner_count=len(self.loaded),
                )
                loaded = self._victim()
            else:
                return await self._load(want, given)
            slog("DEBUG", "sched.go:350", "resetting model to expire immediately to make room", refCount=loaded.users)
            loaded.stop_timer()
            loaded.keep = 0
            self.unloaded.clear()
            if not loaded.users:
                self._unload(loaded)
            slog("DEBUG", "sched.go:362", "waiting for pending requests to complete and unload to occur")
            await self.unloaded.wait()

    def _victim(self) -> Loaded:
        """Idle before busy, then the shortest keep_alive; one for ever is spared nothing."""
        return min(self.loaded.values(), key=lambda one: (one.users > 0, one.keep if one.keep >= 0 else FOREVER))

    async def _load(self, want: Want, given: asyncio.Future[Loaded]) -> Loaded:
        weights = want.model.weights
        slog("INFO", "sched.go:1147", "disabling mmap for llama-server load by default", model=weights, reason="cpu")
        slog("INFO", "server.go:109", "using llama-server for model", model=weights)
        runner = self.starting = Runner(self.config, want)
        try:
            try:
                await runner.start()
            except OSError as error:
                said = f"error starting llama-server: {error} "
                slog("INFO", "sched.go:591", "failed to create server", model=want.model.name.short, error=said)
                raise ApiError(500, said) from None
            try:
                await runner.load(given)
            except ApiError as error:
                slog("INFO", "sched.go:641", "Load failed", model=weights, error=error.text)
                await runner.close()
                raise
        finally:
            self.starting = None
        rendered = "go_template" if runner.go_rendered else "chat_template"
        slog("INFO", "images.go:381", "template selection", model=want.model.name.full, selected=rendered)
        keep = self.config.keep_alive if want.keep is None else want.keep
        loaded = self.loaded[weights] = Loaded(want, runner, keep)
        slog("INFO", "sched.go:728", "loaded runners", count=len(self.loaded))
        slog("INFO", "llama_server.go:1295", "waiting for llama-server to start responding")
        runner.told_started()
        return self._give(loaded, want)

    def expire(self, weights: Path) -> None:
        if loaded := self.loaded.get(weights):
            loaded.stop_timer()
            loaded.expires, loaded.keep = time.time_ns(), 0
            if not loaded.users:
                self._unload(loaded)

    def _unload(self, loaded: Loaded) -> None:
        task = asyncio.ensure_future(self._unloading(loaded))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _unloading(self, loaded: Loaded) -> None:
        loaded.stop_timer()
        async with loaded.lock:
            if loaded.users or self.loaded.get(loaded.want.model.weights) is not loaded:
                return
            del self.loaded[loaded.want.model.weights]
            await loaded.runner.close()
        self.unloaded.set()

    async def rows(self) -> list[Loaded]:
        """What /api/ps shows. It waits while a runner is asked whether it lives, and never wins the lock in between."""
        for loaded in list(self.loaded.values()):
            while loaded.lock.locked():
                await asyncio.sleep(0.01)
                if not loaded.lock.locked():
                    await asyncio.sleep(0.1)
        return sorted(self.loaded.values(), key=lambda one: one.expires_at, reverse=True)

    async def close(self) -> None:
        runners = [one.runner for one in self.loaded.values()] + [self.starting] * bool(self.starting)
        await asyncio.gather(*(runner.close() for runner in runners if runner))
