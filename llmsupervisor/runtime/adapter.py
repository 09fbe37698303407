"""Which Python knows a runtime, and what is expected of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from llmsupervisor.base.errors import Problem
from llmsupervisor.base.ids import Json
from llmsupervisor.runtime.command import Arg, EnvVar, Given
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.runtime.engine import Allocated, Call, Figures
from llmsupervisor.runtime.generic import Generic
from llmsupervisor.runtime.llama_server import LlamaServer
from llmsupervisor.runtime.models import Model
from llmsupervisor.runtime.ollama import Ollama
from llmsupervisor.runtime.vllm import Vllm
from llmsupervisor.spec.model import Service


class Adapter(Protocol):
    """Each method is described in `generic.py`."""

    definition: Definition

    def problems(self, name: str, service: Service) -> list[Problem]: ...
    def names(self, name: str, service: Service) -> tuple[str, ...]: ...
    def models(self, service: Service) -> tuple[Model, ...]: ...
    def derive(self, service: Service, given: Given) -> tuple[Arg | EnvVar, ...]: ...
    def warnings(self, service: Service, given: Given) -> tuple[str, ...]: ...
    def asked(self, service: Service, given: Given) -> dict[str, Json]: ...
    def calls_got(self) -> tuple[Call, ...]: ...
    def got(self, payloads: Mapping[str, Any], log_text: str) -> dict[str, Json]: ...
    def compare(self, asked: Mapping[str, Json], got: Mapping[str, Json]) -> list[str]: ...
    def misread(self, env: Mapping[str, str], log_text: str) -> list[str]: ...
    def identity(self, payloads: Mapping[str, Any], name: str, service: Service) -> str: ...
    def calls_figures(self) -> tuple[Call, ...]: ...
    def figures(self, metrics_text: str | None, slots: Any = None) -> Figures: ...
    def allocated(self, log_text: str) -> Allocated | None: ...


_ADAPTERS: dict[str, type[Generic]] = {
    "generic": Generic,
    "llama_server": LlamaServer,
    "vllm": Vllm,
    "ollama": Ollama,
}


def adapter_for(definition: Definition) -> Adapter:
    return _ADAPTERS[definition.adapter](definition)
