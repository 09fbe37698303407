"""The pages of the spec and of advice: what would restart, what that cuts, and that nothing is applied unasked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from tui.driving import PLACES, drive, reach, until
from tui.samples import service
from tui.stand_in import StandIn

from llmsupervisor.cli.views import text_of
from llmsupervisor.tui import adviceview, specview

NOW = 1_790_000_000.0
CHAT: Any = service("chat", drift=["the engine's version was b6 at the start"])
CHANGE = {"service": "chat", "action": "restart", "why": "context_length 16384 → 12288"}
DIFF = [
    "--- applied",
    "+++ on disk",
    "@@ -3,2 +3,2 @@",
    " [services.chat]",
    "-context_length = 16384",
    "+context_length = 12288",
]
SPEC: Any = {
    "generation": 3,
    "changes": [CHANGE],
    "error": None,
    "findings": [],
    "path": "/etc/a.toml",
    "changed": NOW,
    "diff": DIFF,
}
FINDING: Any = {
    "id": "C13:chat", "rule": "C13", "name": "kv-f16", "severity": "warning", "service": "chat", "key": "kv_cache_type",
    "says": "the KV cache is left at f16", "change": 'kv_cache_type = "q8_0"', "effect": "half the memory of the KV cache free",
    "evidence": {"kv_cache_type": "f16"}, "source": "llama.cpp PR #7412", "requests": None, "fixable": True,
    "changes": [{"key": "kv_cache_type", "old": "f16", "new": "q8_0", "restarts": True}], "file": "/etc/a.toml", "line": 12, "ignored": None,
}  # fmt: skip
ADVICE = {"path": "/etc/a.toml", "sha256": "ab", "window_s": 604800.0, "reason": None, "findings": [
    {**FINDING, "id": "C20:embed", "service": "embed", "severity": "info", "says": "a word about embed", "changes": []}, FINDING]}  # fmt: skip
FIXED = {"path": "/etc/a.toml", "base": "ab", "sha256": "cd", "diff": "\n".join(DIFF), "changes": [CHANGE], "refusals": [],
         "findings": [], "generation": 3, "applied": False}  # fmt: skip
STATUS: Any = {"daemon": {"pid": 1, "spec": {"path": "/etc/a.toml", "generation": 3, "error": None}}}


def spec(**changes: Any) -> str:
    return "\n".join(map(text_of, specview.lines({**SPEC, **changes}, "", STATUS, [CHAT], NOW)))


def test_a_change_names_what_it_restarts_and_what_that_cuts() -> None:
    shown = spec()
    for words in ("CHANGED", "chat  restart", "context_length 16384 → 12288", "pid 4712 with 2 running, 1 waiting, – queued",
                  "-context_length = 16384", "+context_length = 12288", "DRIFT", "chat: the engine's version"):  # fmt: skip
        assert words in shown, words
    assert "--- applied" not in shown


def test_in_sync_invalid_and_unreadable_are_three_things() -> None:
    assert (
        "IN SYNC" in (same := spec(changes=[], diff=[])) and "no service is touched" in same and "the same text" in same
    )
    wrong = spec(error="a.toml:3: services.chat.parallel: must be over 0\na.toml:9: x", changes=[])
    assert "INVALID" in wrong and "a.toml:9" in wrong and "a applies" not in wrong
    assert "cannot be read" in spec(error="gone", changed=None, diff=None, changes=[])


def test_advice_is_told_with_its_knob_evidence_and_source() -> None:
    assert [f["id"] for f in adviceview.rows(ADVICE["findings"], "")] == ["C13:chat", "C20:embed"]
    assert [f["id"] for f in adviceview.rows(ADVICE["findings"], "EMBED word")] == ["C20:embed"]
    ignored = {**FINDING, "id": "x", "severity": "error", "ignored": "it is meant"}
    assert adviceview.rows([ignored, FINDING], "")[-1] is ignored
    shown = "\n".join(map(text_of, adviceview.finding_lines(FINDING)))
    for words in ('DO        kv_cache_type = "q8_0"', "EFFECT    half", "TURN      kv_cache_type  f16 → q8_0   restarts it",
                  "RESTS ON  the plan alone", "WHERE     /etc/a.toml:12", "PR #7412"):  # fmt: skip
        assert words in shown, words


@pytest.fixture
def stand_in(short_folder: Path) -> Iterator[StandIn]:
    daemon = StandIn(short_folder / "s", [CHAT, service("embed")])
    daemon.answers = {
        "spec": SPEC,
        "advice": ADVICE,
        "fix": FIXED,
        "reload": {"generation": 4, "changes": [CHANGE], "error": None},
    }
    yield daemon
    daemon.die()


@pytest.mark.parametrize(("size", "lang"), PLACES, ids=str)
def test_the_file_is_compared_and_applied_after_a_question(stand_in: StandIn, size: tuple[int, int], lang: str) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("6")
        shown = await until(pilot, lambda s: "CHANGED" in s, "that it differs")
        assert shown.isascii() or lang == "C.UTF-8"
        await pilot.press("a")
        shown = await until(pilot, lambda s: "apply the spec?" in s, "the question")
        assert "restart" in shown and "reload" not in stand_in.asked
        await pilot.press("n", "a")
        await until(pilot, lambda s: "apply the spec?" in s, "the question again")
        assert "reload" not in stand_in.asked
        await pilot.press("y")
        await until(pilot, lambda s: "reload: generation 4: chat" in s, "what came of it")

    drive(stand_in, size, play, lang)


@pytest.mark.parametrize(("size", "lang"), PLACES, ids=str)
def test_advice_is_listed_explained_staged_and_applied_after_a_question(
    stand_in: StandIn, size: tuple[int, int], lang: str
) -> None:
    async def play(pilot: Pilot[None]) -> None:
        await pilot.press("8")
        shown = await until(pilot, lambda s: "2 of 2" in s and "the KV cache is" in s, "the findings")
        assert shown.isascii() or lang == "C.UTF-8"
        await pilot.press("enter")
        await until(pilot, lambda s: "C13 kv-f16" in s, "one of them")
        await reach(pilot, "G", lambda s: "context_length = 12288" in s, "the staged change")
        await pilot.press("a")
        await until(pilot, lambda s: "write this into" in s, "the question")
        assert stand_in.asked.count("fix") == 1
        await pilot.press("y")
        await until(pilot, lambda s: "fix C13:chat: generation 3" in s, "what came of it")
        await pilot.press("escape", "down", "enter")
        await until(pilot, lambda s: "C13 kv-f16" in s and "info" in s, "the other one")
        await pilot.press("a", "G")
        shown = await until(pilot, lambda s: "can be staged" in s, "that there is nothing to apply")
        assert "write this" not in shown

    drive(stand_in, size, play, lang)


def test_an_older_daemon_is_told_so(stand_in: StandIn) -> None:
    stand_in.answers = {}

    async def play(pilot: Pilot[None]) -> None:
        for page, call in (("6", "spec"), ("8", "advice")):
            await pilot.press(page)
            await until(pilot, lambda s, call=call: f"no call '{call}'" in s, "why there is nothing")

    drive(stand_in, (80, 24), play)
