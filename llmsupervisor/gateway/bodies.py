"""Bodies of requests as JSON. A large one is parsed in a process of its own: Python's parser holds the interpreter for
as long as it takes, in whatever thread it runs.

The process is asked twice: `read` (what is asked, hashes of the prompt), then `rewrite`. It sees one request at a time,
keeps the last body, and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from llmsupervisor.gateway import call, fit
from llmsupervisor.gateway.call import Call
from llmsupervisor.gateway.route import Refusal
from llmsupervisor.gateway.view import Count, Policy

LARGE = 1024**2
"""Bytes; below, parsing takes a few milliseconds at most."""
IDLE = 60.0
"""Seconds after which a parser that nobody needs ends."""
LONGEST = 30.0
"""Seconds for one question; a body of 32 MiB takes one or two."""


class Body(Protocol):
    """One request's body, parsed once."""

    async def read(self, api: str, salt: bytes | None) -> Call | Refusal:
        """What is asked."""

    def hash_ids(self) -> list[str] | None:
        """Of the prompt that was read; None without `salt`. For the record: an engine need not wait for it."""

    async def under(self, api: str, policy: Policy) -> Call | Refusal:
        """What is asked of the engine, by the policy of a name."""

    async def rewrite(self, model: str, policy: Policy | None, more: Mapping[str, Any]) -> bytes: ...
    async def question(self, count: Count, asked: Call, model: str) -> bytes:
        """For the engine's tokenizer."""

    def mentions(self, key: str) -> bool:
        """The client may have said this key itself."""


@dataclass(slots=True)
class Small:
    data: bytes
    said: dict[str, Any] | None = None
    changed: dict[str, Any] | None = None
    """By a policy."""
    salt: bytes | None = None

    async def read(self, api: str, salt: bytes | None) -> Call | Refusal:
        return self.parse(api, salt)

    def take(self, api: str, salt: bytes | None) -> tuple[Call, list[str] | None] | Refusal:
        found = self.parse(api, salt)
        return found if isinstance(found, Refusal) else (found, self.hash_ids())

    def hash_ids(self) -> list[str] | None:
        return call.blocks(self.said, self.salt) if self.said is not None and self.salt is not None else None

    def parse(self, api: str, salt: bytes | None) -> Call | Refusal:
        try:
            said = json.loads(self.data)
        except (ValueError, RecursionError) as error:
            return Refusal(400, f"the body is not JSON: {error}", "invalid_json")
        if not isinstance(said, dict):
            text = 'the body must be a JSON object with the name of a model in "model"'
            return Refusal(400, text, "model_required")
        asked = call.read(api, said, self.data)
        if isinstance(asked, Refusal):
            return asked
        self.said, self.salt = said, salt
        return asked

    async def under(self, api: str, policy: Policy) -> Call | Refusal:
        return self.apply(api, policy)

    def apply(self, api: str, policy: Policy) -> Call | Refusal:
        assert self.said is not None
        self.changed = call.change(self.said, self.said["model"], policy, {})
        return call.read(api, self.changed, self.data)

    async def rewrite(self, model: str, policy: Policy | None, more: Mapping[str, Any]) -> bytes:
        return self.change(model, policy, more)

    def change(self, model: str, policy: Policy | None, more: Mapping[str, Any]) -> bytes:
        assert self.said is not None
        return call.rewrite(self.said, self.data, model, policy, more)

    async def question(self, count: Count, asked: Call, model: str) -> bytes:
        return self.ask(count, asked, model)

    def mentions(self, key: str) -> bool:
        return f'"{key}"'.encode() in self.data

    def ask(self, count: Count, asked: Call, model: str) -> bytes:
        said = self.changed or self.said
        assert said is not None
        return fit.request(count, asked, {**said, "model": model})


class Large:
    """In the parser's process. Where that fails, here: late is better than not at all."""

    def __init__(self, parser: Parser, data: bytes) -> None:
        self._parser, self._small = parser, Small(data)
        self._hash_ids: list[str] | None = None

    async def read(self, api: str, salt: bytes | None) -> Call | Refusal:
        found: tuple[Call, list[str] | None] | Refusal | None
        found = await self._parser.ask(self._small.data, "take", (api, salt)) or self._small.take(api, salt)
        if isinstance(found, Refusal):
            return found
        asked, self._hash_ids = found
        return asked

    def hash_ids(self) -> list[str] | None:
        return self._hash_ids

    async def under(self, api: str, policy: Policy) -> Call | Refusal:
        found: Call | Refusal = await self._asked("apply", (api, policy))
        return found

    async def rewrite(self, model: str, policy: Policy | None, more: Mapping[str, Any]) -> bytes:
        found: bytes = await self._asked("change", (model, policy, more))
        return found

    async def question(self, count: Count, asked: Call, model: str) -> bytes:
        found: bytes = await self._asked("ask", (count, asked, model))
        return found

    def mentions(self, key: str) -> bool:
        return self._small.mentions(key)

    async def _asked(self, what: str, args: tuple[Any, ...]) -> Any:
        found = await self._parser.ask(self._small.data, what, args)
        if found is None:
            if self._small.said is None:
                self._small.said = json.loads(self._small.data)
            found = getattr(self._small, what)(*args)
        return found


class Parser:
    """The process: started by the first large body, ended when none comes for a while."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None

    def body(self, data: bytes) -> Body:
        return Small(data) if len(data) < LARGE else Large(self, data)

    async def ask(self, data: bytes, what: str, args: tuple[Any, ...]) -> Any:
        """None where the process cannot be had."""
        async with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if self._process is not None and self._process.returncode is not None:
                self._process = None
            try:
                async with asyncio.timeout(LONGEST):
                    return await self._ask(data, what, args)
            except BaseException as error:
                self.end()
                if isinstance(error, OSError | EOFError | pickle.PickleError):
                    return None
                raise
            finally:
                self._rest()

    async def _ask(self, data: bytes, what: str, args: tuple[Any, ...]) -> Any:
        process = self._process = self._process or await self._start()
        assert process.stdin is not None and process.stdout is not None
        question = pickle.dumps((what, args))
        process.stdin.write(struct.pack("<II", len(question), len(data)) + question)
        process.stdin.write(data)
        await process.stdin.drain()
        (size,) = struct.unpack("<I", await process.stdout.readexactly(4))
        return pickle.loads(await process.stdout.readexactly(size))

    async def _start(self) -> asyncio.subprocess.Process:
        command = (sys.executable, "-P", "-m", "llmsupervisor.gateway.bodies")
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=64 * 1024**2)

    def _rest(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(IDLE, self.end)

    def end(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def main() -> None:
    """Question and body in, answer out, until the end of the input. Only our parent writes to it."""
    source, target = sys.stdin.buffer, sys.stdout.buffer
    body = Small(b"")
    while header := source.read(8):
        question, size = struct.unpack("<II", header)
        what, args = pickle.loads(source.read(question))
        data = source.read(size)
        if what == "take" or data != body.data:
            body = Small(data)
            if what != "take":
                body.said = json.loads(data)
        answer = pickle.dumps(getattr(body, what)(*args))
        target.write(struct.pack("<I", len(answer)) + answer)
        target.flush()


if __name__ == "__main__":
    main()
