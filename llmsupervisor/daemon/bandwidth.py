"""Memory bandwidth of a GPU: what the card measures, else what the tokens of our services must have read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmsupervisor.host.gpu import Gpu
from llmsupervisor.runtime.bandwidth import Decode, total

if TYPE_CHECKING:
    from llmsupervisor.daemon.cards import Cards
    from llmsupervisor.daemon.runner import Runner


def of(gpu: Gpu, cards: Cards) -> dict[str, Any] | None:
    """As `memory_bandwidth` of the status. None: nobody decodes, or one decodes of whom too little is known."""
    if measured := gpu.figures.get("memory_bandwidth"):
        return dict(measured)
    decoding = [_decode(runner) for runner in cards.on(gpu.uuid) if _decodes(runner)]
    known = [one for one in decoding if one is not None]
    rate = total(known) if len(known) == len(decoding) else None
    if rate is None:
        return None
    peak = gpu.figures.get("memory_peak_bytes_per_s")
    usage = min(1.0, rate / peak) if peak else None
    return {"source": "estimate", "usage": usage, "bytes_per_s": round(rate), "peak_bytes_per_s": peak}


def _decodes(runner: Runner) -> bool:
    figures = runner.scraper.figures
    return figures is not None and bool(figures.requests_running)


def _decode(runner: Runner) -> Decode | None:
    scraper, active = runner.scraper, runner.box.machine.active.get(runner.name)
    figures, tokens, parts = scraper.figures, scraper.rates.tokens_per_s, scraper.allocated
    if figures is None or tokens is None or active is None or runner.process is None:
        return None
    on_gpu, beside = (parts.gpu, parts.host) if parts else (None, None)
    there, elsewhere = on_gpu.weights if on_gpu else None, beside.weights if beside else None
    if there is not None and elsewhere:
        active = round(active * there / (there + elsewhere))
    kv, used, room = on_gpu.kv if on_gpu else None, figures.kv_tokens_used, figures.kv_tokens_capacity
    kv_used = round(kv * min(1.0, used / room)) if kv and used is not None and room else None
    return Decode(tokens, figures.requests_running or 1, active, kv_used, len(runner.process.plan.gpus))
