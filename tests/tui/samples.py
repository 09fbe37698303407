"""A service and a request as the daemon tells them."""

from __future__ import annotations

import time
from typing import Any

Json = dict[str, Any]


def service(name: str, state: str = "READY", **changes: Any) -> Json:
    target = {
        "model": name,
        "names": [name],
        "state": state,
        "kv_cache_usage": 0.25,
        "requests_running": 2,
        "requests_waiting": 1,
        "requests_queued": None,
        "kv_tokens_used": 1024,
        "kv_tokens_cached": 512,
        "kv_tokens_capacity": 4096,
        "kv_bytes_used": None,
        "kv_bytes_capacity": None,
        "prefix_hit_ratio": 0.4,
        "draft_acceptance": None,
        "preemptions": None,
        "prefill_tokens_per_s": 1800.0,
        "decode_tokens_per_s": 92.0,
        "tokens_per_s": 180.0,
        "context": {"p95": 1480, "limit": 2048, "requests": 212},
        "figures_time": time.time() - 1,
    }
    return {
        "name": name,
        "runtime": "llama-server",
        "state": state,
        "phase": None,
        "reason": "",
        "conditions": [],
        "drift": [],
        "goal": "up",
        "stopped_by": None,
        "retry_at": None,
        "last_exit": None,
        "pid": 4712,
        "endpoint": "http://127.0.0.1:18400",
        "restarts": 0,
        "generation": 2,
        "since": time.time() - 42,
        "targets": [target],
        "asked": {"kv_cache_type": "q8_0"},
        "got": {"kv_cache_type": "f16"},
        "vram_bytes": None,
        "vram_source": None,
        "rss_bytes": 190840832,
        "swap_bytes": 0,
        "memory": None,
        "slo": [],
        "growth": None,
        "probe": {"path": "/health", "status": 200, "error": None, "time": time.time() - 3, "failures": 0},
        **changes,
    }


def record(id: str, **changes: Any) -> Json:
    """Of a stream that was queued 10 ms, prefilled for 200, decoded for 500."""
    return {
        "id": id,
        "time": time.time() - 2,
        "service": "chat",
        "model": "chat",
        "client": "alice",
        "api": "chat.completions",
        "stream": True,
        "status": 200,
        "finish_reason": "stop",
        "prompt_tokens": 600,
        "cached_tokens": 100,
        "completion_tokens": 51,
        "queue_ms": 10.0,
        "load_ms": 0.0,
        "engine_queue_ms": 2.0,
        "prefill_ms": 200.0,
        "decode_ms": 500.0,
        "other_ms": 8.0,
        "ttft_ms": 215.0,
        "itl_p50_ms": 10.0,
        "itl_p95_ms": 12.0,
        "decode_tokens_per_s": 100.0,
        "total_ms": 720.0,
        "truncated": False,
        "max_tokens": 256,
        "session_id": None,
        "hash_ids": None,
        "sources": {"prefill_ms": "engine", "decode_ms": "engine", "ttft_ms": "gateway", "engine_queue_ms": "gateway"},
        **changes,
    }


def live(id: str, phase: str, since: float, phase_since: float, **changes: Any) -> Json:
    return {
        "id": id,
        "service": "chat",
        "model": "chat",
        "client": "alice",
        "api": "chat.completions",
        "stream": True,
        "phase": phase,
        "since": since,
        "phase_since": phase_since,
        "prompt_tokens": 600,
        "prompt_done": None,
        "tokens": 0,
        **changes,
    }


GIB = 1024**3


def gpu(index: int = 0, **changes: Any) -> Json:
    """A card with all that the daemon can tell: 24 GiB, 9 of them of `chat`, 0.4 foreign."""
    return {
        "uuid": f"GPU-5d1c-{index}",
        "index": index,
        "name": "NVIDIA GeForce RTX 3090",
        "memory_total_bytes": 24 * GIB,
        "memory_used_bytes": 10 * GIB,
        "memory_reserved_bytes": GIB // 4,
        "processes": [
            {
                "pid": 4712,
                "service": "chat",
                "name": "llama-server",
                "memory_used_bytes": 9 * GIB,
                "user": "llm",
                "command": "/opt/llama-server -m m.gguf",
                "kind": "compute",
            },
            {
                "pid": 2211,
                "service": None,
                "name": "Xorg",
                "memory_used_bytes": GIB // 2,
                "user": "root",
                "command": "/usr/lib/xorg/Xorg",
                "kind": "graphics",
            },
        ],
        "busy": 0.99,
        "memory_bandwidth": {"source": "estimate", "usage": 0.78, "bytes_per_s": 730e9, "peak_bytes_per_s": 936e9},
        "power_w": 311.2,
        "power_limit_w": 350.0,
        "clocks": {"sm_mhz": 1695, "sm_max_mhz": 2100, "memory_mhz": 9501, "memory_max_mhz": 9751},
        "clock_limits": ["power_cap"],
        "temperature_c": 71,
        "temperature_slowdown_c": 93,
        "ecc": None,
        "remapped_rows": None,
        "xids": [
            {"code": 31, "kind": "application", "text": "GPU memory page fault", "count": 1, "time": 1790000000.0}
        ],
        "mig": None,
        "error": None,
        "quarantine": None,
        "lent": None,
        "conditions": [],
        **changes,
    }


def event(service: str | None, kind: str, time: float, **changes: Any) -> Json:
    return {"v": 1, "time": time, "service": service, "kind": kind, **changes}
