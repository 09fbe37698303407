"""GPUs as people read them."""

from __future__ import annotations

from support.gpus import SILENT_GPU

from llmsupervisor.cli import gpuviews, views

NOW = 1_790_000_000.0


def lines(found: list[views.Line]) -> list[str]:
    return [views.text_of(line) for line in found]


def test_gpus_none_unreadable_and_present_are_three_things() -> None:
    assert lines(gpuviews.gpu_lines([], NOW)) == ["no GPU on this box: services run on the CPU"]
    assert "could not be read" in lines(gpuviews.gpu_lines(None, NOW))[0]
    assert lines(gpuviews.gpu_lines([SILENT_GPU], NOW)) == ["GPU0 RTX  GPU-1  VRAM 6.0 GiB of 24.0 GiB (25%)"]


def test_a_gpu_that_tells_everything() -> None:
    process = {
        "pid": 7,
        "service": None,
        "name": "train.py",
        "memory_used_bytes": 2**30,
        "user": "bob",
        "kind": "compute",
    }
    shown = lines(
        gpuviews.gpu_lines(
            [
                SILENT_GPU
                | {
                    "memory_reserved_bytes": 512 << 20,
                    "busy": 0.97,
                    "memory_bandwidth": {
                        "source": "estimate",
                        "usage": 0.78,
                        "bytes_per_s": 7e11,
                        "peak_bytes_per_s": 9e11,
                    },
                    "power_w": 311.2,
                    "temperature_c": 71,
                    "clock_limits": ["idle", "thermal"],
                    "xids": [{"code": 31, "count": 2, "kind": "application", "text": "", "time": NOW}],
                    "lent": {"by": "alice", "since": NOW, "until": None},
                    "conditions": [{"id": "ecc", "text": "3 uncorrected", "since": NOW}],
                    "processes": [process | {"command": "train.py"}],
                }
            ],
            NOW,
        )
    )
    assert shown == [
        "GPU0 RTX  GPU-1  VRAM 6.0 GiB of 24.0 GiB (25%), 512.0 MiB kept by the driver",
        "  busy 97%  bandwidth ~78%  311 of – W  71 °C  slowed by thermal  XID 31 (2×)",
        "  lent to alice until it is taken back: nothing is started here",
        "  condition ecc: 3 uncorrected",
        "  pid 7  not ours: bob, train.py  1.0 GiB",
    ]
