"""What the gateway recorded of requests, read for people: `requests.db` is the gateway's, read in short transactions,
in a thread, and never written or made here.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from llmsupervisor.base.errors import LlmsupervisorError, UsageError
from llmsupervisor.link.history import (
    COLUMNS,
    UNFINISHED,
    VERSION,
    RequestsSummary,
    Spread,
    TargetSummary,
    Times,
    to_record,
)
from llmsupervisor.link.requests import RequestRecord
from llmsupervisor.plan import size

PAGE = 500
"""Records of one transaction."""
POLL = 0.5
"""Seconds between two looks for new records."""
TIMEOUT = 2.0
"""Seconds that a lock of the file is waited for."""
WINDOW = 7 * 86400.0

Key = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records. `order`: that of their ends (new ones come last, whatever the clock did), or of their arrival."""

    lines: int | None = 100
    """The last ones; None: all."""
    service: str | None = None
    since: float | None = None
    """Unix seconds."""
    order: Literal["end", "arrival"] = "end"
    follow: bool = False

    @classmethod
    def read(cls, args: dict[str, Any]) -> Wanted:
        lines, order = args.get("lines", 100), args.get("order", "end")
        if lines is not None and (type(lines) is not int or lines < 0):
            raise UsageError(f"lines is {lines!r}: a whole number from 0 is expected, for example 100, or null for all")
        if order not in ("end", "arrival"):
            raise UsageError(f"order is {order!r}: end or arrival is expected")
        follow = bool(args.get("follow"))
        if follow and order == "arrival":
            raise UsageError("follow goes by the order of ends: leave order out")
        return cls(lines, service_of(args), _number(args, "since", None), order, follow)

    @property
    def key(self) -> tuple[str, ...]:
        return ("rowid",) if self.order == "end" else ("time", "rowid")

    def where(self, plus: str = "") -> tuple[list[str], list[Any]]:
        """`plus` keeps SQLite from an index."""
        said = [(f"{plus}service = ?", self.service), (f"{plus}time >= ?", self.since)]
        return [clause for clause, value in said if value is not None], [v for _, v in said if v is not None]


def service_of(args: dict[str, Any]) -> str | None:
    service = args.get("service")
    if service is not None and not isinstance(service, str):
        raise UsageError(f"service is {service!r}: a name is expected, or null for all")
    return service


def window_of(args: dict[str, Any]) -> float:
    window = _number(args, "window_s", WINDOW)
    return WINDOW if window is None else window


def _number(args: dict[str, Any], name: str, default: float | None) -> float | None:
    value = args.get(name, default)
    if value is None or (type(value) in (int, float) and value >= 0):
        return None if value is None else float(value)
    raise UsageError(f"{name} is {value!r}: seconds from 0 are expected, for example 3600")


# --- records --------------------------------------------------------------------------------------------------------


async def records(path: Path, wanted: Wanted) -> AsyncIterator[RequestRecord]:
    """Oldest first; with `follow` for ever. A file that is not there yet has none."""
    reader = _Reader(path, wanted)
    while True:
        page = await asyncio.to_thread(reader.page)
        for record in page:
            yield record
        if len(page) < PAGE:
            if not wanted.follow:
                return
            await asyncio.sleep(POLL)


class _Reader:
    """Where one client is in the file."""

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self._path, self._wanted = path, wanted
        self._file: int | None = None
        self._last = 0
        self._after: Key | None = None
        self._until: int | None = None

    def page(self) -> list[RequestRecord]:
        with opened(self._path) as db:
            if db is None:
                return []
            file = os.stat(self._path).st_ino
            last = db.execute("SELECT max(rowid) FROM requests").fetchone()[0] or 0
            if self._file is None or file != self._file or last < self._last:
                self._begin(db, last, anew=self._file is not None)
            self._file, self._last = file, last
            return self._read(db)

    def _begin(self, db: sqlite3.Connection, last: int, anew: bool) -> None:
        """`anew`: the file that was followed was set aside, and another one begun, perhaps under its inode number."""
        self._after = None
        if not self._wanted.follow:
            self._until = last
        if anew:
            return
        clauses, values = self._wanted.where()
        key = self._wanted.key
        if self._wanted.lines is not None:
            # A sorter over the index beats a walk back through all records for the few of one service.
            order = ", ".join(f"{'+' if clauses else ''}{name} DESC" for name in key)
            self._after = db.execute(
                f"SELECT {', '.join(key)} FROM requests{_and(clauses)} ORDER BY {order} LIMIT 1 OFFSET ?",
                [*values, self._wanted.lines],
            ).fetchone()
        if self._after is None and self._wanted.order == "end":
            first = db.execute(f"SELECT min(rowid) FROM requests{_and(clauses)}", values).fetchone()[0]
            self._after = None if first is None else (first - 1,)

    def _read(self, db: sqlite3.Connection) -> list[RequestRecord]:
        key = self._wanted.key
        clauses, values = self._wanted.where("+" if self._wanted.order == "end" else "")
        if self._after is not None:
            clauses.append(f"({', '.join(key)}) > ({', '.join('?' * len(key))})")
            values += self._after
        if self._until is not None:
            clauses.append("rowid <= ?")
            values.append(self._until)
        cursor = db.execute(
            f"SELECT * FROM requests{_and(clauses)} ORDER BY {', '.join(key)} LIMIT {PAGE}",
            values,
        )
        names = [column[0] for column in cursor.description]
        rows = cursor.fetchall()
        if rows:
            self._after = tuple(rows[-1][names.index(name)] for name in key)
        return [to_record(names, row) for row in rows]


def _and(clauses: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(clauses)}" if clauses else ""


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection | None]:
    """One read transaction. None where nothing was written yet."""
    db = None
    try:
        if not path.exists():
            yield None
            return
        db = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=TIMEOUT, isolation_level=None)
        db.execute("BEGIN")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise LlmsupervisorError(
                f"{path} was written by a newer llmsupervisor (schema {version}, this one knows {VERSION}): upgrade, "
                "or move it away"
            )
        yield db if version else None
    except (sqlite3.Error, OSError) as error:
        raise LlmsupervisorError(
            f"{path} cannot be read: {error}; the gateway sets a corrupt one aside at its next record"
        ) from error
    finally:
        if db is not None:
            db.close()


def sample(path: Path, service: str, since: float, most: int) -> list[RequestRecord]:
    """The newest of one service, in the order of their arrival; without what is told of single ones. Blocks."""
    with opened(path) as db:
        if db is None:
            return []
        cursor = db.execute(
            f"SELECT {', '.join(c for c in COLUMNS if c not in ('id', 'sources', 'session_id'))} FROM requests "
            "WHERE service = ? AND time >= ? ORDER BY time DESC, rowid DESC LIMIT ?",
            (service, since, most),
        )
        names = [column[0] for column in cursor.description]
        return [to_record(names, row) for row in reversed(cursor.fetchall())]


# --- summary --------------------------------------------------------------------------------------------------------

Limits = Mapping[str, Mapping[str | None, int | None]]
"""Service → model → its `context_length`; the one model of a service is None, and so is a limit that is not known."""

_OUTPUT = "CASE WHEN api IN ('embeddings', 'rerank') THEN coalesce(completion_tokens, 0) ELSE completion_tokens END"
# The gateway has a prompt counted where it may be too long; with a 400 it was.
_REFUSED = "status = 400 AND finish_reason = 'rejected' AND prompt_tokens IS NOT NULL"
_KIND = f"""CASE WHEN {_REFUSED} THEN 'refused' WHEN truncated THEN 'truncated'
 WHEN status >= 400 OR finish_reason IN {UNFINISHED} OR prompt_tokens IS NULL OR {_OUTPUT} IS NULL THEN 'unfinished'
 ELSE 'sized' END"""
_LENGTHS = [
    f"CASE ({_KIND}) WHEN 'sized' THEN {each} END" for each in ("prompt_tokens", _OUTPUT, f"prompt_tokens + {_OUTPUT}")
]
# A tenth of a millisecond up to 100 ms, else whole ones: few distinct values, whatever the window.
_TIMES = [
    f"CASE WHEN status < 400 THEN round({name}, {name} < 100) END"
    for name in ("ttft_ms", "queue_ms", "prefill_ms", "decode_ms")
]
_FIGURES = ", ".join([_KIND, *_LENGTHS, *_TIMES])
_WISH = "min(:most, coalesce(max_tokens, 0))"
_NEEDED = "prompt_tokens + max(coalesce(completion_tokens, 0), {})"
_OVER = f"""CASE {_KIND} WHEN 'truncated' THEN 1 WHEN 'refused' THEN prompt_tokens + max(1, {_WISH}) > :limit
 ELSE prompt_tokens + {_OUTPUT} > :limit END"""
_NEEDS = f"{_NEEDED.format(f'min({_WISH}, :p95)')}, {_NEEDED.format(_WISH)}, {_OVER}"
_MOST = 10**9
"""Tokens: a `max_tokens` beyond is no wish."""


async def summary(path: Path, limits: Limits, since: float, window_s: float, service: str | None) -> RequestsSummary:
    """Of the services that are, and of those that were."""
    return await asyncio.to_thread(_summary, path, limits, since, window_s, service)


def _summary(path: Path, limits: Limits, since: float, window_s: float, service: str | None) -> RequestsSummary:
    answer: RequestsSummary = {"window_s": window_s, "reason": None, "targets": []}
    try:
        with opened(path) as db:
            if db is None:
                answer["reason"] = f"no request is recorded: the gateway has not made {path} yet"
                return answer
            seen = [row[0] for row in db.execute("SELECT DISTINCT service FROM requests WHERE time >= ?", (since,))]
            for name in dict.fromkeys([*limits, *sorted(filter(None, seen))]):
                if service not in (None, name):
                    continue
                known = limits.get(name, {None: None})
                for model in known if None in known else _models(db, name, since):
                    answer["targets"].append(_target(db, name, model, since, known.get(model)))
    except LlmsupervisorError as error:
        answer["reason"] = str(error)
    return answer


def _models(db: sqlite3.Connection, service: str, since: float) -> list[str | None]:
    rows = db.execute("SELECT DISTINCT model FROM requests WHERE service = ? AND time >= ?", (service, since))
    return sorted(row[0] for row in rows)


def _target(db: sqlite3.Connection, service: str, model: str | None, since: float, limit: int | None) -> TargetSummary:
    values = {"service": service, "model": model, "since": since, "most": _MOST, "limit": limit}
    where = "service = :service AND time >= :since" + ("" if model is None else " AND model = :model")
    kinds, prompt, output, total, *times = _tallies(db, f"SELECT {_FIGURES} FROM requests WHERE {where}", values)
    ttft, queue, prefill, decode = (_times(each) for each in times)
    values["p95"] = size.quantile(output, 0.95) or 0
    needs = f"SELECT {_NEEDS} FROM requests WHERE {where} AND {_KIND} != 'unfinished'"
    used, reserved, over = _tallies(db, needs, values)
    censored = kinds["refused"] + kinds["truncated"]
    longer = kinds["sized"] + censored - used.total()
    return {
        "service": service,
        "model": model,
        "requests": kinds.total(),
        "sized": kinds["sized"],
        "refused": kinds["refused"],
        "truncated": kinds["truncated"],
        "unfinished": kinds["unfinished"],
        "prompt": _spread(prompt),
        "output": _spread(output),
        "total": _spread(total),
        "context_length": limit,
        "over": over[1] / over.total() if over and limit is not None else None,
        "needed": size.LEAST,
        "context_length_p95": size.implied(used, longer),
        "context_length_p95_reserved": size.implied(reserved, longer),
        "at_least": censored > size.CENSORED * (kinds["sized"] + censored),
        "ttft_ms": ttft,
        "queue_ms": queue,
        "prefill_ms": prefill,
        "decode_ms": decode,
    }


def _tallies(db: sqlite3.Connection, query: str, values: dict[str, Any]) -> list[Counter[Any]]:
    """How often each value of each column occurs; unknown ones left out."""
    cursor = db.execute(query, values)
    found: list[Counter[Any]] = [Counter() for _ in cursor.description]
    while rows := cursor.fetchmany(2000):
        for tally, column in zip(found, zip(*rows, strict=True), strict=True):
            tally.update(column)
    for tally in found:
        tally.pop(None, None)
    return found


def _spread(tally: Counter[int]) -> Spread | None:
    if not tally:
        return None
    p50, p95, p99 = (size.quantile(tally, q) or 0 for q in (0.5, 0.95, 0.99))
    return {"p50": p50, "p95": p95, "p99": p99, "max": max(tally)}


def _times(tally: Counter[float]) -> Times | None:
    if not tally:
        return None
    return {"p50": size.quantile(tally, 0.5) or 0.0, "p95": size.quantile(tally, 0.95) or 0.0}
