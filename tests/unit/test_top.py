"""`top` as text: figures, curves, and – for what is unknown."""

from __future__ import annotations

from typing import Any

import pytest
from tui import samples

from llmsupervisor.cli.topview import CURVE, curve, screen
from llmsupervisor.cli.views import text_of

NOW = 1790000100.0


def told(events: list[dict[str, Any]] = [], **services: dict[str, Any]) -> tuple[Any, Any]:  # noqa: B006
    status = {
        "v": 1,
        "daemon": {
            "pid": 1,
            "version": "0.1.0",
            "uptime_s": 60.0,
            "state_dir": "/s",
            "spec": {"path": "/etc/spec.toml", "generation": 1, "sha256": None, "error": None},
            "conditions": [],
        },
        "gateway": None,
        "services": [samples.service(name, **changes) for name, changes in services.items()],
        "gpus": [],
        "nvml": {"error": None, "time": None, "driver": None},
        "host": None,
    }
    points = {f"services.{name}.tokens_per_s": {"mean": [None, 0, 50, 100], "max": None} for name in services}
    return status, {"v": 1, "start": 0, "step_s": 60, "count": 4, "series": points, "events": events, "reason": None}


def shown(status: Any, series: Any, room: int = 1000, ascii: bool = False) -> str:
    return "\n".join(text_of(line) for line in screen(status, series, NOW, room, ascii))


def test_a_line_for_each_service() -> None:
    text = shown(*told(chat={}, embed={"vram_bytes": 5 * 1024**3}))
    head, chat, embed = text.splitlines()[2:5]
    assert head.split()[:4] == ["NAME", "STATE", "FOR", "RUN"] and chat.index("READY") == embed.index("READY")
    row = dict(zip(head.split()[3:14], chat.split()[4:15], strict=True))
    assert row == {
        "RUN": "2",
        "QUEUE": "–",
        "WAIT": "1",
        "TOK/S": "180",
        "DECODE": "92.0",
        "PREFILL": "1800",
        "KV": "25%",
        "HIT": "40%",
        "CTX95": "1480/2048",
        "VRAM": "–",
        "RAM": "182.0",
    }
    assert "5.0 GiB" in embed and chat.endswith(" ▄█")


def test_conditions_gpus_and_events() -> None:
    condition = {"id": "slo", "text": "ttft_p95 is 9 s", "since": NOW}
    event = {
        "v": 1,
        "time": NOW,
        "service": "chat",
        "kind": "state",
        "from": "STARTING",
        "to": "READY",
        "reason": "",
        "attempt": 1,
    }
    status, series = told(events=[event], chat={"conditions": [condition]})
    status["gpus"] = [
        {
            "index": 0,
            "name": "RTX",
            "memory_used_bytes": 1024**3,
            "memory_total_bytes": None,
            "busy": 0.5,
            "power_w": None,
            "temperature_c": 70,
        }
    ]
    status["host"] = {
        "cpu_busy": 0.12,
        "cpu_count": 16,
        "memory_available_bytes": 1024**3,
        "memory_total_bytes": 2 * 1024**3,
    }
    text = shown(status, series)
    assert "chat: ttft_p95 is 9 s" in text and "STARTING" in text
    assert "GPU 0 RTX  1.0 GiB of –  busy 50%  – W  70 °C" in text
    assert "CPU 12% of 16  RAM 1.0 GiB free of 2.0 GiB" in text


def test_nothing_is_wider_than_the_terminal_and_ascii_is_ascii() -> None:
    assert max(map(len, shown(*told(chat={}), room=60).splitlines())) <= 60
    status, series = told(chat={}, empty={"targets": []})
    assert shown(status, series, ascii=True).splitlines()[3].endswith(" =@")


@pytest.mark.parametrize(("values", "drawn"), [([], ""), ([None, 0], ""), ([0, 1, None, 1000], " ▁ █"), ([5.0], "█")])
def test_curves(values: list[float | None], drawn: str) -> None:
    assert curve(values) == drawn and CURVE == 15
