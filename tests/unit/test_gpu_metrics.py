"""GPUs and the machine as the daemon tells them to Prometheus: from the very example of the contract."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from llmsupervisor.base.exposition import render
from llmsupervisor.daemon.gpumetrics import gpu_families, host_families

DOCS = Path(__file__).resolve().parents[2] / "docs"
SHOWN = re.findall(r"^```json status\n(.*?)^```$", (DOCS / "contracts.md").read_text(), re.MULTILINE | re.DOTALL)
STATUS = json.loads(SHOWN[0])
CARD = 'gpu="0",uuid="GPU-5d1c"'


def told(gpus: list[object], limited: dict[str, dict[str, float]]) -> dict[str, float]:
    text = render([*gpu_families(gpus, limited), *host_families(STATUS["host"])], {}).decode()  # type: ignore[arg-type]
    assert list(text_string_to_metric_families(text))
    lines = [line for line in text.splitlines() if line[:1] != "#"]
    return {line.rpartition(" ")[0].removeprefix("llmsupervisor_"): float(line.rpartition(" ")[2]) for line in lines}


def test_what_is_known_has_a_series_and_nothing_else() -> None:
    found = told(STATUS["gpus"], {"GPU-5d1c": {"power_cap": 12.5}})
    assert found[f"gpu_power_watts{{{CARD}}}"] == 311.2 and found[f"gpu_kernel_resident_ratio{{{CARD}}}"] == 0.99
    assert found[f'gpu_dram_bandwidth_ratio{{{CARD},source="estimate"}}'] == 0.78
    assert found[f'gpu_xid_total{{{CARD},code="31"}}'] == 1
    assert found[f'gpu_clock_limited_seconds_total{{{CARD},reason="power_cap"}}'] == 12.5
    assert found[f'gpu_closed{{{CARD},why="lent"}}'] == 1 and found[f'gpu_closed{{{CARD},why="quarantine"}}'] == 0
    assert found["host_cpu_busy_ratio"] == 0.12 and found['model_disk_free_bytes{folder="/models"}'] == 400204886016
    assert not [name for name in found if name.startswith("gpu_ecc") or "page_cache" in name]


def test_the_page_lists_them() -> None:
    families = [*gpu_families([], {}), *host_families(STATUS["host"])]
    rows = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", (DOCS / "metrics.md").read_text(), re.MULTILINE))
    assert {family.name: family.kind for family in families}.items() <= rows.items()
    assert host_families(None) == []
