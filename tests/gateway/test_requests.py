"""`llmsupervisor requests`: tables, scripts, a summary and traces of what was recorded."""

from __future__ import annotations

import http.client
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from gateway.box import BODY, Box
from support import control, spec
from support.daemon import Daemon, clean_environ
from support.records import record, write
from support.spec import fake
from support.wait import wait_until

from llmsupervisor.base.text import width
from llmsupervisor.daemon.requests import PAGE
from llmsupervisor.gateway.history import History
from llmsupervisor.link.requests import RequestRecord
from llmsupervisor.plan.observed import SOME

NOW = 1_790_000_000.0
Json = dict[str, Any]


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def served(daemon: Daemon, short_folder: Path) -> Daemon:
    """A daemon whose one service is stopped; records are the test's own."""
    daemon.write({"chat": fake(short_folder / "m.gguf", start="demand")})
    return daemon.up()


def fill(daemon: Daemon, said: Iterable[RequestRecord]) -> None:
    write(daemon.state / "requests.db", said)


def at_terminal(daemon: Daemon, columns: int, *words: str) -> list[str]:
    """The lines that a terminal of that width gets, without its colours."""
    own, theirs = pty.openpty()
    subprocess.run(["stty", "cols", str(columns), "rows", "24"], stdin=theirs, check=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "llmsupervisor", *words],
        env=clean_environ(LLMSUPERVISOR_STATE_DIR=str(daemon.state), LANG="C.UTF-8", TERM="xterm"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    try:
        while data := os.read(own, 65536):
            said += data
    except OSError:
        pass
    os.close(own)
    assert process.wait(90) == 0, said
    return re.sub(r"\x1b\[[0-9;]*m", "", said.decode()).splitlines()


ALL = [
    record("a", model="chat", client="alice", prompt_tokens=12345, cached_tokens=8192, engine_queue_ms=1500.0),
    record("b", model="a-model-with-a-very-long-name-of-its-own", status=503, finish_reason="queue_timeout",
           prompt_tokens=None, cached_tokens=None, completion_tokens=None, queue_ms=60000.0, prefill_ms=None,
           decode_ms=None, ttft_ms=None, decode_tokens_per_s=None),
    record("c", truncated=True, finish_reason="length", sources={"prefill_ms": "both"}),
    record("d", model="\x1b[2Jx", status=499, finish_reason="client_gone"),
]  # fmt: skip


def test_for_people(served: Daemon) -> None:
    fill(served, [{**each, "time": time.time()} for each in ALL])  # type: ignore[typeddict-item]
    done = served.cli("requests")
    assert (done.returncode, done.stderr) == (0, "")
    title, *rows = [line.split() for line in done.stdout.splitlines()]
    assert title == [
        *("TIME", "MODEL", "CLIENT", "CODE", "PROMPT(CACHED)", "OUTPUT", "QUEUE", "LOAD", "PREFILL", "DECODE"),
        *("TTFT", "TOK/S", "END"),
    ]
    assert rows[0][1:] == [
        *("chat", "alice", "200", "12345(8192)", "12", "1.5s", "0ms", "41ms", "120ms", "45ms", "91.0", "stop")
    ]
    assert rows[1][3:] == ["503", "–", "–", "1m00s", "0ms", "–", "–", "–", "–", "queue", "timeout"]
    assert rows[2][8] == "41ms!" and rows[2][-2:] == ["context", "full"]
    assert "\\x1b[2Jx" in done.stdout and "\x1b" not in done.stdout


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_it_fits_the_terminal(served: Daemon, columns: int) -> None:
    fill(served, [{**each, "time": time.time()} for each in ALL])  # type: ignore[typeddict-item]
    lines = at_terminal(served, columns, "requests")
    assert len(lines) == 1 + len(ALL)
    assert max(map(width, lines)) <= columns, "\n".join(lines)
    for title in ("TIME", "MODEL", "CODE", "PROMPT", "OUTPUT", "QUEUE", "TTFT", "TOK/S", "END"):
        assert title in lines[0]
    assert ("CLIENT" in lines[0]) == (columns > 100)
    assert len({line.index("45ms") for line in (lines[1], lines[3])}) == 1


def test_for_scripts(served: Daemon) -> None:
    fill(served, ALL)
    done = served.cli("requests", "--json", "-n", "3")
    assert [json.loads(line) for line in done.stdout.splitlines()] == ALL[1:]
    assert served.cli("requests", "embed", "--json").stdout == ""
    empty = served.cli("requests", "embed", "--since", "2h")
    assert (empty.returncode, empty.stdout) == (0, "")
    assert empty.stderr == "no request of embed is recorded within 2h00m\n"


def test_nothing_is_recorded_yet(served: Daemon) -> None:
    done = served.cli("requests")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no request is recorded\n")
    assert "the gateway has not made" in served.cli("requests", "--summary").stdout
    assert not (served.state / "requests.db").exists()


def test_new_ones_come_as_they_end(served: Daemon) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "llmsupervisor", "requests", "-f", "--json"],
        env=clean_environ(LLMSUPERVISOR_STATE_DIR=str(served.state)),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    history = History(served.state / "requests.db")
    for name in "ab":
        history.put(record(name))
        assert json.loads(process.stdout.readline())["id"] == name
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    history.close()


def test_the_summary_for_people(served: Daemon) -> None:
    now = time.time()
    fill(
        served,
        [
            *(record(str(n), time=now, prompt_tokens=n, completion_tokens=10, max_tokens=None) for n in range(1000)),
            record("r", time=now, status=400, finish_reason="rejected", prompt_tokens=5000, completion_tokens=None),
        ],
    )
    text = served.cli("requests", "--summary").stdout
    assert "chat  1001 requests in 7d00h, 1 refused as too long" in text
    assert re.search(r"prompt +499 +949 +989 +999\n", text)
    assert re.search(r"sum +509 +959 +999 +1009\n", text)
    assert "context_length 1024: 0.10% does not fit; the 95th percentile implies 1280\n" in text
    assert re.search(r"ttft +45ms +45ms\n", text)
    target = json.loads(served.cli("requests", "chat", "--summary", "--json", "--since", "1h").stdout)["targets"][0]
    assert (target["context_length"], target["context_length_p95"], target["refused"]) == (1024, 1280, 1)
    unknown = served.cli("requests", "typo", "--summary")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "no service 'typo' is known" in unknown.stderr


def test_without_a_daemon(served: Daemon) -> None:
    served.down()
    done = served.cli("requests")
    assert (done.returncode, done.stdout) == (5, "")
    assert "llmsupervisor up" in done.stderr and "requests are read through the daemon" in done.stderr


@pytest.mark.parametrize("words", [["--summary", "-f"], ["--export", "x", "-f"], ["--summary", "--export", "x"]])
def test_what_does_not_go_together(short_folder: Path, words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "llmsupervisor", "requests", *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")


def test_readers_may_ask(served: Daemon) -> None:
    """Over the socket as the contract says it, one record an item."""
    big = record("a", hash_ids=["0123456789abcdef"] * 16384)
    fill(served, [big, big])
    assert list(control.items(served.socket, "requests", lines=None)) == [big, big]


@pytest.mark.engine
def test_what_the_gateway_saw(daemon: Daemon, llama_server: Path, model: Path) -> None:
    """The whole way: engine, gateway, file, daemon, command. The too long one is refused with its length known."""
    box = Box(daemon)
    box.write({"chat": spec.served(llama_server, model)})
    daemon.up()
    box.ready()
    assert box.post()[0] == 200
    assert box.post(messages=[{"role": "user", "content": "word " * 3000}])[0] == 400
    assert box.post(model="gpt-4")[0] == 404

    def said() -> list[Json]:
        return [json.loads(line) for line in daemon.cli("requests", "--json").stdout.splitlines()]

    wait_until(lambda: len(said()) == 3, 10, "three records")
    fine, long, unknown = said()
    assert (fine["service"], fine["status"], fine["client"]) == ("chat", 200, None)
    assert fine["prompt_tokens"] > 0 and fine["completion_tokens"] > 0
    assert (long["status"], long["completion_tokens"]) == (400, None) and long["prompt_tokens"] > 1024
    assert (unknown["service"], unknown["status"]) == ("", 404)
    (target,) = daemon.call("requests_summary")["targets"]
    assert [target[each] for each in ("service", "requests", "sized", "refused", "over")] == ["chat", 2, 1, 1, 0.5]
    assert daemon.cli("requests", "chat").stdout.rstrip().endswith("too long")
    daemon.down()


# --- export ---------------------------------------------------------------------------------------------------------


def exported(daemon: Daemon, *words: str) -> tuple[list[Json], str]:
    done = daemon.cli("requests", "--export", "-", *words)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_a_trace_reads_back(served: Daemon) -> None:
    fill(
        served,
        [
            record("late", time=NOW + 2.5, prompt_tokens=1100, completion_tokens=1, session_id="alice@example.org",
                   hash_ids=["aa", "bb"], max_tokens=None),
            record("first", time=NOW, prompt_tokens=1000, completion_tokens=11, session_id="bob", total_ms=145.0,
                   hash_ids=["aa", "cc", "dd"], cached_tokens=512),
            record("gone", time=NOW + 1, prompt_tokens=None),
            record("vector", time=NOW + 3, api="embeddings", completion_tokens=None, ttft_ms=None),
        ],
    )  # fmt: skip
    lines, told = exported(served)
    assert (
        told
        == "3 requests written to standard output; 1 left out: they have no known lengths (refused, or without an answer)\n"
    )
    assert lines == [
        {"timestamp": 0, "input_length": 1000, "output_length": 11, "hash_ids": [0, 1], "session_id": "1",
         "model": "chat", "max_tokens": 64, "ttft_ms": 45.0, "tpot_ms": 10.0, "cached_tokens": 512},
        {"timestamp": 2500, "input_length": 1100, "output_length": 1, "hash_ids": [0, 2, 3], "session_id": "2",
         "model": "chat", "max_tokens": None, "ttft_ms": 45.0, "tpot_ms": None, "cached_tokens": 0},
        {"timestamp": 3000, "input_length": 31, "output_length": 0, "session_id": None,
         "model": "chat", "max_tokens": 64, "ttft_ms": None, "tpot_ms": None, "cached_tokens": 0},
    ]  # fmt: skip
    for line in lines[:2]:
        assert len(line["hash_ids"]) == -(-line["input_length"] // 512), "what readers of such traces insist on"


def test_a_trace_into_a_file(served: Daemon) -> None:
    fill(served, (record(str(n), time=NOW + n / 10) for n in range(PAGE + 3)))
    done = served.cli("requests", "--export", "trace.jsonl")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"{PAGE + 3} requests written to trace.jsonl\n")
    lines = [json.loads(line) for line in (served.folder / "trace.jsonl").read_text().splitlines()]
    assert [line["timestamp"] for line in lines] == [100 * n for n in range(PAGE + 3)]
    assert len(exported(served, "-n", "5")[0]) == 5
    assert exported(served, "embed")[0] == []
    failed = served.cli("requests", "--export", "no/such/folder.jsonl")
    assert failed.returncode == 1 and "no/such/folder.jsonl cannot be written" in failed.stderr
    assert not list(served.folder.glob("*.part"))


# --- advice ---------------------------------------------------------------------------------------------------------


def test_requests_that_were_served_are_evidence(daemon: Daemon) -> None:
    """What the gateway recorded of a real engine process, not what a test wrote."""
    box = Box(daemon)
    box.up(token_ms=0)
    stream = http.client.HTTPConnection(box.listen, timeout=100)
    for _ in range(SOME):
        stream.request("POST", "/v1/chat/completions", json.dumps(BODY | {"max_tokens": 2, "ignore_eos": True}))
        assert json.loads(stream.getresponse().read())["choices"][0]["finish_reason"] == "length"
    box.records(SOME)
    (found,) = [f for f in daemon.call("advice")["findings"] if f["rule"] == "R64"]
    assert found["requests"] == SOME and found["evidence"] == {"limited": SOME, "max_tokens_p50": 2}
    assert f"R64:chat: {SOME} of {SOME}" not in daemon.cli("status").stdout, "an info is no condition"
