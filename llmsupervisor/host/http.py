"""Asks an engine over HTTP. Never raises for what the other side or the network does: `Answer.error` says it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmsupervisor.base.ids import Json

if TYPE_CHECKING:
    import httpx

MAX_ANSWER = 8 * 1024 * 1024
PIECE = 1024 * 1024
"""Bytes of an upload that are read at once."""
KEEPALIVE = 4.0
"""Seconds an idle connection is kept: below the 5 s after which llama-server closes it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` None: no answer came, and `error` says why. `error` is also set where JSON was due and did not come."""

    status: int | None
    json: Json = None
    text: str = ""
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None and self.status is not None and 200 <= self.status < 300


class Engine:
    """One service's engine, one client. `key` is the (header, value) that the engine checks. `seconds` bound the
    whole exchange."""

    def __init__(self, base_url: str, key: tuple[str, str] | None = None) -> None:
        self._base_url = base_url
        self._headers = {"User-Agent": "llmsupervisor", "Accept-Encoding": "identity"}
        if key is not None:
            self._headers[key[0]] = key[1]
        self._client: httpx.AsyncClient | None = None

    async def get_json(self, path: str, seconds: float) -> Answer:
        return _parsed(await self._ask("GET", path, seconds))

    async def get_text(self, path: str, seconds: float) -> Answer:
        return await self._ask("GET", path, seconds)

    async def call(self, method: str, path: str, body: Json, seconds: float) -> Answer:
        """For the calls that an adapter describes as data. `body` None: no body."""
        return _parsed(await self._ask(method, path, seconds, body))

    async def stream(
        self, method: str, path: str, body: Json, file: str, silence: float,
        told: Callable[[Json], None], sent: Callable[[int, int], None],
    ) -> Answer:  # fmt: skip
        """An answer of JSON lines, each `told` as it comes, after a body or the bytes of `file` (`sent`: of how many).
        `silence`: seconds without either. `text` of an answer that is no success is its last line."""
        import httpx

        if self._client is None:
            self._client = self._open()
        last = ""
        try:
            async with asyncio.timeout(silence) as limit:

                def moved() -> None:
                    limit.reschedule(asyncio.get_running_loop().time() + silence)

                content = {"content": _bytes_of(file, sent, moved)} if file else {"json": body}
                headers = {"Content-Length": str(os.path.getsize(file))} if file else {}
                async with self._client.stream(method, path, headers=headers, **content) as response:
                    async for line in response.aiter_lines():
                        moved()
                        last = line.strip() or last
                        with contextlib.suppress(ValueError):
                            told(json.loads(line))
                    return Answer(response.status_code, text=last)
        except TimeoutError:
            return Answer(None, error=f"nothing for {silence:g} s")
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            return Answer(None, error=_reason(error))

    async def aclose(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    def _open(self) -> httpx.AsyncClient:
        import httpx  # 0.15 s, only where an engine is asked

        return httpx.AsyncClient(
            base_url=self._base_url,
            headers=self._headers,
            timeout=None,
            trust_env=False,
            follow_redirects=False,
            verify=self._base_url.startswith("https"),
            limits=httpx.Limits(max_connections=8, max_keepalive_connections=2, keepalive_expiry=KEEPALIVE),
        )

    async def _ask(self, method: str, path: str, seconds: float, body: Json = None) -> Answer:
        import httpx

        if self._client is None:
            self._client = self._open()
        content: dict[str, Any] = {} if body is None else {"json": body}
        try:
            async with asyncio.timeout(seconds), self._client.stream(method, path, **content) as response:
                data = bytearray()
                async for chunk in response.aiter_bytes():
                    data += chunk
                    if len(data) > MAX_ANSWER:
                        return Answer(response.status_code, error=f"answer is larger than {MAX_ANSWER >> 20} MiB")
                return Answer(response.status_code, text=data.decode("utf-8", "backslashreplace"))
        except TimeoutError:
            return Answer(None, error=f"timed out after {seconds:g} s")
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            return Answer(None, error=_reason(error))


async def _bytes_of(path: str, sent: Callable[[int, int], None], moved: Callable[[], None]) -> AsyncIterator[bytes]:
    with open(path, "rb") as file:
        size, done = os.fstat(file.fileno()).st_size, 0
        while piece := await asyncio.to_thread(file.read, PIECE):
            yield piece
            done += len(piece)
            moved()
            sent(done, size)


def _parsed(answer: Answer) -> Answer:
    if answer.error is not None:
        return answer
    try:
        value = json.loads(answer.text)
    except ValueError:
        good = answer.status is not None and 200 <= answer.status < 300
        error = f"answer is not JSON: {answer.text[:80]!r}" if good else None
        return Answer(answer.status, None, answer.text, error)
    return Answer(answer.status, value, answer.text)


def _reason(error: BaseException) -> str:
    """The system's own words (`connection refused`) where there are some below the library's wrappers."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:
            return os.strerror(cause.errno).lower()
        cause = cause.__cause__ or cause.__context__
    text = str(error) or type(error).__name__
    cut = "disconnected" in text or "closed connection" in text
    return "disconnected before the answer was complete" if cut else text
