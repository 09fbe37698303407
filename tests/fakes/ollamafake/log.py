"""Its two logs: slog and what the runners say on stderr, the access log on stdout."""

from __future__ import annotations

import os
import re
import sys
import time

from ollamafake.env import go_duration, rfc3339

LEVELS = {"DEBUG": 1, "INFO": 0, "WARN": -1, "ERROR": -2}
verbosity = 0


def slog(level: str, source: str, msg: str, **fields: object) -> None:
    if LEVELS[level] > verbosity:
        return
    now = time.time_ns()
    stamp = f"{rfc3339(now)[:19]}.{now // 10**6 % 1000:03d}Z"
    pairs = {"time": stamp, "level": level, "source": source, "msg": msg, **fields}
    raw((" ".join(f"{key}={_quoted(value)}" for key, value in pairs.items()) + "\n").encode())


def _quoted(value: object) -> str:
    text = str(value)
    if text and not re.search(r'[\s"=\\]|[^\x20-\x7e]', text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def raw(data: bytes) -> None:
    while data:
        data = data[os.write(2, data) :]


def access(status: int, spent: float, method: str, path: str, error: str = "") -> None:
    ns = int(spent * 1e9)
    latency = go_duration(ns if ns < 60 * 10**9 else ns - ns % 10**9)
    stamp = time.strftime("%Y/%m/%d - %H:%M:%S", time.gmtime())
    print(f'[GIN] {stamp} | {status:3d} | {latency:>13} | {"127.0.0.1":>15} | {method:<7}  "{path}"')
    if error:
        print(error)
    sys.stdout.flush()


def memory() -> tuple[str, str]:
    """Of the host: total and free."""
    pages = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES")
    total, free = (f"{n * os.sysconf('SC_PAGE_SIZE') / 1024**3:.1f} GiB" for n in pages)
    return total, free
