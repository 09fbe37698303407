"""When a bandwidth is measured, estimated, or not told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmsupervisor.daemon import bandwidth
from llmsupervisor.daemon.cards import Cards
from llmsupervisor.host.gpu import Gpu
from llmsupervisor.runtime.engine import Allocated, Figures, Parts
from llmsupervisor.runtime.rates import Rates

GB = 10**9


def gpu(**figures: Any) -> Gpu:
    return Gpu(
        "GPU-a", 0, "card", None, None, None, None, None, None, figures={"memory_peak_bytes_per_s": 1000 * GB} | figures
    )


def service(active: int | None = 4 * GB, tokens: float | None = 50.0, running: int | None = 1, **more: Any) -> Any:
    scraper = SimpleNamespace(
        figures=Figures(requests_running=running, kv_tokens_used=more.get("kv_used"), kv_tokens_capacity=1000),
        rates=Rates(tokens_per_s=tokens),
        allocated=more.get("allocated"),
    )
    machine = SimpleNamespace(active={"chat": active})
    process = SimpleNamespace(plan=SimpleNamespace(gpus=more.get("gpus", ("GPU-a",))))
    return SimpleNamespace(name="chat", scraper=scraper, process=process, box=SimpleNamespace(machine=machine))


def of(card: Gpu, *services: Any) -> dict[str, Any] | None:
    return bandwidth.of(card, cast(Cards, SimpleNamespace(on=lambda uuid: iter(services))))


def test_what_the_card_measures_is_told() -> None:
    measured = {"source": "gpm", "usage": 0.5, "bytes_per_s": 1.0, "peak_bytes_per_s": 2.0}
    assert of(gpu(memory_bandwidth=measured), service()) == measured


def test_an_estimate_says_so() -> None:
    assert of(gpu(), service()) == {
        "source": "estimate", "usage": 0.2, "bytes_per_s": 200 * GB, "peak_bytes_per_s": 1000 * GB
    }  # fmt: skip
    half = Allocated(gpu=Parts(weights=3 * GB, kv=2 * GB), host=Parts(weights=3 * GB))
    found = of(
        gpu(memory_peak_bytes_per_s=None), service(allocated=half, kv_used=500), service(gpus=("GPU-a", "GPU-b"))
    )
    assert found and (found["usage"], found["bytes_per_s"]) == (None, 50 * (2 + 1) * GB + 100 * GB)


@pytest.mark.parametrize("unknown", [{"active": None}, {"tokens": None}])
def test_a_part_is_not_the_whole(unknown: dict[str, None]) -> None:
    assert of(gpu(), service(), service(**unknown)) is None


def test_nobody_who_decodes_is_not_zero() -> None:
    assert of(gpu()) is of(gpu(), service(running=0)) is of(gpu(), service(running=None)) is None
