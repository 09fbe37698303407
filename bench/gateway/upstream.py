"""The trivial engine: `python upstream.py PORT…` answers each POST with an event stream as its body says.

`max_tokens` events of about 170 bytes, `rate` a second (0: all in one write), each with the monotonic clock as its text.
Under the name `vllm` the stream ends as vLLM's does: an event with `usage` and `metrics`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from typing import Any

import httptools
import uvloop

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
METRICS = {"time_to_first_token_ms": 1.0, "generation_time_ms": 9.0, "queue_time_ms": 0.1, "mean_itl_ms": 1.0}
USAGE = {"prompt_tokens": 500, "completion_tokens": 10, "total_tokens": 510}
TIMINGS = {"prompt_n": 500, "prompt_ms": 1.0, "predicted_n": 10, "predicted_ms": 9.0}


def event(data: str) -> bytes:
    body = f"data: {data}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(body), body)


def written(said: dict[str, Any]) -> str:
    """Without spaces, as engines write it."""
    return json.dumps(said, separators=(",", ":"))


class Request(asyncio.Protocol):
    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        said = json.loads(self.body)
        self.body = b""
        self.model = said["model"]
        self.left, rate = said["max_tokens"], said["rate"]
        self.start = (
            '{"id":"chatcmpl-8f14e45f","object":"chat.completion.chunk","created":1790000000,'
            f'"model":"{self.model}","choices":[{{"index":0,"delta":{{"content":"'
        )
        if not rate:
            self.transport.write(HEAD + b"".join(self.token() for _ in range(self.left)) + self.end())
            return
        self.transport.write(HEAD)
        self.loop = asyncio.get_running_loop()
        self.interval = 1 / rate
        self.due = self.loop.time()
        self.tick()

    def tick(self) -> None:
        if self.left:
            self.left -= 1
            self.transport.write(self.token())
            self.due += self.interval
            self.timer = self.loop.call_at(self.due, self.tick)
        else:
            self.transport.write(self.end())

    def token(self) -> bytes:
        return event(f'{self.start}{time.monotonic_ns():020d}"}},"finish_reason":null}}]}}')

    def end(self) -> bytes:
        common = {"id": "chatcmpl-8f14e45f", "object": "chat.completion.chunk", "model": self.model}
        last = {**common, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        if self.model != "vllm":
            return event(written({**last, "timings": TIMINGS})) + event("[DONE]") + b"0\r\n\r\n"
        usage = {**common, "choices": [], "usage": USAGE, "metrics": METRICS}
        return event(written(last)) + event(written(usage)) + event("[DONE]") + b"0\r\n\r\n"


async def main() -> None:
    loop = asyncio.get_running_loop()
    for port in sys.argv[1:]:
        sock = socket.create_server(("127.0.0.1", int(port)), backlog=4096)
        await loop.create_server(Request, sock=sock, backlog=4096)
    print("listening", flush=True)
    await asyncio.Event().wait()


uvloop.run(main())
