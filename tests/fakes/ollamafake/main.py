"""Routes, and the life of `ollama serve`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from typing import Any

from ollamafake import compat, log
from ollamafake.create import Creator
from ollamafake.env import Config, rfc3339
from ollamafake.http1 import BARE, NDJSON, Answer, ApiError, Request, Server, dumps
from ollamafake.native import Body, Native, Result
from ollamafake.runner import binary
from ollamafake.sched import Scheduler
from ollamafake.store import DIGEST, Store, parse, show

ROUTES = {
    "/": "GET HEAD", "/api/version": "GET HEAD", "/api/status": "GET", "/api/tags": "GET HEAD", "/api/ps": "GET",
    "/api/show": "POST", "/api/delete": "DELETE", "/api/copy": "POST", "/api/pull": "POST", "/api/create": "POST",
    "/api/blobs/:digest": "POST HEAD", "/api/generate": "POST", "/api/chat": "POST", "/api/embed": "POST",
    "/api/embeddings": "POST", "/v1/chat/completions": "POST", "/v1/completions": "POST", "/v1/embeddings": "POST",
    "/v1/messages": "POST", "/v1/responses": "POST", "/v1/models": "GET", "/v1/models/:model": "GET",
}  # fmt: skip
LOCAL = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "")


class Ollama:
    def __init__(self, config: Config) -> None:
        self.config, self.store = config, Store(config.models)
        self.scheduler = Scheduler(config)
        self.native = Native(config, self.store, self.scheduler)
        self.creator = Creator(config, self.store)

    async def handle(self, request: Request, answer: Answer) -> None:
        began = time.monotonic()
        compatible, spoken = request.path.startswith("/v1/"), request.path == "/v1/messages"
        try:
            if await self._allowed(request, answer):
                await self._route(request, answer)
        except ApiError as failed:
            answer.error = failed.text
            if not compatible:
                await answer.json({"error": failed.text}, failed.status)
            else:
                early = failed.text.startswith(("invalid character", "unexpected EOF", "[] is", "missing request"))
                made = compat.anthropic_error(failed) if spoken else compat.error(failed)
                await answer.json(made, failed.status, *([] if early else [BARE]))
        except asyncio.CancelledError:
            answer.status = answer.status if answer.started else 499
            raise
        finally:
            log.access(answer.status, time.monotonic() - began, request.method, request.path)

    async def _allowed(self, request: Request, answer: Answer) -> bool:
        host = request.headers.get("host", "").rsplit(":", 1)[0].strip("[]").lower()
        own = (
            host in LOCAL
            or host == socket.gethostname().lower()
            or host.endswith((".localhost", ".local", ".internal"))
        )
        own = own or host.replace(".", "").isdigit()
        origin = request.headers.get("origin", "")
        origin_host = origin.split("://")[-1].split(":")[0]
        foreign = bool(origin) and origin.startswith("http") and origin_host not in LOCAL and origin_host != host
        if own and not foreign:
            return True
        await answer.whole(403, None, b"")
        return False

    async def _route(self, request: Request, answer: Answer) -> None:
        path, tail = request.path, ""
        for stem, name in (("/api/blobs/", ":digest"), ("/v1/models/", ":model")):
            if path.startswith(stem):
                path, tail = stem + name, path.removeprefix(stem)
        methods = ROUTES.get(path, "").split()
        if request.method not in methods:
            text = b"405 method not allowed" if methods else b"404 page not found"
            await answer.whole(405 if methods else 404, "text/plain", text)
        elif path == "/api/blobs/:digest":
            await self._blob(request, answer, tail)
        elif request.method in ("GET", "HEAD"):
            await self._get(path, tail, answer)
        else:
            await self._post(path, compat.decode((await request.body()).decode(errors="replace")), answer)

    # --- asking ---

    async def _get(self, path: str, tail: str, answer: Answer) -> None:
        if path == "/":
            await answer.whole(200, "text/plain; charset=utf-8", b"Ollama is running")
        elif path == "/api/version":
            await answer.json({"version": self.config.version})
        elif path == "/api/status":
            source = "env" if self.config.no_cloud else "none"
            await answer.json({"cloud": {"disabled": self.config.no_cloud, "source": source}})
        elif path == "/api/tags":
            await answer.json({"models": [self._tag(model) for model in self.store.models()]})
        elif path == "/api/ps":
            await answer.json({"models": [self._running(one) for one in await self.scheduler.rows()]})
        elif path == "/v1/models":
            rows = [self._listed(model.name.short, model.modified) for model in self.store.models()]
            await answer.json({"object": "list", "data": rows}, kind=BARE, end="\n")
        else:
            model = self.store.get(parse(tail))
            if model is None:
                raise ApiError(404, f"model '{tail if ':' in tail else f'{tail}:latest'}' not found")
            await answer.json(self._listed(tail, model.modified), kind=BARE, end="\n")

    def _tag(self, model: Any) -> Body:
        name = {"name": model.name.short, "model": model.name.short, "modified_at": rfc3339(model.modified)}
        sizes = {"size": model.size, "digest": model.digest, "details": model.details(lengths=True)}
        return name | sizes | {"capabilities": model.capabilities}

    def _running(self, loaded: Any) -> Body:
        model, runner = loaded.want.model, loaded.runner
        name = {"name": model.name.short, "model": model.name.short, "size": runner.size, "digest": model.digest}
        name |= {"details": model.details(), "expires_at": rfc3339(loaded.expires_at), "size_vram": runner.vram}
        return name | {"context_length": runner.options["num_ctx"]}

    def _listed(self, name: str, modified: int) -> Body:
        return {"id": name, "object": "model", "created": modified // 10**9, "owned_by": "library"}

    # --- doing ---

    async def _blob(self, request: Request, answer: Answer, digest: str) -> None:
        if request.method == "POST":
            created = await self.store.upload(digest, request.chunks())
            await answer.whole(201 if created else 200, None, b"")
        elif not DIGEST.fullmatch(digest):
            raise ApiError(400, "invalid digest format")
        elif not self.store.blob(digest).exists():
            raise ApiError(404, f'blob "{digest}" not found')
        else:
            await answer.whole(200, None, b"")

    async def _post(self, path: str, body: Body, answer: Answer) -> None:
        if path in compat.ROUTES:
            await self._compatible(path, body, answer)
        elif path == "/v1/embeddings":
            await answer.json(compat.embeddings(await self.native.embed(body)), kind=BARE, end="\n")
        elif path in ("/api/generate", "/api/chat"):
            result = await (self.native.chat(body) if path == "/api/chat" else self.native.generate(body))
            await self._stream(answer, result, body.get("stream") is not False)
        elif path == "/api/embed":
            await answer.json(await self.native.embed(body))
        elif path == "/api/embeddings":
            made = await self.native.embed({**body, "input": body.get("prompt") or ""})
            await answer.json({"embedding": (made["embeddings"] or [[]])[0]})
        elif path == "/api/show":
            missing = str(body.get("model") or "")
            model = self.native.model(body, "model '{}" + ("" if ":" in missing else ":latest") + "' not found")
            await answer.json(show(model, bool(body.get("verbose"))))
        elif path == "/api/delete":
            self.store.delete(self.native.model(body).name)
            await answer.whole(200, None, b"")
        elif path == "/api/copy":
            source, target = parse(str(body.get("source"))), parse(str(body.get("destination")))
            if source is None or target is None or self.store.get(source) is None:
                raise ApiError(404, f'model "{body.get("source")}" not found')
            self.store.copy(source, target)
            await answer.whole(200, None, b"")
        else:
            steps = self.creator.pull(body) if path == "/api/pull" else self.creator.create(body)
            await self._progress(answer, steps, body.get("stream") is not False)

    async def _stream(self, answer: Answer, result: Result, stream: bool) -> None:
        if isinstance(result, dict):
            await answer.json(result)
        elif not stream:
            text, last = await compat.whole(result)
            if "message" in last:
                last["message"]["content"] = text
            else:
                last["response"] = text
            await answer.json(last)
        else:
            try:
                async for chunk in result:
                    await answer.send((dumps(chunk) + "\n").encode())
            except ApiError as failed:
                if not answer.started:
                    raise
                await answer.send((dumps({"error": failed.text}) + "\n").encode())
            await answer.end()

    async def _progress(self, answer: Answer, steps: Any, stream: bool) -> None:
        last: Body = {}
        try:
            async for last in steps:
                if stream:
                    await answer.send((dumps(last) + "\n").encode(), NDJSON)
        except ApiError as failed:
            if stream and answer.started:
                await answer.send((dumps({"error": failed.text}) + "\n").encode(), NDJSON)
                await answer.end()
            else:
                await answer.json({"error": failed.text}, failed.status, *([BARE] if failed.status == 500 else []))
            return
        await (answer.end() if stream else answer.json(last))

    async def _compatible(self, path: str, body: Body, answer: Answer) -> None:
        native = compat.ROUTES[path](body)
        body.setdefault("model", "")
        result = await (self.native.generate(native) if path == "/v1/completions" else self.native.chat(native))
        if path == "/v1/messages":
            await compat.anthropic(answer, body, result)
        elif path == "/v1/responses":
            await compat.responses(answer, body, result)
        else:
            await compat.openai(answer, body, result, chat=path == "/v1/chat/completions")


async def serve(config: Config) -> int:
    log.verbosity = config.debug
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    signal.signal(signal.SIGQUIT, _quit)
    for name, text, default in config.bad:
        words = ("invalid port, using default", {"port": text, "default": default})
        other = ("invalid environment variable, using default", {"key": name, "value": text, "default": default})
        said, fields = words if name == "OLLAMA_HOST" else other
        log.slog("WARN", "config.go:222", said, **fields)
    log.slog("INFO", "routes.go:1951", "server config", env=config.line())
    log.slog("INFO", "routes.go:1953", f"Ollama cloud disabled: {str(config.no_cloud).lower()}")
    ollama = Ollama(config)
    log.slog("INFO", "images.go:919", f"total blobs: {sum(1 for _ in ollama.store.blobs.iterdir())}")
    if not config.noprune:
        log.slog("INFO", "images.go:926", f"total unused blobs removed: {ollama.store.prune()}")
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        said = "address already in use" if error.errno == 98 else os.strerror(error.errno or 0).lower()
        log.raw(f"Error: listen tcp {config.host}:{config.port}: bind: {said}\n".encode())
        return 1
    listener.listen(128)
    host, port = listener.getsockname()
    log.slog("INFO", "routes.go:2008", f"Listening on {host}:{port} (version {config.version})")
    wait = {"wait": "3h22m18.247525697s", "consecutive_failures": 0}
    log.slog("INFO", "model_recommendations.go:177", "model recommendations cache sleep scheduled", **wait)
    await _discover()
    known = {"models": len(ollama.store.models()), "failures": 0, "elapsed": "1.460285ms"}
    log.slog("INFO", "model_list_cache.go:112", "model list cache hydration complete", **known)
    context = {"total_vram": "0 B", "default_num_ctx": 4096}
    log.slog("INFO", "routes.go:2058", "vram-based default context", **context)
    server = Server(ollama.handle)
    listening = await loop.create_server(server.protocol, sock=listener)
    scheduling = asyncio.ensure_future(ollama.scheduler.run())
    await stop.wait()
    listening.close()
    server.cut()
    scheduling.cancel()
    await ollama.scheduler.close()
    return 0


async def _discover() -> None:
    """With the short-lived child that Ollama has at this point; the port listens already, and nobody answers."""
    log.slog("INFO", "runner.go:60", "discovering available GPUs...")
    try:
        pipe = {"stdout": asyncio.subprocess.DEVNULL, "stderr": asyncio.subprocess.DEVNULL}
        child = await asyncio.create_subprocess_exec(binary(), "--list-devices", **pipe)
        await child.wait()
    except FileNotFoundError as error:
        log.slog("INFO", "runner.go:522", "failure during llama-server GPU discovery", error=error, detail="")
    total, free = log.memory()
    fields = {"id": "cpu", "library": "cpu", "compute": "", "name": "cpu", "description": "cpu", "libdirs": "ollama"}
    fields |= {"driver": "", "pci_id": "", "type": "", "total": total, "available": free}
    log.slog("INFO", "types.go:50", "inference compute", **fields)


def _quit(number: int, frame: object) -> None:
    log.raw(b"SIGQUIT: quit\nPC=0x0 m=0 sigcode=0\n\ngoroutine 1 [running]:\n")
    os._exit(2)


def main() -> int:
    words = sys.argv[1:]
    if words in (["--version"], ["-v"]):
        version = os.environ.get("OLLAMA_FAKE_VERSION", "0.33.0")
        print(f"Warning: could not connect to a running Ollama instance\nWarning: client version is {version}")
        return 0
    if words not in (["serve"], ["start"]):
        print(f'Error: unknown command "{" ".join(words)}" for "ollama"', file=sys.stderr)
        return 1
    if not os.environ.get("HOME"):
        log.raw(b"panic: $HOME is not defined\n\ngoroutine 1 [running]:\n")
        return 2
    code = asyncio.run(serve(Config()))
    sys.stdout.flush()
    os._exit(code)
