"""On a real NVIDIA card: what NVML says of it, and that memory is seen to come back."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from llmsupervisor.base.units import format_size
from llmsupervisor.host.gpu import SAMPLER, Gpu, GpuReader, Sample, memory_back, once

HOLD = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
assert cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
assert cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device) == 0
assert cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(1 << 30)) == 0
print("held", flush=True)
sys.stdin.read()
"""


COPY = """
import ctypes, sys, threading, time
cuda = ctypes.CDLL("libcuda.so.1")
device, context, size = ctypes.c_int(), ctypes.c_void_p(), 1 << 29
here, there = ctypes.c_void_p(), ctypes.c_void_p()
assert cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
assert cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device) == 0
for place in (here, there):
    assert cuda.cuMemAlloc_v2(ctypes.byref(place), ctypes.c_size_t(size)) == 0
end = []
threading.Thread(target=lambda: end.append(sys.stdin.read()), daemon=True).start()
began, copied, told = time.monotonic(), 0, False
while not end:
    for _ in range(20):
        assert cuda.cuMemcpyDtoDAsync_v2(there, here, ctypes.c_size_t(size), None) == 0
    assert cuda.cuCtxSynchronize() == 0
    copied += 20 * 2 * size
    if not told and time.monotonic() - began > 2:
        told = True
        print(copied / (time.monotonic() - began), flush=True)
"""


@contextlib.contextmanager
def holder(code: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A process that uses the first card until it is told to end; HOLD has said so by then."""
    pipe = subprocess.PIPE
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=pipe, stdout=pipe, env={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    )
    try:
        assert child.stdout is not None
        assert code is not HOLD or child.stdout.readline() == b"held\n"
        yield child.pid, child
    finally:
        child.kill()
        child.communicate()


def _twice(first: Sample) -> tuple[Gpu, ...]:
    """After a second look of one sampler: a bandwidth needs two."""

    async def case() -> tuple[Gpu, ...]:
        reader = GpuReader(interval=1.0)
        await reader.start()
        try:
            for _ in range(2):
                sample = await asyncio.wait_for(reader.fresh(), 30)
                await asyncio.sleep(1.0)
            return sample.gpus or first.gpus or ()
        finally:
            await reader.stop()

    return asyncio.run(case())


@pytest.fixture(scope="module")
def gpus() -> tuple[Gpu, ...]:
    sample = once(30)
    if not sample.gpus:
        pytest.skip(f"no NVIDIA GPU here: {sample.error}")
    return sample.gpus


def test_every_gpu_tells_what_a_plan_needs(gpus: tuple[Gpu, ...]) -> None:
    for gpu in gpus:
        print(
            f"\n{gpu.index} {gpu.uuid} {gpu.name} cc {gpu.compute_capability}: {format_size(gpu.memory_used_bytes)} used "
            f"and {format_size(gpu.memory_reserved_bytes)} reserved of {format_size(gpu.memory_total_bytes)}, "
            f"processes {gpu.processes}"
        )
        assert gpu.uuid.startswith("GPU-") and gpu.name and gpu.compute_capability and gpu.error is None
        assert gpu.memory_total_bytes is not None and gpu.memory_used_bytes is not None
        assert 0 <= gpu.memory_used_bytes <= gpu.memory_total_bytes


def test_a_gibibyte_is_seen_to_come_and_to_go(gpus: tuple[Gpu, ...]) -> None:
    async def case() -> None:
        reader = GpuReader()
        await reader.start()
        try:
            before = (await asyncio.wait_for(reader.fresh(), 30)).gpus
            holder = subprocess.Popen(
                [sys.executable, "-c", HOLD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
            )
            assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
            during = (await asyncio.wait_for(reader.fresh(), 30)).gpus
            assert before and during
            grown = [
                now.uuid
                for was, now in zip(before, during, strict=True)
                if (now.memory_used_bytes or 0) - (was.memory_used_bytes or 0) >= 1 << 30
            ]
            assert len(grown) == 1
            holder.kill()
            began = time.monotonic()
            holder.communicate()
            assert await memory_back(reader, grown, [holder.pid], seconds=10) is True
            print(f"\nback {time.monotonic() - began:.2f} s after the kill")
            after = reader.latest.gpu(grown[0])
            held = next(gpu.memory_used_bytes for gpu in during if gpu.uuid == grown[0])
            assert after and (held or 0) - (after.memory_used_bytes or 0) >= 1 << 30
        finally:
            await reader.stop()

    asyncio.run(case())


def test_the_memory_of_a_process_is_what_the_card_lost(gpus: tuple[Gpu, ...]) -> None:
    """Within 1 %, context and all, as long as nobody else comes or goes."""
    before = {gpu.uuid: gpu.memory_used_bytes or 0 for gpu in (once(30).gpus or ())}
    with holder(HOLD) as (pid, _):
        for gpu in once(30).gpus or ():
            risen = (gpu.memory_used_bytes or 0) - before[gpu.uuid]
            listed = next((process.used_bytes for process in gpu.processes or () if process.pid == pid), None)
            if risen < 1 << 30:
                continue
            print(f"\n{gpu.name}: listed {format_size(listed)}, the use of the card rose by {format_size(risen)}")
            if listed is None:
                pytest.skip(f"NVML lists no memory of pid {pid} (a container, MIG or WSL): {gpu.processes}")
            assert abs(listed - risen) <= risen / 100
            return
    pytest.fail("no card lost the gibibyte")


def test_the_bandwidth_that_the_card_measures_is_that_of_a_copy(gpus: tuple[Gpu, ...]) -> None:
    """A copy on the device reads and writes each byte once."""

    async def case(reported: float) -> None:
        reader = GpuReader(interval=1.0)
        await reader.start()
        try:
            seen: list[float] = []
            for _ in range(6):
                sample = await asyncio.wait_for(reader.fresh(), 30)
                said = [gpu.figures.get("memory_bandwidth") for gpu in sample.gpus or ()]
                seen.append(max((one["bytes_per_s"] or 0.0) for one in said if one) if any(said) else 0.0)
                await asyncio.sleep(1.0)
        finally:
            await reader.stop()
        best = max(seen)
        print(f"\nGPM {[f'{rate / 1e9:.0f}' for rate in seen]} GB/s, the copy says {reported / 1e9:.0f} GB/s")
        assert 0.8 * reported <= best <= 1.2 * reported

    peaks = [(gpu.name, gpu.figures.get("memory_peak_bytes_per_s")) for gpu in gpus]
    print(f"\npeak {peaks}")
    with holder(COPY) as (_, process):
        assert process.stdout is not None
        reported = float(process.stdout.readline())
        sample = once(30)
        if not any(gpu.figures.get("memory_bandwidth") for gpu in _twice(sample)):
            pytest.skip(f"no card here measures its bandwidth (GPM: Hopper or later): {[gpu.name for gpu in gpus]}")
        asyncio.run(case(reported))


def test_what_the_sampler_costs(gpus: tuple[Gpu, ...]) -> None:
    async def case() -> None:
        reader = GpuReader(interval=1.0)
        await reader.start()
        try:
            await asyncio.wait_for(reader.fresh(), 30)
            (sampler,) = [child for child in psutil.Process().children() if SAMPLER in child.cmdline()]
            used, began = sum(sampler.cpu_times()[:2]), time.monotonic()
            await asyncio.sleep(10)
            share = (sum(sampler.cpu_times()[:2]) - used) / (time.monotonic() - began)
            print(f"\n{len(gpus)} cards once a second: {share:.2%} of a core, {format_size(sampler.memory_info().rss)}")
            assert share < 0.05
        finally:
            await reader.stop()

    asyncio.run(case())


def test_what_else_the_cards_say(gpus: tuple[Gpu, ...]) -> None:
    for gpu in gpus:
        print(f"\n{gpu.index} {gpu.name}: XIDs heard {gpu.xids_heard}, {dict(gpu.figures)}")
        limit, busy = gpu.figures["power_limit_w"], gpu.figures["busy"]
        assert limit is None or limit > 0
        assert busy is None or 0 <= busy <= 1
