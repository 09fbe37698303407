"""Tells when the settled content of files has changed, whatever way an editor, `sed -i` or Kubernetes writes them."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import signal
import stat
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping

LONGEST = 2.0
"""Seconds: content that never settles is reported this often; content that does settle at once, save that within
this time after a report it must be quiet for three times `settle`."""
WRITER = 10.0
"""Seconds that a file held open by a writer is waited for."""
BIG = 16 * 1024 * 1024
"""Bytes: a larger file is known by its inode, size and time, not by its content."""

Digests = Mapping[str, str]


def watch(
    paths: Callable[[], Iterable[str]], settle: float = 0.1, poll: float = 5.0, since: float | None = None
) -> AsyncGenerator[frozenset[str], None]:
    """Yields the paths whose content is another than at the last report. A missing file is a content of its own.

    What counts as known is read by this call. `since` is when you began to read them yourself (Unix seconds): a file
    written after it is reported at once. `paths` is asked again after each report; what it then names for the first
    time is reported too where it was written after that report.
    """
    known = {
        path: "" if since is not None and _written_since(path, since) else content
        for path, content in digests(paths()).items()
    }
    return _watch(paths, known, settle, poll)


async def _watch(
    paths: Callable[[], Iterable[str]], known: Digests, settle: float, poll: float
) -> AsyncGenerator[frozenset[str], None]:
    bell = Bell()
    reported, handed_over = -LONGEST, time.time()
    try:
        while True:
            wanted = frozenset(paths())
            newcomers = wanted - known.keys()
            if newcomers:
                seen = await asyncio.to_thread(digests, newcomers)
                late = {path for path in newcomers if _written_since(path, handed_over)}
                known = {**known, **seen, **dict.fromkeys(late, "")}
            known = {path: known[path] for path in wanted}
            await bell.arm(wanted)
            found = await asyncio.to_thread(digests, wanted)
            if found == known:
                await bell.wait(poll)
                continue
            found = await _settled(wanted, found, known, settle, reported)
            changed = frozenset(path for path in wanted if found[path] != known[path])
            known = found
            if changed:
                reported, handed_over = time.monotonic(), time.time()
                yield changed
    finally:
        await bell.close()


async def _settled(paths: Iterable[str], first: Digests, known: Digests, settle: float, reported: float) -> Digests:
    """The content once two reads `settle` apart agree and nobody has it open for writing."""
    began = changed = time.monotonic()
    quiet = settle if began - reported >= LONGEST else 3 * settle
    end = max(began, reported) + LONGEST
    last = first
    while True:
        await asyncio.sleep(settle)
        found = await asyncio.to_thread(digests, paths)
        now = time.monotonic()
        if found != last:
            last, changed = found, now
        if any(is_being_written(path) for path in paths if found[path] != known[path]) and now < began + WRITER:
            continue
        if now - changed >= quiet or now >= end:
            return last


class Bell:
    """Rings when something happened in a folder that matters. Where the system refuses to watch (inotify instances or
    watches used up, no permission), only the end of `wait` is left, and each `arm` tries again."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        self._folders: frozenset[tuple[str, int, int]] = frozenset()
        self._pump: asyncio.Task[None] | None = None

    @property
    def armed(self) -> bool:
        return self._pump is not None and not self._pump.done()

    async def arm(self, paths: Iterable[str]) -> None:
        """Watches the folders as they are now: again where one was removed, recreated or linked elsewhere."""
        wanted = frozenset(_identified(folder) for path in paths for folder in folders(path))
        if wanted == self._folders and self.armed:
            return
        await self.close()
        self._folders = wanted
        present = {folder for folder, _, inode in wanted if inode}
        self._pump = asyncio.get_running_loop().create_task(self._listen(present))
        await asyncio.sleep(0)  # the watches stand when the task first waits

    async def wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._rung.wait()
        self._rung.clear()

    async def close(self) -> None:
        if self._pump is not None:
            pump, self._pump = self._pump, None
            pump.cancel()
            await asyncio.wait({pump})

    async def _listen(self, folders: set[str]) -> None:
        from watchfiles import awatch

        readable = {folder for folder in folders if os.access(folder, os.R_OK)}
        with contextlib.suppress(OSError, RuntimeError):  # watchfiles' own errors are RuntimeErrors
            async for _ in awatch(
                *readable, watch_filter=None, recursive=False, debounce=100, step=50, force_polling=False
            ):
                self._rung.set()


def folders(path: str) -> set[str]:
    """Every folder in which a change may give `path` another content: its own, those of the links on the way, and
    where a part is missing, the nearest that exists."""
    found: set[str] = set()
    parts = [part for part in os.path.abspath(path).split("/") if part]
    here, links = "/", 0
    while parts:
        part = parts.pop(0)
        if part == "..":
            here = os.path.dirname(here)
            continue
        full = os.path.join(here, part)
        try:
            target = os.readlink(full)
        except OSError:
            if not parts or not os.path.isdir(full):
                found.add(here)
                break
            here = full
            continue
        found.add(here)
        links += 1
        if links > 40:
            break
        parts[:0] = [part for part in target.split("/") if part not in ("", ".")]
        if target.startswith("/"):
            here = "/"
    return found


def _identified(folder: str) -> tuple[str, int, int]:
    try:
        info = os.stat(folder)
    except OSError:
        return folder, 0, 0
    return folder, info.st_dev, info.st_ino


def digests(paths: Iterable[str]) -> Digests:
    return {path: digest(path) for path in paths}


def digest(path: str) -> str:
    """Of the content; a word for what has none. Never waits on a FIFO."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        return f"unreadable: {error.errno}"
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return f"not a file: {stat.S_IFMT(info.st_mode):o}"
        if info.st_size > BIG:
            return f"big: {info.st_dev} {info.st_ino} {info.st_size} {info.st_mtime_ns}"
        content = hashlib.sha256()
        while block := os.read(fd, 1 << 20):
            content.update(block)
        return content.hexdigest()
    except OSError as error:
        return f"unreadable: {error.errno}"
    finally:
        os.close(fd)


def is_being_written(path: str) -> bool:
    """Somebody holds it open for writing: the kernel then grants no read lease. False where it grants none to us at
    all (another's file), so that a torn file can only be known by its settling."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return False
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # ignored by default; a broken lease's own SIGIO would kill us
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def _written_since(path: str, when: float) -> bool:
    """The file or its link was written or put there after `when` (Unix seconds), as far as its file system tells."""
    with contextlib.suppress(OSError):
        return max(os.lstat(path).st_ctime, os.stat(path).st_ctime) >= when - 0.02
    return False
