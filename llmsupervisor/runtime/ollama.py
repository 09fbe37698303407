"""Ollama: told by environment variables; behind it one llama-server for each loaded model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmsupervisor.base.errors import Problem
from llmsupervisor.base.ids import Json
from llmsupervisor.runtime.command import Arg, EnvVar, Given, Origin
from llmsupervisor.runtime.engine import Allocated, Call
from llmsupervisor.runtime.generic import Generic
from llmsupervisor.runtime.llama_server import PLAIN, buffers, loaded
from llmsupervisor.runtime.models import Model, model_of, tag
from llmsupervisor.runtime.ollama_config import misread
from llmsupervisor.spec.model import Service

WAY_OUT = 'a second service with runtime = "ollama" for it'
_RUNNER = re.compile(r'msg="starting llama-server" cmd="([^"]*)"')
_MODEL = re.compile(r'msg="starting llama-server" cmd="[^"]*?(?:--model|-m) (\S+)')
_SLOTS = re.compile(r" -np (\d+)")
_CONFIG = re.compile(r'msg="server config" env="map\[(.*?)\]"')
_NO_GPU = re.compile(r'msg="inference compute" .*library=cpu')


class Ollama(Generic):
    def problems(self, name: str, service: Service) -> list[Problem]:
        found = []
        key = f"services.{name}"
        kv = service.kv_cache_type
        if service.flash_attention is False and any(kind not in PLAIN for kind in (kv or "f16").split("/")):
            found.append(
                Problem(
                    f"{key}.flash_attention",
                    f"false, and a {kv} KV cache needs flash attention: every load would fail",
                    "flash_attention = true, or kv_cache_type = f16",
                    example="flash_attention = true",
                )
            )
        files = [model.file for model in service.models or () if model.file]
        found += [
            Problem(
                f"{key}.models",
                f"two models are made from {file}: one process has its weights, and each would end the other's",
                WAY_OUT,
            )
            for file in sorted({f for f in files if files.count(f) > 1})
        ]
        tags = [tag(model.name) for model in service.models or ()]
        found += [
            Problem(
                f"{key}.models",
                f"{model!r} is listed twice: one process has its weights, and cannot have two settings at once",
                WAY_OUT,
            )
            for model in sorted({t for t in tags if tags.count(t) > 1})
        ]
        return found

    def names(self, name: str, service: Service) -> tuple[str, ...]:
        return tuple(model.tag for model in self.models(service)) or (name,)

    def models(self, service: Service) -> tuple[Model, ...]:
        return tuple(model_of(model, service) for model in service.models or ())

    def derive(self, service: Service, given: Given) -> tuple[Arg | EnvVar, ...]:
        models = service.models or ()
        if not models:
            return ()
        most = EnvVar("OLLAMA_MAX_LOADED_MODELS", str(len(models)), Origin("derived", "number of models"))
        return (most, *self._folder(service, given))

    def _folder(self, service: Service, given: Given) -> tuple[EnvVar, ...]:
        """Said, so that nobody has to know Ollama's default to see that two services share it."""
        home = service.env.get("HOME") or given.environ.get("HOME")
        return (EnvVar("OLLAMA_MODELS", f"{home}/.ollama/models", Origin("derived", "HOME")),) if home else ()

    def warnings(self, service: Service, given: Given) -> tuple[str, ...]:
        if given.environ.get("HOME") or service.env.get("HOME"):
            return ()
        return ("HOME is not set: Ollama ends at once without it; set it in env",)

    def asked(self, service: Service, given: Given) -> dict[str, Json]:
        asked: dict[str, Json] = {}
        for key in ("parallel", "kv_cache_type", "flash_attention"):
            if found := self.value(key, service, given):
                asked[key] = found.value
        asked["context_length"] = {model.tag: model.context_length for model in self.models(service)}
        return asked | {"gpu_layers": "all" if given.gpus else 0}

    def allocated(self, log_text: str) -> Allocated | None:
        """Of the runner that was loaded last; with several in one log nobody can tell whose line it is."""
        if len(set(_MODEL.findall(log_text))) > 1:
            return None
        return buffers(log_text.rpartition('msg="starting llama-server"')[2])

    def misread(self, env: Mapping[str, str], log_text: str) -> list[str]:
        return misread(env, log_text)

    def calls_got(self) -> tuple[Call, ...]:
        return (Call("GET", "/api/ps"),)

    def got(self, payloads: Mapping[str, Any], log_text: str) -> dict[str, Json]:
        """Of the runner that was loaded last; before the first load, what the server says it was told."""
        runners = [slots[1] for command in _RUNNER.findall(log_text) if (slots := _SLOTS.search(command))]
        config = _CONFIG.findall(log_text)
        told = dict(item.split(":", 1) for item in config[-1].split() if ":" in item) if config else {}
        parallel = runners[-1] if runners else told.get("OLLAMA_NUM_PARALLEL", "")
        engine = loaded(log_text)
        return engine | {
            "parallel": int(parallel) if parallel.isdigit() else None,
            "kv_cache_type": engine["kv_cache_type"] or told.get("OLLAMA_KV_CACHE_TYPE") or None,
            "gpu_layers": 0 if _NO_GPU.search(log_text) else engine["gpu_layers"],
            "context_length": _contexts(payloads.get("/api/ps")),
        }


def _contexts(body: Any) -> Json:
    rows = body.get("models") if isinstance(body, dict) else None
    if not isinstance(rows, list):
        return None
    return {tag(str(row["name"])): row.get("context_length") for row in rows if isinstance(row, dict) and "name" in row}
