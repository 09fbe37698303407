"""GPUs as the status tells them."""

from __future__ import annotations

from typing import Any

SILENT_GPU: Any = {
    "uuid": "GPU-1", "index": 0, "name": "RTX", "memory_total_bytes": 24 * 2**30, "memory_used_bytes": 6 * 2**30,
    "processes": None, "memory_reserved_bytes": None, "busy": None, "memory_bandwidth": None, "power_w": None,
    "power_limit_w": None, "clocks": dict.fromkeys(("sm_mhz", "sm_max_mhz", "memory_mhz", "memory_max_mhz")),
    "clock_limits": None, "temperature_c": None, "temperature_slowdown_c": None, "ecc": None, "remapped_rows": None,
    "xids": None, "mig": None, "error": None, "quarantine": None, "lent": None, "conditions": [],
}  # fmt: skip
"""It tells its memory and nothing else."""
