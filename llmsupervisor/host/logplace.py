"""Places in a log and in what was rotated away from it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

BYTES = 96 * 1024
"""Read before and after a place, at most: of each byte an answer has up to five, and it has to fit into 1 MiB."""
LINE = 4096
"""Characters of a longer line that are given."""


class Placed(NamedTuple):
    offset: int
    text: str


def files(path: Path) -> list[Path]:
    """The newest first."""
    rotated = re.compile(re.escape(path.name) + r"\.([0-9]+)")
    found = [
        (int(match[1]), each) for each in path.parent.glob(f"{path.name}.*") if (match := rotated.fullmatch(each.name))
    ]
    return [path, *(each for _, each in sorted(found))]


def around(path: Path, inode: int, offset: int, before: int, after: int) -> list[Placed] | None:
    """The line that begins at `offset`, and so many before and after it, as far as they are in the same file; None: that
    file is gone.
    """
    for candidate in files(path):
        try:
            fd = os.open(candidate, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if os.fstat(fd).st_ino == inode:
                begin = max(0, offset - BYTES)
                above = _lines(os.pread(fd, offset - begin, begin), begin)
                below = _lines(os.pread(fd, BYTES, offset), offset)
                above = above if begin == 0 else above[1:]
                return [*above[max(len(above) - before, 0) :], *below[: after + 1]]
        finally:
            os.close(fd)
    return None


def _lines(data: bytes, at: int) -> list[Placed]:
    """An end without a newline is a line too, nothing is none."""
    found = []
    for line in data.split(b"\n"):
        found.append(Placed(at, line.rstrip(b"\r").decode("utf-8", "backslashreplace")[:LINE]))
        at += len(line) + 1
    return found if found[-1].text else found[:-1]
