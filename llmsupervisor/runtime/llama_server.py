"""llama-server: one context for all slots, and the only way to know what it did is its log at verbosity 4."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from llmsupervisor.base.errors import Problem
from llmsupervisor.base.ids import Json
from llmsupervisor.runtime.command import Arg, EnvVar, Given, Origin
from llmsupervisor.runtime.engine import Allocated, Call, Figures, Parts
from llmsupervisor.runtime.generic import Generic
from llmsupervisor.runtime.values import said
from llmsupervisor.spec.model import Service

CELLS = 256
"""A slot's context is padded up to a multiple of this many tokens."""
PLAIN = ("f32", "f16", "bf16")

_KV = re.compile(r"llama_kv_cache: size = .*K \((\w+)\):.*V \((\w+)\):")
_FLASH = re.compile(r"llama_context: flash_attn\s+= (\w+)")
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|compute|output) buffer size =\s+([\d.]+) MiB")
_DRAFT = "loading draft model"
_PARTS = {"model": "weights", "KV": "kv", "RS": "kv", "compute": "compute", "output": "compute"}
_WEIGHTS = re.compile(r"load_tensors:\s+(\S+) model buffer size")
_NO_GPU = re.compile(r"no usable GPU found|failed to initialize CUDA|ggml_cuda_init: failed|no CUDA-capable device")
_NO_FLASH = "Flash Attention not supported, set to disabled"
_AUTO_FLASH = "enabling flash_attn since it is required for quantized V cache"


def padded(tokens: int) -> int:
    return -(-tokens // CELLS) * CELLS


class LlamaServer(Generic):
    def problems(self, name: str, service: Service) -> list[Problem]:
        found = []
        key = f"services.{name}"
        kv = service.kv_cache_type
        if service.flash_attention is False and kv is not None and kv not in PLAIN:
            found.append(
                Problem(
                    f"{key}.flash_attention",
                    f"false, and a {kv} KV cache needs flash attention",
                    f"flash_attention = true, or kv_cache_type one of {', '.join(PLAIN)}",
                    example="flash_attention = true",
                )
            )
        if service.gpus == ():
            for other in ("gpu_layers", "split", "gpu_memory"):
                wish = said(other, service)
                if wish is not None and wish != 0:
                    found.append(Problem(f"{key}.{other}", f"{wish}, and gpus = [] puts everything on the CPU"))
        if service.task != "chat" and service.batch and service.ubatch and service.batch != service.ubatch:
            found.append(
                Problem(
                    f"{key}.ubatch",
                    f"{service.ubatch}, and an {service.task} service takes a whole input in one batch of {service.batch}",
                    "the same number as batch",
                    example=f"ubatch = {service.batch}",
                )
            )
        return found

    def names(self, name: str, service: Service) -> tuple[str, ...]:
        return (name,)

    def derive(self, service: Service, given: Given) -> tuple[Arg | EnvVar, ...]:
        return (
            Arg(("--alias", given.name), Origin("derived", "name of the service")),
            *self._context(service, given),
            *self._placement(service, given),
            *self._batches(service, given),
            *self._draft(service, given),
            *self._template(service, given),
            *_task(service, given),
        )

    def _context(self, service: Service, given: Given) -> list[Arg]:
        context = self.value("context_length", service, given)
        parallel = self.value("parallel", service, given)
        if context is None or parallel is None:
            return []
        slot = padded(context.value)
        note = "" if slot == context.value else f", {context.value} padded to a multiple of {CELLS}"
        words = ("--ctx-size", str(slot * parallel.value))
        return [Arg(words, Origin("derived", f"{slot} × {parallel.value}{note}"), "context_length")]

    def _placement(self, service: Service, given: Given) -> list[Arg]:
        threads = self.value("threads", service, given)
        found = [
            Arg(("--threads", str(threads.value)), threads.origin, "threads")
            if threads
            else Arg(("--threads", str(given.cpus)), Origin("derived", "CPUs of this box"), "threads")
        ]
        if not given.gpus:
            cpu = Origin("derived", "on the CPU")
            return [
                *found,
                Arg(("--n-gpu-layers", "0"), cpu, "gpu_layers"),
                Arg(("--device", "none"), cpu, "gpus"),
            ]
        if layers := self.value("gpu_layers", service, given):
            found.append(Arg(("--n-gpu-layers", str(layers.value)), layers.origin, "gpu_layers"))
        if split := self.value("split", service, given):
            found.append(Arg(("--split-mode", split.value), split.origin, "split"))
        return found

    def _batches(self, service: Service, given: Given) -> list[Arg]:
        batch, ubatch = self.value("batch", service, given), self.value("ubatch", service, given)
        if batch is None or ubatch is None:
            return []
        if service.task != "chat":
            one = ubatch if said("ubatch", service) is not None else batch
            other = "batch" if one is ubatch else "ubatch"
            context = self.value("context_length", service, given)
            if context and said("batch", service) is None and said("ubatch", service) is None:
                size = max(batch.value, context.value)
                one = batch = replace(batch, value=size, origin=Origin("derived", "a whole input of context_length"))
            equal = replace(one, origin=Origin("derived", f"one batch for a whole input, {one.value}"))
            batch, ubatch = (equal, one) if other == "batch" else (one, equal)
        return [
            Arg(("--batch-size", str(batch.value)), batch.origin, "batch"),
            Arg(("--ubatch-size", str(ubatch.value)), ubatch.origin, "ubatch"),
        ]

    def _draft(self, service: Service, given: Given) -> list[Arg]:
        draft = self.value("draft", service, given)
        if draft is None:
            return []
        layers = self.value("gpu_layers", service, given) if given.gpus else None
        ngl = str(layers.value) if layers and layers.value == 0 else "all" if given.gpus else "0"
        return [
            Arg(("--spec-draft-model", draft.value), draft.origin, "draft"),
            Arg(("--spec-type", "draft-simple"), Origin("derived", "draft"), "draft"),
            Arg(("--spec-draft-ngl", ngl), Origin("derived", "where the model lies"), "draft"),
            Arg(("--spec-draft-type-k", "f16"), Origin("production default"), "draft"),
            Arg(("--spec-draft-type-v", "f16"), Origin("production default"), "draft"),
            Arg(("--spec-draft-n-max", "3"), Origin("production default"), "draft"),
        ]

    def _template(self, service: Service, given: Given) -> list[Arg]:
        template = self.value("chat_template", service, given)
        if template is None:
            return []
        flag = "--chat-template-file" if template.value.startswith("/") else "--chat-template"
        return [Arg((flag, template.value), template.origin, "chat_template")]

    def asked(self, service: Service, given: Given) -> dict[str, Json]:
        asked: dict[str, Json] = {}
        for key in ("context_length", "parallel", "kv_cache_type", "flash_attention", "gpu_layers"):
            if found := self.value(key, service, given):
                asked[key] = found.value
        if isinstance(context := asked.get("context_length"), int):
            asked["context_length"] = padded(context)
        return asked if given.gpus else asked | {"gpu_layers": 0}

    def calls_got(self) -> tuple[Call, ...]:
        return (Call("GET", "/props"), Call("GET", "/slots"))

    def got(self, payloads: Mapping[str, Any], log_text: str) -> dict[str, Json]:
        slots = _slots(payloads.get("/slots"))
        props = payloads.get("/props")
        props = props if isinstance(props, dict) else {}
        context = props.get("default_generation_settings")
        contexts = [slot["n_ctx"] for slot in slots if isinstance(slot.get("n_ctx"), int)]
        return {
            "context_length": min(contexts) if contexts else _int(context, "n_ctx"),
            "parallel": len(slots) or _int(props, "total_slots"),
            **loaded(log_text),
        }

    def identity(self, payloads: Mapping[str, Any], name: str, service: Service) -> str:
        props = payloads.get("/props")
        if not isinstance(props, dict):
            return ""
        if props.get("role") == "router":
            return "the engine runs as a router without a model: its answers say nothing about one"
        path = props.get("model_path")
        if path is not None and service.model is not None and path != service.model:
            return f"the engine serves {path}, not {service.model}"
        return ""

    def calls_figures(self) -> tuple[Call, ...]:
        """Not more often than every 2 s: polling hides vanished clients from the engine."""
        return (*super().calls_figures(), Call("GET", "/slots"))

    def figures(self, metrics_text: str | None, slots: Any = None) -> Figures:
        figures = super().figures(metrics_text)
        rows = _slots(slots)
        capacity = sum(_int(row, "n_ctx") or 0 for row in rows)
        if not capacity:
            return figures
        busy = [row for row in rows if row.get("is_processing")]
        used = sum(map(_held, busy))
        moved: tuple[Hashable, ...] = tuple(
            (_int(row, "id"), _int(row, "id_task"), _decoded(row), _held(row)) for row in busy
        )
        return replace(
            figures,
            requests_running=len(busy) if figures.requests_running is None else figures.requests_running,
            kv_cache_usage=min(used / capacity, 1.0),
            kv_tokens_used=used,
            kv_tokens_cached=sum(map(_held, rows)) - used,
            kv_tokens_capacity=capacity,
            written={(_int(row, "id"), _int(row, "id_task")): _decoded(row) or 0 for row in busy},
            progress=(figures.progress, moved),
        )

    def allocated(self, log_text: str) -> Allocated | None:
        return buffers(log_text)


def _task(service: Service, given: Given) -> list[Arg]:
    origin = given.origin("task")
    if service.task == "embed":
        return [Arg(("--embeddings",), origin, "task")]
    if service.task == "rerank":
        return [Arg(("--reranking",), origin, "task")]
    return []


def loaded(log_text: str) -> dict[str, Json]:
    """What the log of a load at verbosity 4 tells; the last load counts, but for that of a draft model."""
    log_text = log_text.partition(_DRAFT)[0]
    kv = _KV.findall(log_text)
    flash = _FLASH.findall(log_text)
    states: dict[str, Json] = {"enabled": True, "disabled": False}
    attention = states.get(flash[-1]) if flash else None
    if attention is None:
        attention = False if _NO_FLASH in log_text else True if _AUTO_FLASH in log_text else None
    return {
        "kv_cache_type": ("/".join(dict.fromkeys(kv[-1]))) if kv else None,
        "flash_attention": attention,
        "gpu_layers": _layers(log_text),
    }


def buffers(log_text: str) -> Allocated | None:
    """Every buffer that a load at verbosity 4 names, those of a second model (draft, projector) included."""
    found: dict[str, dict[str, float]] = {"gpu": {}, "host": {}}
    for device, kind, size in _BUFFER.findall(log_text):
        there = found["host" if device.startswith("CPU") or device.endswith("_Host") else "gpu"]
        part = _PARTS[kind]
        there[part] = there.get(part, 0.0) + float(size) * 1024**2
    if not found["gpu"] and not found["host"]:
        return None
    gpu, host = (
        Parts(**{part: round(size) for part, size in there.items()}) if there else None for there in found.values()
    )
    return Allocated(gpu=gpu, host=host)


def _layers(log_text: str) -> Json:
    if _NO_GPU.search(log_text):
        return 0
    if offloaded := _OFFLOADED.findall(log_text):
        some, every = offloaded[-1]
        return "all" if some == every else int(some)
    buffers = _WEIGHTS.findall(log_text)
    return 0 if buffers and all(name.startswith("CPU") for name in buffers) else None


def _slots(payload: Any) -> list[dict[str, Any]]:
    return [row for row in payload if isinstance(row, dict)] if isinstance(payload, list) else []


def _int(row: Any, key: str) -> int | None:
    found = row.get(key) if isinstance(row, dict) else None
    return found if isinstance(found, int) else None


def _decoded(row: dict[str, Any]) -> int | None:
    token = row.get("next_token")
    return _int(token[0] if isinstance(token, list) and token else token, "n_decoded")


def _held(row: dict[str, Any]) -> int:
    """Tokens of this slot in the KV cache. Other releases count only the prompt: the larger of both sums."""
    counted = sum(_int(row, key) or 0 for key in ("n_prompt_tokens_cache", "n_prompt_tokens_processed"))
    return max(_int(row, "n_prompt_tokens") or 0, counted + (_decoded(row) or 0))
