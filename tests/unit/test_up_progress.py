"""What `up` tells while services come up."""

from __future__ import annotations

import asyncio
import copy
import io
from typing import Any

import pytest
from unit.test_views import EXIT, NOW, Tty, event, lines, makes, service, status, told

from llmsupervisor.cli.progress import Printer, Progress
from llmsupervisor.cli.terminal import Output
from llmsupervisor.daemon import telling


def test_a_start_is_told_once_a_change() -> None:
    progress = Progress()
    assert told(progress, state="PENDING", since=10.0, reason="waiting for chat2") == [
        "chat      ◌ PENDING  waiting for chat2"
    ]
    assert told(progress, state="STARTING", since=11.0) == ["chat      ◐ STARTING"]
    assert told(progress, state="STARTING", since=11.0, phase="loading model") == [
        "chat      ◐ STARTING  loading model …"
    ]
    assert told(progress, state="STARTING", since=11.0, phase="loading model") == []
    assert lines(progress.live(12.2)) == ["chat      ◐ STARTING  loading model … 1.2s"]
    assert told(progress, state="READY", since=11.8) == ["chat      ● READY in 0.8s  http://127.0.0.1:18400"]
    assert told(progress, state="READY", since=11.8) == []
    assert progress.live(13.0) == []


def test_how_far_it_is_lives_in_one_line_of_a_terminal_and_is_a_line_each_tenth_in_a_pipe() -> None:
    terminal, pipe = Progress(), Progress(piped=True)
    said: dict[Progress, list[str]] = {terminal: [], pipe: []}
    for percent in range(101):
        for progress, found in said.items():
            found += lines(progress.status(status(makes(4920738944 * percent // 100, 12e6))))
    assert said[terminal] == ["chat      ◐ STARTING", "chat      ◐ STARTING  m: uploading …"]
    assert len(said[pipe]) == 1 + 11 and said[pipe][6].startswith(
        "chat      ◐ STARTING  m: uploading 50 % [█████░░░░░] "
    )
    (live,) = lines(terminal.live(NOW + 1))
    assert live == "chat      ◐ STARTING  m: uploading 100 % [██████████] 4.6 of 4.6 GiB, 11.4 MiB/s … 1.0s"
    told(terminal, state="READY", since=NOW + 2, targets=makes(9, None)["targets"])
    assert "[░░░░░░░░░░]" in lines(terminal.live(NOW + 3))[0], "a start does not wait for all of them"
    told(terminal, state="READY", since=NOW + 2)
    assert terminal.live(NOW + 3) == []
    steps = [told(pipe, state="STARTING", since=NOW + 4, phase=f"loads weights, {n} %") for n in (10, 19, 20)]
    assert list(map(len, steps)) == [1, 0, 1] and "20 % [██░░░░░░░░]" in steps[2][0]


def test_events_and_statuses_that_tell_the_same_are_told_once() -> None:
    progress = Progress()
    told(progress, state="STARTING", since=NOW - 5)
    ready = event("state", **{"from": "STARTING", "to": "READY", "reason": "", "attempt": 1})
    assert lines(progress.event(ready)) == ["chat      ● READY in 5.0s  http://127.0.0.1:18400"]
    assert told(progress, state="STARTING", since=NOW - 5) == [], "an older status says nothing new"
    assert told(progress, state="READY", since=NOW) == []
    ended = lines(progress.event(event("exit", exit=EXIT)))
    assert ended[0].startswith("chat      last exit cudaMalloc")
    assert told(progress, state="BACKOFF", since=NOW + 1, last_exit=copy.deepcopy(EXIT)) == ["chat      ↻ BACKOFF"]


def test_a_failure_comes_with_cause_and_advice_and_conditions_come_and_go() -> None:
    progress = Progress()
    assert told(progress, state="FAILED", reason="5 failures", last_exit=EXIT) == [
        "chat      ✖ FAILED  5 failures",
        "chat      last exit cudaMalloc failed: out of memory",
        "chat      advice lower context_length or parallel",
    ]
    condition = {"id": "no-vram", "text": "NVML unreadable", "since": NOW}
    assert told(progress, state="FAILED", conditions=[condition], last_exit=EXIT) == [
        "chat      condition no-vram: NVML unreadable"
    ]
    assert told(progress, state="FAILED", last_exit=EXIT) == ["chat      condition no-vram is over"]
    assert lines(progress.status(status(error="a.toml:1: x")))[:2] == [
        "SPEC ERROR: the file was not applied; generation 3 goes on",
        "  a.toml:1: x",
    ]
    assert lines(progress.status(status())) == ["the spec is in order again"]


def test_the_live_line_is_wiped_before_other_lines_and_absent_in_a_pipe() -> None:
    progress = Progress()
    changed = progress.status(status(service(state="STARTING", since=NOW)))
    terminal, pipe = Tty(), io.StringIO()
    for stream in (terminal, pipe):
        printer = Printer(Output(stream, {"LANG": "C"}))
        printer.live(progress.live(NOW + 1))
        printer.lines(changed)
        printer.close()
    assert terminal.getvalue().startswith("\r/ chat      > STARTING  1.0s\x1b[K\r\x1b[K")
    assert pipe.getvalue() == "chat      > STARTING\n"


def test_who_watches_from_within_is_told_of_phases_and_of_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "EVERY", 0.001)
    moves = [False, True, True, False, False]
    seen: list[Any] = []
    looks = 0

    def look() -> bool:
        nonlocal looks
        looks += 1
        if looks > len(moves):
            raise EOFError
        return moves[looks - 1]

    async def run() -> None:
        with pytest.raises(EOFError):
            await telling.Telling(seen.append, lambda: {"looks": looks}, look).run()
        await telling.Telling(None, dict, look).run()

    asyncio.run(run())
    assert seen == [{"looks": n} for n in (2, 3, 4)], "nothing before it begins and after it ended"
