"""Executables: where they lie, and what their `--help` and `--version` say, read once per build."""

from __future__ import annotations

import os
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from llmsupervisor.base.ids import Json
from llmsupervisor.plan.facts import Binary
from llmsupervisor.runtime.help import parse

PATIENCE = 60.0
"""Seconds for an answer: vLLM imports all of torch before it prints its help, 10 s and more."""
OUTPUT_LIMIT = 1024 * 1024
"""Bytes of a help text that are read."""


def identity(st: os.stat_result) -> str:
    return f"{st.st_dev}:{st.st_ino}:{st.st_size}:{st.st_mtime_ns}"


@dataclass
class Cache:
    """Output of a binary by (path, identity, arguments). `to_json` and `from_json` carry it through the state folder."""

    texts: dict[tuple[str, str, tuple[str, ...]], str] = field(default_factory=dict)
    size: int = 64
    silent: set[tuple[str, str, tuple[str, ...]]] = field(default_factory=set)
    """What did not answer in time: not asked again by this process."""

    def put(self, key: tuple[str, str, tuple[str, ...]], text: str) -> None:
        for old in [k for k in self.texts if k[0] == key[0] and k[2] == key[2]]:
            del self.texts[old]
        self.texts[key] = text
        while len(self.texts) > self.size:
            del self.texts[next(iter(self.texts))]

    def to_json(self) -> dict[str, Json]:
        return {"v": 1, "texts": [[path, ident, list(args), text] for (path, ident, args), text in self.texts.items()]}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Cache:
        """What cannot be read is left out: the binary is asked again."""
        cache = cls()
        rows = data.get("texts")
        for row in rows if isinstance(rows, list) else []:
            match row:
                case [str(path), str(ident), list(args), str(text)] if all(isinstance(a, str) for a in args):
                    cache.put((path, ident, tuple(args)), text)
        return cache


def find(name: str, path: str) -> tuple[str | None, str]:
    """(absolute path, "") of an executable; (path or None, what is wrong) otherwise.

    A bare name is looked up in `path`, then beside our interpreter, so that scripts of our own venv are found.
    """
    if "/" in name:
        return _executable(name)
    own = os.path.dirname(sys.executable)
    folders = [f for f in path.split(os.pathsep) if os.path.isabs(f)]
    folders += [own] if own not in folders else []
    unusable: tuple[str | None, str] | None = None
    for folder in folders:
        found, error = _executable(os.path.join(folder, name))
        if not error:
            return found, ""
        if found and unusable is None:
            unusable = found, error
    return unusable or (None, f"{name} was not found in {', '.join(folders)}")


def _executable(path: str) -> tuple[str | None, str]:
    try:
        st = os.stat(path)
    except (OSError, ValueError) as error:
        return None, f"{path}: {getattr(error, 'strerror', None) or error}"
    if stat.S_ISDIR(st.st_mode):
        return path, f"{path} is a directory, not an executable"
    if not stat.S_ISREG(st.st_mode) or not os.access(path, os.X_OK):
        return path, f"{path} is not executable for this user (chmod +x, or another `command`)"
    return path, ""


def run(argv: tuple[str, ...], limit: float = PATIENCE) -> str | None:
    """What `argv` prints, with an empty environment, in at most `limit` seconds; None where it cannot be had."""
    try:
        process = subprocess.Popen(
            argv,
            env={},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError):
        return None
    assert process.stdout is not None
    deadline = time.monotonic() + limit
    pieces = bytearray()
    complete = False
    with process.stdout as out:
        poller = select.poll()
        poller.register(out, select.POLLIN)
        while len(pieces) < OUTPUT_LIMIT and (left := deadline - time.monotonic()) > 0:
            if not poller.poll(left * 1000):
                break
            piece = os.read(out.fileno(), 65536)
            if not piece:
                complete = True
                break
            pieces += piece
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()
    return pieces.decode(errors="replace") if complete else None


def look_at(
    name: str,
    help_args: tuple[str, ...],
    version_args: tuple[str, ...],
    pattern: str,
    path: str,
    cache: Cache,
    ask: bool,
) -> Binary:
    """`ask` False: nothing is run; what the cache does not hold stays unknown."""
    found, error = find(name, path)
    if found is None or error:
        return Binary(path=found, error=error)
    try:
        ident = identity(os.stat(found))
    except OSError as failure:
        return Binary(path=None, error=f"{found}: {failure.strerror}")

    keys = [(found, ident, args) for args in (version_args, help_args)]
    unknown = [key for key in keys if key[2] and key not in cache.texts and key not in cache.silent]
    asked = ask or not unknown
    with ThreadPoolExecutor(len(keys)) as pool:
        answers = pool.map(lambda key: run((key[0], *key[2])), unknown) if ask else ()
        for key, said in zip(unknown, answers, strict=ask):
            if said is None:
                cache.silent.add(key)
            else:
                cache.put(key, said)
    version_text, help_text = (cache.texts.get(key) for key in keys)
    version = re.search(pattern, version_text) if version_text is not None and pattern else None
    if not help_text:
        return Binary(found, ident, version["v"] if version else None, asked=asked)
    flags, values = parse(help_text)
    return Binary(found, ident, version["v"] if version else None, flags or None, values, asked=asked)
