"""What recorded requests say of one service: the figures that observed rules look at. Pure."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmsupervisor.plan.size import quantile

Record = Mapping[str, Any]
"""One of `requests --json`."""
SAMPLE = 20_000
"""Requests of a service, the newest, that are looked at."""
SOME = 200
"""Requests below which no share of them is believed."""
WAITED_MS = 1000.0
"""In the queue: longer than a person overlooks."""
KEEP = (300.0, 1800.0, 7200.0, 86400.0)
"""Seconds: what `keep_alive` is chosen from, before `forever`."""
ENDLESS = frozenset({"embeddings", "rerank"})
"""Apis whose answer is no text."""
BROKEN = frozenset({"client_gone", "queue_timeout", "rejected", "engine_exit", "timeout", "error", "incomplete"})
"""`finish_reason` of requests without a regular end."""
RUNAWAY = 10
"""Times the length of the usual long answer, beyond which one that nobody limited has run away."""
LIMITED = frozenset({"length", "max_tokens", "max_output_tokens"})


@dataclass(frozen=True, slots=True)
class Busy:
    """Of the time in which requests ran, by the engine's figures of each second."""

    minutes: int
    kv_p95: float | None
    """Fill of the KV cache that 95 % of that time did not pass."""
    waiting: float
    """Share of it in which requests waited inside the engine."""


def busy(step_s: float, running: Sequence[Any], kv: Sequence[Any], waiting: Sequence[Any]) -> Busy | None:
    """Each a list of as many buckets; None inside: not known."""
    seen = [i for i, each in enumerate(running) if each]
    if not seen:
        return None
    fills = [round(kv[i], 2) for i in seen if i < len(kv) and kv[i] is not None]
    waits = sum(bool(waiting[i]) for i in seen if i < len(waiting))
    return Busy(int(len(seen) * step_s // 60), _quantile(fills, 0.95), waits / len(seen))


@dataclass(frozen=True, slots=True)
class Seen:
    """Of one model of a service, since its spec was last changed. None: no request told it."""

    model: str | None
    """None: the service has one model."""
    requests: int
    sized: int = 0
    """Served, and it is known how long they are."""
    answers: int = 0
    """Generations that ended by themselves, by `max_tokens` or by a full context."""
    cut: int = 0
    """Answers that ended because the context was full."""
    refused: int = 0
    """Did not fit the context, and were not sent to the engine."""
    limited: int = 0
    """Answers that ended at the client's `max_tokens`."""
    limit_p50: int | None = None
    """That `max_tokens`."""
    answer_p95: int | None = None
    """Tokens of answers that ended by themselves."""
    runaway: int = 0
    """Answers without `max_tokens` that ended only because the context was full, RUNAWAY times as long as those."""
    longest: int | None = None
    """Tokens: prompt, and output or `max_tokens`, whichever is more; refused ones too."""
    p99: int | None = None
    p999: int | None = None
    prompt_p95: int | None = None
    waited: int = 0
    """Queued for WAITED_MS or more, for a turn and not for a load."""
    queue_p95_ms: float | None = None
    given_up: int = 0
    """Left the queue at its deadline."""
    given_up_loading: int = 0
    """Of them, those for whom it was most of the wait that the model was loaded."""
    lost: int = 0
    """The engine ended under them."""
    loads: int = 0
    """Waited for a load."""
    load_p50_ms: float | None = None
    colds: Mapping[float, int] | None = None
    """Of KEEP, how many requests come after a longer pause; None: no pause was seen."""
    at_once_p95: int | None = None
    """Requests in the queue and at the engine at each arrival, that one included."""
    at_once_max: int | None = None
    places: Mapping[int, int] | None = None
    """How often each of these numbers was seen."""
    prompts: int = 0
    """Requests of which prompt and cached tokens are known, and hashes of the prompt."""
    repeated: float | None = None
    """Share of the blocks of their prompts that had come before, in the same order from the beginning."""
    cached: float | None = None
    """Share of their prompt tokens that the engine read from its cache."""
    itl_p50_ms: float | None = None
    itl_p95_ms: float | None = None
    preemptions: int | None = None
    """Requests that the engine threw out and began anew, since it started; this and what follows is the engine's own count."""
    drafted: int | None = None
    """Tokens that were guessed ahead, since it started."""
    accepted: int | None = None
    """Of them, those that were right."""
    busy: Busy | None = None
    """None: no figures over time."""

    @property
    def asked(self) -> int:
        """Of known length, also those that did not fit."""
        return self.sized + self.refused


def observe(records: Sequence[Record], model: str | None = None) -> Seen:
    """`records` in the order of their arrival."""
    answers = [r for r in records if _answered(r)]
    limited = [r for r in answers if r["finish_reason"] in LIMITED and not r["truncated"] and r["max_tokens"]]
    refused = [r for r in records if _refused(r)]
    served = [*answers, *(r for r in records if r["api"] in ENDLESS and r["status"] < 400)]
    sized = [_need(r) for r in served if r["prompt_tokens"] is not None]
    needs = Counter([*sized, *map(_need, refused)])
    loads = [r["load_ms"] for r in records if r["load_ms"]]
    given_up = [r for r in records if r["finish_reason"] == "queue_timeout"]
    at_once = _at_once(records)
    usual = _quantile((r["completion_tokens"] for r in answers if r["finish_reason"] not in LIMITED), 0.95)
    repeated, cached, prompts = _prefixes(records)
    return Seen(
        model=model,
        requests=len(records),
        sized=len(sized),
        answers=len(answers),
        cut=sum(bool(r["truncated"]) for r in answers),
        refused=len(refused),
        limited=len(limited),
        limit_p50=_quantile((r["max_tokens"] for r in limited), 0.5),
        answer_p95=usual,
        runaway=sum(_ran_away(r, usual) for r in answers),
        longest=max(needs, default=None),
        p99=quantile(needs, 0.99) if needs else None,
        p999=quantile(needs, 0.999) if needs else None,
        prompt_p95=_quantile((r["prompt_tokens"] for r in answers), 0.95),
        waited=sum((r["queue_ms"] or 0) >= WAITED_MS for r in records),
        queue_p95_ms=_quantile((r["queue_ms"] for r in records), 0.95),
        given_up=len(given_up),
        given_up_loading=sum((r["load_ms"] or 0) > (r["queue_ms"] or 0) for r in given_up),
        lost=sum(r["finish_reason"] == "engine_exit" for r in records),
        loads=len(loads),
        load_p50_ms=_quantile(loads, 0.5),
        colds=_colds(records),
        at_once_p95=quantile(at_once, 0.95) if at_once else None,
        at_once_max=max(at_once, default=None),
        places=at_once or None,
        prompts=prompts,
        repeated=repeated,
        cached=cached,
        itl_p50_ms=_quantile((r["itl_p50_ms"] for r in answers), 0.5),
        itl_p95_ms=_quantile((r["itl_p95_ms"] for r in answers), 0.95),
    )


def _answered(record: Record) -> bool:
    reason = record["finish_reason"]
    return record["status"] < 400 and reason is not None and reason not in BROKEN and record["api"] not in ENDLESS


def _refused(record: Record) -> bool:
    """The gateway has a prompt counted where it may be too long; with a 400 it was."""
    return record["status"] == 400 and record["finish_reason"] == "rejected" and record["prompt_tokens"] is not None


def _ran_away(record: Record, usual: int | None) -> bool:
    unlimited = bool(record["truncated"]) and not record["max_tokens"]
    return unlimited and usual is not None and (record["completion_tokens"] or 0) > RUNAWAY * usual


def _need(record: Record) -> int:
    """Tokens of context that it asks for."""
    return int(record["prompt_tokens"]) + max(record["completion_tokens"] or 0, record["max_tokens"] or 0)


def _quantile(values: Iterable[Any], q: float) -> Any:
    return quantile(Counter(value for value in values if value is not None), q)


def _at_once(records: Sequence[Record]) -> Counter[int]:
    """Those refused at once take no place."""
    ends: list[float] = []
    found: Counter[int] = Counter()
    for record in records:
        if record["finish_reason"] == "rejected":
            continue
        while ends and ends[0] <= record["time"]:
            heapq.heappop(ends)
        heapq.heappush(ends, record["time"] + record["total_ms"] / 1000)
        found[len(ends)] += 1
    return found


def _colds(records: Sequence[Record]) -> dict[float, int] | None:
    end: float | None = None
    pauses: list[float] = []
    for record in records:
        if end is not None:
            pauses.append(record["time"] - end)
        end = max(end or 0.0, record["time"] + record["total_ms"] / 1000)
    return {keep: sum(pause > keep for pause in pauses) for keep in KEEP} if pauses else None


def _prefixes(records: Sequence[Record]) -> tuple[float | None, float | None, int]:
    """(repeated, cached, requests). A hash stands for its block and all before it."""
    known: set[str] = set()
    blocks = again = prompt = cached = count = 0
    for record in records:
        if not record["hash_ids"] or record["status"] >= 400:
            continue
        hashes = record["hash_ids"]
        if record["prompt_tokens"] and record["cached_tokens"] is not None:
            count += 1
            blocks += len(hashes)
            again += sum(each in known for each in hashes)
            prompt += record["prompt_tokens"]
            cached += record["cached_tokens"]
        known.update(hashes)
    return (again / blocks, cached / prompt, count) if blocks and prompt else (None, None, 0)
