"""The runtimes that the engine tests run on: how a test's service says each, and what its parts are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llmsupervisor.runtime.definition import Definition
from llmsupervisor.runtime.load import parse
from support import engines
from support import ollama as serve
from support.spec import Table, served


@dataclass(frozen=True)
class Kind:
    """`service` makes a service's table. `core`: the command of the process that computes, which is not the one that
    listens. Times are seconds on a busy machine."""

    name: str
    runtime: str
    service: Callable[..., Table]
    loaded: str
    """The engine's own line at the end of a load."""
    start: float = 300.0
    context: int = 1024
    tokens: int = 900
    """Of an answer that takes some seconds and more; fits `context`."""
    core: str = ""
    without: tuple[str, ...] = field(default=())
    """Capabilities of the definition that this launcher does not have."""
    lasting: dict[str, Any] = field(default_factory=dict)
    """Of a request whose answer must not end early, where the engine does not know `ignore_eos`."""
    tag: str = ""
    """What the engine calls its model, where `asked` tells the context of each."""

    @property
    def definition(self) -> Definition:
        path = engines.REPOSITORY / "runtimes" / f"{self.runtime}.toml"
        return parse(path.read_text(), path.name)

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset(self.definition.capabilities) - frozenset(self.without)


def llama_server(**settings: Any) -> Table:
    return served(engines.llama_server(), engines.smollm2()) | settings


def embedded(**settings: Any) -> Table:
    return served(engines.embedded(), engines.smollm2()) | settings


def vllm(**settings: Any) -> Table:
    """A small KV cache, and no compiler: it starts in half a minute."""
    venv = engines.vllm()
    return {
        "runtime": "vllm",
        "venv": str(venv),
        "model": str(venv.parent / "tiny"),
        "context_length": 1024,
        "parallel": 2,
        "kv_cache_type": "auto",
        "kv_tokens": 33000,
        "attention_backend": "CPU_ATTN",
        "gpus": [],
        "extra_args": ["--enforce-eager"],
        "env": {"PYTHONPATH": str(engines.REPOSITORY / "tests" / "engines" / "yields")},
        **settings,
    }


def ollama(**settings: Any) -> Table:
    """One model, named like the service."""
    home = serve.home()
    context = settings.pop("context_length", 1024)
    return {
        "runtime": "ollama",
        "command": [str(serve.program(home)), "serve"],
        "parallel": 2,
        "kv_cache_type": "q8_0",
        "gpus": [],
        "models": [{"name": "chat", "file": str(engines.smollm2()), "context_length": context}],
        "env": {"HOME": str(home)},
        **settings,
    }


STORY = {"messages": [{"role": "user", "content": "Tell a very long story about a fox."}], "temperature": 0}
KINDS = {
    kind.name: kind
    for kind in (
        Kind("llama-server", "llama-server", llama_server, "model loaded"),
        Kind("embedded", "llama-server", embedded, "model loaded"),
        Kind("ollama", "ollama", ollama, 'msg="loaded runners"', lasting=STORY, tag="chat:latest-ctx{}"),
        Kind("vllm", "vllm", vllm, "Application startup complete", 420.0, 16384, 15000, "VLLM::EngineCor"),
    )
}
