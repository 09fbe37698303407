"""Small questions to engines: how many tokens, which slots are busy. Never a user's request."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httptools

from llmsupervisor.gateway.view import Target

TIMEOUT = 10.0
"""Seconds for all of it."""
AT_ONCE = 4
"""Questions with a body at one address."""
LARGEST = 8 * 1024**2
"""Bytes of an answer."""


class FetchError(Exception):
    """`status`: of its answer; None: there was none in time."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class _Answer:
    def __init__(self) -> None:
        self.body = bytearray()
        self.complete = False

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True


class Fetch:
    def __init__(self) -> None:
        self._places: dict[tuple[str, int], asyncio.Semaphore] = {}

    async def get(self, target: Target, path: str) -> Any:
        return await self._ask("GET", target, path, b"")

    async def post(self, target: Target, path: str, body: bytes) -> Any:
        """With `AT_ONCE` others at most: prompts to count leave the engine's threads to what it runs."""
        place = self._places.setdefault(target.address, asyncio.Semaphore(AT_ONCE))
        try:
            async with asyncio.timeout(TIMEOUT), place:
                return await self._ask("POST", target, path, body)
        except TimeoutError as error:
            raise FetchError(f"{path}: timeout") from error

    async def answers(self, target: Target, path: str) -> bool:
        """Whatever it says."""
        try:
            await self._exchange("GET", target, path, b"")
        except FetchError as error:
            return error.status is not None
        return True

    async def _ask(self, method: str, target: Target, path: str, body: bytes) -> Any:
        """The JSON of a 200. FetchError for everything else."""
        status, answer = await self._exchange(method, target, path, body)
        if status != 200:
            raise FetchError(f"{path}: status {status}", status)
        try:
            return json.loads(answer)
        except ValueError as error:
            raise FetchError(f"{path}: {error}") from error

    async def _exchange(self, method: str, target: Target, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of an answer. FetchError where there is none, or it is too long."""
        said = {
            "host": f"{target.host}:{target.port}",
            "content-length": str(len(body)),
            "content-type": "application/json",
            "connection": "close",
        } | {name.lower(): value for name, value in target.headers}
        head = "\r\n".join([f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in said.items()), "", ""])
        answer = _Answer()
        parser = httptools.HttpResponseParser(answer)
        try:
            async with asyncio.timeout(TIMEOUT):
                reader, writer = await asyncio.open_connection(target.host, target.port)
                try:
                    writer.write(head.encode("latin-1") + body)
                    while not answer.complete and (data := await reader.read(65536)):
                        parser.feed_data(data)
                        if len(answer.body) > LARGEST:
                            raise FetchError(f"{path}: more than {LARGEST} bytes", parser.get_status_code())
                finally:
                    writer.transport.abort()
            if not (status := parser.get_status_code()):
                raise FetchError(f"{path}: no answer")
            return status, bytes(answer.body)
        except (OSError, TimeoutError, httptools.HttpParserError) as error:
            raise FetchError(f"{path}: {error or 'timeout'}") from error
