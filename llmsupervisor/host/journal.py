"""Files that must outlive a crash, a full disk and a newer version: the event journal and a state file."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any

from llmsupervisor.base.clock import Clock
from llmsupervisor.base.errors import LlmsupervisorError
from llmsupervisor.host.clock import SystemClock

VERSION = 1
ROTATE_AT = 8 * 1024 * 1024
RETRY = 30.0
"""Seconds between tries while the disk refuses."""
RING = 1000
"""Lines kept in memory while the disk refuses; older ones are lost and counted."""


class Follower:
    """What is appended from now on. A reader that is slower than `size` lines misses the oldest: `dropped` counts."""

    def __init__(self, size: int) -> None:
        self.dropped = 0
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(size)

    def put(self, item: dict[str, Any]) -> None:
        if self._queue.full():
            self._queue.get_nowait()
            self.dropped += 1
        self._queue.put_nowait(item)

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        return self

    async def __anext__(self) -> dict[str, Any]:
        return await self._queue.get()


class Journal:
    """JSON lines, one writer. `degraded` is a sentence while lines are kept in memory only."""

    def __init__(self, path: os.PathLike[str] | str, rotate_at: int = ROTATE_AT, clock: Clock | None = None) -> None:
        self._path = os.fspath(path)
        self._rotate_at = rotate_at
        self._clock = clock or SystemClock()
        self._fd: int | None = None
        self._ring: deque[bytes] = deque(maxlen=RING)
        self._lost = 0
        self._retry_at = 0.0
        self._error = ""
        self._followers: set[Follower] = set()

    @property
    def degraded(self) -> str | None:
        if not self._error:
            return None
        lost = f", {self._lost} older ones lost" if self._lost else ""
        return f"{self._path}: {self._error}; {len(self._ring)} events are kept in memory{lost}"

    def append(self, item: dict[str, Any]) -> None:
        if len(self._ring) == RING:
            self._lost += 1
        self._ring.append(json.dumps(item, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")
        self.flush()
        for follower in self._followers:
            follower.put(item)

    def flush(self) -> None:
        """Writes what waits, at most every 30 s while the disk refuses. Call it now and then."""
        if not self._ring or (self._error and self._clock.monotonic() < self._retry_at):
            return
        try:
            while self._ring:
                self._write(self._ring[0])
                self._ring.popleft()
            self._error, self._lost = "", 0
        except OSError as error:
            self._close()
            self._error = os.strerror(error.errno or 0).lower()
            self._retry_at = self._clock.monotonic() + RETRY

    def _write(self, line: bytes) -> None:
        if self._fd is None:
            self._fd = _open_append(self._path)
        size = os.fstat(self._fd).st_size
        if size and size + len(line) > self._rotate_at:
            self._close()
            os.replace(self._path, self._path + ".1")
            self._fd, size = _open_append(self._path), 0
        try:
            _write_all(self._fd, line)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size)
            raise

    def tail(self, count: int) -> list[dict[str, Any]]:
        """The last `count` items, those in memory included. Bad lines and those of a newer version are skipped."""
        found: deque[dict[str, Any]] = deque(maxlen=count)
        for path in (self._path + ".1", self._path):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                found.extend(_items(file))
        found.extend(_items(self._ring))
        return list(found)

    @contextlib.contextmanager
    def follow(self, size: int = 1000) -> Iterator[Follower]:
        follower = Follower(size)
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)

    def close(self) -> None:
        self._retry_at = 0.0
        self.flush()
        self._close()

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _items(lines: Any) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            item = json.loads(line)
        except ValueError:
            continue
        if isinstance(item, dict) and isinstance(item.get("v", VERSION), int) and item.get("v", VERSION) <= VERSION:
            yield item


def _open_append(path: str) -> int:
    """A last line that a crash cut is ended, so that it spoils no other."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            _write_all(fd, b"\n")
    except OSError:
        os.close(fd)
        raise
    return fd


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


class NewerState(LlmsupervisorError):
    """The file was written by a later version: nothing is guessed."""


class StateFile:
    """One JSON object with `v`, replaced as a whole; the generation before stays as `.prev`.

    `degraded` is a sentence while the last `save` is not on disk. `recovered` is one where `load` met a corrupt file.
    """

    def __init__(self, path: os.PathLike[str] | str, version: int, clock: Clock | None = None) -> None:
        self._path = os.fspath(path)
        self._version = version
        self._clock = clock or SystemClock()
        self._waiting: dict[str, Any] | None = None
        self._retry_at = 0.0
        self.degraded: str | None = None
        self.recovered: str | None = None

    def load(self) -> dict[str, Any] | None:
        """None: there is none, or it was corrupt and is now `.bad` (`.prev` is not taken instead: it may hold wishes
        that a person has since withdrawn). NewerState for a newer `v`."""
        try:
            with open(self._path, "rb") as file:
                text = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LlmsupervisorError(
                f"{self._path}: cannot be read ({os.strerror(error.errno or 0).lower()}); "
                "give its owner's rights back, or move it away to begin anew"
            ) from error
        try:
            data = json.loads(text)
            if not isinstance(data, dict) or not isinstance(data.get("v"), int):
                raise ValueError("no object with v")
        except ValueError:
            with contextlib.suppress(OSError):
                os.replace(self._path, self._path + ".bad")
            self.recovered = f"{self._path} was corrupt and is now {os.path.basename(self._path)}.bad"
            return None
        if data["v"] > self._version:
            raise NewerState(
                f"{self._path}: version {data['v']}, this llmsupervisor reads up to {self._version}; "
                "run the newer llmsupervisor again, or move the file away to begin anew"
            )
        return data

    def save(self, data: dict[str, Any]) -> None:
        self._waiting = {"v": self._version, **data}
        self._try()

    def flush(self) -> None:
        """Tries a `save` that failed again, at most every 30 s. Call it now and then."""
        if self._waiting is not None and self._clock.monotonic() >= self._retry_at:
            self._try()

    def _try(self) -> None:
        try:
            _replace(self._path, json.dumps(self._waiting, separators=(",", ":"), ensure_ascii=False).encode())
        except OSError as error:
            self._retry_at = self._clock.monotonic() + RETRY
            self.degraded = f"{self._path}: cannot be written ({os.strerror(error.errno or 0).lower()})"
        else:
            self._waiting = self.degraded = None


def _replace(path: str, data: bytes) -> None:
    new = path + ".new"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path + ".prev")
    with contextlib.suppress(FileNotFoundError):
        os.link(path, path + ".prev")
    os.replace(new, path)
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
