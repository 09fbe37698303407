"""What the daemon knows, as Prometheus text: the gateway appends it to its own /metrics. No series for what is unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmsupervisor import __version__
from llmsupervisor.base.exposition import Scalar, render
from llmsupervisor.daemon.enginetext import engines
from llmsupervisor.daemon.gpumetrics import gpu_families, host_families
from llmsupervisor.daemon.snapshot import machine_json
from llmsupervisor.service.states import State

if TYPE_CHECKING:
    from llmsupervisor.daemon.daemon import Daemon

CARD = ("gpu", "uuid")


def text(daemon: Daemon) -> str:
    up = _gauge("up", "1 while the daemon runs; old where it does not.")
    up.set(1)
    build = _gauge("build_info", "Version of the daemon.", "version")
    build.set(1, __version__)
    spec = _gauge("spec_revision_info", "Generation and SHA-256 of the spec that is applied.", "revision", "hash")
    if applied := daemon.reloader.applied:
        spec.set(1, str(daemon.desired.generation), applied.sha256)
    return render([up, build, spec, *_services(daemon), *engines(daemon), *_gpus(daemon), *_cards(daemon)], {}).decode()


def _gauge(name: str, help: str, *labels: str) -> Scalar:
    return Scalar("gauge", f"llmsupervisor_{name}", help, labels)


def _services(daemon: Daemon) -> list[Scalar]:
    states = _gauge("service_state", "1 for the state that a service is in.", "service", "state")
    name = "llmsupervisor_service_restarts_total"
    restarts = Scalar("counter", name, "Starts after the first, by cause of the last end.", ("service", "cause"))
    load = _gauge("service_load_seconds", "From the last start to READY.", "service")
    begun = _gauge("service_start_time_seconds", "Unix time of the start that runs.", "service")
    drift = _gauge("spec_drift", "Ways in which a service runs otherwise than it would be started now.", "service")
    for service, runner in daemon.box.runners.items():
        for state in State:
            states.set(int(daemon.loop.statuses[service].state is state), service, state.value)
        for cause, count in runner.restarts.items():
            restarts.set(count, service, cause)
        if (seconds := daemon.desired.wish(service).load_s) is not None:
            load.set(round(seconds, 3), service)
        if runner.process is not None:
            drift.set(len(runner.drift) + len(runner.models.drift), service)
            if (at := runner.process.started_at) is not None:
                begun.set(at, service)
    return [states, restarts, load, begun, drift]


def _cards(daemon: Daemon) -> list[Scalar]:
    machine = machine_json(daemon.box)
    return [*gpu_families(machine["gpus"] or [], daemon.box.cards.limited()), *host_families(machine["host"])]


def _gpus(daemon: Daemon) -> list[Scalar]:
    ours = _gauge("process_gpu_memory_bytes", "GPU memory of a service's processes.", "service", *CARD, "part")
    used = _gauge("gpu_memory_used_bytes", "In use by anybody.", *CARD)
    total = _gauge("gpu_memory_total_bytes", "All of it.", *CARD)
    other = _gauge("gpu_memory_other_bytes", "In use by what is not ours.", *CARD)
    memory, runners = daemon.box.memory, daemon.box.runners
    complete = all(memory.held(name) for name, runner in runners.items() if runner.process and runner.process.plan.gpus)
    for gpu in daemon.gpu.latest.gpus or ():
        card = (str(gpu.index), gpu.uuid)
        held = {name: size for name in runners if (size := (memory.held(name) or {}).get(gpu.uuid)) is not None}
        for name, size in held.items():
            ours.set(size, name, *card, "total")
        if gpu.memory_total_bytes is not None:
            total.set(gpu.memory_total_bytes, *card)
        if gpu.memory_used_bytes is not None:
            used.set(gpu.memory_used_bytes, *card)
            if complete:
                other.set(max(0, gpu.memory_used_bytes - sum(held.values())), *card)
    return [ours, used, total, other]
