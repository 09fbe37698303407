"""Request records on disk: `requests.db`, written here alone, by one thread. Nothing here waits or raises into the loop:
what cannot be written is kept for a while, then dropped and counted.
"""

from __future__ import annotations

import os
import queue
import secrets
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from llmsupervisor.link.history import COLUMNS, VERSION, to_row
from llmsupervisor.link.requests import RequestRecord

BATCH = 0.25
"""Seconds: what a SIGKILL may cost."""
RETRY = 30.0
"""Seconds after a disk refused."""
BUSY = 2.0
"""Seconds that another gateway's write is waited for, at a hand-over."""
ROOM = 8192
"""Records that may wait for the disk; one with many prefix hashes counts more than once."""
HASHES = 64
"""Prefix hashes that weigh as much as a record."""
CHUNK = 32
"""Records of one statement: one trip without the interpreter's lock."""
TRIM = 1000
"""Records that one round deletes at most, so that no round is long."""
VACUUM = 256
"""Pages that one round gives back at most."""
IDLE = 60.0
"""Seconds between two looks at the limits where nothing is written."""
LEAP = 3600.0
"""Seconds by which the clock may be set without doubt: after more the age limit waits for a day, so that a clock
that is wrong for an hour does not empty the history."""
DOUBT = 86400.0

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS requests (rowid INTEGER PRIMARY KEY AUTOINCREMENT,
 {", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())});
CREATE INDEX IF NOT EXISTS requests_time ON requests (time);
CREATE INDEX IF NOT EXISTS requests_service_time ON requests (service, time);
"""
_INSERT = f"INSERT INTO requests ({', '.join(COLUMNS)}) VALUES "
_VALUES = f"({', '.join('?' * len(COLUMNS))})"
_CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_LOCKED = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


class _Newer(Exception):
    pass


def _to_log(text: str) -> None:
    print(f"history: {text}", file=sys.stderr, flush=True)


class History:
    """One for a process. `put` is for one thread, the loop's; `close` writes what is left."""

    def __init__(
        self,
        path: Path,
        now_wall: Callable[[], float] = time.time,
        retry: float = RETRY,
        tell: Callable[[str], None] = _to_log,
    ) -> None:
        """`tell` gets each new trouble, in the thread."""
        self._path = path
        self._now = now_wall
        self._retry = retry
        self._tell = tell
        self.salt = _salt(path.with_suffix(".salt"))
        """Of prefix hashes; the same after a restart, where it could be kept."""
        self._age: float | None = None
        self._bytes: int | None = None
        self._queue: queue.SimpleQueue[RequestRecord | None] = queue.SimpleQueue()
        self._taken = 0
        self._refused = 0
        """Written by the loop only, as is `_taken`; the next two by the thread only."""
        self._done = 0
        self._lost = 0
        self._why: str | None = None
        self._batch: list[RequestRecord] = []
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._pause = BATCH
        self._more = True
        self._shrunk = False
        self._offset = now_wall() - time.monotonic()
        self._doubt_until = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self._thread.start()

    # --- the loop's side -----------------------------------------------------------------------------------------

    def put(self, record: RequestRecord) -> None:
        weight = _weight(record)
        if self._taken + weight - self._done > ROOM:
            self._refused += 1
            return
        self._taken += weight
        self._queue.put(record)

    def configure(self, age_s: float | None, bytes: int | None) -> None:
        """Limits; None: none."""
        self._age, self._bytes = age_s, bytes

    @property
    def dropped(self) -> int:
        """Records that were not written, and will not be."""
        return self._refused + self._lost

    @property
    def degraded(self) -> str | None:
        """Why records are not written now."""
        return self._why

    def close(self, timeout: float = 5.0) -> None:
        """Seconds at most; what a disk refuses to the last is counted as dropped."""
        self._closing.set()
        self._queue.put(None)
        self._thread.join(timeout)

    # --- the thread's side ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        last = False
        while not last:
            last = self._gather()
            self._round()
        while self._batch and self._why is None:
            self._gather()
            self._round()
        self._lost += len(self._batch)
        self._disconnect()

    def _gather(self) -> bool:
        """Adds to the batch what came. True where it is the last."""
        last = self._closing.is_set()
        if not self._batch and not self._more and not last and self._why is None:
            with suppress(queue.Empty):
                last = self._take(self._queue.get(timeout=IDLE))
        if not last:
            self._closing.wait(self._pause)
        with suppress(queue.Empty):
            while True:
                last = self._take(self._queue.get_nowait()) or last
        return last

    def _take(self, item: RequestRecord | None) -> bool:
        if item is not None:
            self._batch.append(item)
        return item is None

    def _round(self) -> None:
        self._more = False
        try:
            db = self._connect()
            while self._batch:
                self._write(db, self._batch[: 32 * CHUNK])
            self._more = self._trim(db)
        except Exception as error:
            self._fail(error)
        else:
            self._why, self._pause = None, BATCH

    def _write(self, db: sqlite3.Connection, batch: list[RequestRecord]) -> None:
        lost = 0
        with _transaction(db):
            for start in range(0, len(batch), CHUNK):
                records = batch[start : start + CHUNK]
                if not _stored(db, records):
                    lost += sum(not _stored(db, [record]) for record in records)
        del self._batch[: len(batch)]
        self._done += sum(map(_weight, batch))
        self._lost += lost

    # --- limits --------------------------------------------------------------------------------------------------

    def _trim(self, db: sqlite3.Connection) -> bool:
        """A bounded piece of what is over the limits. True: there is more."""
        deleted = 0
        offset = self._now() - time.monotonic()
        if abs(offset - self._offset) > LEAP:
            self._offset, self._doubt_until = offset, time.monotonic() + DOUBT
        if self._age is not None and time.monotonic() >= self._doubt_until:
            old = "SELECT rowid FROM requests WHERE time < ? ORDER BY time LIMIT ?"
            deleted += _delete(db, f"rowid IN ({old})", (self._now() - self._age, TRIM))
        size, pages, free = (_pragma(db, name) for name in ("page_size", "page_count", "freelist_count"))
        used = (pages - free) * size
        if self._bytes is not None and used > self._bytes:
            first, last = db.execute("SELECT min(rowid), max(rowid) FROM requests").fetchone()
            if first is not None:
                share = int((last - first + 1) * (used - self._bytes) / used)
                deleted += _delete(db, "rowid < ?", (first + min(TRIM, share + 1),))
        too_large = self._bytes is not None and pages * size > self._bytes
        if free and (too_large or free > pages // 8):
            db.executescript(f"PRAGMA incremental_vacuum({VACUUM})")  # `execute` would give back one page
            self._shrunk = True
            return True
        if self._shrunk and not deleted:
            # The file itself becomes shorter at a checkpoint only.
            _, frames, done = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            self._shrunk = frames != done
        return deleted > 0

    # --- the file ------------------------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        """The file that lies there now: one that was removed or set aside under us is left."""
        if self._db is not None:
            with suppress(FileNotFoundError):
                if _identity(self._path) == self._file:
                    return self._db
        self._disconnect()
        with suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        if os.stat(self._path).st_mode & 0o077:
            os.chmod(self._path, 0o600)
        self._file = _identity(self._path)
        db = sqlite3.connect(self._path, timeout=BUSY, isolation_level=None)
        self._db = db
        version = _pragma(db, "user_version")
        if version > VERSION:
            raise _Newer(
                f"{self._path} was written by a newer llmsupervisor (schema {version}, this one knows {VERSION}); "
                "it is left as it is: move it away, or upgrade"
            )
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute(f"PRAGMA journal_size_limit={8 * 1024**2}")
        with _transaction(db):
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            there = {row[1] for row in db.execute("PRAGMA table_info(requests)")}
            for name in COLUMNS.keys() - there:
                db.execute(f"ALTER TABLE requests ADD COLUMN {name} {COLUMNS[name]}")
            if version < VERSION:
                db.execute(f"PRAGMA user_version={VERSION}")
        return db

    def _disconnect(self) -> None:
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
        self._db = None

    def _fail(self, error: Exception) -> None:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        before, self._pause = self._why, self._retry
        if code in _LOCKED:
            self._why, self._pause = f"{self._path} is locked by another process", BATCH
        elif code in _CORRUPT:
            self._set_aside(str(error))
        elif isinstance(error, _Newer):
            self._why = str(error)
        else:
            self._why = f"{self._path}: {error}; tried again every {self._retry:g} s"
        self._disconnect()
        if self._why is not None and self._why != before:
            self._tell(self._why)

    def _set_aside(self, error: str) -> None:
        """Not where another gateway has done so meanwhile: what lies there then is new."""
        self._disconnect()
        bad = f"{self._path}.bad"
        try:
            if _identity(self._path) == self._file:
                for end in ("-wal", "-shm"):
                    with suppress(FileNotFoundError):
                        os.replace(f"{self._path}{end}", f"{bad}{end}")
                os.replace(self._path, bad)
            self._why, self._pause = f"{self._path} was corrupt ({error}): set aside as {bad}", BATCH
        except OSError as refused:
            self._why = f"{self._path} is corrupt ({error}) and cannot be set aside: {refused}"


class _transaction:
    """`BEGIN IMMEDIATE`, then all or nothing."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._db.execute("COMMIT")
        elif self._db.in_transaction:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")


def _weight(record: RequestRecord) -> int:
    return 1 + len(record.get("hash_ids") or ()) // HASHES


def _stored(db: sqlite3.Connection, records: list[RequestRecord]) -> bool:
    """False where one of them is no record. What the disk says is raised."""
    try:
        values = [value for record in records for value in to_row(record)]
        db.execute(_INSERT + ",".join([_VALUES] * len(records)), values)
    except (sqlite3.InterfaceError, sqlite3.ProgrammingError, AttributeError, TypeError, ValueError, OverflowError):
        return False
    return True


def _delete(db: sqlite3.Connection, where: str, values: tuple[float, ...]) -> int:
    with _transaction(db):
        return db.execute(f"DELETE FROM requests WHERE {where}", values).rowcount


def _pragma(db: sqlite3.Connection, name: str) -> int:
    value: int = db.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _salt(path: Path) -> bytes:
    """Kept in a file; a random one of this process where that cannot be."""
    new = secrets.token_bytes(32)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with suppress(OSError):
        if path.exists() and path.stat().st_size != len(new):
            path.unlink()
        if not path.exists():
            try:
                descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
                with open(descriptor, "wb") as file:
                    file.write(new)
                with suppress(FileExistsError):
                    os.link(draft, path)
            finally:
                draft.unlink(missing_ok=True)
        return path.read_bytes()
    return new
