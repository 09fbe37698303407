"""Every page at six sizes, as text, against a daemon and a clock that stand still. To see and keep a change:
`LLMSUPERVISOR_SNAPSHOTS=write pytest tests/tui/test_snapshots.py`, then read the diff of `tests/golden/tui`.
"""

from __future__ import annotations

import os
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from tui.driving import drive, screen, until
from tui.samples import event, gpu, live, record, service
from tui.stand_in import StandIn
from tui.test_service_page import plan
from tui.test_spec_pages import ADVICE, SPEC
from tui.test_trend import SERIES

from llmsupervisor.base.text import width

NOW = 1_790_000_000.0
SIZES = [(40, 10), (60, 15), (80, 24), (100, 30), (140, 40), (250, 60)]
PAGES = {
    "1": "LOG chat",
    "2": "LIVE 1 run",
    "3": "MEM",
    "4": "row 59",
    "5": "====",
    "6": "CHANGED",
    "7": "chat",
    "8": "2 of 2",
}
"""Digit → what shows that its data is there."""
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "tui"


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The wall clock of all that is shown; deadlines go on."""
    frozen = types.SimpleNamespace(time=lambda: NOW, monotonic=time.monotonic)
    for module in ("feed", "livefeed"):
        monkeypatch.setattr(f"llmsupervisor.tui.{module}.time", frozen)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def stand_in(short_folder: Path, still: None) -> Iterator[StandIn]:
    condition = {"id": "not-as-asked", "text": "asked kv_cache_type q8_0, the engine has f16", "since": NOW - 90}
    probe = {"path": "/health", "status": 200, "error": None, "time": NOW - 3, "failures": 0}
    chat = service(
        "chat",
        since=NOW - 7300,
        conditions=[condition],
        drift=["the engine's version was b6 at the start"],
        probe=probe,
    )
    embed = service(
        "embed", "BACKOFF", since=NOW - 5, pid=None, endpoint=None, reason="exit 137", targets=[], retry_at=NOW + 20
    )
    daemon = StandIn(short_folder / "s", [chat, embed])
    daemon.tell(gpus=[gpu(0), gpu(1, processes=[], memory_used_bytes=0, clock_limits=[], xids=[])])
    daemon.log("chat", *(f"row {n}: slot {n % 4} | prompt done, n_tokens = {n * 31}" for n in range(60)))
    daemon.live = [live("a", "decode", NOW - 6, NOW - 4, tokens=80)]
    daemon.ended(
        *(
            record(f"01J{n:023}", time=NOW - 200 + n * 9, decode_ms=200.0 + n * 20, total_ms=420.0 + n * 20)
            for n in range(20)
        )
    )
    daemon.events = [_became("chat", NOW - 7300, "STARTING", "READY"), _became("embed", NOW - 5, "READY", "BACKOFF")]
    daemon.plans = {"chat": plan("chat"), "embed": plan("embed")}
    daemon.answers = {"spec": SPEC, "advice": ADVICE, "series": SERIES}
    yield daemon
    daemon.die()


def _became(name: str, at: float, before: str, to: str) -> Any:
    return event(name, "state", at, **{"from": before, "to": to, "reason": ""})


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_page(stand_in: StandIn, size: tuple[int, int]) -> None:
    path = GOLDEN / f"{size[0]}x{size[1]}.txt"
    writing = os.environ.get("LLMSUPERVISOR_SNAPSHOTS") == "write"
    kept = {} if writing else _read(path)
    taken: dict[str, str] = {}

    async def play(pilot: Pilot[None]) -> None:
        for digit, there in PAGES.items():
            await pilot.press(digit)
            await until(pilot, lambda s, there=there: there in s, f"page {digit}")
            if writing:
                await pilot.pause(2.0)
            else:
                await until(
                    pilot, lambda s, digit=digit: s == kept[digit], f"page {digit} as kept in {path}:\n{kept[digit]}"
                )
            taken[digit] = screen(pilot.app)  # type: ignore[arg-type]
            assert all(width(line) <= size[0] for line in taken[digit].splitlines())

    drive(stand_in, size, play)
    if writing:
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"=== {digit}\n{shown}\n" for digit, shown in taken.items()))


def _read(path: Path) -> dict[str, str]:
    parts = path.read_text().split("=== ")[1:]
    return {part[0]: part[2:].removesuffix("\n") for part in parts}
