"""The load client: raw protocols, so that it costs little. It shares its core with the upstream; the proxy has another."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.gateway.proxies import KEY, Proxy

MARK, STAMP = b'"content":"', 20
END = b"\r\n0\r\n\r\n"
SETTLE = 2.0
"""Seconds after the last of many streams has begun: what piled up meanwhile is worked off, and the figures are of streams
that run."""
PROMPT = "All work and no play makes Jack a dull boy. " * 43
"""1.9 kB."""


def request(proxy: Proxy, tokens: int, rate: int) -> bytes:
    said = {
        "model": proxy.model,
        "messages": [{"role": "user", "content": PROMPT}],
        "stream": True,
        "max_tokens": tokens,
        "rate": rate,
    }
    body = json.dumps(said).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{proxy.port}\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass
class Tally:
    """Nanoseconds from the upstream's stamp to here."""

    delays: array[int] = field(default_factory=lambda: array("q"))
    ended: int = 0
    failed: int = 0
    why: str = ""

    def cut(self, why: str) -> None:
        self.failed += 1
        self.why = self.why or why


class Answers(asyncio.Protocol):
    """Reads answers of `tokens` events each; `done` may ask for the next one on this connection."""

    def __init__(self, tokens: int, tally: Tally, done: Callable[[Answers], None]) -> None:
        self.tokens, self.tally, self.done = tokens, tally, done
        self.tail = b""
        self.got = 0
        self.first = 0
        """When the first event of this answer came."""
        self.open = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def ask(self, request: bytes) -> None:
        self.got = self.first = 0
        self.open = True
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        data = self.tail + data
        at, after = data.find(MARK), 0
        while at >= 0 and at + 11 + STAMP <= len(data):
            after = at + 11 + STAMP
            self.tally.delays.append(now - int(data[at + 11 : after]))
            self.got += 1
            at = data.find(MARK, after)
        self.first = self.first or (now if self.got else 0)
        self.tail = data[after:]
        if self.tail.endswith(END):
            whole = self.got == self.tokens and b"[DONE]" in self.tail
            self.tail = b""
            self.open = False
            self.tally.ended += 1
            if not whole:
                self.tally.cut(f"{self.got} of {self.tokens} events")
            self.done(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self.open:
            self.open = False
            self.tally.ended += 1
            self.tally.cut(f"cut after {self.got} of {self.tokens} events: {error} {self.tail[:300]!r}")
            self.done(self)


async def connected(proxy: Proxy, protocol: Answers) -> Answers:
    await asyncio.get_running_loop().create_connection(lambda: protocol, "127.0.0.1", proxy.port)
    return protocol


@dataclass
class Single:
    ttft_ns: list[int]
    cpu_ns: float
    """Of the proxy, per request."""


async def one_at_a_time(proxy: Proxy, seconds: float, least: int = 50) -> Single:
    loop = asyncio.get_running_loop()
    tally, ask = Tally(), request(proxy, 1, 0)
    turn: asyncio.Future[None] = loop.create_future()
    answers = await connected(proxy, Answers(1, tally, lambda _: turn.set_result(None)))
    found: list[int] = []
    until, warm, cpu = loop.time() + seconds, 20, 0
    while loop.time() < until or len(found) < least:
        if warm == 0:
            cpu, warm = proxy.cpu_ns(), -1
        warm -= 1
        turn = loop.create_future()
        begin = time.monotonic_ns()
        answers.ask(ask)
        await turn
        if tally.failed:
            raise SystemExit(f"bench: {proxy.name}: {tally.why}")
        if warm < 0:
            found.append(answers.first - begin)
    used = proxy.cpu_ns() - cpu
    answers.transport.close()
    return Single(found, used / len(found))


@dataclass
class Many:
    per_second: float
    cpu_ns: float
    failed: int


async def at_once(proxy: Proxy, seconds: float, connections: int = 32) -> Many:
    loop = asyncio.get_running_loop()
    tally, ask = Tally(), request(proxy, 1, 0)
    until, over = loop.time() + seconds + 0.2, asyncio.Event()
    left = connections

    def next_one(answers: Answers) -> None:
        nonlocal left
        if loop.time() < until and not answers.transport.is_closing():
            answers.ask(ask)
        else:
            left -= 1
            if not left:
                over.set()

    pool = [await connected(proxy, Answers(1, tally, next_one)) for _ in range(connections)]
    for answers in pool:
        answers.ask(ask)
    await asyncio.sleep(0.2)
    begin, cpu, before = time.monotonic(), proxy.cpu_ns(), tally.ended
    await over.wait()
    spent, used, n = time.monotonic() - begin, proxy.cpu_ns() - cpu, tally.ended - before
    for answers in pool:
        answers.transport.close()
    return Many(n / spent, used / n, tally.failed)


@dataclass
class Streams:
    p50_ns: float
    p99_ns: float
    begin_p99_ns: float
    """Of all events before the figures begin."""
    cpu_ns: float
    """Of the proxy, per event."""
    rss: int
    failed: int
    why: str


async def streams(proxy: Proxy, number: int, rate: int, seconds: float) -> Streams:
    """1,500 begin in a second. Figures of `seconds` in which all of them run."""
    ramp = max(0.5, number / 1500)
    tally, over = Tally(), asyncio.Event()
    ask = request(proxy, round(rate * (ramp * 1.3 + SETTLE + seconds + 0.6)), rate)
    tokens = json.loads(ask.partition(b"\r\n\r\n")[2])["max_tokens"]

    def done(answers: Answers) -> None:
        answers.transport.close()
        if tally.ended == number:
            over.set()

    loop = asyncio.get_running_loop()
    begin = loop.time()
    for n in range(number):
        await asyncio.sleep(max(0.0, begin + ramp * n / number - loop.time()))
        (await connected(proxy, Answers(tokens, tally, done))).ask(ask)
    await asyncio.sleep(SETTLE)
    cpu, first = proxy.cpu_ns(), len(tally.delays)
    await asyncio.sleep(seconds)
    used, last = proxy.cpu_ns() - cpu, len(tally.delays)
    rss = proxy.rss()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ramp + 20):
            await over.wait()
    found = sorted(tally.delays[first:last])
    n = len(found)
    failed = tally.failed + number - tally.ended
    if not found:
        endless = float("inf")
        return Streams(endless, endless, endless, endless, rss, failed, tally.why)
    before = sorted(tally.delays[:first])
    begin_p99 = before[len(before) * 99 // 100] if before else float("inf")
    return Streams(found[n // 2], found[n * 99 // 100], begin_p99, used / n, rss, failed, tally.why)


async def idle(proxy: Proxy, number: int) -> float:
    """Bytes of the proxy's memory for each of `number` connections that have been answered once and wait."""
    tally, ask = Tally(), request(proxy, 1, 0)
    due, reached = 0, asyncio.Event()

    def done(_: Answers) -> None:
        if tally.ended == due:
            reached.set()

    async def settled(ended: int) -> None:
        nonlocal due
        due = ended
        reached.clear()
        if tally.ended < due:
            async with asyncio.timeout(30):
                await reached.wait()

    before, pool = proxy.rss(), []
    for n in range(number):
        answers = await connected(proxy, Answers(1, tally, done))
        answers.ask(ask)
        pool.append(answers)
        if n % 64 == 63:
            await settled(n + 1)
    await settled(number)
    if tally.failed:
        raise SystemExit(f"bench: {proxy.name}: {tally.why}")
    each = (proxy.rss() - before) / number
    for answers in pool:
        answers.transport.abort()
    await asyncio.sleep(0.2)
    return each


@contextlib.contextmanager
def quiet_collector():  # type: ignore[no-untyped-def]
    """The client's own collector stays out of the figures."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
