"""`/api/create` and `/api/pull`: models from uploaded files, from other models, and from a folder that plays the registry."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

from ollamafake.env import Config
from ollamafake.http1 import ApiError
from ollamafake.native import Body
from ollamafake.store import Name, Store, parse

PIECE = 8 << 20


class Creator:
    def __init__(self, config: Config, store: Store) -> None:
        self.config, self.store = config, store

    async def create(self, request: Body) -> AsyncIterator[Body]:
        name = parse(str(request.get("model") or request.get("name") or ""))
        if name is None:
            raise ApiError(400, "invalid model name")
        base = parse(str(request["from"])) if request.get("from") else None
        if base and self.store.get(base) is None:
            async for step in self._pulled(base, str(request["from"])):
                yield step
        for status in self.store.create(name, request):
            yield {"status": status}
            await asyncio.sleep(0)
        yield {"status": "success"}

    async def pull(self, request: Body) -> AsyncIterator[Body]:
        text = str(request.get("model") or request.get("name") or "")
        name = parse(text)
        if name is None:
            raise ApiError(400, "invalid model name")
        async for step in self._pulled(name, text):
            yield step
        yield {"status": "success"}

    async def _pulled(self, name: Name, text: str) -> AsyncIterator[Body]:
        yield {"status": "pulling manifest"}
        path = Path(self.config.registry or "/nonexistent") / f"{text.replace('/', '_')}.gguf"
        if not path.exists():
            raise ApiError(500, "pull model manifest: file does not exist")
        summed = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                summed.update(piece)
        digest, total = f"sha256:{summed.hexdigest()}", path.stat().st_size
        row = {"status": f"pulling {summed.hexdigest()[:12]}", "digest": digest, "total": total}
        yield row

        async def pieces() -> AsyncIterator[bytes]:
            with path.open("rb") as file:
                while piece := file.read(PIECE):
                    yield piece

        done = 0
        if not self.store.blob(digest).exists():
            part = self.store.blobs / f"{digest.replace(':', '-')}-partial"
            with part.open("wb") as file:
                async for piece in pieces():
                    done += file.write(piece)
                    yield row | {"completed": done}
                    await asyncio.sleep(0)
            part.rename(self.store.blob(digest))
        yield row | {"completed": total}
        yield {"status": "verifying sha256 digest"}
        for status in self.store.create(name, {"files": {"model.gguf": digest}}):
            if status == "writing manifest":
                yield {"status": status}
