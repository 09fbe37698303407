"""Searches in logs (`log_search`, `log_at`): a log may be of any size, and the daemon never waits for one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from llmsupervisor.base.errors import LlmsupervisorError, UsageError
from llmsupervisor.base.text import printable
from llmsupervisor.host import findlines, logplace

AT_ONCE = 2
WORDS = 500
"""Characters of them."""
HITS, LINES = 1000, 500
LINE = 512 * 1024
"""Bytes of what the search tells at once."""


class LogSearch:
    def __init__(self) -> None:
        self._running = 0

    async def search(self, path: Path, args: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        words, most = args.get("words"), _number(args, "most", HITS)
        if not isinstance(words, str) or not words or len(words) > WORDS or "\0" in words:
            raise UsageError(f'words is {words!r}: 1 to {WORDS} characters are expected, for example "out of memory"')
        if self._running >= AT_ONCE:
            raise LlmsupervisorError(
                f"{AT_ONCE} searches in logs run already, which is all that run at once: try again"
            )
        self._running += 1
        try:
            async with contextlib.aclosing(_found(path, words, most)) as looks:
                async for said in looks:
                    yield said
        finally:
            self._running -= 1


async def _found(path: Path, words: str, most: int) -> AsyncGenerator[dict[str, Any], None]:
    paths = await asyncio.to_thread(logplace.files, path)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", findlines.__file__, words, str(most), *map(str, paths)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=LINE,
    )
    assert process.stdout is not None
    said: dict[str, Any] = {"hits": [], "count": 0, "read": 0, "of": 0, "complete": None}
    try:
        async for line in process.stdout:
            said = json.loads(line)
            for hit in said["hits"]:
                hit["text"] = printable(hit["text"])
            yield said
        if said["complete"] is None:
            yield {**said, "hits": [], "complete": False}
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


async def around(path: Path, args: dict[str, Any]) -> dict[str, Any]:
    before, after = _number(args, "before", LINES), _number(args, "after", LINES)
    file, offset = args.get("file"), args.get("offset")
    if type(file) is not int or type(offset) is not int or offset < 0:
        raise UsageError(f"file and offset are {file!r} and {offset!r}: those of a hit of log_search are expected")
    found = await asyncio.to_thread(logplace.around, path, file, offset, before, after)
    if found is None:
        raise LlmsupervisorError(f"{path}: the file that had this line is gone; search again")
    return {"lines": [{"offset": each.offset, "text": printable(each.text)} for each in found]}


def _number(args: dict[str, Any], name: str, most: int) -> int:
    value = args.get(name, most)
    if type(value) is not int or not 0 <= value <= most:
        raise UsageError(f"{name} is {value!r}: a whole number from 0 to {most} is expected")
    return value
