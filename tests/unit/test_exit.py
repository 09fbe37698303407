from __future__ import annotations

from typing import Any

import pytest

from llmsupervisor.runtime.definition import Definition
from llmsupervisor.service.exit import LINE_LIMIT, classify
from llmsupervisor.service.states import ExitInfo

DEFINITION = Definition.model_validate(
    {
        "name": "engine",
        "doc": "an engine",
        "command": ["engine"],
        "exit": {
            "oom_load": {
                "pattern": "cudaMalloc failed: out of memory",
                "phase": "start",
                "retry": "when-vram-changes",
                "advice": "Lower the context.",
            },
            "oom_run": {"pattern": "^CUDA error: out of memory$", "signals": ["SIGABRT"], "advice": "Lower ubatch."},
            "usage": {"codes": [2], "retry": "on-change", "advice": "Correct the flag."},
            "bus": {"signals": ["BUS"], "advice": "Fetch the model again."},
        },
    }
)


def end(log: str = "", phase: Any = "run", **record: Any) -> ExitInfo:
    return classify(DEFINITION, {"time": 7.0, **record}, log, phase, 9.0)


def test_a_pattern_tells_the_cause_and_the_line() -> None:
    exit = end("load\n\x1b[31mggml: cudaMalloc failed: out of memory\x1b[0m\r\nexiting\n", "start", code=1)
    assert exit.cause == "oom_load" and exit.retry == "when-vram-changes" and exit.advice == "Lower the context."
    assert exit.text == "exited with code 1: ggml: cudaMalloc failed: out of memory"
    assert (exit.code, exit.signal, exit.time) == (1, None, 7.0)


def test_the_phase_is_heeded() -> None:
    assert end("cudaMalloc failed: out of memory", "run", code=1).cause == "exited"


def test_all_that_a_class_names_must_hold() -> None:
    log = "CUDA error: out of memory\n  current device: 0\n"
    assert end(log, signal=6).cause == "oom_run"
    assert end(log, code=1).cause == "exited"
    assert end(log, signal=11).cause == "signal"
    assert end("said: CUDA error: out of memory", signal=6).cause == "signal"


def test_codes_and_signals_without_a_pattern() -> None:
    assert end(code=2).text == "exited with code 2" and end(code=2).cause == "usage"
    assert end(signal=7).cause == "bus" and end(signal=7).signal == "SIGBUS"


def test_only_the_last_200_lines_count() -> None:
    log = "cudaMalloc failed: out of memory\n" + "later\n" * 200
    assert end(log, "start", code=1).cause == "exited"
    assert end(log.removesuffix("later\n"), "start", code=1).cause == "oom_load"


def test_what_no_class_knows() -> None:
    exit = end("one\ntwo\x07\n\n", code=3)
    assert exit.cause == "exited" and exit.text == "exited with code 3; last log line: two\\x07"
    assert exit.retry == "backoff" and exit.advice == ""
    assert end(signal=11, core=True).text == "killed by SIGSEGV (core dumped)"
    assert end(signal=34).signal == "SIGRT34"
    assert end(code=0).text == "exited with code 0"


def test_sigkill_names_the_oom_killer() -> None:
    assert "OOM killer" in end(signal=9).advice and end(signal=9).text == "killed by SIGKILL"


def test_a_long_line_is_cut() -> None:
    text = end("x" * 1_000_000, code=1).text
    assert len(text) < LINE_LIMIT + 60 and text.endswith("…")


@pytest.mark.parametrize(
    ("errno", "retry", "advice"),
    [(2, "on-change", "missing"), (8, "on-change", "machine"), (13, "on-change", "mode"), (26, "backoff", "written")],
)
def test_P17_to_P19_exec_errors(errno: int, retry: str, advice: str) -> None:
    exit = end(errno=errno, error="/bin/engine: no\n")
    assert (exit.cause, exit.retry, exit.text) == ("exec-failed", retry, "/bin/engine: no")
    assert advice in exit.advice


def test_an_exec_error_without_words() -> None:
    exit = end(errno=99, error=None)
    assert exit.text == "could not be executed: errno 99" and exit.retry == "on-change"


def test_a_killed_shim_leaves_no_record() -> None:
    exit = classify(DEFINITION, None, "CUDA error: out of memory", "run", 9.0)
    assert exit.cause == "shim-killed" and exit.time == 9.0 and exit.retry == "backoff"


def test_a_record_without_a_time() -> None:
    assert classify(DEFINITION, {"code": 1}, "", "run", 9.0).time == 9.0
