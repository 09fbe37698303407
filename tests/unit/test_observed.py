"""Figures of recorded requests, and each observed rule: where it fires, where not, and on how many requests it rests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from support import planned
from support.boxes import load
from support.findings import BOX, definitions, llama, ollama, vllm

from llmsupervisor.link.history import UNFINISHED
from llmsupervisor.plan.lint import RULES, Finding, fixed, lint
from llmsupervisor.plan.observed import BROKEN, Busy, Seen
from llmsupervisor.plan.plan import plan

Json = dict[str, Any]


def found(text: str, *seen: Seen, service: str = "chat") -> list[Finding]:
    spec, loaded = load(text, definitions())
    return lint(plan(spec, definitions(), BOX, loaded.origins), BOX, loaded, {service: seen})


SEEN = Seen(
    None,
    1000,
    sized=1000,
    answers=1000,
    longest=1500,
    p99=1400,
    p999=1450,
    prompt_p95=900,
    at_once_p95=4,
    at_once_max=4,
)
"""A service in order: four places, contexts of 2048."""


GONE = object()
"""The change takes the key out."""


class Case(NamedTuple):
    text: str
    fires: Json
    silent: list[Json]
    words: str
    change: object = None
    """Of the last key of its edit; None: it has none."""


CASES = {
    "R61": Case(
        llama(),
        {"cut": 37},
        [{"cut": 1}, {"cut": 2}, {"cut": 199, "answers": 199}],
        "37 of 1000 (3.7 %) answers ended because context_length = 2048",
        4096,
    ),
    "R62": Case(
        llama(),
        {"refused": 10, "longest": 9000, "p999": 8000},
        [{"refused": 2}, {"refused": 10, "sized": 100}],
        "10 of 1010 (1.0 %) requests did not fit",
        8704,
    ),
    "R63": Case(
        llama(context_length=8192),
        {},
        [{"longest": 3900}, {"sized": 499}, {"cut": 1}, {"refused": 1}, {"longest": None}],
        "the longest of 1000 requests asked for 1500 tokens (99 %: 1400), and KV cache for 4 × 8192",
        1792,
    ),
    "R64": Case(
        llama(),
        {"limited": 100, "limit_p50": 64},
        [{"limited": 20}, {"limited": 100, "answers": 150}],
        "100 of 1000 (10.0 %) answers ended at their client's max_tokens",
    ),
    "R68": Case(
        vllm("chat", parallel=16),
        {"preemptions": 30},
        [{"preemptions": 10}, {"preemptions": 30, "requests": 199}, {}],
        "30 times a request was thrown out of the KV cache and begun anew, at 1000 requests",
        12,
    ),
    "R81": Case(
        llama(draft="/m/d.gguf"),
        {"drafted": 5000, "accepted": 1500},
        [
            {"drafted": 5000, "accepted": 2000},
            {"drafted": 1999, "accepted": 0},
            {"drafted": 5000},
            {"drafted": 5000, "accepted": 0, "requests": 9},
        ],
        "1500 of 5000 (30.0 %) tokens that were guessed ahead were right",
        GONE,
    ),
    "R69": Case(
        vllm("chat"),
        {"busy": Busy(60, 0.95, 0.0)},
        [{"busy": Busy(59, 0.95, 0.0)}, {"busy": Busy(60, 0.9, 0.0)}, {"busy": Busy(60, None, 0.0)}],
        "for 5 % of 60 minutes with requests the KV cache was 95% full or more",
    ),
    "R70": Case(
        vllm("chat"),
        {"busy": Busy(90, 0.2, 0.5)},
        [
            {"busy": Busy(59, 0.2, 0.5)},
            {"busy": Busy(90, 0.3, 0.5)},
            {"busy": Busy(90, 0.2, 0.2)},
            {"busy": Busy(90, None, 0.5)},
        ],
        "requests waited in the engine for 50% of 90 minutes with requests, and the KV cache was at most 20% full",
        8,
    ),
    "R71": Case(
        llama(),
        {"waited": 80, "queue_p95_ms": 1500.0, "at_once_p95": 7, "places": {4: 900, 6: 60, 9: 40}},
        [{"waited": 50}, {"waited": 80, "requests": 100}],
        "80 of 1000 (8.0 %) requests waited 1 s or more for one of 4 places (95 %: 1.5s)",
        7,
    ),
    "R72": Case(
        llama(prefix_caching=False),
        {"prompts": 300, "repeated": 0.6, "cached": 0.1},
        [
            {"prompts": 199, "repeated": 0.6, "cached": 0.1},
            {"prompts": 300, "repeated": 0.6, "cached": 0.5},
            {"prompts": 300},
        ],
        "60% of the blocks of 300 prompts had come before, and 10% of their tokens",
        True,
    ),
    "R73": Case(
        llama(keep_alive="5m"),
        {"loads": 30, "load_p50_ms": 9000.0, "colds": {300.0: 30, 1800.0: 12, 7200.0: 4, 86400.0: 0}},
        [{"loads": 10}, {"loads": 30, "requests": 199}],
        "30 of 1000 (3.0 %) requests waited for a load",
        "2h",
    ),
    "R80": Case(
        vllm("chat", batch=8192),
        {"itl_p50_ms": 20.0, "itl_p95_ms": 150.0, "prompt_p95": 9000},
        [
            {"itl_p50_ms": 20.0, "itl_p95_ms": 90.0, "prompt_p95": 9000},
            {"itl_p50_ms": 20.0, "itl_p95_ms": 150.0, "prompt_p95": 900},
            {"answers": 100, "itl_p50_ms": 20.0, "itl_p95_ms": 150.0, "prompt_p95": 9000},
        ],
        "come 20 ms apart, and 150 ms",
        2048,
    ),
    "R85": Case(
        llama(parallel=8),
        {"at_once_max": 3},
        [{"at_once_max": 5}, {"at_once_max": 3, "requests": 499}, {"at_once_max": None}, {"at_once_max": 0}],
        "never more than 3 of 1000 requests were there at once, and there are 8 places",
        3,
    ),
    "R98": Case(
        llama(),
        {"given_up": 5, "at_once_p95": 30},
        [{"given_up": 1}, {"given_up": 5, "requests": 100}],
        "5 of 1000 (0.5 %) requests waited until the gateway's queue_deadline",
        8,
    ),
    "R103": Case(
        llama(),
        {"runaway": 5, "answer_p95": 300, "cut": 0},
        [{"runaway": 2, "answer_p95": 300}, {"runaway": 5}, {"runaway": 50, "answer_p95": 300, "answers": 199}],
        "5 of 1000 (0.5 %) answers without max_tokens went on",
    ),
    "R99": Case(
        llama(),
        {"lost": 4},
        [{"lost": 2}, {"lost": 4, "requests": 100}],
        "4 of 1000 (0.4 %) requests ended because the engine did",
    ),
}


def test_every_observed_rule_has_its_case() -> None:
    assert set(CASES) == {rule.id for rule in RULES if rule.observed}
    assert frozenset(UNFINISHED) == BROKEN


@pytest.mark.parametrize("rule", CASES)
def test_it_fires_with_the_numbers_and_its_change_can_be_made(rule: str) -> None:
    case = CASES[rule]
    (finding,) = [f for f in found(case.text, replace(SEEN, **case.fires)) if f.rule == rule]
    assert case.words in finding.says and finding.requests and finding.requests >= 200
    assert finding.evidence and finding.effect and finding.change and finding.source
    changed = fixed(case.text, finding)
    if case.change is None:
        assert changed is None and not finding.changes
    else:
        assert changed is not None and finding.changes[-1].new == (None if case.change is GONE else case.change)
        spec, _ = load(changed, definitions())
        assert (spec.services["chat"].model_dump(mode="json")[finding.key] is None) == (case.change is GONE)


@pytest.mark.parametrize(
    ("rule", "seen"), [(rule, seen) for rule, case in CASES.items() for seen in case.silent], ids=str
)
def test_it_is_silent(rule: str, seen: Json) -> None:
    assert rule not in {f.rule for f in found(CASES[rule].text, replace(SEEN, **seen))}


def test_a_service_in_order_and_one_without_requests_are_told_nothing() -> None:
    text = llama(keep_alive="10m")
    assert found(text, SEEN) == found(text) == []
    assert not {f.rule[0] for f in found(llama(keep_alive="forever"), replace(SEEN, loads=500))}, (
        "nothing that keep_alive could mend"
    )


def test_what_needs_judgement_is_left_to_people() -> None:
    (finding,) = found(llama(context_length=8192), SEEN)
    assert finding.rule == "R63" and finding.changes and not finding.fixable
    (finding,) = [
        f
        for f in found(llama(prefix_caching=False), replace(SEEN, prompts=300, repeated=0.9, cached=0.0))
        if f.rule == "R72"
    ]
    assert finding.fixable


def test_of_an_ollama_each_model_is_told_apart() -> None:
    models = [{"name": "a", "context_length": 2048, "keep_alive": "5m"}, {"name": "b", "context_length": 8192}]
    text = ollama("chat", models=models)
    many = found(text, replace(SEEN, model="a", loads=30, colds={}), replace(SEEN, model="b"))
    assert [(f.id, f.changes[0].key) for f in many] == [("R73:chat", "models"), ("R63:chat", "models")]
    assert "requests of b asked for" in many[1].says
    changed = fixed(text, *many)
    assert changed is not None
    a, b = load(changed, definitions())[0].services["chat"].models or ()
    assert (a.keep_alive, a.context_length, b.context_length) == (300.0 * 6, 2048, 1792)


def test_who_waited_in_vain_for_a_load_needs_no_more_places() -> None:
    text = '[gateway]\nqueue_deadline = "20s"\n' + llama(start="demand")
    (finding,) = found(text, replace(SEEN, given_up=5, given_up_loading=4, load_p50_ms=30_000.0, at_once_p95=30))
    assert finding.rule == "R98" and finding.key == "start" and not finding.changes
    assert "queue_deadline of 20" in finding.says and "most of them for a load" in finding.says


def test_guesses_without_a_draft_model() -> None:
    text = vllm("chat", extra_args=["--speculative-config", "{}"])
    (finding,) = found(text, replace(SEEN, drafted=5000, accepted=100))
    assert (finding.rule, finding.key, finding.changes) == ("R81", "extra_args", ())
    (alone,) = found(vllm("chat", parallel=1), replace(SEEN, preemptions=50))
    assert (alone.rule, alone.changes) == ("R68", ())


@pytest.mark.parametrize(
    ("limit", "wish", "words"),
    [
        (8192, 131072, "context_length = 131072"),
        (131072, None, "trained for 131072 tokens"),
        (2048, 9728, "context_length = 9728"),
    ],
)
def test_no_context_is_longer_than_what_the_model_was_trained_for(limit: int, wish: int | None, words: str) -> None:
    longest = 9000 if wish == 9728 else 200_000
    seen = replace(SEEN, refused=10, longest=longest, p999=longest)
    for text, facts in (
        (planned.llama(context_length=limit), {}),
        (vllm("chat", context_length=limit), {"folders": {"/m/hf": planned.hf_llama(max_position_embeddings=131072)}}),
    ):
        made, known = planned.box(text, **facts)
        (finding,) = [f for f in lint(made, known, seen={"chat": (seen,)}) if f.rule == "R62"]
        assert words in finding.change and [turn.new for turn in finding.changes] == ([wish] if wish else [])


def test_an_ignored_one_is_not_told() -> None:
    text = llama(context_length=8192).replace("8192", "8192   # llmsupervisor: ignore R63 long ones come in winter")
    assert [f.ignored for f in found(text, SEEN)] == ["long ones come in winter"]


def test_waiting_that_no_place_would_end() -> None:
    (finding,) = found(llama(), replace(SEEN, waited=80, at_once_p95=4))
    assert finding.rule == "R71" and not finding.changes and "wait for something else" in finding.change


@pytest.mark.parametrize(
    ("text", "key"),
    [(llama(), "cache_ram"), (vllm("chat"), "kv_tokens"), (llama(prefix_caching=False), "prefix_caching")],
)
def test_a_cache_that_misses_names_its_knob(text: str, key: str) -> None:
    hits = [f for f in found(text, replace(SEEN, prompts=300, repeated=0.9, cached=0.0)) if f.rule == "R72"]
    assert [f.key for f in hits] == [key]


@pytest.mark.parametrize(
    ("colds", "text"), [({1800.0: 0}, "30m"), ({k: 50 for k in (1800.0, 7200.0, 86400.0)}, "forever")]
)
def test_keep_alive_is_as_long_as_the_pauses(colds: Any, text: str) -> None:
    (finding,) = found(llama(keep_alive="90s"), replace(SEEN, loads=30, colds={300.0: 50} | colds))
    assert "keep_alive = 90s" in finding.says and finding.changes[0].new == text and not finding.changes[0].restarts
