"""The figures of recorded requests that observed rules look at, and how the daemon reads them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from support.boxes import load
from support.findings import BOX, definitions, llama, ollama
from support.records import record, write

from llmsupervisor.daemon import observed as daemon
from llmsupervisor.plan.observed import Busy, Seen, busy, observe
from llmsupervisor.plan.plan import plan


def records(n: int, **changes: Any) -> list[Any]:
    """One a minute; what is callable gets the number of the request."""
    return [
        record(
            str(i),
            **{"time": 1_790_000_000.0 + 60 * i} | {k: v(i) if callable(v) else v for k, v in changes.items()},
        )
        for i in range(n)
    ]


# --- figures --------------------------------------------------------------------------------------------------------


def test_what_is_counted_of_lengths_and_ends() -> None:
    said = [
        *records(90, prompt_tokens=lambda i: 100 + i, completion_tokens=10, max_tokens=50),
        *records(4, finish_reason="length", truncated=True, prompt_tokens=1900, completion_tokens=148, max_tokens=None),
        *records(3, finish_reason="length", completion_tokens=64, max_tokens=64),
        *records(2, status=400, finish_reason="rejected", prompt_tokens=5000, completion_tokens=None, max_tokens=96),
        *records(1, status=503, finish_reason="queue_timeout", prompt_tokens=None, completion_tokens=None, load_ms=9.0),
        *records(1, finish_reason="engine_exit"),
        *records(1, finish_reason="client_gone"),
        *records(1, api="embeddings", finish_reason=None, completion_tokens=None, max_tokens=None, prompt_tokens=7000),
    ]
    seen = observe(said)
    assert (seen.requests, seen.answers, seen.sized) == (103, 97, 98)
    assert (seen.cut, seen.limited, seen.limit_p50, seen.refused, seen.given_up, seen.lost) == (4, 3, 64, 2, 1, 1)
    assert seen.given_up_loading == 1
    assert (seen.longest, seen.p99, seen.prompt_p95) == (7000, 5096, 189)
    assert (seen.answer_p95, seen.runaway) == (10, 4), "148 tokens are over ten times 10, and nobody limited them"
    limited = records(4, finish_reason="length", truncated=True, completion_tokens=148, max_tokens=4000)
    assert observe([*records(90, completion_tokens=10), *limited]).runaway == 0
    assert observe([]) == Seen(None, 0)


def test_who_was_there_at_once_and_who_waited() -> None:
    said = [record(str(i), time=float(i), total_ms=2500.0, queue_ms=500.0 * i) for i in range(6)]
    seen = observe([*said, record("r", time=5.5, finish_reason="rejected", status=503)])
    assert seen.places == {1: 1, 2: 1, 3: 4} and (seen.at_once_p95, seen.at_once_max) == (3, 3)
    assert seen.waited == 4 and seen.queue_p95_ms == 2500.0


def test_pauses_are_from_the_last_end_to_the_next_beginning() -> None:
    times = [0.0, 10.0, 400.0, 3000.0]
    seen = observe([record(str(t), time=t, total_ms=60_000.0, load_ms=100.0 if t else 0.0) for t in times])
    assert seen.colds == {300.0: 2, 1800.0: 1, 7200.0: 0, 86400.0: 0}, (
        "330 s after the second one's end, 2540 s after the third's"
    )
    assert (seen.loads, seen.load_p50_ms) == (3, 100.0)
    assert observe(records(1)).colds is None


def test_beginnings_that_came_before() -> None:
    said = [
        record("1", hash_ids=["a", "b"], prompt_tokens=1000, cached_tokens=0),
        record("2", hash_ids=["a", "b", "c"], prompt_tokens=1500, cached_tokens=500),
        record("3", hash_ids=["a"], prompt_tokens=500, cached_tokens=None),
        record("4", hash_ids=["x"], prompt_tokens=500, status=503),
        record("5", hash_ids=["x", "a"], prompt_tokens=500, cached_tokens=0),
    ]
    seen = observe(said)
    assert seen.prompts == 3 and seen.repeated == 3 / 7 and seen.cached == 500 / 3000


def test_the_time_in_which_requests_ran() -> None:
    assert busy(60, [0, None, 2.0, 1.0], [0.9, 0.9, 0.5, None], [1.0, 1.0, 0.5, 0.0]) == Busy(2, 0.5, 0.5)
    assert busy(300, [1.0, 1.0], [], []) == Busy(10, None, 0.0)
    assert busy(60, [0, None], [1, 1], [1, 1]) is None and busy(60, [], [], []) is None


# --- reading --------------------------------------------------------------------------------------------------------


def test_only_requests_since_the_spec_was_changed_count(tmp_path: Path) -> None:
    db = tmp_path / "requests.db"
    spec, loaded = load(
        llama() + ollama(gpus=[1], models=[{"name": n, "context_length": 64} for n in "ab"]), definitions()
    )
    plans = plan(spec, definitions(), BOX, loaded.origins).services

    def look(since: float) -> Any:
        return asyncio.run(daemon.read(db, plans, dict.fromkeys(plans, since)))

    seen, reason = look(0.0)
    assert reason is not None and "no request is recorded" in reason and seen["chat"] == (Seen(None, 0),)
    of = ["a", "b", "many"]
    write(db, [*records(5), *records(6, service="many", model=lambda i: of[i % 3])])
    seen, reason = look(1_790_000_000.0 + 120)
    assert reason is None and seen["chat"][0].requests == 3
    assert {s.model: s.requests for s in look(0.0)[0]["many"]} == {"a": 4, "b": 2}, (
        "the service's own name is its first model"
    )
    db.write_text("no database")
    seen, reason = look(0.0)
    assert seen == {} and reason is not None and "cannot be read" in reason


def test_when_a_spec_was_changed_is_in_the_journal(tmp_path: Path) -> None:
    def event(time: float, why: str, *changes: tuple[str, str]) -> str:
        said = [{"service": s, "action": a, "why": ""} for s, a in changes]
        return json.dumps({"v": 1, "time": time, "service": None, "kind": "reload", "why": why, "changes": said})

    journal = tmp_path / "events.jsonl"
    assert asyncio.run(daemon.turned(journal)) == {}
    (tmp_path / "events.jsonl.1").write_text(event(1.0, "x changed", ("a", "restart"), ("b", "live")) + "\n")
    rows = [
        event(2.0, "started", ("a", "start")),
        event(3.0, "x changed", ("c", "start"), ("b", "stop")),
        '{"kind": "reload"}',
        "{",
    ]
    journal.write_text("\n".join(rows))
    assert asyncio.run(daemon.turned(journal)) == {"a": 1.0, "b": 1.0, "c": 3.0}
