"""GPUs as people read them: memory, figures, who holds it, what is wrong. Pure; shared by `gpus` and the terminal UI."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from llmsupervisor.base.text import printable
from llmsupervisor.base.units import format_size
from llmsupervisor.cli.views import UNKNOWN, Line, Span, clock_time, percent

if TYPE_CHECKING:
    from llmsupervisor.link.gpus import Gpu, GpuProcess, MemoryBandwidth


def gpu_lines(gpus: Sequence[Gpu] | None, now: float) -> list[Line]:
    if gpus is None:
        return [[Span("the GPUs could not be read (NVML failed): unknown, not none", "warn")]]
    if not gpus:
        return [[Span("no GPU on this box: services run on the CPU", "dim")]]
    return [line for gpu in gpus for line in _card(gpu, now)]


def _card(gpu: Gpu, now: float) -> Iterator[Line]:
    used, whole = gpu["memory_used_bytes"], gpu["memory_total_bytes"]
    share = used / whole if used is not None and whole else None
    vram = f"VRAM {format_size(used)} of {format_size(whole)} ({percent(share)})"
    kept = gpu["memory_reserved_bytes"]
    reserved = f", {format_size(kept)} kept by the driver" if kept else ""
    head = f"{gpu['name'] or UNKNOWN}  {gpu['uuid']}  {vram}{reserved}"
    yield [Span(f"GPU{gpu['index']} ", "bold"), Span(printable(head))]
    if figures := figures_of(gpu):
        yield [Span(f"  {'  '.join(figures)}")]
    if lent := gpu["lent"]:
        until = "until it is taken back" if lent["until"] is None else f"until {clock_time(lent['until'], now)}"
        yield [Span(printable(f"  lent to {lent['by']} {until}: nothing is started here"), "warn")]
    if held := gpu["quarantine"]:
        yield [Span(printable(f"  quarantined: {held['reason']}: nothing is started here"), "bad")]
    for condition in gpu["conditions"]:
        if condition["id"] != "quarantined":
            yield [Span(printable(f"  condition {condition['id']}: {condition['text']}"), "warn")]
    for process in gpu["processes"] or []:
        yield [
            Span(printable(f"  pid {process['pid']}  {_owner(process)}  {format_size(process['memory_used_bytes'])}"))
        ]


def figures_of(gpu: Gpu) -> list[str]:
    """Those that are known, in the order of the page."""
    clocks, found = gpu["clocks"], []
    if gpu["busy"] is not None:
        found.append(f"busy {percent(gpu['busy'])}")
    if bandwidth := gpu["memory_bandwidth"]:
        found.append(bandwidth_of(bandwidth))
    if gpu["power_w"] is not None:
        found.append(f"{gpu['power_w']:.0f} of {_whole(gpu['power_limit_w'])} W")
    if gpu["temperature_c"] is not None:
        found.append(f"{gpu['temperature_c']} °C")
    if clocks["sm_mhz"] is not None:
        found.append(f"SM {clocks['sm_mhz']} of {_whole(clocks['sm_max_mhz'])} MHz")
    slowed = [word for word in gpu["clock_limits"] or [] if word != "idle"]
    if slowed:
        found.append(f"slowed by {', '.join(slowed)}")
    if gpu["xids"]:
        found.append("XID " + ", ".join(f"{xid['code']} ({xid['count']}×)" for xid in gpu["xids"]))
    if (mig := gpu["mig"]) and mig["enabled"]:
        found.append(f"MIG, {UNKNOWN if mig['instances'] is None else len(mig['instances'])} instances")
    return found


def bandwidth_of(bandwidth: MemoryBandwidth) -> str:
    """An estimate has a tilde."""
    about = "~" if bandwidth["source"] == "estimate" else ""
    if bandwidth["usage"] is not None:
        return f"bandwidth {about}{percent(bandwidth['usage'])}"
    rate = bandwidth["bytes_per_s"]
    return f"bandwidth {about}{UNKNOWN if rate is None else f'{rate / 1e9:.0f}'} GB/s"


def _owner(process: GpuProcess) -> str:
    if process["service"]:
        return process["service"]
    who = ", ".join(word for word in (process["user"], process["name"]) if word)
    return f"not ours: {who}" if who else "not ours"


def _whole(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f}"
