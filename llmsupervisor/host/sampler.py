"""Reads NVML once a second in a process of its own, because NVML can hang or crash its caller.

One JSON object a line on stdout: `{"gpus": [...] | null, "error": text | null, "absent": bool}`. `gpus` null: they could
not be read; `[]` with `absent`: no NVIDIA library, no driver or no GPU. A byte on stdin asks for a sample now, its end
ends the process. After an error that voids handles (a suspend, a new driver) it exits, `again` where the sample is good
all the same: only a fresh process can begin anew.
Run by path with `python -I`; imports nothing of ours.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import select
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

PR_SET_PDEATHSIG = 1
MOST_XIDS = 1000
"""At one look."""
CLOCK_LIMITS = (
    "idle",
    "clocks_setting",
    "power_cap",
    "hw_slowdown",
    "sync_boost",
    "thermal",
    "hw_thermal",
    "power_brake",
    "display_clock",
    "board_limit",
    "reliability",
)
"""By bit of NVML's reasons."""
MISMATCH = (
    "the NVIDIA driver on disk and the loaded kernel module have different versions (an update while running): "
    "running services go on, new ones cannot use the GPU until a reboot"
)


def die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if parent and os.getppid() != parent:
        sys.exit(0)


class Nvml:
    def __init__(self) -> None:
        import pynvml

        self.lib: Any = pynvml
        self._fixed: dict[str, dict[str, Any]] = {}
        self._uuids: dict[int, str] = {}
        pynvml.nvmlInit()
        self._driver = self._known(lambda: text(pynvml.nvmlSystemGetDriverVersion()))
        self._gpm = Gpm(pynvml)
        self._xids = Xids(pynvml)
        self._well: set[str] = set()
        """Cards that answered this process: one that never did will not answer a fresh one either."""

    def sample(self) -> dict[str, Any]:
        count = self.lib.nvmlDeviceGetCount()
        if count == 0:
            return {"gpus": [], "error": "the NVIDIA driver sees no GPU", "absent": True}
        gpus = [self._gpu(index) for index in range(count)]
        bad = [gpu for gpu in gpus if gpu["error"]]
        if len(bad) == len(gpus) and not any(gpu["lost"] for gpu in bad):
            return {"gpus": None, "error": bad[0]["error"], "absent": False}
        again = any(gpu["void"] and gpu["uuid"] in self._well for gpu in gpus)
        self._well |= {gpu["uuid"] for gpu in gpus if not gpu["error"]}
        return {
            "gpus": [gpu for gpu in gpus if gpu["uuid"]],
            "error": None,
            "absent": False,
            "driver": self._driver,
            "xids": self._xids.heard(),
            "again": again,
            "nameless": sum(not gpu["uuid"] and not gpu["lost"] for gpu in gpus),
        }

    def _gpu(self, index: int) -> dict[str, Any]:
        """A GPU that does not answer any more keeps the UUID that its index had, has `error`, and no figures. `lost`: it
        fell off the bus. `void`: its handle went bad, and only a fresh process can get another."""
        gpu: dict[str, Any] = {
            "uuid": self._uuids.get(index),
            "index": index,
            "name": None,
            "memory_total_bytes": None,
            "memory_used_bytes": None,
            "memory_reserved_bytes": None,
            "processes": None,
            "compute_capability": None,
            "error": None,
            "lost": False,
            "void": False,
            "xids_heard": False,
            "figures": {},
        }
        try:
            handle = self.lib.nvmlDeviceGetHandleByIndex(index)
            uuid = self._uuids[index] = gpu["uuid"] = text(self.lib.nvmlDeviceGetUUID(handle))
            if uuid not in self._fixed:
                self._fixed[uuid] = self._read_fixed(handle)
            fixed = self._fixed[uuid]
            gpu["name"], gpu["compute_capability"] = fixed["name"], fixed["compute_capability"]
            if memory := self._known(lambda: self._memory(handle)):
                gpu["memory_total_bytes"], gpu["memory_used_bytes"], gpu["memory_reserved_bytes"] = memory
            gpu["processes"] = self._processes(handle)
            gpu["xids_heard"] = self._xids.listen(handle, uuid)
            gpu["figures"] = self._figures(handle, uuid, fixed)
        except self.lib.NVMLError as error:
            gpu["error"] = f"GPU {index}: {error}"
            gpu["lost"] = isinstance(error, (self.lib.NVMLError_GpuIsLost, self.lib.NVMLError_ResetRequired))
            gpu["void"] = not gpu["lost"] and gpu["uuid"] is not None
            gpu |= dict.fromkeys(("memory_total_bytes", "memory_used_bytes", "memory_reserved_bytes", "processes"))
        return gpu

    def _known(self, read: Callable[[], Any]) -> Any:
        """None where this GPU, driver or virtualisation does not tell (MIG, WSL, unified memory)."""
        try:
            return read()
        except (
            self.lib.NVMLError_NotSupported,
            self.lib.NVMLError_FunctionNotFound,
            self.lib.NVMLError_NoPermission,
            self.lib.NVMLError_ArgumentVersionMismatch,
        ):
            return None

    def _figure(self, read: Callable[[], Any]) -> Any:
        """As `_known`, and None for any trouble that is not the whole card's: no figure is worth a GPU."""
        try:
            return read()
        except (self.lib.NVMLError_GpuIsLost, self.lib.NVMLError_ResetRequired, self.lib.NVMLError_Uninitialized):
            raise
        except self.lib.NVMLError:
            return None

    def _memory(self, handle: Any) -> tuple[int, int, int | None]:
        """Version 2 keeps what the driver reserves apart; drivers before 510 count it as used."""
        try:
            memory = self.lib.nvmlDeviceGetMemoryInfo(handle, version=self.lib.nvmlMemory_v2)
        except self.lib.NVMLError_FunctionNotFound:
            memory = self.lib.nvmlDeviceGetMemoryInfo(handle)
            return memory.total, memory.used, None
        return memory.total, memory.used, memory.reserved

    def _processes(self, handle: Any) -> list[dict[str, Any]] | None:
        """One that computes and draws is listed twice with the same memory: once is enough."""
        compute = self._known(lambda: self.lib.nvmlDeviceGetComputeRunningProcesses(handle))
        if compute is None:
            return None
        drawing = self._figure(lambda: self.lib.nvmlDeviceGetGraphicsRunningProcesses(handle)) or []
        known = {process.pid for process in compute}
        found = [(process, False) for process in compute]
        found += [(process, True) for process in drawing if process.pid not in known]
        return [{"pid": p.pid, "used_bytes": p.usedGpuMemory, "graphics": graphics} for p, graphics in found]

    def _read_fixed(self, handle: Any) -> dict[str, Any]:
        lib, known = self.lib, self._known
        clock = self._figure(lambda: lib.nvmlDeviceGetMaxClockInfo(handle, lib.NVML_CLOCK_MEM))
        width = self._figure(lambda: lib.nvmlDeviceGetMemoryBusWidth(handle))
        slowdown = lib.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        return {
            "name": known(lambda: text(lib.nvmlDeviceGetName(handle))),
            "compute_capability": known(lambda: list(lib.nvmlDeviceGetCudaComputeCapability(handle))),
            "sm_max_mhz": self._figure(lambda: lib.nvmlDeviceGetMaxClockInfo(handle, lib.NVML_CLOCK_SM)),
            "memory_max_mhz": clock,
            # Two transfers a clock, on GDDR and HBM as NVML gives their clocks.
            "peak": clock * 1e6 * 2 * width / 8 if clock and width else None,
            "slowdown": self._figure(lambda: lib.nvmlDeviceGetTemperatureThreshold(handle, slowdown)),
            "gpm": bool(self._figure(lambda: lib.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice)),
            "ecc": bool(self._figure(lambda: lib.nvmlDeviceGetCurrentEccMode(handle))),
        }

    def _figures(self, handle: Any, uuid: str, fixed: dict[str, Any]) -> dict[str, Any]:
        """Under the names of `docs/contracts.md`."""
        lib, figure = self.lib, self._figure
        usage = figure(lambda: self._gpm.usage(handle, uuid)) if fixed["gpm"] else None
        peak = fixed["peak"]
        measured = None if usage is None else {"source": "gpm", "usage": usage, "peak_bytes_per_s": peak}
        if measured:
            measured["bytes_per_s"] = usage * peak if peak else None
        return {
            "busy": _scaled(figure(lambda: lib.nvmlDeviceGetUtilizationRates(handle).gpu), 100),
            "memory_bandwidth": measured,
            "memory_peak_bytes_per_s": peak,
            "power_w": _scaled(figure(lambda: lib.nvmlDeviceGetPowerUsage(handle)), 1000),
            "power_limit_w": _scaled(figure(lambda: lib.nvmlDeviceGetEnforcedPowerLimit(handle)), 1000),
            "clocks": {
                "sm_mhz": figure(lambda: lib.nvmlDeviceGetClockInfo(handle, lib.NVML_CLOCK_SM)),
                "sm_max_mhz": fixed["sm_max_mhz"],
                "memory_mhz": figure(lambda: lib.nvmlDeviceGetClockInfo(handle, lib.NVML_CLOCK_MEM)),
                "memory_max_mhz": fixed["memory_max_mhz"],
            },
            "clock_limits": figure(lambda: self._clock_limits(handle)),
            "temperature_c": figure(lambda: lib.nvmlDeviceGetTemperature(handle, lib.NVML_TEMPERATURE_GPU)),
            "temperature_slowdown_c": fixed["slowdown"],
            "ecc": figure(lambda: self._ecc(handle)) if fixed["ecc"] else None,
            "remapped_rows": figure(lambda: self._rows(handle)),
            "mig": figure(lambda: self._mig(handle)),
        }

    def _clock_limits(self, handle: Any) -> list[str]:
        try:
            bits = self.lib.nvmlDeviceGetCurrentClocksEventReasons(handle)
        except self.lib.NVMLError_FunctionNotFound:  # drivers before 535
            bits = self.lib.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        return [name for place, name in enumerate(CLOCK_LIMITS) if bits >> place & 1]

    def _ecc(self, handle: Any) -> dict[str, int | None]:
        lib, since_load = self.lib, self.lib.NVML_VOLATILE_ECC
        kinds = {
            "corrected": lib.NVML_MEMORY_ERROR_TYPE_CORRECTED,
            "uncorrected": lib.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
        }
        return {
            name: self._figure(partial(lib.nvmlDeviceGetTotalEccErrors, handle, kind, since_load))
            for name, kind in kinds.items()
        }

    def _rows(self, handle: Any) -> dict[str, Any]:
        corrected, uncorrected, pending, failed = self.lib.nvmlDeviceGetRemappedRows(handle)
        return {"corrected": corrected, "uncorrected": uncorrected, "pending": bool(pending), "failed": bool(failed)}

    def _mig(self, handle: Any) -> dict[str, Any]:
        if not self.lib.nvmlDeviceGetMigMode(handle)[0]:
            return {"enabled": False, "instances": None}
        return {"enabled": True, "instances": self._figure(lambda: self._instances(handle))}

    def _instances(self, handle: Any) -> list[dict[str, Any]]:
        found = []
        for index in range(self.lib.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                instance = self.lib.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            except (self.lib.NVMLError_NotFound, self.lib.NVMLError_InvalidArgument):
                continue
            memory = self._figure(partial(self._memory, instance)) or (None, None, None)
            uuid = text(self.lib.nvmlDeviceGetUUID(instance))
            found.append(
                {"uuid": uuid, "index": index, "memory_total_bytes": memory[0], "memory_used_bytes": memory[1]}
            )
        return found


class Gpm:
    """Share of the memory bandwidth that was used between two samples, where the card measures it (Hopper and later)."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self._samples: dict[str, tuple[Any, Any]] = {}
        """UUID → the last sample, and room for the next."""

    def usage(self, handle: Any, uuid: str) -> float | None:
        lib = self._lib
        first = uuid not in self._samples
        if first:
            self._samples[uuid] = lib.nvmlGpmSampleAlloc(), lib.nvmlGpmSampleAlloc()
        before, room = self._samples[uuid]
        now = lib.nvmlGpmSampleGet(handle, room)
        self._samples[uuid] = now, before
        if first:
            return None
        wanted = lib.c_nvmlGpmMetricsGet_t()
        wanted.version, wanted.numMetrics = lib.NVML_GPM_METRICS_GET_VERSION, 1
        wanted.sample1, wanted.sample2 = before, now
        wanted.metrics[0].metricId = lib.NVML_GPM_METRIC_DRAM_BW_UTIL
        said = lib.nvmlGpmMetricsGet(wanted).metrics[0]
        fine = said.nvmlReturn == lib.NVML_SUCCESS and math.isfinite(said.value)
        return float(said.value) / 100 if fine else None


class Xids:
    """What the driver calls critical errors, as NVML's events tell them."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self._set: Any = None
        self._asked: dict[str, bool] = {}
        self._at: dict[int | None, str] = {}
        """Address of a handle → UUID: a card that was lost does not tell it any more."""

    def listen(self, handle: Any, uuid: str) -> bool:
        """Whether they are heard."""
        self._at[ctypes.cast(handle, ctypes.c_void_p).value] = uuid
        if uuid not in self._asked:
            try:
                self._set = self._set or self._lib.nvmlEventSetCreate()
                self._lib.nvmlDeviceRegisterEvents(handle, self._lib.nvmlEventTypeXidCriticalError, self._set)
                self._asked[uuid] = True
            except self._lib.NVMLError:
                self._asked[uuid] = False
        return self._asked[uuid]

    def heard(self) -> list[dict[str, Any]]:
        """Since the last call, by card and code."""
        counts: dict[tuple[str, int], int] = {}
        for _ in range(MOST_XIDS if any(self._asked.values()) else 0):
            try:
                said = self._lib.nvmlEventSetWait_v2(self._set, 1)
            except self._lib.NVMLError:  # a timeout: there are no more
                break
            uuid = self._at.get(ctypes.cast(said.device, ctypes.c_void_p).value)
            if uuid is not None and said.eventType == self._lib.nvmlEventTypeXidCriticalError:
                counts[uuid, said.eventData] = counts.get((uuid, said.eventData), 0) + 1
        return [{"uuid": uuid, "code": code, "count": count} for (uuid, code), count in counts.items()]


def _scaled(value: int | None, by: int) -> float | None:
    return None if value is None else value / by


def text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def failure(error: Exception) -> dict[str, Any]:
    name = type(error).__name__
    if isinstance(error, ImportError):
        return {"gpus": [], "error": "the Python package nvidia-ml-py is not installed", "absent": True}
    if name == "NVMLError_LibraryNotFound":
        return {"gpus": [], "error": "no NVIDIA driver library (libnvidia-ml.so.1) on this box", "absent": True}
    if name == "NVMLError_DriverNotLoaded":
        return {"gpus": [], "error": "the NVIDIA kernel driver is not loaded", "absent": True}
    said = MISMATCH if name == "NVMLError_LibRmVersionMismatch" else str(error)
    return {"gpus": None, "error": f"NVML: {said}", "absent": False}


def emit(sample: dict[str, Any]) -> None:
    os.write(1, json.dumps(sample).encode() + b"\n")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS")
    parser.add_argument("--parent", type=int, default=0, metavar="PID")
    args = parser.parse_args()
    die_with_parent(args.parent)
    try:
        nvml = Nvml()
        while True:
            sample = nvml.sample()
            emit(sample)
            if args.once or sample["error"] or sample.get("again"):
                return 0
            if select.select([0], [], [], args.interval)[0] and not os.read(0, 4096):
                return 0
    except BrokenPipeError:
        return 0
    except Exception as error:
        emit(failure(error))
        return 0


if __name__ == "__main__":
    sys.exit(main())
