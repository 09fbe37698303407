"""Why a run ended: the definition's exit classes, the log's tail, and the shim's record."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from llmsupervisor.base.text import printable
from llmsupervisor.runtime.definition import Definition, ExitClass
from llmsupervisor.service.states import ExitInfo, Retry

TAIL_LINES = 200
LINE_LIMIT = 300
"""Characters of a log line that a person is shown."""

SIGNALS = {1: "HUP", 2: "INT", 3: "QUIT", 4: "ILL", 5: "TRAP", 6: "ABRT", 7: "BUS", 8: "FPE", 9: "KILL", 10: "USR1"}
SIGNALS |= {11: "SEGV", 12: "USR2", 13: "PIPE", 14: "ALRM", 15: "TERM", 24: "XCPU", 25: "XFSZ", 31: "SYS"}
"""Linux."""
_EXEC_ADVICE: dict[int, tuple[str, Retry]] = {
    2: ("the file, its interpreter or the working directory is missing: correct the path", "on-change"),
    8: ("not a program for this machine, or an empty file: install it anew", "on-change"),
    13: ("not executable for this user: check the mode of the file and of its folders", "on-change"),
    26: ("the file is being written: tried again", "backoff"),
}
"""By errno: ENOENT, ENOEXEC, EACCES, ETXTBSY."""
_KILLED = "nobody here ordered it: another person or program, or the kernel's OOM killer (see `journalctl -k`)"
_ANSI = re.compile(r"\x1b(?:\[[0-9:;<=>?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?)")

Phase = Literal["start", "run"]


def classify(
    definition: Definition,
    record: Mapping[str, Any] | None,
    log_tail: str,
    phase: Phase,
    wall: float,
) -> ExitInfo:
    """`record`: `exit.json`, None where the shim was killed and left none. `log_tail`: of this run only.

    `wall`: Unix seconds, used where the record has no time.
    """
    if record is None:
        text = "its shim was killed, and the server with it"
        return ExitInfo("shim-killed", text, advice="look for who killed it: `journalctl -k`", time=wall)
    time = record.get("time", wall)
    if record.get("errno") is not None:
        advice, retry = _EXEC_ADVICE.get(record["errno"], ("", "on-change"))
        text = _clean(record.get("error") or f"could not be executed: errno {record['errno']}")
        return ExitInfo("exec-failed", text, advice=advice, retry=retry, time=time)
    code, number = record.get("code"), record.get("signal")
    name = None if number is None else SIGNALS.get(number, f"RT{number}")
    signal = None if name is None else f"SIG{name}"
    lines = "\n".join(log_tail.splitlines()[-TAIL_LINES:])
    ended = f"exited with code {code}" if signal is None else f"killed by {signal}"
    for cause, rule in definition.exit.items():
        line = _matches(rule, code, name, lines, phase)
        if line is not None:
            text = f"{ended}: {line}" if line else ended
            return ExitInfo(cause, text, code, signal, rule.advice, rule.retry, time)
    core = " (core dumped)" if record.get("core") else ""
    last = _last_line(lines)
    text = f"{ended}{core}; last log line: {last}" if last else f"{ended}{core}"
    advice = _KILLED if name == "KILL" else ""
    return ExitInfo("exited" if signal is None else "signal", text, code, signal, advice, time=time)


def _matches(rule: ExitClass, code: int | None, name: str | None, lines: str, phase: Phase) -> str | None:
    """All that the class names must hold. The log line that told it, '' where none did, None: another cause."""
    if rule.phase not in ("any", phase):
        return None
    if rule.codes and code not in rule.codes:
        return None
    if rule.signals and (name is None or name not in {s.removeprefix("SIG") for s in rule.signals}):
        return None
    if rule.pattern is None:
        return ""
    return log_line(rule.pattern, lines)


def log_line(pattern: str, lines: str) -> str | None:
    """The first line that has the pattern, for people to read."""
    match = re.search(pattern, lines, re.MULTILINE)
    return None if match is None else _line_at(lines, match.start())


def _line_at(lines: str, offset: int) -> str:
    begin = lines.rfind("\n", 0, offset) + 1
    end = lines.find("\n", offset)
    return _clean(lines[begin:] if end < 0 else lines[begin:end])


def _last_line(lines: str) -> str:
    return next((clean for line in reversed(lines.split("\n")) if (clean := _clean(line))), "")


def _clean(line: str) -> str:
    text = printable(_ANSI.sub("", line).strip())
    return text if len(text) <= LINE_LIMIT else text[: LINE_LIMIT - 1] + "…"
