"""Ollama's environment variables: how each is parsed, and the line that tells what came of them."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path

FOREVER = 2**63 - 1
"""Nanoseconds; Go's longest duration."""
UNITS = {"ns": 1, "us": 1e3, "µs": 1e3, "μs": 1e3, "ms": 1e6, "s": 1e9, "m": 60e9, "h": 3600e9}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([^\d.]*)")
TRUE, FALSE = {"1", "t", "T", "true", "TRUE", "True"}, {"0", "f", "F", "false", "FALSE", "False"}
PASSED = ["CUDA_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "HIP_VISIBLE_DEVICES", "HSA_OVERRIDE_GFX_VERSION", "HTTPS_PROXY", "HTTP_PROXY", "LLAMA_ARG_FIT", "LLAMA_ARG_FIT_TARGET", "NO_PROXY", "OLLAMA_EDITOR", "OLLAMA_IGPU_ENABLE", "OLLAMA_LLM_LIBRARY", "ROCR_VISIBLE_DEVICES", "http_proxy", "https_proxy", "no_proxy"]  # fmt: skip
_LOCAL = [f"{s}://{h}{p}" for h in ("localhost", "127.0.0.1", "0.0.0.0") for p in ("", ":*") for s in ("http", "https")]
ORIGINS = [*_LOCAL, "app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*"]


class BadDuration(ValueError):
    """With Go's own words."""


def duration(text: str) -> int:
    """Nanoseconds of a Go duration."""
    body, sign = (text[1:], -1) if text[:1] == "-" else (text.removeprefix("+"), 1)
    if body == "0":
        return 0
    if not re.match(r"\d|\.\d", body):
        raise BadDuration(f'time: invalid duration "{text}"')
    total, position = 0.0, 0
    for part in _PART.finditer(body):
        if part.start() != position or not part[2]:
            break
        if part[2] not in UNITS:
            raise BadDuration(f'time: unknown unit "{part[2]}" in duration "{text}"')
        total, position = total + float(part[1]) * UNITS[part[2]], part.end()
    if position != len(body):
        raise BadDuration(f'time: missing unit in duration "{text}"')
    return sign * int(total)


def go_duration(ns: int) -> str:
    """As Go prints one."""
    if ns == 0:
        return "0s"
    sign, ns = ("-", -ns) if ns < 0 else ("", ns)
    for limit, unit, size in ((1000, "ns", 1), (10**6, "µs", 10**3), (10**9, "ms", 10**6)):
        if ns < limit:
            return f"{sign}{_decimals(ns, size)}{unit}"
    minutes, rest = divmod(ns, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    lead = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{sign}{lead}{_decimals(rest, 10**9)}s"


def _decimals(value: int, size: int) -> str:
    whole, rest = divmod(value, size)
    return f"{whole}.{rest:0{len(str(size)) - 1}d}".rstrip("0").rstrip(".") if rest else str(whole)


def rfc3339(ns: int) -> str:
    seconds, rest = divmod(ns, 10**9)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{rest:09d}".rstrip("0")
    return f"{text}.{fraction}Z" if fraction else f"{text}Z"


def var(name: str) -> str:
    return os.environ.get(name, "").strip().strip("\"'")


def boolean(name: str, default: bool = False) -> bool:
    """What cannot be parsed is true."""
    text = var(name)
    return default if not text else text not in FALSE


class Config:
    def __init__(self) -> None:
        self.bad: list[tuple[str, str, object]] = []
        self.models = Path(var("OLLAMA_MODELS") or Path(os.environ["HOME"]) / ".ollama" / "models")
        self.context_length = self.number("OLLAMA_CONTEXT_LENGTH", 0)
        self.num_parallel = self.number("OLLAMA_NUM_PARALLEL", 1)
        self.max_loaded = self.number("OLLAMA_MAX_LOADED_MODELS", 0)
        self.max_queue = self.number("OLLAMA_MAX_QUEUE", 512)
        self.gpu_overhead = self.number("OLLAMA_GPU_OVERHEAD", 0)
        self.transfers = self.number("OLLAMA_MAX_TRANSFER_STREAMS", 4)
        self.keep_alive = self.span("OLLAMA_KEEP_ALIVE", 300 * 10**9, negative=True)
        self.load_timeout = self.span("OLLAMA_LOAD_TIMEOUT", 300 * 10**9, negative=False)
        self.kv_cache_type = var("OLLAMA_KV_CACHE_TYPE").lower()
        self.flash = None if not var("OLLAMA_FLASH_ATTENTION") else boolean("OLLAMA_FLASH_ATTENTION")
        self.go_template = boolean("OLLAMA_GO_TEMPLATE", True)
        self.no_cloud = boolean("OLLAMA_NO_CLOUD")
        self.noprune = boolean("OLLAMA_NOPRUNE")
        debug = var("OLLAMA_DEBUG")
        self.debug = int(debug) if debug.lstrip("-").isdigit() else int(bool(debug) and debug not in FALSE)
        self.host, self.port = self.address()
        self.ping = float(os.environ.get("OLLAMA_FAKE_PING", "10"))
        self.offload = os.environ.get("OLLAMA_FAKE_OFFLOAD")
        self.registry = os.environ.get("OLLAMA_FAKE_REGISTRY")
        self.version = os.environ.get("OLLAMA_FAKE_VERSION", "0.33.0")

    def number(self, name: str, default: int) -> int:
        text = var(name)
        if text and not text.isdigit():
            self.bad.append((name, text, default))
        return int(text) if text.isdigit() else default

    def span(self, name: str, default: int, negative: bool) -> int:
        """A duration or seconds; `negative`: below zero is for ever, else from zero down."""
        text = var(name)
        try:
            found = duration(text) if text else default
        except BadDuration:
            found = int(text) * 10**9 if re.fullmatch(r"[+-]?\d+", text) else default
        return FOREVER if (found < 0 if negative else found <= 0) else found

    def address(self) -> tuple[str, int]:
        scheme, _, rest = var("OLLAMA_HOST").rpartition("://")
        default = {"http": 80, "https": 443}.get(scheme, 11434)
        host, colon, port = rest.split("/")[0].rpartition(":")
        if not colon:
            host, port = port, ""
        if port and not (port.isdigit() and int(port) < 65536):
            self.bad.append(("OLLAMA_HOST", port, default))
            port = ""
        return host.strip("[]") or "127.0.0.1", int(port) if port else default

    def line(self) -> str:
        shown: dict[str, object] = {name: var(name) for name in PASSED}
        shown |= {
            "OLLAMA_CONTEXT_LENGTH": self.context_length,
            "OLLAMA_DEBUG": {0: "INFO", 1: "DEBUG"}.get(self.debug, "DEBUG-4"),
            "OLLAMA_FLASH_ATTENTION": str(bool(self.flash)).lower(),
            "OLLAMA_GPU_OVERHEAD": self.gpu_overhead,
            "OLLAMA_HOST": f"http://{self.host}:{self.port}",
            "OLLAMA_KEEP_ALIVE": go_duration(self.keep_alive),
            "OLLAMA_KV_CACHE_TYPE": self.kv_cache_type,
            "OLLAMA_LOAD_TIMEOUT": go_duration(self.load_timeout),
            "OLLAMA_MAX_LOADED_MODELS": self.max_loaded,
            "OLLAMA_MAX_QUEUE": self.max_queue,
            "OLLAMA_MAX_TRANSFER_STREAMS": self.transfers,
            "OLLAMA_MODELS": self.models,
            "OLLAMA_NUM_PARALLEL": self.num_parallel,
            "OLLAMA_ORIGINS": f"[{' '.join([*filter(None, var('OLLAMA_ORIGINS').split(',')), *ORIGINS])}]",
            "OLLAMA_REMOTES": f"[{var('OLLAMA_REMOTES') or 'ollama.com'}]",
        }
        for name, default in (("GO_TEMPLATE", True), ("VULKAN", True), ("DEBUG_LOG_REQUESTS", False), ("NOHISTORY", False),
                              ("NOPRUNE", False), ("NO_CLOUD", False), ("SCHED_SPREAD", False)):  # fmt: skip
            shown[f"OLLAMA_{name}"] = str(boolean(f"OLLAMA_{name}", default)).lower()
        return f"map[{' '.join(f'{name}:{shown[name]}' for name in sorted(shown))}]"
