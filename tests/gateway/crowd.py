"""`python crowd.py PORT STREAMS RATE`: so many streams held open, and so many short connections begun a second, whatever
becomes of those before. Says what became of each as a JSON line of standard output, until its input ends."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import cast

import uvloop

BODY = json.dumps({"model": "chat", "messages": [], "stream": True, "max_tokens": 900, "ignore_eos": True}).encode()
STREAM = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    % len(BODY)
) + BODY
SHORT = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
AGAIN = 0.2
"""Seconds until a stream that ended is asked for again."""


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


class Asked(asyncio.Protocol):
    """One connection. `over`: the whole answer; of a stream, all until it breaks."""

    def __init__(self, request: bytes) -> None:
        self.request, self.got, self.began = request, b"", False
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self.request)

    def data_received(self, data: bytes) -> None:
        if b"data: " in data and not self.began:
            self.began = True
            say(stream="began")
        self.got = (self.got + data)[-4096:]

    def connection_lost(self, error: Exception | None) -> None:
        self.over.set_result(self.got)


async def short(port: int) -> None:
    loop, began = asyncio.get_running_loop(), time.monotonic()
    try:
        _, asked = await loop.create_connection(lambda: Asked(SHORT), "127.0.0.1", port)
        how = "answered" if (await asked.over).startswith(b"HTTP/1.1 200 ") else "lost"
    except ConnectionRefusedError:
        how = "refused"
    except OSError as error:
        how = f"lost: {error}"
    say(how=how, began=began, ended=time.monotonic())


async def stream(port: int) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            _, asked = await loop.create_connection(lambda: Asked(STREAM), "127.0.0.1", port)
            await asked.over
            if asked.began:
                say(stream="ended")
        except OSError as error:
            say(how="refused" if isinstance(error, ConnectionRefusedError) else f"lost: {error}")
        await asyncio.sleep(AGAIN)


async def main(port: int, streams: int, rate: int) -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(0, lambda: None if sys.stdin.buffer.read1(100) else over.set())
    async with asyncio.TaskGroup() as group:
        held = [group.create_task(stream(port)) for _ in range(streams)]
        due = loop.time()
        while not over.is_set():
            group.create_task(short(port))
            due += 1 / rate
            await asyncio.sleep(max(0.0, due - loop.time()))
        for task in held:
            task.cancel()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(*map(int, sys.argv[1:])))
