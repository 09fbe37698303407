"""`i`: every figure that stands on a page is explained there. A column or row that nobody explained fails here."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.events import Key
from textual.pilot import Pilot
from tui.driving import drive, screen, until
from tui.samples import event, gpu, live, record, service
from tui.stand_in import StandIn
from tui.test_logs import CRASH
from tui.test_service_page import plan
from tui.test_spec_pages import ADVICE, FIXED, SPEC

from llmsupervisor.cli import servicetable
from llmsupervisor.cli.views import SIGNS
from llmsupervisor.tui import meanings, requestview
from llmsupervisor.tui.page import Page
from llmsupervisor.tui.scroll import Scroll

PAGES = [
    ("overview", [("1", "LOG chat")]),
    ("requests", [("2", "1 run"), ("end", "50 of 50")]),
    ("request", [("2", "1 run"), ("home", "1 run"), ("enter", "so far")]),
    ("request", [("2", "50 of 50"), ("end", ">"), ("enter", "CACHE")]),
    ("gpus", [("3", "held down by")]),
    ("logs", [("4", "row 29")]),
    ("events", [("5", "30 of 30")]),
    ("spec", [("6", "ON DISK")]),
    ("service", [("7", "ENVIRONMENT 2")]),
    ("advice", [("8", "kv_cache_type")]),
    ("finding", [("8", "kv_cache_type"), ("enter", "ON DISK")]),
    ("crashes", [("4", "row 29"), ("c", "1 of 1")]),
    ("crash", [("4", "row 29"), ("c", "1 of 1"), ("enter", "LAST WORDS")]),
]
"""Keys that lead there from the overview, and what is seen after each."""
NO_FIGURES = {
    *SIGNS, "LIVE", "GPU", "GPU0", "GPU1", "NVIDIA", "NVML", "RTX", "PID", "SERVICE", "PROCESS", "SM", "MHZ", "GB", "RAM", "VRAM", "PR", "C13", "HTTP",
    "CPU", "ON", "DISK", "AGAINST", "GOT", "REQUEST", "LOG", "PATH", "HF", "TOKEN", "CUDA", "VISIBLE", "DEVICES", "KV", "TPOT",
}  # fmt: skip
"""States, units, and words within a value."""


@pytest.fixture
def stand_in(short_folder: Path) -> Iterator[StandIn]:
    now = time.time()
    chat = service("chat", conditions=[{"id": "kv-full", "text": "it is full", "since": now - 60}], swap_bytes=4096)
    chat["targets"][0] |= {"draft_acceptance": 0.5, "preemptions": 3, "kv_bytes_capacity": 4096, "kv_bytes_used": 1024}
    parts = {"weights_bytes": 4096, "kv_bytes": 4096, "compute_bytes": 4096, "overhead_bytes": None}
    chat |= {
        "memory": {"gpu": parts, "host": parts, "source": "log"},
        "growth": {"host_bytes_per_request": 12.5, "vram_bytes_per_request": None, "requests": 4200},
        "slo": [
            {
                "name": "ttft_p95",
                "limit_s": 2.0,
                "measured_s": 0.4,
                "requests": 64,
                "window_s": 300.0,
                "breached": False,
            }
        ],
    }
    daemon = StandIn(short_folder / "s", [chat, service("embed", "BACKOFF", pid=None)])
    remapped = {"corrected": 0, "uncorrected": 1, "pending": True, "failed": False}
    host = {
        "time": now - 3, "cpu_count": 16, "cpu_busy": 0.12, "memory_total_bytes": 1 << 36, "memory_available_bytes": 1 << 35,
        "swap_total_bytes": 0, "swap_used_bytes": 0, "weights": [{"service": "chat", "bytes": 4096, "cached_bytes": None}],
        "disks": [{"path": "/models", "services": ["chat"], "total_bytes": 1 << 40, "free_bytes": 1 << 39}],
    }  # fmt: skip
    daemon.tell(
        gpus=[gpu(0, remapped_rows=remapped)], nvml={"error": None, "time": now - 7, "driver": "580"}, host=host
    )
    daemon.live = [live("a", "decode", now - 3, now - 2, tokens=40)]
    daemon.ended(*(record(f"r{n}") for n in range(50)))
    daemon.log("chat", *(f"row {n}" for n in range(30)))
    turns = (("STOPPED", "STARTING"), ("STARTING", "READY"))
    daemon.events = [
        event("chat", "state", now - 40 + n, **dict(zip(("from", "to"), turns[n % 2], strict=True))) for n in range(30)
    ]
    daemon.crashes = [CRASH]
    daemon.plans["chat"] = plan("chat")
    points = {"mean": [1.0, 2.0], "max": None}
    names = ["tokens_per_s", "kv_cache_usage", "requests_running", "requests_queued", "vram_bytes"]
    cards = [f"gpus.GPU-5d1c-0.{name}" for name in ("memory_used_bytes", "memory_bandwidth", "power_w")]
    series = {name: points for name in [*(f"services.chat.{name}" for name in names), *cards]}
    tree = {"pid": 4712, "parent": 1, "name": "server", "rss_bytes": 4096, "threads": 2, "cpu_s": 1.0, "state": "S"}
    daemon.answers = {
        "spec": SPEC, "advice": ADVICE, "fix": FIXED, "processes": {"processes": [tree]},
        "series": {"v": 1, "start": now - 2, "step_s": 1, "count": 2, "series": series, "events": [], "reason": None},
    }  # fmt: skip
    yield daemon
    daemon.die()


def page_of(pilot: Pilot[None], name: str) -> Page:
    page = next(page for page in reversed(pilot.app.screen_stack) if isinstance(page, Page))
    assert name == page.NAME
    return page


def words_of(shown: str) -> set[str]:
    """In capitals, as titles of figures are."""
    return set(re.findall(r"(?<![\w/.:-])[A-Z][A-Z0-9]+(?:/[A-Z0-9]+)*(?![\w=-])", shown))


def test_every_figure_of_every_page_says_what_it_is(stand_in: StandIn) -> None:
    async def play(pilot: Pilot[None]) -> None:
        for name, steps in PAGES:
            await pilot.press("1")
            for key, wanted in steps:
                await pilot.press(key)
                await until(pilot, lambda s, wanted=wanted: wanted in s, name)
            if name in ("overview", "gpus", "service"):
                await until(pilot, lambda s: "max " in s, f"curves of {name}")
            if name == "service":
                await until(pilot, lambda s: "PROCESSES" in s and "STARTS" in s, "what is asked for apart")
            page = page_of(pilot, name)
            listed = page.figures()
            assert listed, f"{name} explains no figure"
            explained = {word for each in listed for word in {each.name, *each.name.split()}}
            body = "\n".join(screen(pilot.app).splitlines()[2:])  # type: ignore[arg-type]
            assert words_of(body) - explained - NO_FIGURES == set(), f"{name} explains them not:\n{body}"
            for each in listed:
                assert meanings.of(name, each.name) is not meanings.UNKNOWN, f"{name}: {each.name} has no meaning"

    drive(stand_in, (150, 70), play)


def test_every_column_has_a_meaning() -> None:
    for page, columns in (("overview", servicetable.COLUMNS), ("requests", requestview.COLUMNS)):
        missing = [c.title for c in columns if c.title not in meanings.BY_PAGE[page]]
        assert not missing, f"columns of {page} without a meaning in tui/meanings.py"


def test_every_page_that_can_be_opened_has_meanings() -> None:
    assert set(meanings.BY_PAGE) == {name for name, _ in PAGES}
    for page, figures in meanings.BY_PAGE.items():
        for name, meaning in figures.items():
            assert meaning.source, f"{page}: {name}"


def test_i_tells_value_source_age_and_what_it_is_not(stand_in: StandIn) -> None:
    async def play(pilot: Pilot[None]) -> None:
        for keys, wanted in (
            ("1", ["KV  25%", "GET /slots", "but no memory"]),
            ("2", ["TTFT  215ms", "record: ttft_ms", "but loading and queueing"]),
            ("3", ["GPU0 BUSY  99%", "nvmlDeviceGetUtilizationRates", "not load"]),
            ("7", ["HELD  182.0 MiB", "/proc/PID/status", "but pages of files"]),
        ):
            await pilot.press("1", keys)
            await until(pilot, lambda s: "LIVE" in s, "the page")
            if keys == "2":
                await until(pilot, lambda s: "50 of 50" in s, "requests")
                await pilot.press("end")
            await pilot.press("i")
            shown = await until(pilot, lambda s, wanted=wanted: " old" in s, "the sheet")
            shown = " ".join(line.strip(" │") for line in sheet_text(pilot).splitlines())
            assert all(each in shown for each in wanted), shown
            await pilot.press("escape")
            await until(pilot, lambda s: " old" not in s, "the page again")

    drive(stand_in, (80, 24), play)


def sheet_text(pilot: Pilot[None]) -> str:
    from textual.widgets import Static

    return str(pilot.app.screen.query_one("#sheet Static", Static).content)


def test_what_is_as_old_as_its_source_says_so(stand_in: StandIn) -> None:
    async def play(pilot: Pilot[None]) -> None:
        figures = {(each.of, each.name): each for each in page_of(pilot, "overview").figures()}
        now = time.time()
        assert 6 < now - (figures["GPU0", "BUSY"].time or now) < 120, "when NVML was read"
        assert figures["", "KV"].time != figures["GPU0", "BUSY"].time, "when the engine was asked"
        assert figures["", "LOG"].time is None, "a log has no time that we know"

    drive(stand_in, (80, 24), play)


def test_a_sheet_scrolls_by_as_many_lines_as_keys_came(stand_in: StandIn) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("i")
        await until(pilot, lambda s: " old" in s, "the sheet")
        for _ in range(13):
            pilot.app.post_message(Key("down", None))
        await until(pilot, lambda s: pilot.app.screen.query_one(Scroll).scroll_y == 13, "13 lines down")
        await pilot.press("G")
        await until(pilot, lambda s: "each figure has its own age" in s, "the last line")

    drive(stand_in, (80, 24), play)
