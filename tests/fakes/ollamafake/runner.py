"""One llama-server: started, listened to and ended as Ollama does it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ollamafake.env import Config
from ollamafake.http1 import ApiError, Call, call
from ollamafake.log import memory, raw, slog
from ollamafake.options import Want

_BUFFER = re.compile(rb"(\S+) +(?:model|KV|compute|output|RS) buffer size = +([\d.]+) MiB")
_ERRORS = (b"error:", b"llama_init_from_model:", b"error loading model", b"GGML_ASSERT", b"CUDA error", b"panic:")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "frequency_penalty",
            "presence_penalty", "seed")  # fmt: skip
NOT_RESPONDING, LOADING, READY = "llm server not responding", "llm server loading model", "llm server ready"
STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)
TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, adjust the "
    "context length in settings, or use a model with a longer context length"
)


def candidates() -> list[Path]:
    """Beside the program as it was called, so that a link in another place is another installation."""
    here = Path(sys.argv[0]).absolute().parent
    folders = [here.parent / "lib" / "ollama", *(at / "build" / "lib" / "ollama" for at in (here, Path.cwd()))]
    return [folder / "llama-server" for folder in folders]


def binary() -> Path:
    for path in candidates():
        if path.exists():
            return path
    checked = ", ".join(map(str, candidates()))
    raise FileNotFoundError(
        f"llama-server binary not found (checked: {checked}). "
        "Run 'cmake -S llama/server --preset cpu && cmake --build --preset cpu' first"
    )


class Runner:
    def __init__(self, config: Config, want: Want) -> None:
        self.config, self.want = config, want
        self.options = want.options
        self.parallel = config.num_parallel
        if want.model.gguf.embeds and self.parallel > 1:
            architecture = want.model.gguf.architecture
            slog(
                "WARN",
                "sched.go:441",
                "model architecture does not currently support parallel requests",
                architecture=architecture,
            )
            self.parallel = 1
        self.go_rendered = bool(want.model.template) and config.go_template
        self.free = asyncio.Semaphore(self.parallel)
        self.size = self.vram = 0
        self.errors: list[str] = []
        self.done = asyncio.Event()
        self.active = self.began = time.monotonic()

    # --- its life ---

    def argv(self, program: Path) -> list[str]:
        o, n = self.options, self.parallel
        words = [str(program), "--model", str(self.want.model.weights), "--port", str(self.port), "--host", "127.0.0.1"]
        words += ["--no-webui", "--offline", "-c", str(o["num_ctx"] * n), "-np", str(n)]
        words += ["--log-verbosity", "4", "--no-log-prefix", "--no-log-timestamps"]
        words += ["--no-jinja", "--chat-template", "chatml"] if self.go_rendered else []
        words += ["--load-mode", "none"] if o["use_mmap"] is not True else []
        kind = self.config.kv_cache_type
        words += ["--cache-type-k", kind, "--cache-type-v", kind] if kind else []
        words += ["--flash-attn", {None: "auto", True: "on", False: "off"}[self.config.flash]]
        words += ["--embedding"] if self.want.model.gguf.embeds else []
        words += ["-b", str(o["num_batch"]), "-ub", str(o["num_batch"])]
        words += ["-ngl", str(o["num_gpu"])] if o["num_gpu"] >= 0 else []
        words += ["-t", str(o["num_thread"])] if o["num_thread"] > 0 else []
        words += ["--split-mode", "none", "--main-gpu", str(o["main_gpu"])] if o["main_gpu"] is not None else []
        if self.want.shift:
            words += ["--context-shift", *(["--keep", str(o["num_keep"])] if o["num_keep"] > 0 else [])]
        return words

    async def start(self) -> None:
        program = binary()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        libraries = ":".join(filter(None, [str(program.parent), os.environ.get("LD_LIBRARY_PATH")]))
        marker = f"<__ollama_media_{secrets.token_hex(16)}__>"
        argv = self.argv(program)
        slog("INFO", "llama_server.go:433", "starting llama-server", cmd=" ".join(argv))
        self.process = await asyncio.create_subprocess_exec(
            *argv,
            env={**os.environ, "LD_LIBRARY_PATH": libraries, "LLAMA_MEDIA_MARKER": marker},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        if self.config.offload:
            raw(f"load_tensors: offloaded {self.config.offload} layers to GPU\n".encode())
        self.pump = asyncio.ensure_future(self._pump())

    async def _pump(self) -> None:
        assert self.process.stdout
        rest = b""
        while chunk := await self.process.stdout.read(1 << 16):
            raw(chunk)
            self.active = time.monotonic()
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._line(line)
        await self.process.wait()
        if self.errors and self.process.returncode:
            known = self.process.returncode if self.process.returncode > 0 else "unknown"
            slog("ERROR", "llama_server.go:1023", "llama-server terminated", error=self.ended(), exit=known)
        self.done.set()

    def _line(self, line: bytes) -> None:
        if found := _BUFFER.search(line):
            size = int(float(found[2]) * 1024 * 1024)
            self.size += size
            if not found[1].startswith(b"CPU") and not found[1].endswith(b"_Host"):
                self.vram += size
        for prefix in _ERRORS:
            if prefix in line:
                self.errors = [*self.errors[-1:], line[line.index(prefix) :].decode(errors="replace").strip()]
                break

    def ended(self) -> str:
        """As Go tells the end of a process."""
        code = self.process.returncode
        if code is None or code >= 0:
            return f"exit status {code}"
        names = {signal.SIGKILL: "killed", signal.SIGTERM: "terminated", signal.SIGABRT: "aborted"}
        names |= {signal.SIGSEGV: "segmentation fault", signal.SIGINT: "interrupt", signal.SIGHUP: "hangup"}
        return f"signal: {names.get(signal.Signals(-code), f'signal {-code}')}"

    async def load(self, wanted: asyncio.Future[Any]) -> None:
        """Until it is ready. ApiError where it is not, or where nobody waits for it any more."""
        total, free = memory()
        slog("INFO", "sched.go:613", "system memory", total=total, free=free, free_swap="0 B")
        slog("INFO", "llama_server.go:1048", "loading model via llama-server", model=self.want.model.weights)
        slog("INFO", "llama_server.go:1295", "waiting for llama-server to start responding")
        last = ""
        while True:
            if wanted.cancelled():
                slog(
                    "WARN",
                    "llama_server.go:1320",
                    "client connection closed before llama-server finished loading, aborting load",
                )
                raise ApiError(499, "timed out waiting for llama-server to start: context canceled")
            if self.done.is_set():
                said = ": " + "\n".join(self.errors) if self.errors else ""
                raise ApiError(500, f"llama-server process has terminated: {self.ended()}{said}")
            if time.monotonic() - self.active > self.config.load_timeout / 1e9:
                raise ApiError(500, f"timed out waiting for llama-server to start - {chr(10).join(self.errors)}")
            status = await self._status(0.2)
            if status == READY:
                self.errors = []
                self.told_started()
                return
            if status != last:
                slog("INFO", "llama_server.go:1350", "waiting for llama-server to become available", status=status)
            last = status
            await asyncio.sleep(0.25)

    def told_started(self) -> None:
        slog("INFO", "llama_server.go:1362", f"llama-server started in {time.monotonic() - self.began:.2f} seconds")

    async def _status(self, limit: float) -> str:
        try:
            async with asyncio.timeout(limit):
                status, _ = await call(self.port, "GET", "/health")
        except (OSError, asyncio.IncompleteReadError):  # TimeoutError is an OSError
            return NOT_RESPONDING
        return READY if status == 200 else LOADING

    async def ping(self) -> str | None:
        """What is wrong with it. One that is gone refuses connections before its end is known here."""
        if not self.done.is_set():
            if await self._status(self.config.ping) in (READY, LOADING):
                return None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await self.done.wait()
        if self.done.is_set():
            code = self.process.returncode
            if code is not None and code < 0:
                slog(
                    "WARN",
                    "llama_server.go:1196",
                    "llama-server process no longer running",
                    sys=-code,
                    string=self.ended(),
                )
            said = "\n".join(self.errors)
            return f"llama-server process no longer running: {'exit status -1' if code and code < 0 else self.ended()} {said}"
        return "server not responding"

    async def close(self) -> None:
        if not hasattr(self, "process"):
            return
        if self.process.returncode is None:
            self.process.kill()
        await self.done.wait()

    # --- asking it ---

    async def ready(self) -> None:
        if wrong := await self.ping():
            raise ApiError(500, wrong)

    async def tokenize(self, text: str, special: bool = False) -> list[int]:
        body = {"content": text} | ({"add_special": True} if special else {})
        status, data = await call(self.port, "POST", "/tokenize", body)
        if status >= 400:
            raise ApiError(500, f"tokenize error: {data.decode(errors='replace')}")
        tokens: list[int] = json.loads(data)["tokens"]
        return tokens

    async def detokenize(self, tokens: list[int]) -> str:
        status, data = await call(self.port, "POST", "/detokenize", {"tokens": tokens})
        if status >= 400:
            raise ApiError(500, f"detokenize error: {data.decode(errors='replace')}")
        return str(json.loads(data)["content"])

    async def fitted(self, prompt: str, options: dict[str, Any], truncate: bool) -> str | list[int]:
        """The prompt, cut in its middle where it is too long and may be cut."""
        num_ctx = self.options["num_ctx"]
        if not truncate or num_ctx <= 1 or len(prompt.encode()) < num_ctx:
            return prompt
        tokens = await self.tokenize(prompt, special=True)
        most = num_ctx - 1
        if len(tokens) <= most:
            return prompt
        if not self.want.shift:
            raise ApiError(400, TOO_LONG)
        keep = min(len(tokens) if options["num_keep"] < 0 else options["num_keep"], most)
        limit = num_ctx - max((num_ctx - keep) // 2, 1)
        cut = tokens[:keep] + tokens[keep + len(tokens) - limit :]
        said = {"limit": limit, "prompt": len(tokens), "keep": keep, "new": len(cut)}
        slog("WARN", "llama_server.go:317", "truncating input prompt", **said)
        return cut

    def sampling(self, options: dict[str, Any], form: Any) -> dict[str, Any]:
        most = 10 * self.options["num_ctx"]
        predict = options["num_predict"]
        body = {"stream": True, "cache_prompt": True, "n_predict": most if predict < 0 or predict > most else predict}
        body |= {"n_keep": options["num_keep"], "stop": options["stop"], "typical_p": options["typical_p"]}
        body |= {name: options[name] for name in SAMPLING}
        if isinstance(form, dict):
            body["json_schema"] = form
        elif form == "json":
            body["json_schema"] = {"type": "object"}
        return body

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Events of one answer. A slot must be held."""
        try:
            made = await Call(self.port, "POST", path, body).__aenter__()
        except (OSError, asyncio.IncompleteReadError) as error:
            slog("ERROR", "llama_server.go:1580", "llama-server completion error", error=str(error))
            raise ApiError(500, ": ".join([STOPPED, *self.errors[-1:]])) from None
        try:
            if made.status >= 400:
                raise ApiError(made.status, (await made.body()).decode(errors="replace").strip())
            async for event in made.events():
                yield event
        except (OSError, asyncio.IncompleteReadError):
            await self.close()
            said = self.errors[-1] if self.errors else "unexpected EOF"
            raise ApiError(500, f"an error was encountered while running the model: {said}") from None
        finally:
            made.writer.close()
