#!/usr/bin/env -S python3 -S -E
"""A stand-in for a `python3` that has SGLang (`-m sglang.launch_server`) in one file: its flags, endpoints, names of metrics and words in the log.

It refuses flags that it does not know, so that a definition is held against them. FAKE_OOM=1: a start without memory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKENS = {"prompt": 0, "generation": 0}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("launch_server.py", allow_abbrev=False)
    for flag in ("--model-path", "--kv-cache-dtype", "--quantization", "--attention-backend", "--chat-template"):
        parser.add_argument(flag)
    for flag in ("--tool-call-parser", "--reasoning-parser", "--schedule-policy", "--host"):
        parser.add_argument(flag)
    for flag in (
        "--context-length",
        "--max-running-requests",
        "--max-total-tokens",
        "--chunked-prefill-size",
        "--port",
    ):
        parser.add_argument(flag, type=int)
    parser.add_argument("--enable-metrics", action="store_true")
    words = sys.argv[1:]
    return parser.parse_args(words[2:] if words[:2] == ["-m", "sglang.launch_server"] else words)


OPTIONS = options()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def send(self, body: object, kind: str = "application/json", status: int = 200) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        match self.path:
            case "/health":
                self.send("")
            case "/metrics" if OPTIONS.enable_metrics:
                label = f'{{model_name="{OPTIONS.model_path}"}}'
                rows = {"num_running_reqs": 0.0, "num_queue_reqs": 0.0, "token_usage": 0.25}
                rows |= {f"{name}_tokens_total": float(number) for name, number in TOKENS.items()}
                self.send("".join(f"sglang:{name}{label} {value}\n" for name, value in rows.items()), "text/plain")
            case "/v1/models":
                entry = {"id": OPTIONS.model_path, "object": "model", "max_model_len": OPTIONS.context_length}
                self.send({"object": "list", "data": [entry]})
            case _:
                self.send({"detail": "Not Found"}, status=404)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions" or asked.get("model") != OPTIONS.model_path:
            self.send({"object": "error", "message": "The model does not exist.", "code": 404}, status=404)
            return
        usage = {"prompt_tokens": 5, "completion_tokens": asked.get("max_tokens", 1)}
        TOKENS["prompt"] += 5
        TOKENS["generation"] += usage["completion_tokens"]
        choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "length"}
        self.send({"object": "chat.completion", "model": asked["model"], "choices": [choice], "usage": usage})

    def log_message(self, format: str, *args: object) -> None: ...


def log(text: str) -> None:
    print(f"[2026-01-01 00:00:00] {text}", file=sys.stderr, flush=True)


log("Load weight begin. avail mem=23.10 GB")
if os.environ.get("FAKE_OOM"):
    log("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.")
    sys.exit(1)
log("Load weight end. type=LlamaForCausalLM, dtype=torch.bfloat16, avail mem=8.00 GB, mem usage=15.10 GB.")
log(f"Memory pool end. max_total_num_tokens={OPTIONS.max_total_tokens or 65536}")
server = ThreadingHTTPServer((OPTIONS.host or "127.0.0.1", OPTIONS.port), Handler)
log("The server is fired up and ready to roll!")
server.serve_forever()
