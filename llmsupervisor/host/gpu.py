"""What the GPUs say: memory and who holds it, from a sampler process that may hang or crash without harm to us."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmsupervisor.base.clock import Clock
from llmsupervisor.host.clock import SystemClock
from llmsupervisor.host.pidfd import readable

SAMPLER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sampler.py")
FIRST = 30.0
"""Seconds for the first sample: without persistence mode NVML wakes each GPU first."""
LINE = 4 * 1024 * 1024
"""Bytes of the longest sample."""
STEADY = 16 * 1024 * 1024
"""Bytes: used memory that fell by less between two samples has stopped falling."""

PAUSE = 0.1
"""Seconds between two samples where memory is awaited."""


@dataclass(frozen=True, slots=True)
class GpuProcess:
    pid: int
    """In the host's numbering: in a container it may name nobody or somebody else."""
    used_bytes: int | None
    graphics: bool = False


@dataclass(frozen=True, slots=True)
class Gpu:
    """None: this GPU or driver does not tell. `error`: it answers nothing any more; all figures are None then.

    `memory_used_bytes` is without what the driver reserves for itself, where it tells the two apart.
    """

    uuid: str
    index: int
    name: str | None
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    memory_reserved_bytes: int | None
    processes: tuple[GpuProcess, ...] | None
    compute_capability: tuple[int, int] | None
    error: str | None
    lost: bool = False
    """It fell off the bus, or has to be reset: nothing that used it will work again."""
    xids_heard: bool = False
    figures: Mapping[str, Any] = field(default_factory=dict)
    """What is only shown, under the names of the status."""


@dataclass(frozen=True, slots=True)
class Xids:
    """A critical error of the driver, that often since the last sample."""

    uuid: str
    code: int
    count: int


def free_bytes(gpu: Gpu) -> int | None:
    if gpu.memory_total_bytes is None or gpu.memory_used_bytes is None:
        return None
    return gpu.memory_total_bytes - gpu.memory_used_bytes - (gpu.memory_reserved_bytes or 0)


@dataclass(frozen=True, slots=True)
class Sample:
    """`time` is monotonic seconds. `gpus` None: could not be read; () with an `error`: no driver or no GPU here."""

    time: float
    gpus: tuple[Gpu, ...] | None
    error: str | None = None
    driver: str | None = None
    xids: tuple[Xids, ...] = ()
    again: bool = False
    """The sampler ends after it, to begin anew."""
    nameless: int = 0
    """Cards that answer with an error and were never known by name: any that is not listed may be one of them."""

    def gpu(self, uuid: str) -> Gpu | None:
        return next((gpu for gpu in self.gpus or () if gpu.uuid == uuid), None)


class GpuReader:
    """Keeps a sampler alive. It is killed when silent for `silent` seconds and begun anew after 1 s, doubling to 30 s
    until it answers again; where there is no driver, after 30 s."""

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        interval: float = 1.0,
        silent: float = 5.0,
        backoff: tuple[float, float] = (1.0, 30.0),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._interval, self._silent, self._backoff = interval, silent, backoff
        self._env = env
        self._task: asyncio.Task[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._news = asyncio.Condition()
        self.latest = self._unread = Sample(self._clock.monotonic(), None, "not read yet")
        self._xids: deque[Xids] = deque(maxlen=1000)

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="gpu reader")

    async def stop(self) -> None:
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.wait({task}, timeout=2.0)

    async def fresh(self) -> Sample:
        """A sample asked for now; the latest one while there is an error. Waits as long as NVML takes: put a timeout
        around it."""
        if self.latest.error is not None and self.latest is not self._unread:
            return self.latest
        self.ask()
        async with self._news:
            await self._news.wait()
        return self.latest

    @property
    def failing(self) -> str:
        """Why the GPUs cannot be read; empty: they can, there are none, or nothing came yet."""
        unread = self.latest.gpus is None and self.latest is not self._unread
        return self.latest.error or "" if unread else ""

    def xids(self) -> list[Xids]:
        """Those that were heard since the last call."""
        heard = list(self._xids)
        self._xids.clear()
        return heard

    def ask(self) -> None:
        """For a sample now, instead of at the next interval. A sampler that hangs is not waited for."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.write(b"\n")

    async def _run(self) -> None:
        low, high = self._backoff
        delay = low
        while True:
            good = await self._one_sampler()
            if self.latest.gpus == ():
                delay = high
            elif good:
                delay = low
            await asyncio.sleep(delay)
            delay = min(delay * 2, high)

    async def _one_sampler(self) -> bool:
        """Reads until it ends or hangs. Whether it gave a good sample."""
        good = False
        try:
            process = subprocess.Popen(
                _command(self._interval),
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env=self._env,
            )
        except OSError as error:
            await self._fail(f"the GPU sampler cannot be started: {error}")
            return False
        assert process.stdin is not None and process.stdout is not None
        pidfd = os.pidfd_open(process.pid)
        transport: asyncio.ReadTransport | None = None
        try:
            os.set_blocking(process.stdin.fileno(), False)
            self._process = process
            reader = asyncio.StreamReader(limit=LINE)
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), process.stdout
            )
            limit = max(FIRST, self._silent)
            while True:
                try:
                    async with asyncio.timeout(limit):
                        line = await reader.readline()
                except TimeoutError:
                    await self._fail(f"NVML did not answer for {limit:g} s")
                    return good
                if not line:
                    if self.latest.error is None and not self.latest.again:
                        await readable(pidfd)
                        await self._fail(f"the GPU sampler ended {_ending(process.wait())}")
                    return good
                sample = _parse(line, self._clock.monotonic())
                good = good or sample.error is None
                limit = self._silent
                self._xids.extend(sample.xids)
                await self._publish(sample)
        finally:
            self._process = None
            process.kill()
            process.stdin.close()
            (transport or process.stdout).close()
            try:
                # One that cannot be killed (stuck in the driver) is waited for: never two of them.
                await readable(pidfd)
                process.wait()
            finally:
                os.close(pidfd)

    async def _fail(self, error: str) -> None:
        await self._publish(Sample(self._clock.monotonic(), None, error))

    async def _publish(self, sample: Sample) -> None:
        self.latest = sample
        async with self._news:
            self._news.notify_all()


def once(timeout: float, env: Mapping[str, str] | None = None) -> Sample:
    """One sample, for commands that run without a daemon."""
    clock = SystemClock()
    try:
        done = subprocess.run(
            [*_command(0), "--once"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout,
            env=env,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Sample(clock.monotonic(), None, f"NVML did not answer for {timeout:g} s")
    if not done.stdout:
        return Sample(clock.monotonic(), None, f"the GPU sampler ended {_ending(done.returncode)}")
    return _parse(done.stdout.splitlines()[-1], clock.monotonic())


async def memory_back(
    reader: GpuReader, uuids: Collection[str], pids: Collection[int], seconds: float, unreadable_after: float = 2.0
) -> bool | None:
    """True: none of `pids` is listed on these GPUs any more and their used memory has stopped falling.

    False: not so within `seconds`. None: NVML could not say, or not for `unreadable_after` seconds at a time.
    """
    clock = SystemClock()
    readable_at = clock.monotonic()
    end = readable_at + seconds
    last: dict[str, int] | None = None
    ever_readable = False
    while uuids:
        now = clock.monotonic()
        if now >= readable_at + unreadable_after:
            return None
        if now >= end:
            return False if ever_readable else None
        try:
            async with asyncio.timeout(min(end, readable_at + unreadable_after) - now):
                sample = await reader.fresh()
        except TimeoutError:
            continue
        gpus = [gpu for uuid in uuids if (gpu := sample.gpu(uuid)) is not None]
        if len(gpus) < len(uuids) or any(gpu.memory_used_bytes is None and gpu.processes is None for gpu in gpus):
            last = None
            await asyncio.sleep(PAUSE)
            continue
        readable_at, ever_readable = clock.monotonic(), True
        used = {gpu.uuid: gpu.memory_used_bytes for gpu in gpus if gpu.memory_used_bytes is not None}
        listed = any(process.pid in pids for gpu in gpus for process in gpu.processes or ())
        falling = last is None or any(last.get(uuid, now) - now > STEADY for uuid, now in used.items())
        if not listed and not falling:
            return True
        last = used
        await asyncio.sleep(PAUSE)
    return True


def _command(interval: float) -> list[str]:
    return [sys.executable, "-I", SAMPLER, "--interval", str(interval), "--parent", str(os.getpid())]


def _ending(code: int) -> str:
    return f"by signal {-code}" if code < 0 else f"with code {code}"


def _parse(line: bytes, time: float) -> Sample:
    try:
        data = json.loads(line)
        gpus = None if data["gpus"] is None else tuple(_gpu(gpu) for gpu in data["gpus"])
        xids = tuple(Xids(**one) for one in data.get("xids", ()))
        return Sample(
            time, gpus, data["error"], data.get("driver"), xids, data.get("again", False), data.get("nameless", 0)
        )
    except (ValueError, KeyError, TypeError) as error:
        return Sample(time, None, f"the GPU sampler said something unreadable: {error}")


def _gpu(data: dict[str, Any]) -> Gpu:
    processes, capability = data["processes"], data["compute_capability"]
    return Gpu(
        uuid=data["uuid"],
        index=data["index"],
        name=data["name"],
        memory_total_bytes=data["memory_total_bytes"],
        memory_used_bytes=data["memory_used_bytes"],
        memory_reserved_bytes=data["memory_reserved_bytes"],
        processes=None if processes is None else tuple(GpuProcess(**p) for p in processes),
        compute_capability=None if capability is None else (capability[0], capability[1]),
        error=data["error"],
        lost=data["lost"],
        xids_heard=data["xids_heard"],
        figures=data["figures"],
    )
