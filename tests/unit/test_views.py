from __future__ import annotations

import io
import time
from typing import Any

import pytest
from support.gpus import SILENT_GPU

from llmsupervisor.base.text import ascii_only, cut, pad, printable, utf8, width
from llmsupervisor.cli import gpuviews, servicetable, views
from llmsupervisor.cli.progress import Progress
from llmsupervisor.cli.status import redraw, render
from llmsupervisor.cli.terminal import Output
from llmsupervisor.service.states import State

NOW = 1790000100.0
EXIT = {
    "cause": "oom_load",
    "text": "cudaMalloc failed: out of memory",
    "code": 1,
    "signal": None,
    "advice": "lower context_length or parallel",
    "time": NOW - 70,
}


def service(name: str = "chat", **changes: Any) -> dict[str, Any]:
    target = {
        "model": name,
        "names": [name],
        "state": "READY",
        "kv_cache_usage": 0.254,
        "requests_running": 2,
        "requests_waiting": 1,
        "requests_queued": None,
    }
    return {
        "name": name,
        "runtime": "llama-server",
        "state": "READY",
        "phase": None,
        "reason": "",
        "conditions": [],
        "drift": [],
        "goal": "up",
        "stopped_by": None,
        "retry_at": None,
        "last_exit": None,
        "pid": 4194303,
        "endpoint": "http://127.0.0.1:18400",
        "restarts": 0,
        "generation": 2,
        "since": NOW - 42.7,
        "targets": [target],
        "asked": {"context_length": 2048, "kv_cache_type": "q8_0"},
        "got": {"context_length": 2048, "kv_cache_type": "f16"},
        "vram_bytes": None,
        **changes,
    }


def status(*services: dict[str, Any], error: str | None = None) -> Any:
    spec = {"path": "/etc/llmsupervisor.toml", "generation": 3, "sha256": "ab", "error": error}
    daemon = {"pid": 4700, "version": "0.1.0", "uptime_s": 3725.0, "state_dir": "/var", "spec": spec, "conditions": []}
    return {"v": 1, "daemon": daemon, "gateway": None, "services": list(services), "gpus": []}


def lines(found: list[views.Line]) -> list[str]:
    return [views.text_of(line) for line in found]


# --- text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("a\x9b31mb\x07\x7f\x00", r"a\x9b31mb\x07\x7f\x00"),
        ("one\ttwo\r\nthree", r"one    two\r\nthree"),
        ("pay \u202elatot\u202c \u2066x\u2069", r"pay \u202elatot\u202c \u2066x\u2069"),
        ("a\u2028b\u200bc\ufeff\u200f", r"a\u2028b\u200bc\ufeff\u200f"),
        ("\ud800 \U000e0041", r"\ud800 \U000e0041"),
        ("grüße 模型 🎉 – …", "grüße 模型 🎉 – …"),
    ],
)
def test_nothing_that_a_terminal_obeys_passes(raw: str, shown: str) -> None:
    assert printable(raw) == shown
    assert printable(shown) == shown


def test_every_control_character_is_escaped_and_every_other_ascii_is_not() -> None:
    for code in [*range(0x20), *range(0x7F, 0xA0)]:
        assert printable(chr(code)).isascii() and printable(chr(code)).isprintable()
    plain = "".join(map(chr, range(0x20, 0x7F)))
    assert printable(plain) == plain


def test_widths_count_cells() -> None:
    assert [width("ab"), width("模型"), width("e\u0301"), width("–")] == [2, 4, 1, 1]
    assert cut("abcdef", 4) == "abc…" and cut("abcd", 4) == "abcd" and cut("abc", 0) == ""
    assert cut("模型模型", 4) == "模…", "a wide character is not halved"
    assert pad("ab", 4) == "ab  " and pad("ab", 4, right=True) == "  ab" and width(pad("模型模型", 4)) == 4


def test_ascii_keeps_the_width_of_our_own_signs() -> None:
    marks = "".join(s.mark for s in views.SIGNS.values())
    assert ascii_only(marks).isascii() and len(ascii_only(marks)) == len(marks)
    assert len({ascii_only(s.mark) for s in views.SIGNS.values()}) == len(views.SIGNS), "told apart in ASCII too"
    assert ascii_only("– ü") == r"- \xfc"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [({"LANG": "C.UTF-8"}, True), ({"LANG": "de_DE.utf8"}, True), ({"LANG": "C"}, False), ({}, False),
     ({"LC_ALL": "C", "LANG": "C.UTF-8"}, False), ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, False),
     ({"LC_CTYPE": "de_DE.UTF-8"}, True), ({"LANG": "en_US.UTF-8", "LC_CTYPE": "C.UTF-8"}, True),
     ({"LANG": "de_DE.UTF-8@euro"}, True), ({"LANG": "de_DE.ISO-8859-1"}, False)],
)  # fmt: skip
def test_the_locale_decides(environ: dict[str, str], expected: bool) -> None:
    assert utf8(environ) is expected


# --- views --------------------------------------------------------------------------------------------------------


def test_every_state_has_a_sign() -> None:
    assert set(views.SIGNS) == {s.value for s in State}


def test_the_table_shows_each_figure_and_unknown_as_a_dash() -> None:
    unknown = service("embed", pid=None)
    unknown["targets"][0] |= {"kv_cache_usage": None, "requests_running": None, "requests_waiting": None}
    shown = lines(servicetable.table(status(service(restarts=3), unknown), NOW, 200))
    assert " ".join(shown[0].split()) == "NAME RUNTIME STATE FOR RESTARTS PID KV RUN/WAIT/Q PRE/S TOK/S HIT"
    assert shown[1].split() == [
        "chat",
        "llama-server",
        "●",
        "READY",
        "42s",
        "3",
        "4194303",
        "25%",
        "2/1/–",
        "–",
        "–",
        "–",
    ]
    assert shown[2].split() == ["embed", "llama-server", "●", "READY", "42s", "0", "–", "–", "–/–/–", "–", "–", "–"]


def test_a_sum_with_an_unknown_part_is_unknown() -> None:
    two = service()
    two["targets"].append({**two["targets"][0], "requests_running": None})
    assert views.total(two, "requests_running") is None  # type: ignore[arg-type]
    assert views.total(two, "requests_waiting") == 2  # type: ignore[arg-type]
    assert views.total(service(targets=[]), "requests_running") is None  # type: ignore[arg-type]


def test_what_is_wrong_stands_below_the_row() -> None:
    condition = {"id": "not-as-asked", "text": "asked q8_0, got f16", "since": NOW - 60}
    broken = service(
        state="FAILED", reason="5 failures in 10m", conditions=[condition], drift=["runs 0.5, would run 0.6"],
        last_exit=EXIT, retry_at=NOW + 30,
    )  # fmt: skip
    assert [line.strip() for line in lines(servicetable.table(status(broken), NOW, 200))[2:]] == [
        "condition not-as-asked: asked q8_0, got f16 (for 1m00s)",
        "drift runs 0.5, would run 0.6",
        "next try in 30s",
        "last exit cudaMalloc failed: out of memory (1m10s ago)",
        "advice lower context_length or parallel",
    ]
    ready = lines(servicetable.table(status(service(last_exit=EXIT)), NOW, 200))
    assert len(ready) == 2, "a READY service is not bothered with its last exit"


def test_a_reason_that_names_the_exit_is_not_repeated() -> None:
    failed = service(state="BACKOFF", reason=EXIT["text"], last_exit=EXIT)
    assert lines(views.notes(failed, NOW)) == ["advice lower context_length or parallel"]  # type: ignore[arg-type]
    assert told(Progress(), state="BACKOFF", reason=EXIT["text"], last_exit=EXIT) == [
        "chat      ↻ BACKOFF  cudaMalloc failed: out of memory",
        "chat      advice lower context_length or parallel",
    ]


def test_who_stopped_it_is_said_and_the_exit_is_no_news() -> None:
    stopped = service(state="STOPPED", goal="down", stopped_by="ana", pid=None, last_exit=EXIT)
    assert len(views.notes(stopped, NOW)) == 1  # type: ignore[arg-type]
    assert (
        "stopped by ana; start it: llmsupervisor start chat" in lines(servicetable.table(status(stopped), NOW, 200))[2]
    )


@pytest.mark.parametrize("room", [40, 60, 80, 100, 120, 200])
def test_rows_fit_the_terminal_and_keep_name_and_state(room: int) -> None:
    shown = status(service("a-rather-long-name-of-a-service-that-somebody-chose"), service(reason="x" * 300))
    rows = [line for line in lines(servicetable.table(shown, NOW, room)) if not line.startswith("  ")]
    assert len(rows) == 3
    assert max(map(width, rows)) <= room
    assert all("READY" in row for row in rows[1:])


def test_a_reason_that_does_not_fit_gets_its_own_line() -> None:
    shown = lines(
        servicetable.table(status(service(state="PENDING", reason="port 18400 is held by pid 77 (nginx)")), NOW, 60)
    )
    assert shown[2] == "  port 18400 is held by pid 77 (nginx)"


def test_the_spec_error_keeps_its_lines() -> None:
    shown = lines(views.spec_error(status(error="a.toml:3: one\na.toml:9: two\x1b[2J")))
    assert shown[0] == "SPEC ERROR: the file was not applied; generation 3 goes on"
    assert shown[1:] == ["  a.toml:3: one", r"  a.toml:9: two\x1b[2J"]
    assert views.spec_error(status()) == []


def test_no_text_from_outside_reaches_the_terminal_raw() -> None:
    evil = "x\x1b]0;t\x07\u202e\n"
    wrong = service(
        evil, runtime=evil, state="BACKOFF", reason=evil, phase=evil, drift=[evil], endpoint=evil, stopped_by=evil,
        conditions=[{"id": evil, "text": evil, "since": NOW}], last_exit={**EXIT, "text": evil, "advice": evil},
        asked={evil: evil}, got={evil: [evil]}, goal="down", retry_at=NOW,
    )  # fmt: skip
    wrong["targets"][0] |= {"model": evil, "names": [evil], "state": evil}
    whole = status(wrong, error=evil)
    whole["daemon"]["spec"]["path"] = whole["daemon"]["version"] = evil
    gpu = SILENT_GPU | {"uuid": evil, "name": evil, "conditions": [{"id": evil, "text": evil, "since": NOW}]}
    gpu |= {"lent": {"by": evil, "since": NOW, "until": NOW}, "quarantine": {"reason": evil, "since": NOW}}
    ours = {"pid": 1, "service": evil, "name": evil, "user": evil, "memory_used_bytes": None}
    gpu["processes"] = [ours, ours | {"service": None}]
    event: Any = {"v": 1, "time": NOW, "service": evil, "kind": "state", "from": evil, "to": evil, "reason": evil}
    progress = Progress()
    shown = [
        views.daemon_line(whole), *views.spec_error(whole), *servicetable.table(whole, NOW, 40), *servicetable.table(whole, NOW, 300),
        *views.detail(wrong, NOW), *gpuviews.gpu_lines([gpu], NOW), views.event_line(event, NOW),  # type: ignore[arg-type]
        *progress.status(whole), *progress.event(event), *progress.live(NOW),
    ]  # fmt: skip
    assert len(shown) > 20
    for line in lines(shown):
        assert printable(line) == line


def test_the_detail_compares_asked_and_got() -> None:
    silent = service(got={"context_length": 2048})
    assert "asked kv_cache_type q8_0  got f16" in lines(views.detail(service(), NOW))  # type: ignore[arg-type]
    assert "asked context_length 2048  got the same" in lines(views.detail(silent, NOW))  # type: ignore[arg-type]
    assert "asked kv_cache_type q8_0  got –" in lines(views.detail(silent, NOW))  # type: ignore[arg-type]


def test_what_is_several_is_told_as_words() -> None:
    """An Ollama has a context for each of its models."""
    several = service(asked={"context_length": {"a": 1024, "b": 2048}}, got={"context_length": {"a": 1024, "b": None}})
    assert "asked context_length a 1024, b 2048  got a 1024, b –" in lines(views.detail(several, NOW))  # type: ignore[arg-type]


def test_before_the_engine_was_asked_nothing_is_claimed() -> None:
    assert "asked kv_cache_type q8_0  got –" in lines(views.detail(service(got=None), NOW))  # type: ignore[arg-type]


def test_the_daemons_own_conditions_are_told() -> None:
    shown = status(error="a.toml:1: x")
    shown["daemon"]["conditions"] = [{"id": "journal", "text": "disk full", "since": None}]
    assert lines(views.troubles(shown, NOW))[0] == "condition journal: disk full"
    assert lines(views.troubles(shown, NOW))[1].startswith("SPEC ERROR")


def event(kind: str, **fields: Any) -> Any:
    return {"v": 1, "time": NOW, "service": "chat", "kind": kind, **fields}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (event("state", **{"from": "STARTING", "to": "READY", "reason": "", "attempt": 1}), "STARTING → READY"),
        (event("state", **{"from": "READY", "to": "BACKOFF", "reason": "exited", "attempt": 2}),
         "READY → BACKOFF: exited (start 2)"),
        (event("exit", exit=EXIT), "exit: cudaMalloc failed: out of memory; lower context_length or parallel"),
        (event("condition", id="drift", text="new binary", on=True), "condition drift on: new binary"),
        (event("condition", id="drift", on=False), "condition drift over"),
        (event("reload", generation=4, changes=[{"service": "chat", "action": "restart", "why": "parallel 2 → 4"}]),
         "spec applied as generation 4: chat restart (parallel 2 → 4)"),
        (event("refused", error="a.toml:3: one\na.toml:4: two"), "spec refused: a.toml:3: one | a.toml:4: two"),
        (event("operator", call="stop", by="ana"), "stop by ana"),
        (event("target", target="m:1", was="creating", state="failed", reason="no file"), "m:1 creating → failed: no file"),
        (event("target", target="m:1", was="loading", state="loaded", reason=""), "m:1 loading → loaded"),
        (event("daemon", what="adopted"), "daemon adopted"),
        (event("a-later-kind"), "a-later-kind"),
    ],
)  # fmt: skip
def test_events_are_sentences(found: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert views.text_of(views.event_line(found, NOW)) == f"14:15:00  chat          {words}"
    assert views.text_of(views.event_line(found, NOW + 86400)).startswith("2026-09-21 14:15:00  ")


# --- terminal -----------------------------------------------------------------------------------------------------


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_only_at_a_terminal_without_no_color() -> None:
    line = servicetable.table(status(service()), NOW, 80)[1]
    utf = {"LANG": "C.UTF-8"}
    assert "\x1b[32m● READY" in Output(Tty(), utf).format(line)
    for plain in (
        Output(io.StringIO(), utf),
        Output(Tty(), {**utf, "NO_COLOR": "1"}),
        Output(Tty(), {**utf, "TERM": "dumb"}),
    ):
        assert "\x1b" not in plain.format(line) and "● READY" in plain.format(line)
    assert "* READY" in Output(io.StringIO(), {"LANG": "C"}).format(line)


def test_a_redraw_never_scrolls_and_leaves_nothing_behind() -> None:
    out = Output(Tty(), {"LANG": "C"})
    shown = redraw(render(status(*(service(f"s{i}") for i in range(60))), NOW, out), out, first=False)
    assert shown.startswith("\x1b[H") and shown.endswith("\x1b[J")
    assert shown.count("\n") == shown.count("\x1b[K") == out.height - 1


def test_how_much_of_a_model_is_there() -> None:
    told = makes(2110000000, 12e6)
    bar = "42 % [████░░░░░░] 2.0 of 4.6 GiB, 11.4 MiB/s, 3m55s left"
    detail = lines(views.detail(told, NOW))
    assert any(line.startswith("target m ") and line.endswith("uploading") for line in detail)
    assert f"  {bar}" in detail and not any(bar in line for line in detail if line != f"  {bar}")
    assert views.reason(told) == f"m: uploading {bar}"
    told["targets"].append({**told["targets"][0], "model": "n"})
    told |= {"phase": "m: reading a.gguf, om: loading"}
    assert views.reason(told) == f"m: uploading {bar}, om: loading, n: uploading {bar}", "the phase may be a second old"
    del told["targets"][0]["progress"]["bytes_per_s"], told["targets"][1]
    assert views.reason(told) == "m: uploading 42 % [████░░░░░░] 2.0 of 4.6 GiB, om: loading", "an older daemon"
    told |= {"phase": "m: verifying"}
    told["targets"] = [{**told["targets"][0], "progress": {"status": "verifying", "completed": None, "total": None}}]
    assert views.reason(told) == "m: verifying" and "verifying" in "\n".join(lines(views.detail(told, NOW)))
    assert views.reason(service(phase="loads weights, 43 %")) == "loads weights 43 % [████░░░░░░]"  # type: ignore[arg-type]


def told(progress: Progress, **changes: Any) -> list[str]:
    return lines(progress.status(status(service(**changes))))


def makes(done: int, rate: float | None) -> Any:
    said = {"status": "uploading", "completed": done, "total": 4920738944, "bytes_per_s": rate}
    target = {**service()["targets"][0], "model": "m", "state": "creating", "progress": said}
    return service(state="STARTING", since=NOW, phase="m: uploading", targets=[target])
