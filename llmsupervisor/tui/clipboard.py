"""What is copied, kept as a file too: not every terminal takes the sequence for its clipboard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

MOST = 100_000
"""Bytes for the terminal's clipboard; many take no more. The file has all of it."""


def file_of(environ: Mapping[str, str]) -> Path:
    cache = environ.get("XDG_CACHE_HOME") or os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".cache")
    return Path(cache) / "llmsupervisor" / "copied.txt"


def keep(text: str, path: Path) -> str:
    """Empty, or why it is not kept. Only the user may read it."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        return f"{path}: {(error.strerror or str(error)).lower()}"
    return ""
