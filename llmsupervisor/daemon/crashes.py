"""Crash records: one JSON file per unrequested end, the newest 50 kept. Written beside the loop, never read by it."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict
from pathlib import Path

from llmsupervisor.base.errors import UsageError
from llmsupervisor.base.ids import Json
from llmsupervisor.host.files import atomic_write
from llmsupervisor.service.states import ExitInfo

KEEP = 50
LOG_LINES = 200


def record(folder: Path, service: str, exit: ExitInfo, launch: dict[str, Json], log_tail: str) -> str:
    """Best effort: a full disk costs the record, never the restart. Returns the path, '' if it could not be written."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(exit.time or time.time()))
    path = folder / f"{stamp}-{service}-{launch.get('run')}.json"
    body = {
        "v": 1,
        "service": service,
        "run": launch.get("run"),
        "attempt": launch.get("attempt"),
        "exit": asdict(exit),
        "rendered": launch.get("rendered"),
        "log": log_tail.splitlines()[-LOG_LINES:],
    }
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic_write(path, (json.dumps(body, indent=1) + "\n").encode(), 0o600)
        for old in sorted(folder.glob("*.json"))[:-KEEP]:
            with contextlib.suppress(OSError):
                old.unlink()
    except OSError:
        return ""
    return str(path)


def listed(folder: Path, service: str | None) -> list[dict[str, Json]]:
    """The newest first, without argv, environment and log; what cannot be read is left out."""
    found = []
    for path in sorted(folder.glob("*.json"), reverse=True):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            body = json.loads(path.read_text(encoding="utf-8"))
            if service in (None, body.get("service")):
                kept = {key: body.get(key) for key in ("service", "run", "attempt", "exit")}
                found.append({"record": path.name, **kept})
    return found


def one(folder: Path, record: str) -> dict[str, Json]:
    names = {path.name: path for path in folder.glob("*.json")}
    if record not in names:
        raise UsageError(f"no crash record {record!r}; `crashes` lists those that there are")
    try:
        body: dict[str, Json] = json.loads(names[record].read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{names[record]} cannot be read: {error}") from None
    return {"record": record, **body}
