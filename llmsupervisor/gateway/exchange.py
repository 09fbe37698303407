"""One request from its arrival to its record: who asks, for which model, does it fit, its turn, the engine, the end."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import traceback
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from llmsupervisor.gateway import counting, fit, guard, route
from llmsupervisor.gateway.board import Lease, Refused
from llmsupervisor.gateway.call import Call
from llmsupervisor.gateway.filter import Filter
from llmsupervisor.gateway.hub import Hub
from llmsupervisor.gateway.queue import Ticket
from llmsupervisor.gateway.record import Gone, Marks, new_id
from llmsupervisor.gateway.relay import Ending, Relay, chunk
from llmsupervisor.gateway.route import Refusal
from llmsupervisor.gateway.timing import Reader
from llmsupervisor.gateway.view import Target
from llmsupervisor.link.requests import Live

TRIES = 20
"""Connections to engines that took none, for one request; each was followed by a wait for another."""
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n"
)
WAITING = b": waiting\n\n"

Phase = Literal["count", "queue", "load", "send", "prefill", "decode"]


class Client(Protocol):
    """The connection that a request came on."""

    def write(self, data: bytes) -> None: ...
    def refused(self, refusal: Refusal, headers: guard.Headers = ()) -> None:
        """Instead of an answer: not a byte of one was written."""

    def ended(self, reusable: bool) -> None:
        """The answer is complete, or its end (`reusable` False) is that of the connection."""

    def cut(self, reset: bool) -> None:
        """The answer breaks off, and the client must see it."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request as it came, and from whom."""

    asker: guard.Client
    peer: str
    api: str
    path: str
    headers: dict[str, str]
    cors: guard.Headers
    """For the web page that asks; pass mode adds nothing, so an answer to one goes through a filter."""
    body: bytes
    at: float
    """When its first byte came, in seconds of the loop's clock."""


class Exchange:
    def __init__(self, hub: Hub, client: Client, came: Arrived) -> None:
        self._loop = asyncio.get_running_loop()
        self._hub, self._board, self._client = hub, hub.board, client
        self.asker, self.api, self.path, self._cors = came.asker, came.api, came.path, came.cors
        self._peer = came.peer
        self._early = hub.board.table.generation == 0
        """It came before the first view: nobody knew then who may ask."""
        self._headers, self._body, self._bytes = came.headers, hub.parser.body(came.body), len(came.body)
        now = self._loop.time()
        wall = time.time() - (now - came.at)
        self.id = new_id(wall, os.urandom(10))
        self.marks = Marks(wall=wall, came=came.at, complete=now)
        self.call: Call | None = None
        self.target: Target | None = None
        """Where it was sent, or is to be sent."""
        self.status = 0
        self.gone: Gone | None = None
        """Why it has no regular end."""
        self.error = ""
        self.prompt_tokens: int | None = None
        """Counted by the engine's tokenizer, where it was asked."""
        self.uncounted = ""
        """The endpoint that was asked, or could not be, and did not tell them."""
        self._timer: asyncio.TimerHandle | None = None
        self._started = False
        """Our head of an event stream is sent: errors are events."""
        self._relay: Relay | None = None
        self._paused = self._begun = False
        self._lease: Lease | None = None
        hub.exchanges.add(self)
        self.task = self._loop.create_task(self._run())

    # --- orders of the client's side ------------------------------------------------------------------------------

    def cancel(self) -> None:
        self.gone = "client_gone"
        self.task.cancel()
        if not self._begun:  # and now it never will
            self._close()

    def pause(self) -> None:
        self._paused = True
        if self._relay is not None:
            self._relay.pause()

    def resume(self) -> None:
        self._paused = False
        if self._relay is not None:
            self._relay.resume()

    def check(self, now: float, silence: float) -> None:
        if self._relay is not None:
            self._relay.check(now, silence)

    def stop(self) -> None:
        """The gateway ends, and waits for nobody any longer."""
        if self._relay is None or not self._relay.stop():
            self.task.cancel()

    # --- its life -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        self._begun = True
        try:
            try:
                ending = await self._serve()
            except Refused as refused:
                self._refuse(refused.refusal)
            else:
                self._finish(ending)
        except asyncio.CancelledError:
            if self.gone is None:
                self.gone = "engine_exit"
                self._client.cut(True)
        except Exception as error:
            self.gone, self.error = "engine_exit", f"{type(error).__name__}: {error}"
            traceback.print_exc(file=sys.stderr)
            self._client.cut(True)
        finally:
            self._close()

    async def _serve(self) -> Ending:
        asked = await self._read()
        await self._board.known()
        if self._early:
            self._admit()
        targets = self._targets(asked)
        asked = await self._under_policy(targets[0], asked)
        if (one := next((t for t in targets if t.open), None)) is not None:
            targets = await self._fitting(targets, one, asked)
        ticket = self._ticket(asked, targets)
        self.marks.queued = self._loop.time()
        target = await self._turn(ticket, asked)
        for _ in range(TRIES):
            fitting = await self._fitting(targets, target, asked)
            if fitting is not targets:
                targets, ticket = fitting, self._ticket(asked, fitting)
                target = await self._turn(ticket, asked)
                continue
            ending = await self._send(target, asked)
            if ending.how != "unsent":
                return ending
            self._hub.bad(target, ending.kind)
            target = await self._turn(ticket, asked, target.endpoint)
        raise Refused(Refusal(502, f"{target.service} takes no connections", "upstream_failed"))

    async def _read(self) -> Call:
        salt = self._hub.salt if self._board.table.limits.prefix_hashes else None
        found = await self._body.read(self.api, salt)
        if isinstance(found, Refusal):
            raise Refused(found)
        self.call = found
        return found

    def _admit(self) -> None:
        asker = self._hub.guard.admit(self._headers, self._peer)
        self._cors = self._hub.guard.cors(self._headers)
        if isinstance(asker, Refusal):
            raise Refused(asker)
        self.asker = asker

    async def _under_policy(self, target: Target, asked: Call) -> Call:
        """What the engine will be asked: the policy of a name may set lengths, or take them out."""
        policy = target.policies.get(asked.model)
        if policy is None:
            return asked
        found = await self._body.under(self.api, policy)
        if isinstance(found, Refusal):
            raise Refused(found)
        self.call = found
        return found

    def _targets(self, asked: Call) -> list[Target]:
        """Who serves this name on this route."""
        if (refusal := self._hub.guard.allows(self.asker, asked.model)) is not None:
            raise Refused(refusal)
        named = self._board.named(asked.model)
        if not named:
            table = self._board.table
            names = [n for n in table.names() if any(route.listed(t, n) for t in table.named(n))]
            raise Refused(route.unknown_model(asked.model, names))
        speaking = [target for target in named if self.path in target.traits.routes]
        if not speaking:
            raise Refused(route.unspoken(asked.model, self.path, named))
        if asked.other_case is not None and any(target.traits.native for target in speaking):
            raise Refused(route.other_case(asked.other_case))
        self.target = speaking[0]
        return speaking

    async def _fitting(self, targets: list[Target], first: Target, asked: Call) -> list[Target]:
        """`targets`, or who takes what is too long for them. Asks the engine `first` only where it may be too long."""
        length = fit.length(first, asked)
        if length is None or fit.certain(asked, length):
            return targets
        if self.prompt_tokens is None:
            self.prompt_tokens = fit.exact(asked)
        tokens = self.prompt_tokens
        if tokens is None and self.uncounted != first.endpoint:
            self.prompt_tokens, most = await counting.count(self._hub.fetch, self._body, first, asked)
            tokens = self.prompt_tokens if self.prompt_tokens is not None else most
            self.uncounted = first.endpoint if tokens is None else ""
        if tokens is None or fit.fits(asked, tokens, length) or fit.may_be_cut(first, asked):
            return targets
        larger = self._board.table.service(first.overflow) if first.overflow else None
        if larger is None or self.path not in larger.traits.routes:
            raise Refused(fit.refusal(tokens, asked.max_tokens, length, asked.model))
        self.target = larger
        return await self._fitting([larger], larger, asked)

    def _ticket(self, asked: Call, targets: list[Target]) -> Ticket:
        tokens = self.prompt_tokens if self.prompt_tokens is not None else fit.estimate(asked, self._bytes // 4)
        length = max((t.context_length or 0 for t in targets), default=0)
        kv = tokens + asked.max_tokens if asked.max_tokens is not None else length or tokens
        complete = self.marks.complete if self.marks.complete is not None else self.marks.came
        deadline = complete + self._board.table.limits.queue_deadline
        services = tuple(target.name for target in targets)
        return Ticket(
            client=self.asker.name, share=self.asker.share, tokens=tokens, kv=min(kv, length or kv),
            services=services, since=self._loop.time(), deadline=deadline,
        )  # fmt: skip

    async def _turn(self, ticket: Ticket, asked: Call, unsent: str | None = None) -> Target:
        """Gives back the lease it has, if any. `unsent`: the endpoint that took no connection. A stream that waits long
        hears of it, so that nobody on the way takes it for dead."""
        self._release()
        self._lease = self._board.at_once(ticket) if unsent is None else None
        if self._lease is None:
            turn = self._board.admitted(ticket) if unsent is None else self._board.again(ticket, unsent)
            self._lease = await (self._commented(turn) if asked.stream and not self.native else turn)
        self.target = self._lease.target
        self.marks.admitted = self._loop.time()
        self.marks.loading_s += self._lease.loading
        return self.target

    async def _commented(self, turn: Coroutine[Any, Any, Lease]) -> Lease:
        self._timer = self._loop.call_later(self._board.table.limits.comment, self._comment)
        try:
            return await turn
        finally:
            self._timer.cancel()

    def _comment(self) -> None:
        cors = "".join(f"{name}: {value}\r\n" for name, value in self._cors).encode("latin-1")
        self._client.write((b"" if self._started else STREAM_HEAD + cors + b"\r\n") + chunk(WAITING))
        self._started, self.status = True, 200
        self._timer = self._loop.call_later(self._board.table.limits.comment, self._comment)

    def _release(self, took: float | None = None) -> None:
        if self._lease is not None:
            lease, self._lease = self._lease, None
            lease.release(took)

    async def _send(self, target: Target, asked: Call) -> Ending:
        traits = target.traits
        progress = traits.progress if self._hub.watching and asked.stream else None
        if progress is not None and any(self._body.mentions(key) for key in progress):
            progress = None
        policy = target.policies.get(asked.model)
        if traits.pin is not None and self.api in traits.pin.apis:
            policy = traits.pin.over(policy)
        told = traits.usage if asked.stream and not asked.usage_asked and self.api in traits.usage_apis else None
        body = await self._body.rewrite(target.model, policy, {**(progress or {}), **(told or {})})
        rename = (target.model, asked.model) if asked.model != target.model else None
        forced = (traits.usage_forced and asked.stream and not asked.usage_asked) or told is not None
        filter = None
        if rename or traits.remove or forced or progress or self._started or self._cors or traits.enrich:
            remove = traits.remove
            filter = lambda stream, lines: Filter(stream, rename, remove, forced, progress is not None, lines)  # noqa: E731
        kept = {name: value for name, value in self._headers.items() if name in route.FORWARDED}
        head = route.upstream_head(self.path, target, kept, len(body), self.id)
        relay = self._relay = Relay(self._client, target, self.api, head + body, filter, self._cors, self._started)
        if self._paused:
            relay.pause()
        try:
            return await relay.run()
        finally:
            self.marks.sent, self.marks.head = relay.sent, relay.head
            self.status = relay.status or self.status
            self._started = self._started or (filter is not None and relay.passed)

    @property
    def native(self) -> bool:
        """Of Ollama's own api: its errors have another shape, and its streams no comments."""
        return self.path.startswith("/api/")

    @property
    def hash_ids(self) -> list[str] | None:
        return self._body.hash_ids()

    @property
    def reader(self) -> Reader | None:
        return self._relay.reader if self._relay is not None else None

    # --- ends -----------------------------------------------------------------------------------------------------

    def _finish(self, ending: Ending) -> None:
        if ending.how == "complete":
            self._client.ended(ending.reusable)
            return
        self.gone, self.error = "engine_exit", ending.text
        if ending.kind and self.target is not None:
            self._hub.bad(self.target, ending.kind)
        if ending.how == "failed":
            self._answer(Refusal(502, ending.text, "upstream_failed"))
        else:
            self._client.cut(ending.reset)

    def _refuse(self, refusal: Refusal) -> None:
        self.gone = "queue_timeout" if refusal.code == "queue_timeout" else "rejected"
        self.error = refusal.message
        self._answer(refusal)

    def _answer(self, refusal: Refusal) -> None:
        if self._started:
            self._client.write(chunk(route.event(refusal)))
            self._client.cut(False)
            return
        self.status = refusal.status
        self._client.refused(refusal, self._cors)

    def _close(self) -> None:
        self.marks.done = self._loop.time()
        sent = self.marks.sent
        if self.gone == "client_gone" and sent is not None and self._lease is not None:
            self._hub.reaper.hold(self._lease)
        else:
            self._release(None if sent is None or self.gone else self.marks.done - sent)
        self._hub.exchanges.discard(self)
        self._hub.ended(self)

    # --- what others see ------------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        marks, reader = self.marks, self.reader
        if reader is not None and reader.first is not None:
            return "decode"
        if marks.admitted is not None:
            return "prefill" if self._relay is not None and self._relay.sent is not None else "send"
        if marks.queued is None:
            return "count"
        return "queue" if self.target is not None and self.target.open else "load"

    def live(self, now: float) -> Live:
        marks, reader, asked = self.marks, self.reader, self.call
        phase = self.phase
        began = marks.admitted if marks.admitted is not None else marks.queued
        if reader is not None and phase == "decode":
            began = reader.first
        began = marks.came if began is None else began
        progress = reader.progress if reader is not None else None
        return {
            "id": self.id,
            "service": self.target.service if self.target is not None and marks.admitted is not None else None,
            "model": asked.model if asked is not None else "",
            "client": self.asker.name or None,
            "api": self.api,
            "stream": asked.stream if asked is not None else False,
            "phase": phase,
            "since": marks.wall,
            "phase_since": marks.wall + (began - marks.came),
            "prompt_tokens": progress[1] if progress is not None else self.prompt_tokens,
            "prompt_done": progress[0] if progress is not None else None,
            "tokens": reader.chunks if reader is not None else 0,
        }

    @property
    def prefilling(self) -> int:
        """Prompt tokens that an engine is to compute, or computes, for it: counted, or guessed from its bytes."""
        reader = self.reader
        if self.marks.admitted is None or self.call is None or (reader is not None and reader.first is not None):
            return 0
        return self.prompt_tokens if self.prompt_tokens is not None else fit.estimate(self.call, 0)
