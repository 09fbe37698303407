"""What all requests of one gateway share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmsupervisor.gateway import fit
from llmsupervisor.gateway.board import Board
from llmsupervisor.gateway.bodies import Parser
from llmsupervisor.gateway.call import Call
from llmsupervisor.gateway.fetch import Fetch
from llmsupervisor.gateway.guard import Guard
from llmsupervisor.gateway.history import History
from llmsupervisor.gateway.metrics import Metrics
from llmsupervisor.gateway.reaper import Reaper
from llmsupervisor.gateway.record import build
from llmsupervisor.gateway.view import Table, Target
from llmsupervisor.link.gateway import EndpointStats, Stats
from llmsupervisor.link.requests import Live, RequestRecord

if TYPE_CHECKING:
    from llmsupervisor.gateway.exchange import Exchange

LIVE = 500
"""Requests that one `stats` shows at most: a line of the link has a limit."""
ENRICHED = 3.0
"""Seconds that a record waits for what the daemon knows of it."""
BROKE_OFF = ("closed", "reset")
MOST, NAME = 2**63 - 1, 200
"""The greatest number that a record can hold, and the characters that it keeps of what a client calls something."""


@dataclass
class Hub:
    board: Board
    fetch: Fetch
    reaper: Reaper
    history: History
    metrics: Metrics
    guard: Guard = field(default_factory=lambda: Guard(Table()))
    """Of the present view."""
    parser: Parser = field(default_factory=Parser)
    exchanges: set[Exchange] = field(default_factory=set)
    watching: bool = False
    """Someone looks at live requests."""
    pushed: str | None = None
    """The daemon's last exposition text …"""
    pushed_at: float | None = None
    """… and when it wrote it, Unix seconds."""
    told: Callable[[], bool] = lambda: False
    """A daemon is connected."""
    _kept: dict[str, tuple[Exchange, asyncio.TimerHandle]] = field(default_factory=dict)
    """Of which the daemon may know more, by id."""
    _tokens: dict[str, int] = field(default_factory=dict)
    """Endpoint → content chunks of ended requests."""
    _asking: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.board.changed = self._on_view

    def _on_view(self) -> None:
        table = self.board.table
        self.guard = Guard(table)
        self.metrics.know(table)
        self.history.configure(table.limits.history_age, table.limits.history_bytes)

    @property
    def salt(self) -> bytes:
        return self.history.salt

    def bad(self, target: Target, kind: str) -> None:
        """One that broke off may be dying, and takes connections until it is dead: nobody is sent there before it has
        answered a question."""
        self.board.bad(target.endpoint, kind)
        if kind in BROKE_OFF and self.board.doubt(target):
            task = asyncio.get_running_loop().create_task(self._ask_if_alive(target))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _ask_if_alive(self, target: Target) -> None:
        lives = False
        try:
            lives = await self.fetch.answers(target, "/health")
        finally:
            self.board.settle(target, lives)

    def ended(self, exchange: Exchange) -> None:
        reader, target = exchange.reader, exchange.target
        if reader is not None and target is not None:
            self._tokens[target.endpoint] = self._tokens.get(target.endpoint, 0) + reader.chunks
        if target is None or not target.traits.enrich or reader is None or not self.told():
            self._record(exchange)
            return
        self.board.tell(
            {
                "type": "finished",
                "id": exchange.id,
                "endpoint": target.endpoint,
                "end": time.time(),
                "prompt_tokens": reader.prompt_tokens,
                "completion_tokens": reader.completion_tokens,
            }
        )
        timer = asyncio.get_running_loop().call_later(ENRICHED, self._enrich, exchange.id, {})
        self._kept[exchange.id] = exchange, timer

    def _enrich(self, id: str, fields: Mapping[str, Any]) -> None:
        """What the daemon read of it, or nothing in time: it is written down."""
        exchange, timer = self._kept.pop(id, (None, None))
        if exchange is None or timer is None:
            return
        timer.cancel()
        if (reader := exchange.reader) is not None:
            for name in ("prefill_ms", "decode_ms"):
                if isinstance(value := fields.get(name), int | float):
                    reader.figures.setdefault(name, float(value))
            if reader.cached_tokens is None and type(cached := fields.get("cached_tokens")) is int:
                reader.cached_tokens = cached
            reader.truncated |= fields.get("truncated") is True
        self._record(exchange)

    def close(self) -> None:
        """What still waits for more is written as it is."""
        for id in list(self._kept):
            self._enrich(id, {})

    def _record(self, exchange: Exchange) -> None:
        reader, target, asked = exchange.reader, exchange.target, exchange.call
        record = build(
            exchange.id,
            exchange.marks,
            service=target.service if target is not None else "",
            model=_storable(asked.model) if asked is not None else "",
            api=exchange.api,
            stream=asked.stream if asked is not None else False,
            status=exchange.status,
            reader=reader,
            gone=exchange.gone,
            client=exchange.asker.name or None,
            max_tokens=min(asked.max_tokens, MOST) if asked is not None and asked.max_tokens is not None else None,
            context_length=target.context_length if target is not None else None,
            session_id=_storable(asked.session_id) if asked is not None and asked.session_id is not None else None,
            hash_ids=exchange.hash_ids,
        )
        if fit.was_cut(exchange.prompt_tokens, record["prompt_tokens"]):
            record["truncated"] = True
        if exchange.uncounted and asked is not None:
            _estimated(record, asked)
        if record["prompt_tokens"] is None and exchange.prompt_tokens is not None:
            record["prompt_tokens"] = exchange.prompt_tokens
            record["sources"]["prompt_tokens"] = "tokenizer"
        self.metrics.observe(record)
        self.history.put(record)

    def hear(self, message: dict[str, Any]) -> None:
        match message.get("type"):
            case "view":
                self.board.apply(message)
            case "enrich":
                self._enrich(str(message["id"]), message.get("fields") or {})
            case "watch":
                self.watching = bool(message.get("on"))
            case "metrics":
                self.pushed, self.pushed_at = str(message["text"]), float(message["time"])

    def exposition(self) -> bytes:
        age = None if self.pushed_at is None else max(0.0, time.time() - self.pushed_at)
        return self.metrics.text(self.pushed, age)

    def stats(self, now: float) -> Stats:
        """`now`: seconds of the loop's clock."""
        board = self.board
        prefill: dict[str, int] = {}
        tokens = {endpoint: n for endpoint, n in self._tokens.items() if endpoint in board.endpoints()}
        self._tokens = dict(tokens)
        live: list[Live] = []
        for exchange in self.exchanges:
            target, reader = exchange.target, exchange.reader
            if target is not None and exchange.marks.admitted is not None:
                prefill[target.endpoint] = prefill.get(target.endpoint, 0) + exchange.prefilling
                if reader is not None:
                    tokens[target.endpoint] = tokens.get(target.endpoint, 0) + reader.chunks
            if self.watching and len(live) < LIVE:
                live.append(exchange.live(now))
        endpoints: dict[str, EndpointStats] = {
            endpoint: {
                "running": board.running(endpoint),
                "queued": sum(map(board.queue.waiting, names)),
                "prefill_tokens": prefill.get(endpoint, 0),
                "tokens": tokens.get(endpoint, 0),
                "last_activity": board.activity(endpoint),
            }
            for endpoint, names in sorted(board.endpoints().items())
        }
        return {"type": "stats", "endpoints": endpoints, "live": live}


def _estimated(record: RequestRecord, asked: Call) -> None:
    """It may have been too long, and no tokenizer told."""
    if fit.surely_cut(asked, record["prompt_tokens"]):
        record["truncated"] = True
    if guess := fit.estimate(asked, 0):
        record["sources"]["prompt_tokens_estimate"] = str(guess)
        if record["prompt_tokens"] is None:
            record["prompt_tokens"], record["sources"]["prompt_tokens"] = guess, "estimate"
    else:
        record["sources"]["prompt_tokens_estimate"] = "unknown"


def _storable(text: str) -> str:
    """Half a surrogate pair has no UTF-8."""
    return text[:NAME].encode("utf-8", "replace").decode()
