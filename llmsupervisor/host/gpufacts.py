"""A GPU sample as the facts that a plan is made of."""

from __future__ import annotations

from llmsupervisor.host.gpu import Sample, free_bytes
from llmsupervisor.plan.facts import GpuFact


def gpu_facts(sample: Sample) -> tuple[GpuFact, ...] | None:
    """None: could not be read. A GPU that fell off the bus is not there."""
    if sample.gpus is None:
        return None
    return tuple(
        GpuFact(
            gpu.uuid,
            gpu.index,
            gpu.name or "GPU",
            gpu.memory_total_bytes,
            gpu.compute_capability,
            gpu.memory_reserved_bytes,
            free_bytes(gpu),
        )
        for gpu in sample.gpus
        if gpu.error is None
    )
