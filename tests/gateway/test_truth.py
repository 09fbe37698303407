"""What records say, against what a client sees and what the engine says; and that there is one for every request."""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from gateway.box import Answer, Box, Json
from gateway.standalone import post, reset
from support.daemon import Daemon
from support.http import get_json
from support.spec import served
from support.wait import undisturbed, wait_until

SHARE, SLACK = 0.2, 25.0
"""By which figures may differ: of the greater one, and milliseconds (this process shares its cores with the engine)."""
WORDS = ["alpha", "beta", "gamma", "delta", "river", "stone", "cloud", "seven"]
NEVER_CACHED = {"cache_prompt": False, "ignore_eos": True, "temperature": 0, "stream": True}


@pytest.fixture
def box(daemon: Daemon) -> Iterator[Box]:
    yield Box(daemon)
    if daemon.process and daemon.process.poll() is None:
        daemon.down()


@dataclass
class Seen:
    """Milliseconds of one stream, by its client's clock; `timings`: the engine's own words."""

    ttft: float
    decode: float
    total: float
    timings: Json


def watch(box: Box, words: int, tokens: int, mark: str) -> Seen:
    text = " ".join(random.Random(mark).choices(WORDS, k=words))
    body = {"model": "chat", "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "user": mark}
    began = time.monotonic()
    stamps: list[float] = []
    timings: Json = {}
    with Answer(box.listen, body | NEVER_CACHED) as answer:
        while line := answer.response.readline():
            if line.startswith(b"data: {"):
                said = json.loads(line[6:])
                timings = said.get("timings", timings)
                if said["choices"] and said["choices"][0]["delta"].get("content"):
                    stamps.append(time.monotonic())
    ended = time.monotonic()
    return Seen((stamps[0] - began) * 1000, (stamps[-1] - stamps[0]) * 1000, (ended - began) * 1000, timings)


def close(a: float, b: float) -> bool:
    return abs(a - b) <= max(SHARE * max(a, b), SLACK)


def agree(record: Json, seen: Seen) -> None:
    told = f"{record}\n{seen}"
    assert record["status"] == 200 and record["stream"] and record["finish_reason"] == "length", told
    assert {"both"}.isdisjoint(record["sources"].values()), told
    assert record["sources"]["prefill_ms"] == record["sources"]["decode_ms"] == "engine", told
    assert record["prefill_ms"] == pytest.approx(seen.timings["prompt_ms"], abs=0.01), told
    assert record["decode_ms"] == pytest.approx(seen.timings["predicted_ms"], abs=0.01), told
    assert record["prompt_tokens"] == seen.timings["prompt_n"] + seen.timings["cache_n"], told
    assert record["completion_tokens"] == seen.timings["predicted_n"], told
    assert close(record["ttft_ms"], seen.ttft) and close(record["decode_ms"], seen.decode), told
    assert close(record["total_ms"], seen.total), told
    parts = sum(
        record[name] for name in ("queue_ms", "load_ms", "engine_queue_ms", "prefill_ms", "decode_ms", "other_ms")
    )
    assert parts == pytest.approx(record["total_ms"], rel=0.02, abs=5), told


def undelayed(records: list[Json]) -> None:
    """Clients that take what comes at once: less than 5 % of their time belongs to nobody. In the median: of 16 at once on
    two cores, beside their engine, a single one may be kept from its chunk for longer."""
    shares = sorted(record["other_ms"] / record["total_ms"] for record in records)
    print(f"{len(shares)} streams: other_ms {100 * statistics.median(shares):.2f} %, at most {100 * shares[-1]:.2f} %")
    assert statistics.median(shares) < 0.05, shares


def by_mark(box: Box, marks: list[str]) -> list[Json]:
    wait_until(lambda: {*marks} <= {r["session_id"] for r in box.records()}, 10, "the records")
    found = {record["session_id"]: record for record in box.records()}
    return [found[mark] for mark in marks]


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_records_of_a_real_engine(box: Box, llama_server: Path, model: Path) -> None:
    """1, 4 and 16 streams; a wait in the queue; a long prompt."""
    box.write({"chat": served(llama_server, model, context_length=1024, parallel=16)})
    box.daemon.up()
    box.daemon.wait_state("chat", "READY", 240)
    box.ready()
    watch(box, 5, 2, "warm")
    turn = itertools.count()

    def beside_each_other(streams: int) -> None:
        n = next(turn)
        marks = [f"{n}-{streams}-{i}" for i in range(streams)]
        with ThreadPoolExecutor(streams) as pool:
            seen = list(pool.map(lambda mark: watch(box, 30, 24, mark), marks))
        records = by_mark(box, marks)
        for record, each in zip(records, seen, strict=True):
            agree(record, each)
            assert record["queue_ms"] < 50, record
        undelayed(records)

    for streams in (1, 4, 16):
        undisturbed(partial(beside_each_other, streams))

    def long() -> None:
        mark = f"{next(turn)}-long"
        seen = watch(box, 700, 4, mark)
        (record,) = by_mark(box, [mark])
        agree(record, seen)
        assert record["prefill_ms"] > 0.7 * record["ttft_ms"] and record["prompt_tokens"] > 700
        assert record["other_ms"] < 0.05 * record["total_ms"], record

    undisturbed(long)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("streams", [1, 4])
def test_two_seconds_of_prefill_are_told_as_prefill(box: Box, llama_server: Path, model: Path, streams: int) -> None:
    """By real prompts, of so many words as take that long here. Those of several streams are computed beside each other, or
    one after the other: it is the engine that says which part of the time until the first word was its own queue."""
    box.write({"chat": served(llama_server, model, context_length=8192, parallel=streams)})
    box.daemon.up()
    box.daemon.wait_state("chat", "READY", 240)
    box.ready()
    watch(box, 5, 2, "warm")
    turn = itertools.count()

    def prefills() -> None:
        n = next(turn)
        first = watch(box, 400, 2, f"{n}-first")
        words = min(6000, int(400 * 4000 / first.timings["prompt_ms"] / streams))
        marks = [f"{n}-long-{i}" for i in range(streams)]
        with ThreadPoolExecutor(streams) as pool:
            seen = list(pool.map(lambda mark: watch(box, words, 16, mark), marks))
        records = by_mark(box, marks)
        for record, each in zip(records, seen, strict=True):
            agree(record, each)
            told = f"{record}\n{each}"
            assert record["queue_ms"] < 50 and close(record["engine_queue_ms"] + record["prefill_ms"], each.ttft), told
        assert max(record["engine_queue_ms"] + record["prefill_ms"] for record in records) > 2000, records
        if streams == 1:
            assert records[0]["prefill_ms"] > 2000 and records[0]["engine_queue_ms"] < 100, records
        undelayed(records)

    undisturbed(prefills)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_wait_is_told_as_a_wait(box: Box, llama_server: Path, model: Path) -> None:
    """Two seconds in the queue are no time of the engine."""
    box.write({"chat": served(llama_server, model, context_length=1024, parallel=1)})
    box.daemon.up()
    box.daemon.wait_state("chat", "READY", 240)
    box.ready()
    turn = itertools.count()

    def waits() -> None:
        mark = f"{next(turn)}-second"
        with ThreadPoolExecutor(1) as pool:
            with box.stream(900):
                waiting = pool.submit(watch, box, 20, 8, mark)
                time.sleep(2)
            seen = waiting.result()
        (record,) = by_mark(box, [mark])
        agree(record, seen)
        assert 1900 < record["queue_ms"] < seen.ttft and record["engine_queue_ms"] < 500
        assert close(record["queue_ms"], seen.ttft - record["prefill_ms"] - record["engine_queue_ms"])
        assert record["other_ms"] < 0.05 * record["total_ms"]

    undisturbed(waits)


# --- one for each -------------------------------------------------------------------------------------------------


def one(box: Box, i: int) -> str:
    """One request of the mix; a third of them is left at a random point. Says what became of it."""
    rng = random.Random(i)
    body: Json = {
        "messages": [{"role": "user", "content": "x " * rng.randrange(1, 200)}],
        "max_tokens": rng.randrange(1, 40),
    }
    body |= {"model": rng.choice(["chat", "chat", "smollm2"]), "stream": rng.random() < 0.6, "user": f"u{i}"}
    if rng.random() < 0.1:
        body |= {"model": "nobody"}
    host, _, port = box.listen.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as sock:
        sock.sendall(post(body, headers="Connection: close\r\n"))
        if i % 3 == 0:
            if (wait := rng.random() * 0.2) > 0.05:
                time.sleep(wait)
                sock.settimeout(0.01)
                try:
                    sock.recv(200)
                    reset(sock)
                except TimeoutError:
                    pass
            return "left"
        data = b""
        while piece := sock.recv(65536):
            data += piece
    return data.split(b" ", 2)[1].decode()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_requests_are_a_thousand_records(box: Box) -> None:
    """And nothing of them is left: no lease, no slot, no connection."""
    box.write({"chat": box.service(token_ms=2) | {"parallel": 4}})
    box.daemon.up()
    box.ready()
    one(box, 1)
    wait_until(lambda: len(box.records()) == 1, 10, "the first record")
    gateway = box.gateway()["pid"]
    before = len(os.listdir(f"/proc/{gateway}/fd"))
    with ThreadPoolExecutor(24) as pool:
        ends = Counter(pool.map(lambda i: one(box, i), range(1000, 1999)))
    assert set(ends) == {"left", "200", "404"} and ends["left"] > 300, ends
    records = box.records(1000, 60)
    time.sleep(0.5)
    assert len(records) == len(box.records()) == 1000
    assert len({record["id"] for record in records}) == 1000
    assert len({record["session_id"] for record in records if record["session_id"]}) in (999, 1000)
    reasons = Counter(record["finish_reason"] for record in records)
    regular = [record for record in records if record["finish_reason"] in ("length", "stop")]
    assert len(regular) >= ends["200"] and reasons["rejected"] >= ends["404"]
    assert sum(reasons.values()) - len(regular) - reasons["rejected"] == reasons["client_gone"] <= ends["left"]
    assert all(record["completion_tokens"] for record in regular)
    wait_until(lambda: not box.leases(), 15, lambda: f"leases {box.leases()}")
    wait_until(lambda: box.running() == 0, 5, "an idle engine")
    slots = f"{box.daemon.service('chat')['endpoint']}/slots"
    assert not any(slot["is_processing"] for slot in get_json(slots, box.daemon.key("chat")))
    wait_until(lambda: len(os.listdir(f"/proc/{gateway}/fd")) <= before, 10, f"{before} descriptors")
    assert box.gateway()["pid"] == gateway
