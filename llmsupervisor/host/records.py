"""The JSON records of a run folder (docs/contracts.md, section 1), read with distrust and written whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from llmsupervisor.host.tree import Identity


def load(path: os.PathLike[str]) -> dict[str, Any] | None:
    """None for a file that is missing or is no JSON object."""
    try:
        return _object(Path(path).read_bytes())
    except OSError:
        return None


def load_lines(path: os.PathLike[str]) -> list[dict[str, Any]]:
    """One object a line; what is none is skipped."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError:
        return []
    return [value for line in lines if (value := _object(line)) is not None]


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def save(path: os.PathLike[str], value: Mapping[str, Any]) -> None:
    temporary = f"{os.fspath(path)}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
        json.dump(value, file, ensure_ascii=True)
        file.flush()
        os.fsync(fd)
    os.replace(temporary, path)


def identity(run: Mapping[str, Any], who: Literal["main", "shim"]) -> Identity | None:
    match run.get(who):
        case {"pid": int(pid), "start": int(start)} if pid > 0:
            return Identity(pid, start)
    return None
