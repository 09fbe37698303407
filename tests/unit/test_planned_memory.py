"""The split of memory where the log does not say it: the plan's sums."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from llmsupervisor.daemon import snapshot
from llmsupervisor.plan.sums import Place, Sums


def split(memory: Sums | None, held: int | None = None) -> Any:
    plan = SimpleNamespace(memory=memory)
    runner: Any = SimpleNamespace(scraper=SimpleNamespace(allocated=None), process=None, plan=plan)
    return snapshot._memory_json(runner, held)


def test_gpus_are_taken_together() -> None:
    places = (Place("GPU-0", "GPU 0", 10, 20, 3), Place("GPU-1", "GPU 1", 5, 20, None), Place(None, "host"))
    assert split(Sums(places), held=100) == {
        "gpu": {"weights_bytes": 15, "kv_bytes": 40, "compute_bytes": None, "overhead_bytes": 45},
        "host": None,
        "source": "plan",
    }


def test_what_no_sum_says_is_unknown() -> None:
    assert split(None) is split(Sums((Place(None, "host"),))) is split(Sums(())) is None
