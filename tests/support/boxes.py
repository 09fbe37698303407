"""Specs, a small runtime and the facts of a box, for tests of the plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from llmsupervisor.plan.check import check
from llmsupervisor.plan.facts import Binary, Facts, File, GpuFact
from llmsupervisor.plan.launch import Plan
from llmsupervisor.plan.plan import plan
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.runtime.load import parse
from llmsupervisor.spec.load import Loaded
from llmsupervisor.spec.model import Spec
from llmsupervisor.spec.resolve import resolve

ENGINE = r"""
name = "engine"
doc = "for tests"
command = ["engine"]
help = ["--help"]
version = { command = ["--version"], pattern = 'version: (?P<v>\S+)', written_for = "1" }
[listen]
host = "--host"
port = "--port"
[gpu]
[settings.model]
flags = ["-m"]
[settings.context_length]
flags = ["--ctx"]
[settings.kv_cache_type]
flags = ["--kv"]
values = ["f16", "q8_0"]
[settings.flash_attention]
flags = ["--flash-attn"]
style = "on_off"
default = true
[settings.chat_template]
flags = ["--template"]
[settings.threads]
flags = ["--threads"]
[settings.mmproj]
flags = ["--mmproj"]
[settings.draft]
flags = ["--draft"]
[settings.lora]
flags = ["--lora"]
style = "repeat"
"""
BARE = 'name = "bare"\ndoc = "for tests"\ncommand = []\n[settings.cwd]\nstyle = "none"\n'

CARDS = tuple(
    GpuFact(f"GPU-{letter * 4}", index, "RTX 4090", gib * 1024**3, (8, 9))
    for index, (letter, gib) in enumerate((("a", 24), ("b", 48), ("c", 48)))
)
MODEL = "/m/a.gguf"
GGUF = File("file", 5000, "8:1:1:1", head=b"GGUF\x03")


def engine(extra: str = "", source: str = "runtimes/engine.toml") -> dict[str, Definition]:
    found = [parse(ENGINE + extra, source), parse(BARE, "runtimes/bare.toml")]
    return {definition.name: definition for definition in found}


def service(name: str = "chat", **keys: Any) -> str:
    """TOML of one service on the CPU; None leaves a key out."""
    given = {"runtime": "engine", "model": MODEL, "context_length": 2048, "gpus": [], **keys}
    return f"[services.{name}]\n" + "".join(f"{k} = {_toml(v)}\n" for k, v in given.items() if v is not None)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(_toml(v) for v in value)}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    return f'"{value}"' if isinstance(value, str) else str(value)


def load(text: str, definitions: dict[str, Definition] | None = None) -> tuple[Spec, Loaded]:
    checked = check(text, "spec.toml", definitions or engine())
    assert checked.spec is not None, "\n".join(map(str, checked.problems))
    return resolve(checked.spec, PurePosixPath("/etc/box"), PurePosixPath("/home/x")), checked.loaded


def facts(**changed: Any) -> Facts:
    known = Facts(
        binaries={"engine": Binary("/usr/bin/engine", "8:1:7:7", "1.0")},
        files={MODEL: GGUF},
        gpus=(),
        cpus=8,
        environ={"PATH": "/usr/bin", "HOME": "/home/x"},
    )
    return replace(known, **changed)


def planned(text: str, box: Facts | None = None, definitions: dict[str, Definition] | None = None) -> Plan:
    definitions = definitions or engine()
    spec, loaded = load(text, definitions)
    return plan(spec, definitions, box or facts(), loaded.origins)
