"""What `status` says (`docs/contracts.md` §3): a picture of the loop and the runners, taken on demand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llmsupervisor import __version__
from llmsupervisor.base.ids import Json
from llmsupervisor.daemon import bandwidth
from llmsupervisor.daemon.box import Box
from llmsupervisor.daemon.cards import Cards
from llmsupervisor.daemon.probes import exit_json
from llmsupervisor.daemon.runner import Runner
from llmsupervisor.daemon.runners import RunnerProcess
from llmsupervisor.daemon.scrape import Scraper
from llmsupervisor.daemon.trends import KINDS, Trend, Trends
from llmsupervisor.host import tree
from llmsupervisor.host.gpu import GpuProcess, Sample
from llmsupervisor.plan.sums import Place
from llmsupervisor.runtime.engine import Allocated, Figures, Parts
from llmsupervisor.service.states import HAS_PROCESS, State, Status
from llmsupervisor.spec.names import names_of

if TYPE_CHECKING:
    from llmsupervisor.daemon.daemon import Daemon
    from llmsupervisor.daemon.modelwork import Entry

COMMAND = 200
"""Characters of another process's command line at most."""


def service_json(runner: Runner, status: Status, trends: Trends, wall: float, monotonic: float) -> dict[str, Any]:
    process = runner.process
    figures, load = runner.scraper.figures, runner.box.traffic.of(runner.name)
    held = runner.box.memory.held(runner.name)
    lives = status.state in HAS_PROCESS and process is not None
    plan = process.plan if process is not None else runner.plan
    names = list(names_of(runner.name, runner.plan.service))
    trend = trends.of.get(runner.name) if lives else None
    return {
        "name": runner.name,
        "runtime": plan.definition.name,
        "state": status.state.value,
        "phase": runner.seen.phase,
        "reason": status.reason,
        "conditions": [{"id": c.id, "text": c.text, "since": c.since} for c in runner.conditions.all()],
        "drift": [*runner.drift, *runner.models.drift],
        "goal": status.goal,
        "stopped_by": status.stopped_by or None,
        "retry_at": None if status.retry_at is None else wall + status.retry_at - monotonic,
        "last_exit": exit_json(status.last_exit),
        "pid": process.pid if lives and process is not None else None,
        "endpoint": process.endpoint if lives and process is not None else None,
        "restarts": status.restarts,
        "generation": process.generation if process is not None else runner.generation,
        "since": wall - (monotonic - status.since),
        "targets": _models(runner, names, trends, wall - monotonic)
        or [
            {
                "model": runner.name,
                "names": names,
                "state": status.state.value,
                "kv_cache_usage": figures.kv_cache_usage if figures else None,
                "requests_running": load.running if load else figures.requests_running if figures else None,
                "requests_waiting": figures.requests_waiting if figures else None,
                "requests_queued": load.queued if load else None,
                **_figures_json(runner.scraper, (runner.got or {}).get("kv_tokens")),
                "context": _context_json(runner, trends, context_limit(runner)),
            }
        ],
        "asked": plan.asked,
        "got": runner.got,
        "vram_bytes": sum(held.values()) if held and lives else None,
        "vram_source": runner.box.memory.source(runner.name) if held and lives else None,
        "rss_bytes": trend.rss if trend else None,
        "swap_bytes": trend.swap if trend else None,
        "memory": _memory_json(runner, sum(held.values()) if held else None) if lives else None,
        "slo": [asdict(objective) for objective in trends.objectives.get(runner.name, ())],
        "growth": _growth_json(trend) if trend else None,
        "probe": probe._asdict() if lives and (probe := runner.seen.probe) else None,
    }


def _context_json(runner: Runner, trends: Trends, limit: int | None) -> dict[str, Any]:
    requests = sum(request.tokens is not None for request in trends.recent.of(runner.name))
    return {"p95": trends.context.get(runner.name), "limit": limit, "requests": requests}


def _figures_json(scraper: Scraper, got: Json) -> dict[str, Any]:
    figures, rates = scraper.figures or Figures(), scraper.rates
    used, capacity = figures.kv_tokens_used, figures.kv_tokens_capacity
    capacity = got if capacity is None and isinstance(got, int) else capacity
    parts = scraper.allocated or Allocated()
    sizes = [part.kv for part in (parts.gpu, parts.host) if part is not None and part.kv is not None]
    size = sum(sizes) or None
    return {
        "kv_tokens_used": used,
        "kv_tokens_cached": figures.kv_tokens_cached,
        "kv_tokens_capacity": capacity,
        "kv_bytes_used": round(size * min(1.0, used / capacity)) if size and capacity and used is not None else None,
        "kv_bytes_capacity": size,
        "prefix_hit_ratio": _rounded(rates.prefix_hit_ratio, 4),
        "draft_acceptance": _rounded(rates.draft_acceptance, 4),
        "preemptions": figures.preemptions_total,
        "prefill_tokens_per_s": _rounded(rates.prefill_tokens_per_s, 1),
        "decode_tokens_per_s": _rounded(rates.decode_tokens_per_s, 1),
        "tokens_per_s": _rounded(rates.tokens_per_s, 1),
        "figures_time": scraper.time,
    }


def context_limit(runner: Runner) -> int | None:
    """Tokens of one request: as the engine says it got them, else as it was started; of several models the first's."""
    plan = runner.process.plan if runner.process else runner.plan
    got = (runner.got or {}).get("context_length")
    models = plan.service.models
    return got if isinstance(got, int) else models[0].context_length if models else plan.service.context_length


def _growth_json(trend: Trend) -> dict[str, Any] | None:
    host, vram = (trend.slope(kind) for kind in KINDS)
    if host is None and vram is None:
        return None
    return {
        "host_bytes_per_request": _rounded(host, 1),
        "vram_bytes_per_request": _rounded(vram, 1),
        "requests": trend.requests,
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _memory_json(runner: Runner, held: int | None) -> dict[str, Any] | None:
    said, source = runner.scraper.allocated, "log"
    if said is None:
        said, source = _planned(runner), "plan"
    if said is None:
        return None
    return {"gpu": _parts_json(said.gpu, held), "host": _parts_json(said.host, None), "source": source}


def _planned(runner: Runner) -> Allocated | None:
    """By the sums of its plan, where those have any."""
    plan = runner.process.plan if runner.process else runner.plan
    if plan.memory is None:
        return None
    gpu = _together([place for place in plan.memory.places if place.gpu is not None])
    host = _together([place for place in plan.memory.places if place.gpu is None])
    return Allocated(gpu=gpu, host=host) if gpu or host else None


def _together(places: list[Place]) -> Parts | None:
    weights, kv, compute = (
        (
            sum(size for size in sizes if size is not None) if sizes and None not in sizes else None
            for sizes in zip(*((place.weights, place.kv_cache, place.compute) for place in places), strict=True)
        )
        if places
        else (None, None, None)
    )
    return None if weights is kv is compute is None else Parts(weights=weights, kv=kv, compute=compute)


def _parts_json(parts: Parts | None, held: int | None) -> dict[str, Any] | None:
    if parts is None:
        return None
    known = (parts.weights or 0) + (parts.kv or 0) + (parts.compute or 0)
    return {
        "weights_bytes": parts.weights,
        "kv_bytes": parts.kv,
        "compute_bytes": parts.compute,
        "overhead_bytes": None if held is None or held < known else held - known,
    }


def _models(runner: Runner, names: list[str], trends: Trends, clock: float) -> list[dict[str, Any]]:
    """Of a service that loads its models by itself, each for itself. `clock`: wall less monotonic seconds."""
    entries = runner.models.shown()
    found: list[dict[str, Any]] = []
    for name, entry in entries.items():
        target, process = entry.target, entry.process
        scraper = process.scraper if process is not None else Scraper(runner.box.clock)
        figures = scraper.figures
        load = runner.box.traffic.of(f"{runner.name}/{name}" if len(entries) > 1 else runner.name)
        others = {other for other in entries if other != name}
        own = [n for n in names if n not in others] if not found else [name]
        found.append(
            {
                "model": name,
                "names": own,
                "state": target.state.value,
                "kv_cache_usage": figures.kv_cache_usage if figures else None,
                "requests_running": load.running if load else figures.requests_running if figures else None,
                "requests_waiting": 0 if target.state == "unloaded" else figures.requests_waiting if figures else None,
                "requests_queued": load.queued if load else None,
                **_figures_json(scraper, None),
                "context": _context_json(runner, trends, entry.model.context_length)
                if len(entries) == 1
                else {"p95": None, "limit": entry.model.context_length, "requests": 0},
                "reason": target.reason,
                "tag": entry.model.tag,
                "context_length": entry.model.context_length,
                "keep_alive_s": entry.model.keep_alive,
                "retry_at": None if target.deadline is None or target.state != "failed" else clock + target.deadline,
                "progress": _progress(entry),
                "runner": None if process is None else _runner(process),
            }
        )
    return found


def _progress(entry: Entry) -> dict[str, Any] | None:
    if (said := entry.progress) is None:
        return None
    told = {"status": said.status, "completed": said.completed, "total": said.total}
    return {**told, "bytes_per_s": entry.pace.bytes_per_s(said.status)}


def _runner(process: RunnerProcess) -> dict[str, Any]:
    args = process.args
    told = {"context_length": args.context_length, "parallel": args.parallel}
    return {"pid": process.identity.pid, "endpoint": args.address, **told}


FIGURES = ("busy", "power_w", "power_limit_w", "clock_limits", "temperature_c", "temperature_slowdown_c")
MORE = ("ecc", "remapped_rows", "mig")
NO_CLOCKS: dict[str, Json] = dict.fromkeys(("sm_mhz", "sm_max_mhz", "memory_mhz", "memory_max_mhz"))


def status_json(daemon: Daemon) -> dict[str, Any]:
    now, wall, applied = daemon.clock.monotonic(), daemon.clock.wall(), daemon.reloader.applied
    statuses, runners = daemon.loop.statuses, daemon.box.runners
    return {
        "v": 1,
        "daemon": {
            "pid": os.getpid(),
            "version": __version__,
            "uptime_s": round(now - daemon.started, 3),
            "state_dir": os.fspath(daemon.layout.state),
            "spec": {
                "path": daemon.desired.spec_path,
                "generation": daemon.desired.generation,
                "sha256": applied.sha256 if applied else None,
                "error": daemon.reloader.spec_error,
            },
            "conditions": own_conditions(daemon),
        },
        "gateway": daemon.gateway.status(),
        "services": [service_json(r, statuses[name], daemon.trends, wall, now) for name, r in runners.items()],
        **machine_json(daemon.box),
    }


def machine_json(box: Box) -> dict[str, Any]:
    cards = box.cards
    return {
        "gpus": gpus_json(box.gpu.latest, cards, box.shims()),
        "nvml": {"error": box.gpu.latest.error, "time": cards.read_at, "driver": cards.driver},
        "host": box.machine.latest,
    }


def gpus_json(sample: Sample, cards: Cards, shims: Mapping[int, str]) -> list[Json] | None:
    """`shims`: pid → service. None: NVML could not be read; []: no GPU here."""
    if sample.gpus is None:
        return None
    return [
        {
            "uuid": gpu.uuid,
            "index": gpu.index,
            "name": gpu.name,
            "memory_total_bytes": gpu.memory_total_bytes,
            "memory_used_bytes": gpu.memory_used_bytes,
            "processes": None if gpu.processes is None else [_holder(process, shims) for process in gpu.processes],
            "memory_reserved_bytes": gpu.memory_reserved_bytes,
            **{name: gpu.figures.get(name) for name in (*FIGURES, *MORE)},
            "memory_bandwidth": bandwidth.of(gpu, cards),
            "clocks": gpu.figures.get("clocks") or NO_CLOCKS,
            "xids": list(card.xids.values()) if card.heard else None,
            "error": gpu.error,
            "quarantine": cards.quarantined(gpu.uuid),
            "lent": cards.lent(gpu.uuid),
            "conditions": [{"id": c.id, "text": c.text, "since": c.since} for c in card.conditions.all()],
        }
        for gpu, card in cards.all()
    ]


def _holder(process: GpuProcess, shims: Mapping[int, str]) -> dict[str, Json]:
    command = tree.command_of(process.pid)
    return {
        "pid": process.pid,
        "service": next((shims[pid] for pid in tree.ancestors(process.pid) if pid in shims), None),
        "name": command.partition(" ")[0].rpartition("/")[2] or None,
        "memory_used_bytes": process.used_bytes,
        "user": tree.user_of(process.pid),
        "command": command[:COMMAND] or None,
        "kind": "graphics" if process.graphics else "compute",
    }


def summary(statuses: dict[str, Status]) -> str:
    """For systemd's STATUS=: `3/4 services READY`."""
    up = [s for s in statuses.values() if s.goal == "up"]
    ready = sum(s.state in (State.READY, State.IDLE) for s in up)
    return f"{ready}/{len(up)} services READY"


def own_conditions(daemon: Daemon) -> list[dict[str, Any]]:
    """What is wrong with the daemon itself."""
    journal, state, series = daemon.journal, daemon.state, daemon.store.file
    texts = {"journal": journal.degraded, "state": state.degraded, "recovered": state.recovered}
    texts |= {"series": series.degraded, "series-recovered": series.recovered}
    texts["slow"] = f"the daemon's loop came {daemon.lag:.1f} s late" if daemon.lag else None
    texts["gpus-unread"] = f"the GPUs cannot be read: {daemon.gpu.failing}" if daemon.gpu.failing else None
    asking = ", ".join(daemon.reloader.asking)
    texts["asking"] = f"asks {asking} what it knows, once per build (up to a minute)" if asking else None
    own = [{"id": id, "text": text, "since": None} for id, text in texts.items() if text]
    return own + [{"id": c.id, "text": c.text, "since": c.since} for c in daemon.gateway.conditions.all()]
