"""`python tests/tui/pictures.py [--live] FOLDER`: the pictures of the README, taken from the running app.

Without `--live` only those of the example box with two GPUs, which needs no engine: `make pictures` takes all, with the
demo's real model answering while the picture is taken.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import re
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import engines, process
from support.daemon import Daemon
from support.spec import served
from textual.pilot import Pilot
from tui.driving import an_app, until
from tui.samples import GIB, event, gpu, live, record, service
from tui.stand_in import StandIn

from llmsupervisor.tui.app import SupervisorApp

SIZE = (100, 30)
_ID = re.compile(r"terminal-\d+")
_FONT = re.compile(r"\s*@font-face \{.*?\}\n", re.DOTALL)
EXAMPLE = ("box-overview", "box-requests", "box-gpus")
LIVE = ("demo-overview", "demo-requests", "demo-request")


def svg(app: SupervisorApp, title: str) -> str:
    """Without fonts from the network, and with the same names each time."""
    text = app.export_screenshot(title=title)
    return _FONT.sub("\n", _ID.sub("tui", text))


def take(path: Path, folder: Path, shots: Callable[[Pilot[None], Callable[[str], None]], Awaitable[None]]) -> None:
    app = an_app(path)

    async def run() -> None:
        async with app.run_test(size=SIZE) as pilot:
            await until(pilot, lambda s: "LIVE" in s and "READY" in s, "the first picture", 200)

            def shot(name: str) -> None:
                (folder / f"{name}.svg").write_text(svg(app, "llmsupervisor tui"))

            await shots(pilot, shot)

    asyncio.run(run())


# --- an example with two cards ----------------------------------------------------------------------------------------


def example(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="ls-") as place:
        daemon = StandIn(Path(place) / "s", [])
        box(daemon, time.time())
        try:
            take(daemon.path, folder, example_shots)
        finally:
            daemon.die()


def box(daemon: StandIn, now: float) -> None:
    def figures(
        name: str, runtime: str, kv: float | None, run: list[int | None], speeds: list[float | None], **more: Any
    ) -> Any:
        one = service(name, runtime=runtime, since=now - 273_600, got=None, asked={}, **more)
        keys = ("requests_running", "requests_waiting", "requests_queued")
        rates = ("prefill_tokens_per_s", "tokens_per_s", "prefix_hit_ratio")
        one["targets"][0] |= {
            "kv_cache_usage": kv,
            **dict(zip(keys, run, strict=True)),
            **dict(zip(rates, speeds, strict=True)),
        }
        return one

    busy = {"id": "kv-full", "text": "KV cache over 95 % for 40 s, 3 preemptions a minute", "since": now - 40}
    daemon.say(
        figures(
            "llama-8b", "llama-server", 0.61, [2, 0, 0], [1820.0, 148.2, 0.62], pid=48112, vram_bytes=int(9.1 * GIB)
        ),
        figures("qwen-32b", "vllm", 0.96, [3, 2, 1], [940.0, 61.0, 0.41], pid=48877, restarts=1, conditions=[busy]),
        figures("ollama", "ollama", None, [0, 0, 0], [None, None, None], pid=48230, vram_bytes=int(5.4 * GIB)),
        service("embed", "STARTING", since=now - 41, phase="loading model", pid=49011, got=None, asked={}, targets=[]),
    )
    cards = [
        gpu(0, memory_used_bytes=int(14.9 * GIB), xids=[], processes=[
            {"pid": 48112, "service": "llama-8b", "name": "llama-server", "memory_used_bytes": int(9.1 * GIB)},
            {"pid": 48230, "service": "ollama", "name": "ollama", "memory_used_bytes": int(5.4 * GIB)},
            {"pid": 2211, "service": None, "name": "Xorg", "user": "root", "kind": "graphics", "memory_used_bytes": int(0.4 * GIB)}]),
        gpu(1, memory_used_bytes=int(22.4 * GIB), xids=[], power_w=290.0, temperature_c=69, clock_limits=[], busy=0.97,
            memory_bandwidth={"source": "estimate", "usage": 0.64, "bytes_per_s": 600e9, "peak_bytes_per_s": 936e9},
            processes=[{"pid": 48877, "service": "qwen-32b", "name": "vllm", "memory_used_bytes": int(22.4 * GIB)}]),
    ]  # fmt: skip
    daemon.tell(gpus=cards, nvml={"error": None, "driver": "580.95", "time": now})
    daemon.live = [
        live("a", "prefill", now - 3, now - 2, model="llama-8b", client="cron", prompt_tokens=12_400, prompt_done=8800),
        live("b", "decode", now - 9, now - 7, model="qwen-32b", client="agent-2", prompt_tokens=8000, tokens=150),
        live("c", "queue", now - 2, now - 2, model="qwen-32b", client="agent-3", prompt_tokens=9900),
    ]
    ends = [("llama-8b", "chat-ui", 3100, 2900, 4.0, 110.0, 2900.0, 412), ("qwen-32b", "agent-7", 400, 0, 100.0, 120.0, 6400.0, 131),
            ("llama-8b", "cron", 6000, 20, 3.0, 3197.0, 427.0, 64), ("qwen-32b", "agent-1", 2200, 0, 200.0, 600.0, 5900.0, 118)]  # fmt: skip
    for n in range(24):
        model, client, prompt, cached, queue, prefill, decode, out = ends[n % len(ends)]
        daemon.ended(
            record(
                f"01K{n:023}",
                time=now - 240 + n * 9,
                model=model,
                service=model,
                client=client,
                prompt_tokens=prompt,
                cached_tokens=cached,
                queue_ms=queue,
                prefill_ms=prefill,
                decode_ms=decode,
                completion_tokens=out,
                engine_queue_ms=0.0,
                ttft_ms=queue + prefill,
                total_ms=queue + prefill + decode + 8,
                decode_tokens_per_s=out / decode * 1000,
            )
        )
    daemon.events = [event("llama-8b", "state", now - 3000, **{"from": "STARTING", "to": "READY"})]
    daemon.log(
        "llama-8b",
        *(f"srv  log_server_r: done request: POST /v1/chat/completions 127.0.0.1 200 #{n}" for n in range(30)),
    )


async def example_shots(pilot: Pilot[None], shot: Callable[[str], None]) -> None:
    await until(pilot, lambda s: "done request" in s, "the log")
    shot("box-overview")
    await pilot.press("2")
    await until(pilot, lambda s: "LIVE 2 run, 1 wait" in s and "24 of 24" in s, "requests")
    shot("box-requests")
    await pilot.press("3")
    await until(pilot, lambda s: "held down by" in s, "the cards")
    shot("box-gpus")


# --- the demo, for real ---------------------------------------------------------------------------------------------


def demo(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="ls-") as place:
        daemon = Daemon(Path(place), process.free_ports(10))
        listen = f"127.0.0.1:{process.free_ports(1)[0]}"
        chat = {
            **served(engines.embedded(), engines.smollm2(), threads=1),
            "aliases": ["smollm2"],
            "context_length": 2048,
        }
        daemon.write({"chat": chat}, gateway={"listen": listen})
        daemon.up()
        try:
            daemon.wait_state("chat", "READY", 300)
            with asking(f"http://{listen}/v1/chat/completions"):
                take(daemon.socket, folder, demo_shots)
        finally:
            daemon.close()


async def demo_shots(pilot: Pilot[None], shot: Callable[[str], None]) -> None:
    await until(pilot, lambda s: re.search(r"[12]/\d/[1-9]", s), "requests that run", 200)
    shot("demo-overview")
    await pilot.press("2")
    await until(pilot, lambda s: "LIVE 2 run" in s and s.count("length") > 2, "requests", 300)
    shot("demo-requests")
    await pilot.press("down", "enter")
    await until(pilot, lambda s: "CONTEXT" in s, "one request")
    shot("demo-request")


@contextmanager
def asking(url: str) -> Iterator[None]:
    """Three people with questions of different lengths."""
    end = threading.Event()

    def ask(n: int) -> None:
        while not end.is_set():
            words = "Tell me a story about a lighthouse. " * (1 + 8 * n)
            body = {
                "model": ("chat", "smollm2")[n % 2],
                "stream": True,
                "max_tokens": 8 * (n + 1),
                "messages": [{"role": "user", "content": words}],
            }
            asked = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(asked, timeout=120) as answer:
                    answer.read()
            except (OSError, http.client.HTTPException):
                end.wait(0.5)

    threads = [threading.Thread(target=ask, args=(n,), daemon=True) for n in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join(120)


def main() -> int:
    parser = argparse.ArgumentParser(description="Pictures of the terminal UI.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--live", action="store_true", help="also those of the demo, with its real model")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    example(args.folder)
    if args.live:
        demo(args.folder)
    for path in sorted(args.folder.glob("*.svg")):
        print(f"{path}  {path.stat().st_size / 1024:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
