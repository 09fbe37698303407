"""Finds words in a log of any size, the newest lines first, in a process of its own: an expression that takes for ever
costs nobody else a moment.

Run by path with `python -I`; imports nothing of ours. Arguments: the words, how many hits to tell, and the files, the newest
first. One JSON object a line on stdout (`docs/contracts.md` §2, `log_search`).
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator

CHUNK = 1024 * 1024
LONGEST = 4 * 1024 * 1024
"""Bytes of a line; a longer one is taken in pieces."""
TEXT = 4096
"""Bytes of a hit that are told."""
BATCH = 20
EVERY = 0.25
"""Seconds between two lines of progress."""
CPU_SECONDS = 30
NICE = 10
PR_SET_PDEATHSIG = 1

Search = Callable[[bytes, int], int]
"""The first match from a place on; -1: none."""


def searcher(words: str) -> tuple[Search, re.Pattern[bytes] | None]:
    """And what a line must match; None: what is found is a hit. Words that are no expression are taken as they stand."""
    try:
        wide = re.compile(words.encode(), re.IGNORECASE | re.MULTILINE)
        line = re.compile(words.encode(), re.IGNORECASE)
    except (re.error, OverflowError, RecursionError):
        return _as_it_stands(words), None
    if re.escape(words) == words:
        return _as_it_stands(words), None

    def search(data: bytes, at: int) -> int:
        found = wide.search(data, at)
        return -1 if found is None else found.start()

    return search, line


def _as_it_stands(words: str) -> Search:
    needle = words.encode().lower()
    last: tuple[bytes, bytes] = (b"", b"")

    def search(data: bytes, at: int) -> int:
        nonlocal last
        if last[0] is not data:
            last = (data, data.lower())
        return last[1].find(needle, at)

    return search


def blocks(fd: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Whole lines from the end backwards: where they begin, and their bytes."""
    at, rest = size, b""
    while at > 0:
        begin = max(0, at - CHUNK)
        data = os.pread(fd, at - begin, begin) + rest
        cut = data.find(b"\n") + 1 if begin else 0
        at, rest = begin, b""
        if begin and not cut and len(data) < LONGEST:
            rest = data
            continue
        rest, data = data[:cut], data[cut:]
        if data:
            yield begin + cut, data


def hits(data: bytes, search: Search, line: re.Pattern[bytes] | None) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data) and (found := search(data, at)) >= 0:
        begin = data.rfind(b"\n", 0, found) + 1
        end = data.find(b"\n", found)
        end = len(data) if end < 0 else end
        if line is None or line.search(data[begin:end]):
            yield begin, data[begin : min(end, begin + TEXT)]
        at = end + 1


class Teller:
    def __init__(self, of: int) -> None:
        self._of = of
        self._batch: list[dict[str, object]] = []
        self._told = 0.0
        self.count = self.read = 0

    def add(self, file: int, offset: int, text: bytes) -> None:
        self._batch.append({"file": file, "offset": offset, "text": text.decode("utf-8", "backslashreplace")})
        if len(self._batch) >= BATCH:
            self.tell()

    def progress(self) -> None:
        if time.monotonic() - self._told > EVERY:
            self.tell()

    def tell(self, complete: bool | None = None) -> None:
        said = {"hits": self._batch, "count": self.count, "read": self.read, "of": self._of, "complete": complete}
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()
        self._batch = []
        self._told = time.monotonic()


def opened(paths: list[str]) -> list[tuple[int, int, int]]:
    """Descriptor, inode and size of those that are there."""
    found = []
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        stat = os.fstat(fd)
        found.append((fd, stat.st_ino, stat.st_size))
    return found


def main(words: str, most: int, paths: list[str]) -> None:
    search, line = searcher(words)
    files = opened(paths)
    teller = Teller(sum(size for _, _, size in files))
    left = most
    for fd, inode, size in files:
        for offset, data in blocks(fd, size):
            newest: deque[tuple[int, bytes]] = deque(maxlen=left)
            for hit in hits(data, search, line):
                teller.count += 1
                newest.append(hit)
            teller.read += len(data)
            left -= len(newest)
            for begin, text in reversed(newest):
                teller.add(inode, offset + begin, text)
            teller.progress()
            if time.process_time() > CPU_SECONDS:
                teller.tell(complete=False)
                return
    teller.tell(complete=True)


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS + 5, CPU_SECONDS + 5))
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
