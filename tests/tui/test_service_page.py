"""The page of one service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Static
from tui.driving import PLACES, drive, until
from tui.samples import event, service
from tui.stand_in import StandIn

from llmsupervisor.cli.views import text_of
from llmsupervisor.tui import serviceview
from llmsupervisor.tui.ages import settled

NOW = 1_790_000_000.0
ORIGIN = "/etc/llmsupervisor/llmsupervisor.toml:12"


def plan(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "runtime": "llama-server",
        "endpoint": "http://127.0.0.1:18400",
        "argv": [
            {"words": ["/opt/llama-server"], "origin": "definition llama-server", "setting": None},
            {"words": ["--ctx-size", "16384"], "origin": ORIGIN, "setting": "context_length"},
            {"words": ["--alias", "two words"], "origin": "default", "setting": None},
        ],
        "env": [
            {"name": "CUDA_VISIBLE_DEVICES", "value": "GPU-5d1c", "origin": "gpus", "secret": None},
            {"name": "HF_TOKEN", "value": "secret:HF_TOKEN@1a2b3c4d", "origin": ORIGIN, "secret": "env:HF_TOKEN"},
        ],
        "cwd": "/var/lib/llmsupervisor",
        "gpus": ["GPU-5d1c"],
        "asked": {},
        "inputs": [["/models/a.gguf", "98 MiB"]],
        "artefacts": [],
        "warnings": ["flash_attention is the engine's to decide"],
        "refusals": [],
        **changes,
    }


CHAT = service(
    "chat",
    asked={"context_length": 16384, "kv_cache_type": "q8_0", "parallel": 2, "flash_attention": True},
    got={"context_length": 16384, "kv_cache_type": "f16", "flash_attention": None, "build": "b7"},
    conditions=[{"id": "not-as-asked", "text": "asked kv_cache_type q8_0, the engine has f16", "since": NOW}],
    drift=["the engine's version was b6 at the start"],
)


@pytest.fixture
def stand_in(short_folder: Path) -> Iterator[StandIn]:
    daemon = StandIn(short_folder / "s", [CHAT, service("embed")])
    daemon.plans["chat"] = plan("chat")
    yield daemon
    daemon.die()


def shown(room: int, one: dict[str, Any] = CHAT, **changes: Any) -> list[str]:
    return [text_of(line) for line in serviceview.lines(one, plan("chat", **changes), "", room, NOW)]  # type: ignore[arg-type]


def test_asked_against_got_marks_what_differs_and_only_that() -> None:
    lines = [line.split() for line in shown(78)]
    assert [line for line in lines if line[:1] == ["!"]] == [["!", "kv_cache_type", "q8_0", "f16"]]
    assert ["parallel", "2", "–"] in lines, "what the engine does not say is unknown"
    assert ["flash_attention", "true", "–"] in lines
    assert ["build", "–", "b7"] in lines, "what nobody asked for is told too"
    narrow = "\n".join(shown(30))
    assert "! kv_cache_type\n      q8_0  f16\n" in narrow


def test_every_word_and_variable_has_its_origin_beside_or_below_it() -> None:
    wide, narrow = "\n".join(shown(118)), "\n".join(shown(50))
    assert any("--ctx-size 16384" in line and ORIGIN in line for line in shown(118))
    assert "  --alias 'two words'" in wide and "HF_TOKEN=secret:HF_TOKEN@1a2b3c4d" in wide
    assert f"  --ctx-size 16384\n      {ORIGIN}" in narrow
    for words in ("warning flash_attention", "/models/a.gguf", "cwd /var/lib", "gpus GPU-5d1c"):
        assert words in wide and words in narrow


def test_without_a_gpu_and_without_an_answer() -> None:
    lines = "\n".join(shown(78, service("chat", got=None), gpus=[], refusals=[{"kind": "gpu", "text": "gone"}]))
    assert "none: the CPU" in lines and "cannot start gone" in lines and "the engine was not asked yet" in lines
    assert "!" not in lines


def test_figures_are_told_where_the_daemon_has_them_and_unknown_where_not() -> None:
    old = service("chat")
    del old["targets"][0]["figures_time"], old["rss_bytes"]
    assert "FIGURES" not in (lines := "\n".join(shown(78, old))) and "MEMORY" not in lines, "an older daemon"
    one = service("chat", rss_bytes=190840832, swap_bytes=0, vram_source=None, memory={
        "gpu": None, "source": "log", "host": {"weights_bytes": 96573849, "kv_bytes": 50135040, "compute_bytes": None, "overhead_bytes": None}},
        slo=[{"name": "ttft_p95", "limit_s": 2.0, "measured_s": 4.1, "requests": 64, "window_s": 300.0, "breached": True}], growth=None)  # fmt: skip
    one["targets"][0] |= {
        "figures_time": NOW, "kv_tokens_used": 41, "kv_tokens_cached": 806, "kv_tokens_capacity": 4096, "kv_bytes_used": 501840, "kv_bytes_capacity": 50135040,
        "prefix_hit_ratio": 0.4, "draft_acceptance": None, "preemptions": None, "prefill_tokens_per_s": 1800.0, "decode_tokens_per_s": 92.0, "tokens_per_s": None,
        "context": {"p95": None, "limit": 2048, "requests": 12}}  # fmt: skip
    memory = {"fits": True, "places": [{"gpu": None, "label": "host", "weights": 1024**3, "kv_cache": 1024**3, "compute": 0, "overhead": None, "known": 2 * 1024**3,
              "total": None, "budget": 8 * 1024**3}], "most": {"context_length": 43008, "parallel": 21}}  # fmt: skip
    lines = "\n".join(shown(118, one, memory=memory))
    for words in ("41 of 4096 tokens in use, 806 more cached", "prefill 1800  one answer 92.0  all answers –", "40% of prompt tokens",
                  "p95 – of 2048 tokens   n=12", "182.0 MiB of RAM, 0 B swapped, VRAM –", "kv 47.8 MiB  compute –", "ttft_p95 4.1 s of 2 s   n=64  BREACHED",
                  "MEMORY IT WILL TAKE fits", "at least 2.0 GiB of 8.0 GiB", "context_length 43008, or parallel 21"):  # fmt: skip
        assert words in lines, words
    assert "DRAFT" not in lines and "PREEMPTED" not in lines
    memory["most"] = {"context_length": None, "parallel": 3, "models": {"big": 4096, "small": None}}
    assert "context_length of big 4096, or of small –, or parallel 3, would fit" in "\n".join(
        shown(118, one, memory=memory)
    )


def test_processes_are_a_tree_and_starts_say_how_long_they_took() -> None:
    told = [{"pid": 10, "parent": 1, "name": "vllm", "state": "sleeping", "threads": 9, "cpu_s": 61.2, "rss_bytes": 1024**3, "command": "vllm serve", "started": NOW},
            {"pid": 11, "parent": 10, "name": "EngineCore", "state": "running", "threads": 40, "cpu_s": 600.0, "rss_bytes": 2 * 1024**3, "command": None, "started": NOW}]  # fmt: skip
    title, first, second = [text_of(line) for line in serviceview.processes({"processes": told}, NOW)]
    assert (
        title == "PROCESSES"
        and first.split()[:2] == ["10", "vllm"]
        and second.index("EngineCore") == first.index("vllm") + 2
    )
    assert "1.0 GiB  9 threads  61 s CPU  sleeping" in first and serviceview.processes(None, NOW) == []

    def became(to: str, at: float, **changes: Any) -> Any:
        return event("chat", "state", at, **{"from": "PENDING", "to": to, **changes})

    events = [
        became("STARTING", NOW - 100),
        became("READY", NOW - 6),
        became("STARTING", NOW - 4),
        became("BACKOFF", NOW - 2, reason="exit 1"),
    ]
    lines = [text_of(line) for line in serviceview.starts(events, "chat", NOW, 60)]
    assert (
        lines[0] == "STARTS"
        and lines[1].endswith("BACKOFF after 2s  exit 1")
        and lines[2].endswith("ready after 1m34s")
    )


def test_a_start_tells_how_long_each_of_its_phases_was() -> None:
    phases = [{"phase": "loads weights", "seconds": 81.4}, {"phase": "captures CUDA graphs", "seconds": 9.04}]
    events: list[Any] = [
        event("chat", "state", NOW - 100, **{"from": "PENDING", "to": "STARTING"}),
        event("chat", "state", NOW - 6, **{"from": "STARTING", "to": "READY", "phases": phases}),
    ]
    lines = [text_of(line) for line in serviceview.starts(events, "chat", NOW, 76)]
    assert lines[1].endswith("ready after 1m34s") and lines[2] == "    loads weights 1m21s, captures CUDA graphs 9.0s"
    narrow = [text_of(line) for line in serviceview.starts(events, "chat", NOW, 36)]
    assert all(len(line) <= 36 for line in narrow) and len(narrow) == 4


def test_the_last_look_is_told_with_its_answer_age_and_failures_in_a_row() -> None:
    def told(**changes: Any) -> str:
        seen = {"path": "/health", "status": 200, "error": None, "time": NOW - 3, "failures": 0, **changes}
        return "".join(text_of(line) for line in serviceview.probe(service("chat", probe=seen), NOW))  # type: ignore[arg-type]

    assert told() == told(time=NOW - 8) == "PROBE /health answers 200  less than 15s ago  0 failed in a row"
    assert told(status=503, failures=4) == "PROBE /health answers 503  less than 15s ago  4 failed in a row"
    silent = told(status=None, error="ReadTimeout", time=NOW - 62, failures=2)
    assert silent == "PROBE /health no answer: ReadTimeout  1m00s ago  2 failed in a row"
    of_none: Any = service("chat", probe=None)
    assert text_of(serviceview.probe(of_none, NOW)[0]) == "PROBE –"


def facts(pilot: Pilot[None]) -> str:
    """All of it, shown or not."""
    return str(pilot.app.screen.query_one("#facts", Static).content)


def test_ages_of_minutes_stay_as_they_are_between_minutes() -> None:
    one: Any = service("chat", since=NOW - 125, conditions=[{"id": "a", "text": "b", "since": NOW - 65}])
    first, later = settled(one, NOW), settled(one, NOW + 40)
    assert NOW - first["since"] == NOW + 40 - later["since"] == 120
    assert NOW - (first["conditions"][0]["since"] or 0) == 60
    young: Any = service("chat", since=NOW - 5)
    assert settled(young, NOW)["since"] == NOW - 5


@pytest.mark.parametrize(("size", "lang"), PLACES, ids=str)
def test_the_page_shows_all_of_it(stand_in: StandIn, size: tuple[int, int], lang: str) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("7")
        await until(pilot, lambda s: "chat" in s and "NAME" not in s, "the page")
        seen = await until(pilot, lambda s: "warning" in facts(pilot), "the plan, below what is shown")
        for _ in range(30):
            await pilot.press("pagedown")
            seen += await until(pilot, lambda s: "q detach" in s, "a part of it")
            if "warning" in seen:
                break
        assert seen.isascii() or lang == "C.UTF-8"
        wanted = (
            "condition not-as-asked",
            "drift",
            "ASKED AGAINST GOT",
            "--ctx-size 16384",
            "CUDA_VISIBLE_DEVICES",
            ORIGIN,
        )
        assert not [words for words in wanted if words not in seen.replace("\n", "") and size[0] > 40]
        assert "ASKED AGAINST GOT" in seen and "--ctx-size 16384" in seen and "warning" in seen

    drive(stand_in, size, play, lang)


def test_the_next_service_and_a_plan_that_is_refused(stand_in: StandIn) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("down", "7")
        await until(pilot, lambda s: "embed" in s and "no service 'embed'" in s, "why there is no plan")
        stand_in.plans["embed"] = plan("embed", cwd="/elsewhere")
        await until(pilot, lambda s: "ARGV" in s and "no service" not in s, "it is asked for again")
        await pilot.press("right_square_bracket")
        await until(pilot, lambda s: "chat" in s and "drift" in s and "ARGV" in s, "the next one")
        await pilot.press("r")
        await until(pilot, lambda s: "restart chat?" in s and "What drifted is applied" in s, "the question")
        await pilot.press("n")
        stand_in.say(service("embed"))
        await until(pilot, lambda s: "chat is not in the spec any more" in s, "it went away")
        await pilot.press("1")
        await until(pilot, lambda s: "LOG embed" in s, "the overview")

    drive(stand_in, (80, 60), play)
    assert stand_in.orders == []
