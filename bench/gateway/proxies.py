"""What stands between client and upstream: each a process on the proxies' core with a port of its own, and an upstream port of its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CORES = sorted(os.sched_getaffinity(0))
LOAD_CORE, PROXY_CORE = CORES[0], CORES[-1]
KEY = "bench-key"
T = TypeVar("T")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Proxy:
    name: str
    port: int
    model: str
    process: subprocess.Popen[bytes] | None = None

    def pids(self) -> list[int]:
        """The process and all below it."""
        if self.process is None:
            return []
        found = [self.process.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        return found

    def cpu_ns(self) -> int:
        """User and system time, finer than the ticks of `stat`."""
        tasks = (task for pid in self.pids() for task in Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)

    def rss(self) -> int:
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE for pid in self.pids())


def free_ports(number: int) -> list[int]:
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


def on(core: int, *words: str | os.PathLike[str], **more: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["taskset", "-c", str(core), *words], **more)


def upstream(ports: list[int]) -> subprocess.Popen[bytes]:
    command = (sys.executable, HERE / "upstream.py", *map(str, ports))
    process = on(LOAD_CORE, *command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    if not process.stdout.readline():
        raise SystemExit("bench: the upstream does not start")
    return process


# --- the peers ----------------------------------------------------------------------------------------------------


def direct(folder: Path, port: int, engine: int) -> Proxy:
    return Proxy("direct", engine, "chat")


def nginx(folder: Path, port: int, engine: int) -> Proxy | None:
    if (path := shutil.which("nginx")) is None:
        return None
    (folder / "nginx.conf").write_text(f"""
daemon off; master_process off; worker_processes 1; worker_rlimit_nofile 20000;
pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 18000; }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder}; keepalive_requests 1000000;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://127.0.0.1:{engine}; proxy_http_version 1.1; proxy_buffering off; }}
  }}
}}""")
    command = (path, "-c", folder / "nginx.conf", "-e", folder / "nginx.log")
    return Proxy("nginx", port, "chat", on(PROXY_CORE, *command))


def haproxy(folder: Path, port: int, engine: int) -> Proxy | None:
    if (path := shutil.which("haproxy")) is None:
        return None
    (folder / "haproxy.cfg").write_text(f"""
global
  nbthread 1
  maxconn 9000
defaults
  mode http
  option http-no-delay
  timeout connect 5s
  timeout client 10m
  timeout server 10m
  timeout http-keep-alive 75s
frontend f
  bind 127.0.0.1:{port} backlog 4096
  default_backend b
backend b
  http-reuse never
  server s 127.0.0.1:{engine}
""")
    return Proxy("haproxy", port, "chat", on(PROXY_CORE, path, "-db", "-q", "-f", folder / "haproxy.cfg"))


def aiohttp(folder: Path, port: int, engine: int) -> Proxy:
    command = (sys.executable, HERE / "aiohttp_proxy.py", str(port), str(engine))
    return Proxy("aiohttp", port, "chat", on(PROXY_CORE, *command))


def litellm(folder: Path, port: int, engine: int) -> Proxy | None:
    if (path := shutil.which("litellm")) is None:
        return None
    parameters = {"model": "openai/chat", "api_base": f"http://127.0.0.1:{engine}/v1", "api_key": "none"}
    config = {"model_list": [{"model_name": "chat", "litellm_params": parameters}]}
    (folder / "litellm.json").write_text(json.dumps(config))
    command = (path, "--config", folder / "litellm.json", "--host", "127.0.0.1", "--port", str(port))
    output = (folder / "litellm.log").open("wb")
    return Proxy("litellm", port, "chat", on(PROXY_CORE, *command, stdout=output, stderr=output))


# --- ours ---------------------------------------------------------------------------------------------------------

VLLM = {
    "routes": {"/v1/chat/completions": "chat.completions"},
    "timing": {
        "queue_ms": "metrics.queue_time_ms",
        "prefill_ms": "metrics.time_to_first_token_ms",
        "decode_ms": "metrics.generation_time_ms",
    },
    "remove": ["metrics"],
    "usage_forced": True,
    "count": {},
    "slots": None,
}
LLAMA_SERVER = {
    "routes": {"/v1/chat/completions": "chat.completions"},
    "timing": {
        "prompt_tokens": "timings.prompt_n",
        "prefill_ms": "timings.prompt_ms",
        "completion_tokens": "timings.predicted_n",
        "decode_ms": "timings.predicted_ms",
    },
    "remove": [],
    "usage_forced": False,
    "count": {},
    "slots": None,
}


def passing(folder: Path, port: int, engine: int) -> Proxy:
    """Asked under the name under which the engine was started: nothing to rewrite, nothing to take out."""
    return _gateway("ours, pass", folder, port, engine, "chat", "chat", LLAMA_SERVER)


def filtering(folder: Path, port: int, engine: int) -> Proxy:
    """Asked under an alias that the engine does not know, and the engine says more than was asked for."""
    return _gateway("ours, filter", folder, port, engine, "vllm", "gpt-oss", VLLM)


def _gateway(name: str, folder: Path, port: int, engine: int, model: str, asked: str, traits: Any) -> Proxy:
    run = folder / model
    run.mkdir(mode=0o700)
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    fd = listener.fileno()
    script = f'exec 3<&{fd}; [ {fd} = 3 ] || exec {fd}<&-; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
    python = ROOT / ".venv" / "bin" / "python"
    command = ("bash", "-c", script, "bash", python, "-P", "-m", "llmsupervisor.gateway", run)
    output = (folder / f"{model}.log").open("wb")
    process = on(PROXY_CORE, *command, cwd=run, env={"PATH": os.environ["PATH"]}, stderr=output, pass_fds=[fd])
    listener.close()
    target = {
        "target": model,
        "service": "chat",
        "endpoint": "chat@1",
        "address": f"http://127.0.0.1:{engine}",
        "state": "open",
        "reason": "",
        "parallel": 10000,
        "kv_tokens": None,
        "context_length": 131072,
        "names": list(dict.fromkeys(["chat", "gpt-oss", asked])),
        "inject": {"headers": {"Authorization": "Bearer engine"}},
        "model": model,
        "traits": traits,
    }
    keys = [
        {"name": "alice", "sha256": hashlib.sha256(b"other").hexdigest(), "models": None, "share": 1.0},
        {"name": "bench", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "models": ["chat", asked], "share": 2.0},
    ]
    view = {"type": "view", "generation": 1, "targets": [target], "keys": keys, "limits": {"queue_size": 10000}}
    _tell(run / "gateway.sock", view, process, folder / f"{model}.log")
    return Proxy(name, port, asked, process)


def _tell(path: Path, view: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    """In the daemon's place, until the gateway ends."""

    def connect() -> socket.socket | None:
        if process.poll() is not None:
            raise SystemExit(f"bench: the gateway ended:\n{log.read_text()}")
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(os.fspath(path))
        except OSError:
            sock.close()
            return None
        return sock

    link = wait(connect, 10, "the gateway's link")
    link.sendall(json.dumps(view).encode() + b"\n")
    lines = link.makefile("rb")
    while json.loads(lines.readline())["type"] != "applied":
        pass

    def drain() -> None:
        with link, contextlib.suppress(OSError):
            while lines.readline():
                pass

    threading.Thread(target=drain, daemon=True).start()


# --- all of them --------------------------------------------------------------------------------------------------

ALL: dict[str, Callable[[Path, int, int], Proxy | None]] = {
    "direct": direct,
    "nginx": nginx,
    "haproxy": haproxy,
    "aiohttp": aiohttp,
    "litellm": litellm,
    "pass": passing,
    "filter": filtering,
}


@contextlib.contextmanager
def started(folder: Path, names: list[str]) -> Iterator[list[Proxy]]:
    """Those that are installed."""
    ports = free_ports(2 * len(names))
    engines = ports[len(names) :]
    processes = [upstream(engines)]
    proxies = []
    try:
        for name, port, engine in zip(names, ports, engines, strict=False):
            proxy = ALL[name](folder, port, engine)
            if proxy is None:
                print(f"{name}: not installed, left out", flush=True)
                continue
            proxies.append(proxy)
            if proxy.process is not None:
                processes.append(proxy.process)
            wait(lambda proxy=proxy: _takes(proxy), 60, f"{proxy.name} to listen")
        yield proxies
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _takes(proxy: Proxy) -> bool:
    if proxy.process is not None and proxy.process.poll() is not None:
        raise SystemExit(f"bench: {proxy.name} ended with {proxy.process.returncode}")
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", proxy.port)) == 0


def wait(found: Callable[[], T | None], seconds: float, what: str) -> T:
    deadline = time.monotonic() + seconds
    while not (result := found()):
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: gave up waiting for {what}")
        time.sleep(0.01)
    return result
