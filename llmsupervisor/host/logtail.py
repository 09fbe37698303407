"""Reads the log that a shim writes: its tail since a start, and what is appended, across rotations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

CHUNK = 256 * 1024
LINE = 16 * 1024
"""Characters of a longer line that are given as one: it comes in pieces."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a log: the file's inode and an offset. (0, 0): the beginning of whatever is there."""

    inode: int = 0
    offset: int = 0


def end(path: os.PathLike[str]) -> Mark:
    try:
        stat = os.stat(path)
    except OSError:
        return Mark()
    return Mark(stat.st_ino, stat.st_size)


def tail(path: os.PathLike[str], since: Mark = Mark(), limit: int = 64 * 1024) -> str:
    """At most `limit` bytes of the end of the log, none of them older than `since`; '' where there is no log.

    Where the log was rotated since, the rotated file (`log.1`) is read first.
    """
    parts: list[bytes] = []
    room = limit
    for candidate in (os.fspath(path), f"{os.fspath(path)}.1"):
        try:
            fd = os.open(candidate, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            break
        try:
            stat = os.fstat(fd)
            start = since.offset if stat.st_ino == since.inode else 0
            start = max(start, stat.st_size - room)
            data = os.pread(fd, max(0, stat.st_size - start), start)
        finally:
            os.close(fd)
        parts.append(data)
        room -= len(data)
        if stat.st_ino == since.inode or since.inode == 0 or room <= 0:
            break
    return b"".join(reversed(parts)).decode("utf-8", "backslashreplace")


def head(path: os.PathLike[str], since: Mark, limit: int) -> str:
    """At most `limit` bytes from `since` on; '' where they are gone with an old file."""
    for candidate in (os.fspath(path), f"{os.fspath(path)}.1"):
        try:
            fd = os.open(candidate, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            break
        try:
            if since.inode in (0, os.fstat(fd).st_ino):
                return os.pread(fd, limit, since.offset).decode("utf-8", "backslashreplace")
        finally:
            os.close(fd)
    return ""


def lines(path: os.PathLike[str], count: int, since: Mark | None = None) -> list[str]:
    """The last `count` lines, of the rotated file too where the current one is short; none older than `since`."""
    if not count:
        return []
    whole = tail(path, since or Mark(-1, 0), CHUNK * 4).splitlines()[-count:]
    return [piece for line in whole for piece in _pieces(line)][-count:]


def _pieces(line: str) -> Iterator[str]:
    yield line[:LINE]
    for start in range(LINE, len(line), LINE):
        yield line[start : start + LINE]


class Follower:
    """What is appended after the moment of its making. `read` is called again and again, and never waits."""

    def __init__(self, path: os.PathLike[str], mark: Mark | None = None) -> None:
        self._path = path
        self._mark = mark or end(path)
        self._partial = b""

    def behind(self) -> int:
        """Bytes that were not read yet, of the present file."""
        try:
            stat = os.stat(self._path)
        except OSError:
            return 0
        return stat.st_size - (self._mark.offset if stat.st_ino == self._mark.inode else 0)

    def read(self) -> Iterator[str]:
        """New complete lines; a partial one waits for its end, at most `LINE` bytes of it."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return
        try:
            stat = os.fstat(fd)
            if stat.st_ino != self._mark.inode:
                yield from self._rest_of_rotated()
                self._mark = Mark(stat.st_ino, 0)
            data = os.pread(fd, CHUNK, self._mark.offset)
        finally:
            os.close(fd)
        self._mark = Mark(stat.st_ino, self._mark.offset + len(data))
        yield from self._split(data)

    def _rest_of_rotated(self) -> Iterator[str]:
        try:
            with open(f"{os.fspath(self._path)}.1", "rb") as file:
                if os.fstat(file.fileno()).st_ino == self._mark.inode:
                    file.seek(self._mark.offset)
                    yield from self._split(file.read(CHUNK))
        except OSError:
            return

    def _split(self, data: bytes) -> Iterator[str]:
        *whole, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > LINE:
            whole.append(self._partial)
            self._partial = b""
        for line in whole:
            yield from _pieces(line.decode("utf-8", "backslashreplace"))
