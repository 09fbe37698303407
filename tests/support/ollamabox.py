"""A daemon, its gateway and `ollama serve` (the stand-in on the real llama-server, or the real one) with two models."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import ollama

from support import engines, process
from support.daemon import Daemon
from support.http import request
from support.ollama import program
from support.wait import wait_until

Json = dict[str, Any]
WAIT = 240.0
HI = [{"role": "user", "content": "Say hi in one word."}]
TALE = "Write a very long story about the sea, with many chapters."
"""Ollama passes no `ignore_eos`: an answer that is to be long needs a question of its own."""
STORY = [{"role": "user", "content": TALE}]
BOUND = 12.0
"""Seconds within which a hung runner is found here."""


class Box:
    """`smol` is loaded, `lazy` has other weights and is loaded by its first request."""

    def __init__(self, daemon: Daemon, **keys: Any) -> None:
        """`keys`: of the service, beside those of each `write`."""
        self.daemon, self.keys = daemon, keys
        self.listen = f"127.0.0.1:{process.free_ports(1)[0]}"
        self.url = f"http://{self.listen}"
        self.weights = engines.smollm2()
        self.other = daemon.folder / "other.gguf"
        self.other.write_bytes(self.weights.read_bytes() + bytes(64))
        registry = daemon.folder / "registry"
        registry.mkdir()
        (registry / "pulled:latest.gguf").symlink_to(self.weights)
        self.client = ollama.Client(host=self.url, timeout=120)

    def write(self, context: int = 1024, keep: str = "forever", **keys: Any) -> None:
        models = [
            {"name": "smol", "file": str(self.weights), "context_length": context},
            {"name": "lazy", "file": str(self.other), "context_length": 512, "preload": False, "keep_alive": keep},
        ]
        service = {
            "runtime": "ollama",
            "command": [str(program(self.daemon.folder)), "serve"],
            "parallel": 2,
            "kv_cache_type": "q8_0",
            "gpus": [],
            "models": models,
            "probe": {"stall_timeout": f"{BOUND:g}s"},
            **self.keys,
            **keys,
        }
        service["env"] = {**self.environ(), **service.get("env", {})}
        self.daemon.write({"box": service}, gateway={"listen": self.listen})

    def environ(self) -> dict[str, str]:
        folder = self.daemon.folder
        registry, models = str(folder / "registry"), str(folder / "models")
        return {"HOME": str(folder), "OLLAMA_MODELS": models, "OLLAMA_FAKE_REGISTRY": registry}

    def target(self, name: str = "smol") -> Json:
        none: Json = {"state": None, "runner": None, "tag": None}
        return next((t for t in self.daemon.service("box")["targets"] if t["model"] == name), none)

    def wait(self, fits: Callable[[Json], Any], what: str, name: str = "smol") -> Json:
        def check() -> Json | None:
            found = self.target(name)
            return found if fits(found) else None

        found = wait_until(check, WAIT, lambda: f"{name} {what}: {self.target(name)}\n{self.daemon.told('box')}")
        assert found
        return found

    def loaded(self, name: str = "smol", other: int | None = None) -> Json:
        """In memory, in another process than `other`, and open."""
        return self.wait(
            lambda t: t["state"] == "loaded" and t["runner"] and t["runner"]["pid"] != other, "loaded", name
        )

    def pid(self, name: str = "smol") -> int:
        pid: int = self.loaded(name)["runner"]["pid"]
        return pid

    def runners(self) -> list[int]:
        """Living llama-servers with a model of this box."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                argv = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if b"--model\0" in argv and str(self.daemon.folder).encode() in argv and process.alive(int(pid)):
                found.append(int(pid))
        return found

    def post(self, path: str, **body: Any) -> tuple[int, Json]:
        status, data = request(f"{self.url}{path}", {"model": "smol", **body}, timeout=120)
        return status, json.loads(data.splitlines()[-1])

    def post_to_engine(self, path: str, **body: Any) -> Json:
        """Past the gateway."""
        status, data = request(f"{self.daemon.service('box')['endpoint']}{path}", body, timeout=120)
        assert status == 200, (status, data)
        answer: Json = json.loads(data)
        return answer

    def record(self, **match: Any) -> Json:
        """The last one that is like it."""

        def find() -> Json | None:
            done = self.daemon.cli("requests", "--json", "-n", "50")
            rows = [json.loads(line) for line in done.stdout.splitlines()]
            return next((row for row in reversed(rows) if match.items() <= row.items()), None)

        found = wait_until(find, 30, lambda: f"a record with {match}")
        assert found
        return found

    def conditions(self) -> Json:
        return {c["id"]: c["text"] for c in self.daemon.service("box")["conditions"]}


B = TypeVar("B", bound=Box)


@contextlib.contextmanager
def ollama_box(environ: dict[str, str] | None = None, kind: type[B] = Box, **keys: Any) -> Iterator[B]:  # type: ignore[assignment]
    """With `smol` loaded; at its end nothing may be left."""
    folder = Path(tempfile.mkdtemp(prefix="ls-"))
    daemon = Daemon(folder, process.free_ports(10))
    daemon.environ |= environ or {}
    box = kind(daemon, **keys)
    try:
        box.write()
        daemon.up(timeout=90)
        daemon.wait_state("box", "READY", WAIT)
        box.loaded()
        yield box
    finally:
        box.client._client.close()
        left = daemon.close()
        shutil.rmtree(folder, ignore_errors=True)
    assert not left, left
