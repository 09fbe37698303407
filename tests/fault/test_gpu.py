"""Faults G6 to G12 without a GPU: the real NVML binding over a stand-in library that plays a scenario."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import psutil
import pytest
from support.process import alive
from support.wait import PATIENCE, Spent, wait_until

from llmsupervisor.host.gpu import SAMPLER, GpuProcess, GpuReader, Sample, memory_back, once

MIB = 1 << 20


class Box:
    def __init__(self, folder: Path, library: Path) -> None:
        self.scenario = folder / "scenario"
        self.env = {**os.environ, "LD_LIBRARY_PATH": str(library), "NVML_SCENARIO": str(self.scenario)}
        self.play("gpu GPU-a 24576 1024 0")

    def play(self, *lines: str) -> None:
        new = self.scenario.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in lines))
        new.replace(self.scenario)

    @contextlib.asynccontextmanager
    async def reader(self, silent: float = 5.0) -> AsyncIterator[GpuReader]:
        reader = GpuReader(interval=0.1, silent=silent, backoff=(0.2, 20.0), env=self.env)
        await reader.start()
        try:
            yield reader
        finally:
            await reader.stop()
            end = time.monotonic() + PATIENCE
            while samplers():
                assert time.monotonic() < end, "a sampler is left"
                await asyncio.sleep(0.01)


@pytest.fixture
def box(tmp_path: Path, library: Path) -> Box:
    return Box(tmp_path, library)


def samplers() -> list[psutil.Process]:
    """A child that has ended, also one of another test, is none."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            found += [child] if SAMPLER in child.cmdline() else []
    return found


async def until(reader: GpuReader, right: Callable[[Sample], object], within: float = PATIENCE) -> Sample:
    end = time.monotonic() + within
    while not right(reader.latest):
        assert time.monotonic() < end, f"not within {within} s, the latest is {reader.latest}"
        await asyncio.sleep(0.01)
    return reader.latest


def run(case: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(case())


def test_what_a_gpu_says_arrives_whole(box: Box) -> None:
    box.play("gpu GPU-a 24576 1024 0", "proc 100 900", "proc 101 -1", "gpu GPU-b 8192 0 0")
    sample = once(10, box.env)
    assert sample.error is None and sample.gpus is not None
    a, b = sample.gpus
    assert (a.uuid, a.index, a.name, a.compute_capability) == ("GPU-a", 0, "Stand-in 9000", (9, 0))
    assert (a.memory_total_bytes, a.memory_used_bytes) == (24576 * MIB, 1024 * MIB)
    assert a.memory_reserved_bytes == 512 * MIB
    assert a.processes == (GpuProcess(100, 900 * MIB), GpuProcess(101, None))
    assert (b.uuid, b.index, b.processes) == ("GPU-b", 1, ())


def test_without_a_driver_there_is_no_gpu_and_a_reason(box: Box, tmp_path: Path) -> None:
    sample = once(10, {**box.env, "LD_LIBRARY_PATH": str(tmp_path)})
    if sample.gpus:
        pytest.skip("a real NVIDIA driver is here")
    assert sample.gpus == () and sample.error and "libnvidia-ml.so.1" in sample.error
    box.play("init 9")
    assert once(10, box.env).error == "the NVIDIA kernel driver is not loaded"


def test_the_latest_sample_is_given_at_once_where_there_is_no_driver(box: Box) -> None:
    async def case() -> None:
        box.play("init 9")
        async with box.reader() as reader:
            await until(reader, lambda sample: sample.gpus == ())
            async with asyncio.timeout(0.5):
                assert await reader.fresh() == reader.latest

    run(case)


def test_g7_a_lost_gpu_keeps_its_uuid_and_the_others_go_on(box: Box) -> None:
    async def case() -> None:
        box.play("gpu GPU-a 24576 1024 0", "gpu GPU-b 8192 7 0")
        async with box.reader() as reader:
            await until(reader, lambda sample: sample.gpus)
            box.play("gpu GPU-a 24576 1024 15", "gpu GPU-b 8192 8 0")
            sample = await until(reader, lambda sample: (lost := sample.gpu("GPU-a")) and lost.error)
            lost, other = sample.gpu("GPU-a"), sample.gpu("GPU-b")
            assert lost and lost.error == "GPU 0: GPU is lost" and lost.memory_used_bytes is None
            assert other and other.index == 1 and other.memory_used_bytes == 8 * MIB

    run(case)


def test_a_card_that_never_answers_does_not_end_the_sampler_of_the_others(box: Box) -> None:
    """A fresh process would be told the same."""

    async def case() -> None:
        box.play("gpu GPU-a 24576 1024 0", "memory 999", "gpu GPU-b 8192 7 0")
        async with box.reader() as reader:
            first = await until(reader, lambda sample: sample.gpu("GPU-b"))
            (process,) = samplers()
            for _ in range(3):
                before = reader.latest
                sample = await until(reader, lambda sample, before=before: sample.time > before.time)
                assert (bad := sample.gpu("GPU-a")) and bad.error and not sample.again
            assert samplers() == [process] and not first.again

    run(case)


def test_g8_nvml_crashes_and_the_sampler_comes_back(box: Box) -> None:
    async def case() -> None:
        async with box.reader() as reader:
            await until(reader, lambda sample: sample.gpus)
            for _ in range(6):  # the delay begins anew after each good sample: with doubling it would be 6.4 s at last
                box.play("abort")
                sample = await until(reader, lambda sample: sample.error)
                assert sample.gpus is None and sample.error == f"the GPU sampler ended by signal {signal.SIGABRT:d}"
                began = time.monotonic()
                box.play("gpu GPU-a 24576 2048 0")
                await until(reader, lambda sample: sample.gpus)
            print(f"\nback after {time.monotonic() - began:.2f} s")

    run(case)


def test_g9_nvml_hangs_and_nothing_here_does(box: Box) -> None:
    async def case() -> None:
        async with box.reader(silent=1.0) as reader:
            await until(reader, lambda sample: sample.gpus)
            stuck = samplers()
            box.play("sleep 30", "gpu GPU-a 24576 1024 0")
            lag, spent, end = 0.0, Spent(), time.monotonic() + PATIENCE
            while reader.latest.gpus is not None:
                assert time.monotonic() < end
                before = time.monotonic()
                await asyncio.sleep(0.01)
                lag = max(lag, time.monotonic() - before - 0.01)
            assert reader.latest.error == "NVML did not answer for 1 s"
            assert lag - spent.lost() < 1.0
            print(f"\nlargest lag of the loop {lag * 1000:.0f} ms")
            box.play("gpu GPU-a 24576 1024 0")
            await until(reader, lambda sample: sample.gpus)
            assert not any(process.is_running() for process in stuck)

    run(case)


def test_g10_driver_and_library_of_different_versions_until_the_reboot(box: Box) -> None:
    async def case() -> None:
        box.play("init 18")
        async with box.reader() as reader:
            sample = await until(reader, lambda sample: sample.error and "reboot" in sample.error)
            assert sample.gpus is None
            box.play("gpu GPU-a 24576 1024 0")
            await until(reader, lambda sample: sample.gpus)
            box.play("count 1")
            await until(reader, lambda sample: sample.error and sample.gpus is None)
            box.play("gpu GPU-a 24576 1024 0")
            await until(reader, lambda sample: sample.gpus)

    run(case)


def test_g11_order_and_number_of_gpus_change(box: Box) -> None:
    async def case() -> None:
        box.play("gpu GPU-a 24576 1 0", "gpu GPU-b 8192 2 0")
        async with box.reader() as reader:
            await until(reader, lambda sample: sample.gpus)
            box.play("gpu GPU-b 8192 2 0", "gpu GPU-c 8192 3 0", "gpu GPU-a 24576 1 0")
            sample = await until(reader, lambda sample: sample.gpu("GPU-c"))
            indices = {gpu.uuid: (gpu.index, gpu.memory_used_bytes) for gpu in sample.gpus or ()}
            assert indices == {"GPU-a": (2, MIB), "GPU-b": (0, 2 * MIB), "GPU-c": (1, 3 * MIB)}

    run(case)


def test_g12_what_a_gpu_does_not_tell_is_unknown_and_not_zero(box: Box) -> None:
    box.play("gpu GPU-a 24576 1024 0", "memory 3", "list 3")
    sample = once(10, box.env)
    assert sample.gpus is not None and sample.error is None
    (gpu,) = sample.gpus
    assert (gpu.memory_total_bytes, gpu.memory_used_bytes, gpu.processes, gpu.error) == (None, None, None, None)


def test_g6_memory_is_back_when_the_process_is_gone_and_the_fall_has_ended(box: Box) -> None:
    async def case() -> None:
        box.play("gpu GPU-a 24576 9000 0", "proc 100 8000")
        async with box.reader() as reader:
            await until(reader, lambda sample: sample.gpus)
            assert await memory_back(reader, ["GPU-a"], [100], seconds=0.5) is False
            assert await memory_back(reader, ["GPU-a"], [77], seconds=5) is True
            waiting = asyncio.create_task(memory_back(reader, ["GPU-a"], [100], seconds=PATIENCE))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            box.play("gpu GPU-a 24576 9000 0", "fall 2000 500")
            async with asyncio.timeout(PATIENCE):
                assert await waiting is True
            assert reader.latest.gpus and reader.latest.gpus[0].memory_used_bytes == 2000 * MIB

    run(case)


@pytest.mark.parametrize(
    "fault", [["sleep 30"], ["abort"], ["gpu GPU-other 8192 1 0"], ["gpu GPU-a 1 1 0", "memory 3", "list 3"]]
)
def test_g6_memory_that_nobody_can_read_is_neither_back_nor_held(box: Box, fault: list[str]) -> None:
    async def case() -> None:
        async with box.reader() as reader:
            await until(reader, lambda sample: sample.gpus)
            box.play(*fault)
            spent = Spent()
            assert await memory_back(reader, ["GPU-a"], [100], seconds=20, unreadable_after=1.0) is None
            assert spent() < 3
            assert await memory_back(reader, [], [100], seconds=20) is True

    run(case)


def test_samplers_that_end_by_themselves_are_reaped_by_one_only(
    box: Box, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio's own child watcher warned "Unknown child process" where a kill came just after the end."""

    async def case() -> None:
        box.play("init 18")
        reader = GpuReader(interval=0.1, backoff=(0.0, 0.0), env=box.env)
        await reader.start()
        try:
            for _ in range(15):
                last = reader.latest
                await until(reader, lambda sample, last=last: sample is not last)  # type: ignore[misc]
        finally:
            await reader.stop()

    before = len(os.listdir("/proc/self/fd"))
    run(case)
    assert len(os.listdir("/proc/self/fd")) <= before and not samplers()
    assert capfd.readouterr().err == "" and not caplog.records


def test_a_sampler_that_is_stuck_is_asked_without_waiting(box: Box) -> None:
    async def case() -> None:
        async with box.reader() as reader:
            await until(reader, lambda sample: sample.gpus)
            (stuck,) = samplers()
            stuck.suspend()
            for _ in range(100_000):
                reader.ask()

    run(case)


def test_a_sampler_that_cannot_be_started_is_an_error_and_tried_again(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def case() -> None:
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        async with box.reader() as reader:
            sample = await until(reader, lambda sample: sample.error and "cannot be started" in sample.error)
            assert sample.gpus is None
            monkeypatch.undo()
            await until(reader, lambda sample: sample.gpus)

    run(case)


def test_the_sampler_ends_with_its_parent(box: Box) -> None:
    code = (
        "import subprocess, sys, os, time\n"
        "command = [sys.executable, '-I', sys.argv[1], '--interval', '60', '--parent', str(os.getpid())]\n"
        "child = subprocess.Popen(command, stdin=int(sys.argv[2]), stdout=subprocess.PIPE, start_new_session=True)\n"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(60)\n"
    )
    reading, writing = os.pipe()
    parent = subprocess.Popen(
        [sys.executable, "-c", code, SAMPLER, str(reading)], stdout=subprocess.PIPE, pass_fds=[reading], env=box.env
    )
    assert parent.stdout is not None
    try:
        sampler = int(parent.stdout.readline())
        assert alive(sampler)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    wait_until(lambda: not alive(sampler), 5, "the sampler outlived its parent, its stdin still open")
    os.close(reading)
    os.close(writing)


def test_a_sampler_that_ends_in_silence_is_no_sample(box: Box) -> None:
    box.play("abort")
    assert once(10, box.env).error == "the GPU sampler ended by signal 6"
    box.play("sleep 30")
    assert once(1, box.env) == Sample(
        pytest.approx(time.monotonic(), abs=PATIENCE), None, "NVML did not answer for 1 s"
    )
