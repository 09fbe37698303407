"""Specs as dictionaries, written as TOML; services for the fake and the real engines."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import tomlkit

from support.engines import REPOSITORY

FAKE = REPOSITORY / "tests" / "fakes" / "fake_runtime.py"
Table = dict[str, Any]


def spec(services: dict[str, Table], ports: range | None = None, **top: Any) -> str:
    """The text of a spec. `top` are further top-level keys and tables."""
    body: Table = {"ports": f"{ports[0]}-{ports[-1]}"} if ports else {}
    return tomlkit.dumps({**body, **top, "services": services})


def fake(model: Path, journal: Path | None = None, knobs: Table | None = None, **settings: Any) -> Table:
    """A llama-server service that runs the fake. `knobs`: `{"ready_after": 0.2}`, see `fake_runtime.py`."""
    env = {f"FAKE_{name.upper()}": str(value) for name, value in (knobs or {}).items()}
    if journal:
        env["FAKE_JOURNAL"] = str(journal)
    if not model.exists():
        write_gguf(model)
    return {**served(FAKE, model), "env": env, **settings}


def served(command: Path, model: Path, **settings: Any) -> Table:
    """What every llama-server service of the tests says; `settings` replace or add."""
    return {
        "runtime": "llama-server",
        "command": [str(command)],
        "model": str(model),
        "context_length": 1024,
        "parallel": 2,
        "kv_cache_type": "q8_0",
        "gpus": [],
        **settings,
    }


def write_gguf(path: Path) -> None:
    """A GGUF file with the metadata of a small llama and no tensors: enough for the planner and the fake."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    def number(key: str, value: int) -> bytes:
        return text(key) + struct.pack("<II", 4, value)

    meta = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        number("llama.block_count", 30),
        number("llama.context_length", 8192),
        number("llama.embedding_length", 576),
        number("llama.attention.head_count", 9),
        number("llama.attention.head_count_kv", 3),
    ]
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(meta)) + b"".join(meta))
