"""`series.db`: minutes for a day, ten minutes for a week, in a file of bounded size. One writer, the daemon; the same reads.

What cannot be written is lost, told in `degraded`, and never waited for.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from llmsupervisor.base.clock import Clock
from llmsupervisor.host.clock import SystemClock

VERSION = 1
FINE, COARSE = 60, 600
"""Seconds of a point."""
KEPT = {FINE: 86400, COARSE: 7 * 86400}
"""Seconds for which it is kept."""
SIZE = 64 * 1024**2
"""Bytes of the file at most."""
PAGE = 4096
NAMES = 2000
"""Series at most."""
TRIM = 2000
"""Points that one write deletes at most, so that a clock that is wrong for an hour does not empty the file."""
SHARE = 10
"""One of so many points goes where the file is full."""
RETRY = 30.0
"""Seconds after a refusal."""
WAIT = 2.0
"""Seconds for a lock."""

Row = tuple[float, float, float]
"""Unix seconds, mean, maximum."""

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS names (series INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL)",
    "CREATE TABLE IF NOT EXISTS points (step INTEGER, time INTEGER, series INTEGER, mean REAL, max REAL,"
    " PRIMARY KEY (step, time, series)) WITHOUT ROWID",
)
_CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class _Newer(Exception):
    pass


class SeriesFile:
    """Every method may block on the disk: call them in a thread. They never raise for the sake of the file."""

    def __init__(self, path: Path, clock: Clock | None = None, size: int = SIZE) -> None:
        self._path = path
        self._clock = clock or SystemClock()
        self._pages = max(16, size // PAGE)
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._retry_at = 0.0
        self._ids: dict[str, int] = {}
        self.degraded: str | None = None
        """Why nothing is written or read now."""
        self.recovered: str | None = None
        """A corrupt file that was met, and where it is now."""

    @property
    def due(self) -> bool:
        """Not within the pause after a refusal."""
        return self._clock.monotonic() >= self._retry_at

    def write(self, start: int, values: Mapping[str, tuple[float, float]]) -> bool:
        """One minute; whether it is in the file."""
        with self._lock, self._guarded() as db:
            if db is None:
                return False
            try:
                self._put(db, start, values)
            except sqlite3.Error as error:
                if _code(error) != sqlite3.SQLITE_FULL:
                    raise
                self._make_room(db)
                self._put(db, start, values)
            return True
        return False

    def read(self, names: Sequence[str], start: float, end: float, step: int) -> dict[str, list[Row]]:
        """Points of `step` from `start` to before `end`, by series, oldest first."""
        found: dict[str, list[Row]] = {name: [] for name in names}
        with self._lock, self._guarded() as db:
            ids = {self._ids[name]: name for name in names if name in self._ids}
            if db is not None and ids:
                query = f"""SELECT series, time, mean, max FROM points WHERE step = ? AND time >= ? AND time < ?
                    AND series IN ({", ".join(map(str, ids))}) ORDER BY time"""
                for series, time, mean, most in db.execute(query, (step, start, end)):
                    found[ids[series]].append((float(time), mean, most))
        return found

    def names(self) -> list[str]:
        with self._lock, self._guarded() as db:
            return [] if db is None else sorted(self._ids)
        return []

    def close(self) -> None:
        with self._lock:
            self._disconnect()

    # --- writing -------------------------------------------------------------------------------------------------

    def _put(self, db: sqlite3.Connection, start: int, values: Mapping[str, tuple[float, float]]) -> None:
        with _transaction(db):
            rows = [(FINE, start, series, *value) for name, value in values.items() if (series := self._id(db, name))]
            db.executemany("INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?, ?)", rows)
            coarse = start - start % COARSE
            db.execute(
                """INSERT OR REPLACE INTO points SELECT ?, ?, series, avg(mean), max(max) FROM points
                WHERE step = ? AND time >= ? AND time < ? GROUP BY series""",
                (COARSE, coarse, FINE, coarse, coarse + COARSE),
            )
            for step, kept in KEPT.items():
                db.execute(
                    """DELETE FROM points WHERE step = ?1 AND (time, series) IN
                    (SELECT time, series FROM points WHERE step = ?1 AND time < ?2 ORDER BY time LIMIT ?3)""",
                    (step, start - kept, TRIM),
                )
            if start % 3600 == 0:
                self._forget_names(db)

    def _id(self, db: sqlite3.Connection, name: str) -> int | None:
        if name not in self._ids and len(self._ids) < NAMES:
            self._ids[name] = int(
                db.execute("INSERT INTO names (name) VALUES (?) RETURNING series", (name,)).fetchone()[0]
            )
        return self._ids.get(name)

    def _forget_names(self, db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM names WHERE series NOT IN (SELECT series FROM points)")
        self._ids = dict(db.execute("SELECT name, series FROM names"))

    def _make_room(self, db: sqlite3.Connection) -> None:
        with _transaction(db):
            for step in KEPT:
                count = db.execute("SELECT count(*) FROM points WHERE step = ?", (step,)).fetchone()[0]
                db.execute(
                    """DELETE FROM points WHERE step = ?1 AND (time, series) IN
                    (SELECT time, series FROM points WHERE step = ?1 ORDER BY time LIMIT ?2)""",
                    (step, count // SHARE + 1),
                )
        self._ids = dict(db.execute("SELECT name, series FROM names"))

    # --- the file ------------------------------------------------------------------------------------------------

    @contextmanager
    def _guarded(self) -> Iterator[sqlite3.Connection | None]:
        """None where the file cannot be used now."""
        db = None
        try:
            if self._db is not None and not self._path.exists():
                self._disconnect()
            if self._db is None and self.due:
                self._connect()
            db = self._db
            yield db
        except (sqlite3.Error, OSError, _Newer) as error:
            self._fail(error)
            if db is None:
                yield None
        else:
            if db is not None:
                self.degraded = None

    def _connect(self) -> None:
        descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        os.close(descriptor)
        db = self._db = sqlite3.connect(self._path, timeout=WAIT, isolation_level=None, check_same_thread=False)
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise _Newer(
                f"{self._path} was written by a newer llmsupervisor (schema {version}, this one knows {VERSION}); "
                "it is left as it is: move it away, or upgrade"
            )
        db.execute(f"PRAGMA page_size={PAGE}")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("PRAGMA journal_size_limit=1048576")
        db.execute(f"PRAGMA max_page_count={self._pages}")
        with _transaction(db):
            for statement in _SCHEMA:
                db.execute(statement)
            db.execute(f"PRAGMA user_version={VERSION}")
        self._ids = dict(db.execute("SELECT name, series FROM names"))

    def _disconnect(self) -> None:
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
        self._db, self._ids = None, {}

    def _fail(self, error: Exception) -> None:
        self._disconnect()
        self._retry_at = self._clock.monotonic() + RETRY
        if _code(error) in _CORRUPT:
            self._set_aside(error)
        else:
            self.degraded = (
                str(error) if isinstance(error, _Newer) else f"{self._path}: {error}; tried again every 30 s"
            )

    def _set_aside(self, error: Exception) -> None:
        bad = f"{self._path}.bad"
        try:
            for end in ("-wal", "-shm"):
                with suppress(FileNotFoundError):
                    os.replace(f"{self._path}{end}", f"{bad}{end}")
            os.replace(self._path, bad)
        except OSError as refused:
            self.degraded = f"{self._path} is corrupt ({error}) and cannot be set aside: {refused}"
        else:
            self.recovered, self._retry_at = f"{self._path} was corrupt and is now {Path(bad).name}", 0.0


def _code(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
