#!/usr/bin/env -S python3 -S -E
"""A fake llama-server in one file: its endpoints, flags, log lines and signals, and faults on request.

Every knob is a flag `--fake-NAME VALUE` or an environment variable `FAKE_NAME`; at run time `POST /fault` takes the
same names as JSON or query, and `GET /fault` tells what happened in here. Knobs (seconds unless said otherwise):

start   ready-after, bind-after, exit-after with code (number) or die (signal name), bind-fail, oom, cpu-fallback,
        grow (MiB of memory per second while loading), quiet (no log while loading), daemonize, foreign-model,
        times (the start faults hit the first N starts of the journal only)
got     got-n-ctx, got-parallel, got-kv, got-flash (enabled | disabled): what it says it has, whatever was asked
run     hang = health | decode | all, mute (answers late while a core is busy), token-ms, prompt-ms (per prompt token),
        http-500 (text of the error that every completion gets), leak (KiB that each completion keeps for ever)
log     spew (MB/s, 0 = as fast as the pipe takes it), noise = line | nul | utf8 | ansi | partial, close-stdout
tree    children (setsid, deaf to TERM), zombie, worker (its death makes /health 503)
end     ignore-term, term-after, reuse-port
strict  refuse flags that the help does not list
journal each start appends `PID TIME ARGV` (ARGV in JSON) to this file; a second living start of the same service
        appends `PID TIME "DUPLICATE"`
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

HELP = Path(__file__).resolve().parent.parent / "fixtures" / "llama-server" / "help.txt"
WIDTHS = {
    "f32": 4,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
"""Bytes of an element of the KV cache; 2 of the others."""
VERSION = "version: 0.6.0-dev (build 0, commit unknown)\nbuilt with GNU 12.2.0 for Linux x86_64\n"
KNOBS = (
    "ready-after",
    "bind-after",
    "exit-after",
    "code",
    "die",
    "bind-fail",
    "oom",
    "cpu-fallback",
    "grow",
    "quiet",
    "daemonize",
    "foreign-model",
    "times",
    "got-n-ctx",
    "got-parallel",
    "got-kv",
    "got-flash",
    "hang",
    "mute",
    "token-ms",
    "prompt-ms",
    "http-500",
    "leak",
    "spew",
    "noise",
    "close-stdout",
    "children",
    "zombie",
    "worker",
    "ignore-term",
    "term-after",
    "reuse-port",
    "strict",
    "journal",
)
START_FAULTS = ("exit-after", "bind-fail", "oom", "daemonize", "ready-after", "die")
STARTED = time.monotonic()


class Knobs:
    def __init__(self) -> None:
        self.values: dict[str, str] = {
            k: os.environ[name] for k in KNOBS if (name := "FAKE_" + k.upper().replace("-", "_")) in os.environ
        }

    def text(self, name: str, default: str = "") -> str:
        return self.values.get(name, default)

    def on(self, name: str) -> bool:
        return self.text(name, "0").lower() not in ("", "0", "false", "off", "no")

    def number(self, name: str, default: float = 0.0) -> float:
        return float(self.values.get(name) or default)


class Options:
    """What the command line asks for, under llama-server's names and the plain ones of `fake.toml`."""

    def __init__(self, argv: list[str], knobs: Knobs) -> None:
        self.host, self.port, self.alias, self.model = "127.0.0.1", 8080, "", ""
        self.total, self.per_slot, self.parallel = 0, 0, 4
        self.kv_k = self.kv_v = "f16"
        self.unified, self.metrics, self.verbosity = False, False, 3
        self.unknown: list[str] = []
        known = help_flags() if HELP.exists() else frozenset()
        words = iter(argv)
        for word in words:
            if word.startswith("--fake-"):
                name, _, value = word[7:].partition("=")
                knobs.values[name] = value or next(words, "1")
            elif word == "--strict":
                knobs.values["strict"] = "1"
            elif word in ("-m", "--model"):
                self.model = next(words)
            elif word in ("-a", "--alias"):
                self.alias = next(words)
            elif word == "--host":
                self.host = next(words)
            elif word == "--port":
                self.port = int(next(words))
            elif word in ("-c", "--ctx-size"):
                self.total = int(next(words))
            elif word == "--context-length":
                self.per_slot = int(next(words))
            elif word in ("-np", "--parallel"):
                self.parallel = int(next(words))
            elif word in ("-ctk", "--cache-type-k"):
                self.kv_k = next(words)
            elif word in ("-ctv", "--cache-type-v"):
                self.kv_v = next(words)
            elif word == "--kv-cache-type":
                self.kv_k = self.kv_v = next(words)
            elif word in ("-lv", "--verbosity", "--log-verbosity"):
                self.verbosity = int(next(words))
            elif word in ("-kvu", "--kv-unified"):
                self.unified = True
            elif word == "--metrics":
                self.metrics = True
            elif word.startswith("-") and not word.lstrip("-")[:1].isdigit() and word not in known:
                self.unknown.append(word)

    @property
    def n_ctx(self) -> int:
        """Tokens of one slot, as llama.cpp pads them."""
        if self.per_slot:
            return self.per_slot
        total = pad256(self.total or 8192)
        return total if self.unified else pad256(total // self.parallel)

    @property
    def name(self) -> str:
        return self.alias.split(",")[0] or self.model or "fake"


def pad256(n: int) -> int:
    return (n + 255) // 256 * 256


def help_flags() -> frozenset[str]:
    lines = (line for line in HELP.read_text().splitlines() if line.startswith("-"))
    return frozenset(w.strip(",") for line in lines for w in line.split() if w.startswith("-"))


class Slot:
    def __init__(self, number: int) -> None:
        self.number, self.busy, self.task = number, False, -1
        self.held = self.processed = self.decoded = 0


class Engine:
    """Slots, the queue in front of them, and counters."""

    def __init__(self, options: Options, knobs: Knobs) -> None:
        self.options, self.knobs = options, knobs
        self.parallel = int(knobs.number("got-parallel", options.parallel))
        self.n_ctx = int(knobs.number("got-n-ctx", options.n_ctx))
        self.slots = [Slot(i) for i in range(self.parallel)]
        self.free = threading.Condition()
        self.ready = threading.Event()
        self.deferred = self.tasks = self.in_flight = 0
        self.prompt_total = self.predicted_total = self.decodes = 0
        self.prompt_seconds = self.predicted_seconds = 0.0
        self.calls: dict[str, int] = {}
        self.children: list[int] = []
        self.worker = 0
        self.muted_until = 0.0
        self.leaked: list[bytes] = []

    def take(self) -> Slot:
        with self.free:
            self.deferred += 1
            while not (idle := [s for s in self.slots if not s.busy]):
                self.free.wait()
            self.deferred -= 1
            slot = idle[0]
            slot.busy, slot.task = True, self.tasks
            self.tasks += 1
        slot.held = slot.processed = slot.decoded = 0
        log("I", "slot", "launch_slot_", f"id {slot.number:2d} | task {slot.task} | processing task, is_child = 0")
        return slot

    def give(self, slot: Slot) -> None:
        with self.free:
            slot.busy = False
            self.free.notify()
        log(
            "I",
            "slot",
            "release",
            f"id {slot.number:2d} | task {slot.task} | stop processing: n_tokens = {slot.held}, truncated = 0",
        )
        slot.processed = slot.decoded = 0

    def stall(self) -> None:
        """Where decode would go on: waits while it hangs."""
        while self.knobs.text("hang") in ("decode", "all"):
            time.sleep(0.02)


log_lock = threading.Lock()
slowest_write = 0.0


def write(data: bytes) -> None:
    global slowest_write
    with log_lock:
        began = time.monotonic()
        view = memoryview(data)
        with contextlib.suppress(OSError):
            while view:
                view = view[os.write(2, view) :]
        slowest_write = max(slowest_write, time.monotonic() - began)


def log(level: str, component: str, function: str, text: str) -> None:
    t = int((time.monotonic() - STARTED) * 1e6)
    stamp = f"{t // 60_000_000}.{t // 1_000_000 % 60:02d}.{t // 1000 % 1000:03d}.{t % 1000:03d}"
    place = f"{component:<4} {function[:12]:>12}: " if component else f"{function}: "
    write(f"{stamp} {level} {place}{text}\n".encode())


class Request:
    def __init__(self, method: str, target: str, headers: dict[str, str], body: bytes) -> None:
        parts = urlsplit(target)
        self.method, self.path, self.headers, self.body = method, parts.path, headers, body
        self.query = {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}


class Connection:
    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.server, self.sock, self.engine = server, sock, server.engine
        self.reader = sock.makefile("rb")

    def serve(self) -> None:
        with contextlib.suppress(OSError, ValueError), self.sock:
            while request := self.read():
                if not self.answer(request):
                    return

    def read(self) -> Request | None:
        line = self.reader.readline(65536)
        if not line.strip():
            return None
        method, target, _ = line.decode("latin-1").split(" ", 2)
        headers: dict[str, str] = {}
        while (line := self.reader.readline(65536)).strip():
            key, _, value = line.decode("latin-1").partition(":")
            headers[key.strip().lower()] = value.strip()
        return Request(method, target, headers, self.reader.read(int(headers.get("content-length", "0"))))

    def send(self, status: int, body: object, kind: str = "application/json; charset=utf-8") -> bool:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        head = (
            f"HTTP/1.1 {status} X\r\nServer: llama.cpp\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        self.sock.sendall(head.encode() + data)
        return True

    def error(self, status: int, message: str, kind: str, **more: object) -> bool:
        return self.send(status, {"error": {"code": status, "message": message, "type": kind, **more}})

    def answer(self, request: Request) -> bool:
        engine, knobs = self.engine, self.server.knobs
        engine.calls[request.path] = engine.calls.get(request.path, 0) + 1
        if request.path == "/fault":
            return self.fault(request)
        while knobs.text("hang") == "all" or time.monotonic() < engine.muted_until:
            time.sleep(0.02)
        if request.path in ("/health", "/v1/health"):
            while knobs.text("hang") == "health":
                time.sleep(0.02)
            if engine.worker and not alive(engine.worker):
                return self.error(503, "worker died", "unavailable_error")
        if not engine.ready.is_set():
            return self.error(503, "Loading model", "unavailable_error")
        if request.path in ("/health", "/v1/health"):
            return self.send(200, {"status": "ok"})
        key = os.environ.get("LLAMA_API_KEY")
        given = request.headers.get("authorization", "").removeprefix("Bearer ") or request.headers.get("x-api-key")
        if key and given != key:
            return self.error(401, "Invalid API Key", "authentication_error")
        return self.route(request)

    def route(self, request: Request) -> bool:
        options, engine = self.server.options, self.engine
        match request.path:
            case "/props":
                return self.send(200, props(options, engine, self.server.knobs))
            case "/slots":
                return self.send(200, [slot_json(s, engine.n_ctx) for s in engine.slots])
            case "/metrics":
                if not options.metrics:
                    return self.error(501, "This server does not support metrics endpoint.", "not_supported_error")
                return self.send(200, metrics(engine), "text/plain; version=0.0.4")
            case "/v1/models" | "/models":
                meta = {"n_ctx": engine.n_ctx, "n_ctx_train": 8192, "size": 96576768, "ftype": "Q4_1"}
                model = {"id": options.name, "object": "model", "owned_by": "llamacpp", "meta": meta}
                return self.send(200, {"object": "list", "data": [model], "models": [{"name": options.name}]})
            case "/v1/chat/completions" | "/chat/completions" | "/v1/completions" | "/completions" | "/completion":
                return self.complete(request)
            case "/v1/embeddings":
                return self.send(200, {"object": "list", "data": [{"index": 0, "embedding": [0.1, 0.2]}]})
            case "/v1/rerank":
                return self.send(200, {"object": "list", "results": [{"index": 0, "relevance_score": 0.5}]})
        return self.error(404, "File Not Found", "not_found_error")

    def fault(self, request: Request) -> bool:
        """Takes effect before the answer, which a deadly fault never sends."""
        if request.method == "POST":
            given = dict(request.query)
            if request.body:
                given.update({k: str(v) for k, v in json.loads(request.body).items()})
            self.server.inject({k.replace("_", "-"): v for k, v in given.items()})
        engine = self.engine
        state = {
            "pid": os.getpid(),
            "calls": engine.calls,
            "in_flight": engine.in_flight,
            "tasks": engine.tasks,
            "children": engine.children,
            "worker": engine.worker,
            "slowest_write_s": slowest_write,
            "knobs": self.server.knobs.values,
        }
        return self.send(200, state)

    def complete(self, request: Request) -> bool:
        engine, knobs = self.engine, self.server.knobs
        try:
            asked = json.loads(request.body)
        except ValueError as error:
            return self.error(400, f"[json.exception.parse_error.101] {error}", "invalid_request_error")
        chat = "chat" in request.path
        if chat and "messages" not in asked:
            return self.error(400, "'messages' is required", "invalid_request_error")
        if text := knobs.text("http-500"):
            return self.error(500, text, "server_error")
        prompt = json.dumps(asked["messages"]) if chat else str(asked.get("prompt", ""))
        prompt_tokens = len(prompt.split()) + 10
        if prompt_tokens >= engine.n_ctx:
            message = f"request ({prompt_tokens} tokens) exceeds the available context size ({engine.n_ctx} tokens)"
            kind = "exceed_context_size_error"
            return self.error(400, message + ", try increasing it", kind, n_prompt_tokens=prompt_tokens)
        limit = asked.get("max_tokens", asked.get("n_predict"))
        tokens = max(1, min(int(limit if limit is not None else 16), engine.n_ctx - prompt_tokens))
        with self.server.flight():
            slot = engine.take()
            try:
                return Completion(self, slot, asked, chat, prompt_tokens, tokens).run()
            finally:
                engine.give(slot)


class Completion:
    def __init__(
        self, connection: Connection, slot: Slot, asked: dict[str, object], chat: bool, prompt: int, tokens: int
    ) -> None:
        self.connection, self.slot, self.asked, self.chat = connection, slot, asked, chat
        self.prompt, self.tokens = prompt, tokens
        self.engine, self.name = connection.engine, connection.server.options.name
        self.prompt_ms = self.predicted_ms = 0.0
        self.id = f"chatcmpl-{os.getpid()}-{slot.task}"

    def timings(self) -> dict[str, float]:
        return {
            "cache_n": 0,
            "prompt_n": self.slot.processed,
            "prompt_ms": self.prompt_ms,
            "predicted_n": self.slot.decoded,
            "predicted_ms": self.predicted_ms,
        }

    def usage(self) -> dict[str, object]:
        return {
            "completion_tokens": self.tokens,
            "prompt_tokens": self.prompt,
            "total_tokens": self.prompt + self.tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
        }

    def chunk(self, content: str | None, finish: str | None, **more: object) -> bytes:
        choice: dict[str, object] = {"index": 0, "finish_reason": finish}
        if self.chat:
            choice["delta"] = {"content": content} if content is not None else {}
        else:
            choice["text"] = content or ""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        body = {"id": self.id, "object": kind, "created": int(time.time()), "model": self.name}
        return event({**body, "choices": [choice], **more})

    def run(self) -> bool:
        stream = bool(self.asked.get("stream"))
        knobs, sock = self.connection.server.knobs, self.connection.sock
        progress = stream and bool(self.asked.get("return_progress"))
        if progress:
            self.head()
            sock.sendall(self.chunk(None, None, prompt_progress=self.progress()))
        began = time.monotonic()
        time.sleep(knobs.number("prompt-ms", 0.0) * self.prompt / 1000)
        self.engine.stall()
        self.slot.processed = self.slot.held = self.prompt
        self.prompt_ms = (time.monotonic() - began) * 1000
        if stream and not progress:
            self.head()
        if progress:
            sock.sendall(self.chunk(None, None, prompt_progress=self.progress()))
        began = time.monotonic()
        words = []
        for i in range(self.tokens):
            if i:
                time.sleep(knobs.number("token-ms", 1.0) / 1000)
            self.engine.stall()
            self.slot.decoded += 1
            self.slot.held += 1
            self.engine.decodes += 1
            self.predicted_ms = max(0.001, (time.monotonic() - began) * 1000)
            words.append(f"tok{i} ")
            if stream:
                more = {"timings": self.timings()} if self.asked.get("timings_per_token") else {}
                sock.sendall(self.chunk(words[-1], None, **more))
        self.count()
        self.engine.leaked.append(b"x" * int(knobs.number("leak") * 1024))
        return self.end("".join(words)) if stream else self.whole("".join(words))

    def progress(self) -> dict[str, object]:
        return {"total": self.prompt, "cache": 0, "processed": self.slot.processed, "time_ms": int(self.prompt_ms)}

    def head(self) -> None:
        self.connection.sock.sendall(
            b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nContent-Type: text/event-stream\r\n"
            b"X-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n"
        )

    def end(self, text: str) -> bool:
        options = self.asked.get("stream_options")
        usage = isinstance(options, dict) and options.get("include_usage")
        last = {} if usage else {"timings": self.timings()}
        data = self.chunk(None, "length", **last)
        if usage:
            body = {"id": self.id, "object": "chat.completion.chunk", "model": self.name, "choices": []}
            data += event({**body, "usage": self.usage(), "timings": self.timings()})
        self.connection.sock.sendall(data + event("[DONE]") + b"0\r\n\r\n")
        return True

    def whole(self, text: str) -> bool:
        content: dict[str, object] = (
            {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        )
        choice = {"index": 0, "finish_reason": "length", **content}
        kind = "chat.completion" if self.chat else "text_completion"
        body = {"id": self.id, "object": kind, "created": int(time.time()), "model": self.name, "choices": [choice]}
        return self.connection.send(200, {**body, "usage": self.usage(), "timings": self.timings()})

    def count(self) -> None:
        engine, slot = self.engine, self.slot
        engine.prompt_total += self.prompt
        engine.predicted_total += self.tokens
        engine.prompt_seconds += self.prompt_ms / 1000
        engine.predicted_seconds += self.predicted_ms / 1000
        place = f"id {slot.number:2d} | task {slot.task} |"
        for what, ms, n in (
            ("prompt eval time", self.prompt_ms, self.prompt),
            ("       eval time", self.predicted_ms, self.tokens),
        ):
            each, rate = ms / n, n / max(ms, 0.001) * 1000
            text = f"{place} {what} = {ms:10.2f} ms / {n:5d} tokens ({each:8.2f} ms per token, {rate:8.2f} tokens per second)"
            log("I", "slot", "print_timing", text)


def event(body: object) -> bytes:
    data = f"data: {body if isinstance(body, str) else json.dumps(body)}\n\n".encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def props(options: Options, engine: Engine, knobs: Knobs) -> dict[str, object]:
    return {
        "default_generation_settings": {"params": {}, "n_ctx": engine.n_ctx},
        "total_slots": engine.parallel,
        "model_alias": options.name,
        "model_path": knobs.text("foreign-model") or options.model,
        "model_ftype": "Q4_1",
        "endpoint_slots": True,
        "endpoint_props": True,
        "endpoint_metrics": options.metrics,
        "build_info": "b0-unknown",
        "is_sleeping": False,
    }


def slot_json(slot: Slot, n_ctx: int) -> dict[str, object]:
    body: dict[str, object] = {"id": slot.number, "n_ctx": n_ctx, "speculative": False, "is_processing": slot.busy}
    if slot.task >= 0:
        token = {"has_next_token": slot.busy, "has_new_line": False, "n_remain": -1, "n_decoded": slot.decoded}
        body |= {"id_task": slot.task, "n_prompt_tokens": slot.held, "n_prompt_tokens_processed": slot.processed}
        body |= {"n_prompt_tokens_cache": 0, "params": {}, "next_token": [token]}
    return body


def metrics(engine: Engine) -> str:
    busy = sum(s.busy for s in engine.slots)
    values = {
        "prompt_tokens_total": engine.prompt_total,
        "prompt_seconds_total": engine.prompt_seconds,
        "tokens_predicted_total": engine.predicted_total,
        "tokens_predicted_seconds_total": engine.predicted_seconds,
        "n_decode_total": engine.decodes,
        "requests_processing": busy,
        "requests_deferred": engine.deferred,
    }
    kinds = {name: "counter" if name.endswith("_total") else "gauge" for name in values}
    return "".join(
        f"# HELP llamacpp:{k} {k}\n# TYPE llamacpp:{k} {kinds[k]}\nllamacpp:{k} {v:g}\n" for k, v in values.items()
    )


class Server:
    def __init__(self, options: Options, knobs: Knobs) -> None:
        self.options, self.knobs = options, knobs
        self.engine = Engine(options, knobs)
        self.idle = threading.Condition()
        self.listener: socket.socket | None = None

    @contextlib.contextmanager
    def flight(self):  # type: ignore[no-untyped-def]
        with self.idle:
            self.engine.in_flight += 1
        try:
            yield
        finally:
            with self.idle:
                self.engine.in_flight -= 1
                self.idle.notify_all()

    def bind(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.knobs.on("reuse-port"):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            if self.knobs.on("bind-fail"):
                raise OSError
            listener.bind((self.options.host, self.options.port))
        except OSError:
            place = f"hostname: {self.options.host}, port: {self.options.port}"
            log("E", "srv", "start", f"couldn't bind HTTP server socket, {place}")
            log("E", "srv", "llama_server", "exiting due to HTTP server error")
            os._exit(1)
        listener.listen(512)
        self.listener = listener
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        assert self.listener
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=Connection(self, sock).serve, daemon=True).start()

    def inject(self, faults: dict[str, str]) -> None:
        self.knobs.values.update(faults)
        if name := faults.get("signal"):
            os.kill(os.getpid(), signal.Signals["SIG" + name.removeprefix("SIG")])
            time.sleep(1)
        if "exit" in faults:
            os._exit(int(faults["exit"]))
        if faults.get("oom"):
            log("E", "", "ggml_backend_cuda_buffer_type_alloc_buffer", OOM_TEXT)
            os._exit(1)
        if "log" in faults:
            write(faults["log"].encode(errors="surrogateescape") + b"\n")
        if "mute" in faults:
            self.mute(float(faults["mute"]))
        if "spew" in faults:
            self.spew(float(faults["spew"]))
        if "noise" in faults:
            make_noise(faults["noise"])
        if faults.get("close-stdout"):
            close_output()
        if faults.get("kill-worker"):
            os.kill(self.engine.worker, signal.SIGKILL)

    def mute(self, seconds: float) -> None:
        until = self.engine.muted_until = time.monotonic() + seconds

        def burn() -> None:
            while time.monotonic() < until:
                sum(range(10000))

        threading.Thread(target=burn, daemon=True).start()

    def spew(self, rate: float) -> None:
        """`rate` MB/s of log lines, 0 = as fast as the reader takes them, until `spew` is set to something negative."""
        block = b"".join(b"spew %07d %s\n" % (i, b"x" * 104) for i in range(512))

        def flood() -> None:
            began, sent = time.monotonic(), 0
            while self.knobs.number("spew") >= 0:
                write(block)
                sent += len(block)
                if rate > 0 and (ahead := sent / (rate * 1e6) - (time.monotonic() - began)) > 0:
                    time.sleep(ahead)

        threading.Thread(target=flood, daemon=True).start()

    def tree(self) -> None:
        for _ in range(int(self.knobs.number("children"))):
            self.engine.children.append(fork(deaf))
        if self.knobs.on("worker"):
            self.engine.worker = fork(die_with_parent)
        if self.knobs.on("zombie"):
            os.waitpid(fork(lambda: fork(lambda: time.sleep(0.2))), 0)

    def load(self) -> None:
        options, knobs, engine = self.options, self.knobs, self.engine
        began, hoard = time.monotonic(), []
        if not knobs.on("quiet"):
            log("I", "srv", "load_model", f"loading model '{options.model}'")
        if knobs.on("oom"):
            log("E", "", "ggml_backend_cuda_buffer_type_alloc_buffer", OOM_TEXT)
            log("E", "srv", "load_model", f"failed to load model, '{options.model}'")
            log("E", "srv", "llama_server", "exiting due to model loading error")
            os._exit(1)
        if knobs.on("cpu-fallback"):
            log("W", "", "ggml_cuda_init", "failed to initialize CUDA: unknown error")
            log("W", "", "warning", "no usable GPU found, --gpu-layers option will be ignored")
        while (left := began + knobs.number("ready-after") - time.monotonic()) > 0:
            if grow := knobs.number("grow"):
                hoard.append(b"x" * int(grow * 1024 * 1024 * 0.1))
            time.sleep(min(left, 0.1))
        if not knobs.on("quiet"):
            self.say_loaded()
        engine.ready.set()

    def say_loaded(self) -> None:
        engine, options, got_kv = self.engine, self.options, self.knobs.text("got-kv")
        k, v, cells = got_kv or options.kv_k, got_kv or options.kv_v, engine.n_ctx
        half = cells * engine.parallel * 30 * 3 * 64 * WIDTHS.get(k, 2) / 1024**2
        log("I", "", "load_tensors", "  CPU_Mapped model buffer size =    92.10 MiB")
        log("I", "", "llama_context", f"n_ctx                 = {cells * engine.parallel}")
        log("I", "", "llama_context", f"n_ctx_seq             = {cells}")
        log("I", "", "llama_context", f"flash_attn            = {self.knobs.text('got-flash') or 'enabled'}")
        log("I", "", "llama_kv_cache", f"       CPU KV buffer size = {2 * half:8.2f} MiB")
        sizes = f"size = {2 * half:7.2f} MiB ({cells:6d} cells,  30 layers, {engine.parallel}/{engine.parallel} seqs)"
        log("I", "", "llama_kv_cache", f"{sizes}, K ({k}): {half:7.2f} MiB, V ({v}): {half:7.2f} MiB")
        slots = f"n_slots = {engine.parallel}, n_ctx_slot = {cells}, kv_unified = '{str(options.unified).lower()}'"
        log("I", "srv", "load_model", f"initializing, {slots}")
        log("I", "srv", "llama_server", "model loaded")
        log("I", "srv", "llama_server", f"listening on http://{options.host}:{options.port}")

    def run(self) -> None:
        knobs = self.knobs
        if seconds := knobs.number("bind-after"):
            time.sleep(seconds)
        self.tree()
        self.bind()
        if "exit-after" in knobs.values:
            threading.Thread(target=end_after, args=(knobs,), daemon=True).start()
        if "spew" in knobs.values:
            self.spew(knobs.number("spew"))
        if knobs.on("ignore-term"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.load()
        if noise := knobs.text("noise"):
            make_noise(noise)
        if knobs.on("close-stdout"):
            close_output()
        if mute := knobs.number("mute"):
            self.mute(mute)
        self.wait_for_signals()

    def wait_for_signals(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        if not self.knobs.on("ignore-term"):
            for order in (signal.SIGTERM, signal.SIGINT):
                signal.signal(order, lambda *_: None)
        stopping = False
        while True:
            number = os.read(reader, 1)[0]
            if number not in (signal.SIGTERM, signal.SIGINT):
                continue
            if stopping:
                write(b"Received second interrupt, terminating immediately.\n")
                os._exit(1)
            stopping = True
            threading.Thread(target=self.finish, daemon=True).start()

    def finish(self) -> None:
        assert self.listener
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        time.sleep(self.knobs.number("term-after"))
        with self.idle:
            while self.engine.in_flight:
                self.idle.wait()
        log("I", "srv", "operator()", "operator(): cleaning up before exit...")
        os._exit(0)


OOM_TEXT = "allocating 4096.00 MiB on device 0: cudaMalloc failed: out of memory"


def make_noise(kind: str) -> None:
    write(
        {
            "line": b"x" * (1 << 20) + b"\n",
            "nul": b"before\0\0\0after\n",
            "utf8": b"\xff\xfe\xc3\x28 invalid\n",
            "ansi": b"\x1b]52;c;ZXZpbA==\x07\x1b[2J\x1b[31mred\x1b[0m\r\n",
            "partial": b"no newline at the end",
        }[kind]
    )


def close_output() -> None:
    """The pipe ends for its reader; the numbers 1 and 2 stay taken."""
    null = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(null, number)


def end_after(knobs: Knobs) -> None:
    time.sleep(knobs.number("exit-after"))
    if name := knobs.text("die"):
        os.kill(os.getpid(), signal.Signals["SIG" + name])
        time.sleep(1)
    os._exit(int(knobs.number("code")))


def fork(task) -> int:  # type: ignore[no-untyped-def]
    """The child keeps no descriptor but 0, 1 and 2, and ends after `task`."""
    if pid := os.fork():
        return pid
    os.closerange(3, 4096)
    task()
    os._exit(0)


def deaf() -> None:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    while True:
        time.sleep(3600)


def die_with_parent() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.1)


def alive(pid: int) -> bool:
    """False for a zombie."""
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False


def keep_journal(knobs: Knobs, name: str) -> int:
    """How many starts the journal of this service counts, this one included."""
    path = knobs.text("journal")
    if not path:
        return 1
    lock = os.open(f"{path}.{name.replace('/', '_')}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    note: object = sys.argv[1:]
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        append(path, "DUPLICATE")
    append(path, note)
    with open(path) as lines:
        notes = [json.loads(line.split(" ", 2)[2]) for line in lines]
    return sum(Options(note, Knobs()).name == name for note in notes if isinstance(note, list))


def append(path: str, note: object) -> None:
    file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    os.write(file, f"{os.getpid()} {time.time():.6f} {json.dumps(note)}\n".encode())
    os.close(file)


def main() -> None:
    if "--help" in sys.argv or "-h" in sys.argv:
        print(HELP.read_text() if HELP.exists() else "")
        print("----- faults -----\n")
        print("\n".join(f"--fake-{name} VALUE{'':20}fault knob" for name in KNOBS))
        return
    if "--version" in sys.argv:
        sys.stderr.write(VERSION)
        return
    knobs = Knobs()
    try:
        options = Options(sys.argv[1:], knobs)
    except ValueError:
        write(b"error while handling argument: stoi\n")
        sys.exit(1)
    if knobs.on("strict") and options.unknown:
        write(f"error: invalid argument: {options.unknown[0]}\n".encode())
        sys.exit(1)
    starts = keep_journal(knobs, options.name)
    if "times" in knobs.values and starts > knobs.number("times"):
        for name in START_FAULTS:
            knobs.values.pop(name, None)
    if knobs.on("daemonize"):
        if os.fork():
            os._exit(0)
        os.setsid()
    log("I", "srv", "llama_server", "initializing ...")
    Server(options, knobs).run()


if __name__ == "__main__":
    main()
