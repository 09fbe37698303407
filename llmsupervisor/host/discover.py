"""What lies and runs on this box already: runtimes, models, servers. Looks only where such things are kept; never walks
the disk.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmsupervisor.host import tree
from llmsupervisor.plan.facts import SHARD
from llmsupervisor.runtime.definition import Definition

KNOWN_PORTS = {11434: "Ollama", 8080: "llama-server", 8000: "vLLM"}
"""Where the runtimes listen by default."""
SHARED = ("/models", "/usr/share/ollama/.ollama/models")
"""Of all users, beside what lies at home."""
DEPTH = 3
MOST = 200
"""Entries looked at in one model folder."""


@dataclass(frozen=True, slots=True)
class Model:
    """`runtime` is the one that loads this form. `size` in bytes, None: unknown."""

    path: str
    runtime: str
    size: int | None


@dataclass(frozen=True, slots=True)
class Server:
    port: int
    usual: str
    pid: int | None
    command: str


def runtimes(definitions: Mapping[str, Definition]) -> dict[str, str]:
    """Runtime → executable, for those on the PATH or beside our interpreter."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), os.path.dirname(sys.executable)))
    found = {name: shutil.which(d.command[0], path=path) for name, d in definitions.items() if d.command}
    return {name: executable for name, executable in found.items() if executable}


def models(given: Sequence[str]) -> list[Model]:
    """GGUF files, model folders (config.json) and names in Ollama's store; the largest first. Only what is `given`, where
    something is."""
    home = Path.home()
    cache = Path(os.environ.get("HF_HOME", home / ".cache" / "huggingface")) / "hub"
    folders = [Path(p).expanduser() for p in given] or [home / "models", *map(Path, SHARED), cache]
    found = {model.path: model for folder in folders for model in _in_folder(folder)}
    if not given:
        stores = [Path(os.environ.get("OLLAMA_MODELS", home / ".ollama" / "models")), *map(Path, SHARED)]
        found |= {m.path: m for store in stores for m in _in_ollama(store)}
    return sorted((m for m in found.values() if _utf8(m.path)), key=lambda m: (-(m.size or 0), m.path))


def _utf8(path: str) -> bool:
    """A spec can name nothing else."""
    return path == path.encode(errors="replace").decode()


def _in_folder(folder: Path, depth: int = 0) -> Iterator[Model]:
    if folder.is_file() and folder.suffix == ".gguf":
        yield Model(str(folder.absolute()), "llama-server", folder.stat().st_size)
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)[:MOST]
    except OSError:
        return
    names = {entry.name for entry in entries}
    if "config.json" in names and any(n.endswith(".safetensors") for n in names):
        size = sum(e.stat().st_size for e in entries if e.name.endswith(".safetensors"))
        yield Model(str(folder.absolute()), "vllm", size)
    for entry in entries:
        try:
            if entry.name.endswith(".gguf") and entry.is_file() and not entry.name.startswith("mmproj"):
                shard = SHARD.fullmatch(entry.name)
                if shard is None or int(shard["part"]) == 1:
                    yield Model(str(Path(entry.path).absolute()), "llama-server", _size(entry, entries, shard))
            elif depth < DEPTH + ("snapshots" in names) and entry.is_dir() and not entry.name.startswith("."):
                yield from _in_folder(Path(entry.path), depth + 1)
        except OSError:
            continue


def _size(entry: os.DirEntry[str], entries: Sequence[os.DirEntry[str]], shard: re.Match[str] | None) -> int:
    """Of all parts of a split model."""
    if shard is None:
        return entry.stat().st_size
    end = f"-of-{shard['parts']}.gguf"
    return sum(e.stat().st_size for e in entries if e.name.startswith(shard["stem"]) and e.name.endswith(end))


def _in_ollama(store: Path) -> Iterator[Model]:
    """Manifests: `manifests/registry.ollama.ai/library/NAME/TAG`."""
    for path in sorted((store / "manifests").glob("*/*/*/*"))[:MOST]:
        try:
            layers = json.loads(path.read_text())["layers"]
            size = sum(int(layer["size"]) for layer in layers)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        host, group, name, tag = path.parts[-4:]
        short = name if group == "library" else f"{group}/{name}"
        full = short if host == "registry.ollama.ai" else f"{host}/{short}"
        yield Model(f"{full}:{tag}", "ollama", size)


def servers() -> list[Server]:
    """Who listens where the runtimes listen by default."""
    found = []
    for port, usual in KNOWN_PORTS.items():
        with socket.socket() as probe:
            probe.settimeout(0.2)
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                continue
        owner = tree.port_owner(port)
        found.append(Server(port, usual, owner[0] if owner else None, owner[1] if owner else "unknown program"))
    return found
