"""What clients of Ollama ask beside their requests: which models there are, which are loaded, what one is like. Answered
from the view, and from what the engines say of the models behind it; under the names that the view has for them."""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from llmsupervisor.gateway import guard, route
from llmsupervisor.gateway.fetch import FetchError
from llmsupervisor.gateway.hub import Hub
from llmsupervisor.gateway.route import Refusal
from llmsupervisor.gateway.view import Target

ASKED = {"/api/tags": "GET", "/api/ps": "GET", "/api/version": "GET", "/api/show": "POST"}
ANSWERS = 3.0
"""Seconds for one engine: while a process behind it hangs it may be mute for 20 s. Then the view alone answers."""
Json = dict[str, Any]


class Client(Protocol):
    def answered(self, body: bytes, headers: guard.Headers = ()) -> None: ...
    def refused(self, refusal: Refusal, headers: guard.Headers = ()) -> None: ...


class Question:
    def __init__(
        self, hub: Hub, client: Client, path: str, body: bytes, asker: guard.Client, cors: guard.Headers
    ) -> None:
        self._hub, self._client, self._body, self._asker, self._cors = hub, client, body, asker, cors
        self._task = asyncio.get_running_loop().create_task(self._run(path))

    # --- orders of the client's side ------------------------------------------------------------------------------

    def cancel(self) -> None:
        self._task.cancel()

    def pause(self) -> None:
        """Nothing comes in pieces."""

    resume = pause

    def check(self, now: float, silence: float) -> None:
        """Its end is near in any case."""

    # --- answers --------------------------------------------------------------------------------------------------

    async def _run(self, path: str) -> None:
        asked: dict[str, Callable[[], Any]] = {
            "/api/tags": self._tags,
            "/api/ps": self._ps,
            "/api/version": self._version,
            "/api/show": self._show,
        }
        try:
            said: Json | Refusal = await asked[path]()
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            said = Refusal(502, f"{type(error).__name__}: {error}", "upstream_failed")
        if isinstance(said, Refusal):
            self._client.refused(said, self._cors)
        else:
            self._client.answered(json.dumps(said, ensure_ascii=False).encode(), self._cors)

    async def _tags(self) -> Json | Refusal:
        """Every listed name; what its engine says of the model stands beside it while the engine is there."""
        rows = await self._rows("/api/tags")
        found = []
        for name, target in self._listed():
            found.append({**rows.get((target.host, target.port, target.model), {}), "name": name, "model": name})
        return {"models": found}

    async def _ps(self) -> Json | Refusal:
        rows = await self._rows("/api/ps")
        found = []
        for name, target in self._listed():
            if target.open:
                row = rows.get((target.host, target.port, target.model), {})
                found.append({"context_length": target.context_length, **row, "name": name, "model": name})
        return {"models": found}

    async def _version(self) -> Json | Refusal:
        for target in self._engines():
            said = await self._get(target, "/api/version")
            if isinstance(said, dict) and "version" in said:
                return {"version": str(said["version"])}
        return route.unavailable("no Ollama is there to tell its version")

    async def _show(self) -> Json | Refusal:
        try:
            said = json.loads(self._body)
        except (ValueError, RecursionError) as error:
            return Refusal(400, f"the body is not JSON: {error}", "invalid_json")
        name = said.get("model") or said.get("name") if isinstance(said, dict) else None
        if not isinstance(name, str):
            return Refusal(400, 'the body must be a JSON object with the name of a model in "model"', "model_required")
        if (refusal := self._hub.guard.allows(self._asker, name)) is not None:
            return refusal
        named = [target for target in self._hub.board.named(name) if target.traits.native]
        if not named:
            return route.unknown_model(name, [name for name, _ in self._listed()])
        target = next((each for each in named if each.port), None)
        if target is None:
            return self._hub.board.gone(name, named)
        try:
            body = json.dumps({**said, "model": target.model}).encode()
            shown: Json = await self._hub.fetch.post(target, "/api/show", body)
        except FetchError as error:
            return Refusal(502, f"{target.service} does not say what {name} is like: {error}", "upstream_failed")
        return shown

    # --- engines --------------------------------------------------------------------------------------------------

    def _listed(self) -> list[tuple[str, Target]]:
        table, allowed = self._hub.board.table, self._asker.models
        return [
            (name, target)
            for name in table.names()
            if allowed is None or name in allowed
            for target in table.named(name)[:1]
            if target.traits.native and route.listed(target, name)
        ]

    def _engines(self) -> list[Target]:
        """One target of each that lives."""
        found = {(t.host, t.port): t for t in self._hub.board.table.targets if t.traits.native and t.port}
        return list(found.values())

    async def _rows(self, path: str) -> dict[tuple[str, int, str], Json]:
        engines = self._engines()
        bodies = await asyncio.gather(*(self._get(target, path) for target in engines))
        return {
            (target.host, target.port, str(row["name"])): row
            for target, body in zip(engines, bodies, strict=True)
            for row in (body.get("models") or () if isinstance(body, dict) else ())
            if isinstance(row, dict) and "name" in row
        }

    async def _get(self, target: Target, path: str) -> Any:
        try:
            async with asyncio.timeout(ANSWERS):
                return await self._hub.fetch.get(target, path)
        except (FetchError, TimeoutError):
            return None
