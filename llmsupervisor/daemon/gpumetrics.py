"""GPUs and the machine as Prometheus families, from what `status` says of them. No series for what is unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmsupervisor.base.exposition import Scalar

CARD = ("gpu", "uuid")
FIGURES = (
    ("gpu_memory_reserved_bytes", "memory_reserved_bytes", "Memory that the driver keeps for itself."),
    ("gpu_kernel_resident_ratio", "busy", "Share of the time in which any kernel ran: no measure of load."),
    ("gpu_power_watts", "power_w", "Power drawn now."),
    ("gpu_power_limit_watts", "power_limit_w", "Power that it may draw."),
    ("gpu_temperature_celsius", "temperature_c", "Temperature."),
)
HOST = (
    ("host_cpu_busy_ratio", "cpu_busy", "Of all CPUs of the machine."),
    ("host_memory_total_bytes", "memory_total_bytes", "Memory of the machine."),
    ("host_memory_available_bytes", "memory_available_bytes", "What of it could be had."),
    ("host_swap_used_bytes", "swap_used_bytes", "Swap in use."),
)
ECC = ("corrected", "uncorrected")


def _scalar(kind: str, name: str, help: str, *labels: str) -> Scalar:
    return Scalar("counter" if kind == "counter" else "gauge", f"llmsupervisor_{name}", help, labels)


def gpu_families(gpus: Sequence[Mapping[str, Any]], limited: Mapping[str, Mapping[str, float]]) -> list[Scalar]:
    """`gpus`: as in the status. `limited`: UUID → what held the clocks down → seconds."""
    plain = {key: _scalar("gauge", name, help, *CARD) for name, key, help in FIGURES}
    bandwidth = _scalar("gauge", "gpu_dram_bandwidth_ratio", "Memory bandwidth in use, by source.", *CARD, "source")
    ecc = _scalar("counter", "gpu_ecc_errors_total", "Memory errors since the driver was loaded.", *CARD, "kind")
    rows = _scalar("gauge", "gpu_remapped_rows", "Rows of memory that were replaced, by why.", *CARD, "kind")
    xids = _scalar("counter", "gpu_xid_total", "Critical errors of the driver since the daemon began.", *CARD, "code")
    slow = _scalar("counter", "gpu_clock_limited_seconds_total", "Time with the clocks held down.", *CARD, "reason")
    closed = _scalar("gauge", "gpu_closed", "1 where nothing is started: lent, or quarantined.", *CARD, "why")
    for gpu in gpus:
        card = (str(gpu["index"]), gpu["uuid"])
        for key, family in plain.items():
            if gpu[key] is not None:
                family.set(gpu[key], *card)
        if (used := gpu["memory_bandwidth"]) and used["usage"] is not None:
            bandwidth.set(round(used["usage"], 4), *card, used["source"])
        for kind in ECC:
            if gpu["ecc"] and gpu["ecc"][kind] is not None:
                ecc.set(gpu["ecc"][kind], *card, kind)
            if gpu["remapped_rows"]:
                rows.set(gpu["remapped_rows"][kind], *card, kind)
        for xid in gpu["xids"] or ():
            xids.set(xid["count"], *card, str(xid["code"]))
        for reason, seconds in limited.get(gpu["uuid"], {}).items():
            slow.set(round(seconds, 1), *card, reason)
        closed.set(int(gpu["lent"] is not None), *card, "lent")
        closed.set(int(gpu["quarantine"] is not None), *card, "quarantine")
    return [*plain.values(), bandwidth, ecc, rows, xids, slow, closed]


def host_families(host: Mapping[str, Any] | None) -> list[Scalar]:
    """`host`: as in the status."""
    if host is None:
        return []
    plain = []
    for name, key, help in HOST:
        family = _scalar("gauge", name, help)
        if host[key] is not None:
            family.set(host[key])
        plain.append(family)
    free = _scalar("gauge", "model_disk_free_bytes", "Free space where a folder with models lies.", "folder")
    for disk in host["disks"]:
        if disk["free_bytes"] is not None:
            free.set(disk["free_bytes"], disk["path"])
    weights = _scalar(
        "gauge", "model_file_bytes", "Model files of a service, and their share in memory.", "service", "where"
    )
    for one in host["weights"]:
        for where, size in (("disk", one["bytes"]), ("page_cache", one["cached_bytes"])):
            if size is not None:
                weights.set(size, one["service"], where)
    return [*plain, free, weights]
