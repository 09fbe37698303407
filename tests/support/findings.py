"""Services of the real definitions on a box of many GPUs, and what the linter finds there."""

from __future__ import annotations

from functools import cache
from typing import Any

from llmsupervisor.host.files import read_definitions
from llmsupervisor.plan.facts import Facts, GpuFact
from llmsupervisor.plan.lint import Finding, lint
from llmsupervisor.plan.plan import plan
from llmsupervisor.runtime.definition import Definition
from support.boxes import CARDS, facts, load, service

GIB = 1024**3
OLD = GpuFact("GPU-old", 3, "RTX 3090", 24 * GIB, (8, 6))
UNKNOWN = GpuFact("GPU-new", 4, "something", None, None)
BIG = GpuFact("GPU-big", 5, "H100", 80 * GIB, (9, 0))
BOX = facts(gpus=(*CARDS, OLD, UNKNOWN, BIG), memory=64 * GIB)
"""GPUs 0: 24 GiB, 1 and 2: 48 GiB (all 8.9), 3: 24 GiB (8.6), 4: nothing known, 5: 80 GiB (9.0)."""


@cache
def definitions() -> dict[str, Definition]:
    found, problems = read_definitions()
    assert not problems
    return found


def found(text: str, box: Facts = BOX) -> list[Finding]:
    spec, loaded = load(text, definitions())
    return lint(plan(spec, definitions(), box, loaded.origins), box, loaded)


def llama(name: str = "chat", **keys: Any) -> str:
    given = {"runtime": "llama-server", "parallel": 4, "kv_cache_type": "q8_0", "gpus": [0], **keys}
    return service(name, **given)


def vllm(name: str = "big", **keys: Any) -> str:
    given = {"runtime": "vllm", "model": "/m/hf", "parallel": 4, "kv_cache_type": "fp8", "gpus": [0], **keys}
    return service(name, **{"gpu_memory": "20GiB", **given} if keys.get("gpus") != [] else given)


def ollama(name: str = "many", **keys: Any) -> str:
    models = keys.pop("models", [{"name": "a", "context_length": 4096}])
    given = {"runtime": "ollama", "model": None, "context_length": None, "parallel": 4, "kv_cache_type": "q8_0"}
    return service(name, **{**given, "gpus": [0], "models": models, **keys})


def other(name: str = "say", **keys: Any) -> str:
    words = ["/bin/say", "--port", "{port}"]
    return service(name, runtime="command", model=None, context_length=None, command=words, **keys)
