"""vLLM: the KV pool is what the budget leaves, so the budget must be said."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from llmsupervisor.base.errors import Problem
from llmsupervisor.base.ids import Json
from llmsupervisor.base.units import format_size
from llmsupervisor.runtime.command import Arg, EnvVar, Given, Origin
from llmsupervisor.runtime.engine import Allocated, Call, Figures, Parts
from llmsupervisor.runtime.exposition import parse
from llmsupervisor.runtime.generic import Generic
from llmsupervisor.runtime.values import command_words, said
from llmsupervisor.spec.model import Service

_POOL = re.compile(r"KV cache size: ([\d,]+) tokens")
_MEMORY = {
    "weights": re.compile(r"Model loading took ([\d.]+) GiB"),
    "kv": re.compile(r"Available KV cache memory: ([\d.]+) GiB"),
    "compute": re.compile(r"Graph capturing finished in \d+ secs, took ([\d.]+) GiB"),
}
_SEQUENCES = re.compile(r"non-default args: .*'max_num_seqs': (\d+)")
_BACKEND = re.compile(r"Using (?:AttentionBackendEnum\.)?([A-Z][A-Z0-9_]+) (?:attention )?backend")
_CPU = "CPU KV cache size: "


class Vllm(Generic):
    def problems(self, name: str, service: Service) -> list[Problem]:
        found = []
        key = f"services.{name}"
        if service.gpus == ():
            if service.gpu_memory is not None:
                found.append(Problem(f"{key}.gpu_memory", "set, and gpus = [] puts everything on the CPU"))
        elif service.gpu_memory is None and service.kv_tokens is None:
            found.append(
                Problem(
                    f"{key}.gpu_memory",
                    "missing: vLLM takes most of each GPU unless it is told a budget",
                    "gpu_memory (bytes per GPU), or kv_tokens",
                    example='gpu_memory = "22GiB"',
                )
            )
        if service.nodes and service.nodes > 1:
            if service.distributed_executor != "ray":
                example = 'distributed_executor = "ray"'
                found.append(
                    Problem(
                        f"{key}.nodes",
                        f"{service.nodes} boxes are joined by Ray only",
                        'nodes = 1, or "ray"',
                        example=example,
                    )
                )
            if service.split == "data":
                found.append(
                    Problem(f"{key}.split", "copies on other boxes are services of theirs", "tensor, pipeline")
                )
        batch = service.batch or self.definition.settings["batch"].default
        if service.parallel and isinstance(batch, int) and batch < service.parallel:
            found.append(
                Problem(
                    f"{key}.batch",
                    f"{batch} tokens a step are fewer than parallel = {service.parallel}, and vLLM refuses that",
                    f"{service.parallel} or more",
                    example=f"batch = {max(2048, service.parallel)}",
                )
            )
        return found

    def names(self, name: str, service: Service) -> tuple[str, ...]:
        return (name,)

    def derive(self, service: Service, given: Given) -> tuple[Arg | EnvVar, ...]:
        model = self.value("model", service, given)
        words: list[Arg] = []
        if model is not None:
            positional = command_words(service, self.definition)[-1] == "serve"
            words.append(Arg((model.value,) if positional else ("--model", model.value), model.origin, "model"))
        runner = "generate" if service.task == "chat" else "pooling"
        words += [
            Arg(("--served-model-name", given.name), Origin("derived", "name of the service")),
            Arg(("--runner", runner), Origin("derived", f"task {service.task}"), "task"),
            *self._split(service, given),
            *self._budget(service, given),
            *self._steps(service, given),
        ]
        if parser := self.value("tool_parser", service, given):
            words.append(Arg(("--enable-auto-tool-choice",), Origin("derived", "tool_parser"), "tool_parser"))
            words.append(Arg(("--tool-call-parser", parser.value), parser.origin, "tool_parser"))
        if lora := self.value("lora", service, given):
            modules = tuple(f"{PurePosixPath(path).stem}={path}" for path in lora.value)
            words.append(Arg(("--enable-lora",), Origin("derived", "lora"), "lora"))
            words.append(Arg(("--lora-modules", *modules), lora.origin, "lora"))
        return tuple(words)

    def _split(self, service: Service, given: Given) -> list[Arg]:
        """Between boxes a model is cut between layers: only there little goes over the network."""
        split = self.value("split", service, given)
        count, nodes = max(len(given.gpus), 1), service.nodes or 1
        sizes = {"tensor": 1, "pipeline": 1, "data": 1} | ({split.value: count} if split else {})
        sizes["pipeline"] *= nodes
        here = f"{count} GPU" + "s" * (count > 1) if given.gpus else "on the CPU"
        origin = Origin("derived", here if nodes == 1 else f"{here} on each of {nodes} boxes")
        found = [Arg((f"--{kind}-parallel-size", str(size)), origin, "split") for kind, size in sizes.items()]
        if sizes["data"] > 1:
            reason = "one server knows the figures of all copies"
            found.append(Arg(("--api-server-count", "1"), Origin("definition", reason), "split"))
        return found

    def _budget(self, service: Service, given: Given) -> list[Arg]:
        if given.kv_cache_bytes is not None:
            origin = Origin("derived", f"kv_tokens {service.kv_tokens}")
            return [Arg(("--kv-cache-memory-bytes", str(given.kv_cache_bytes)), origin, "kv_tokens")]
        totals = [total for total in given.gpu_totals if total]
        if service.gpu_memory is None or not totals:
            return []
        share = math.floor(service.gpu_memory / min(totals) * 10_000) / 10_000
        origin = Origin("derived", f"{format_size(service.gpu_memory)} of {format_size(min(totals))}")
        return [Arg(("--gpu-memory-utilization", f"{min(share, 1.0):g}"), origin, "gpu_memory")]

    def _steps(self, service: Service, given: Given) -> list[Arg]:
        """Pooling models are not all made for split prompts and cached beginnings: vLLM knows which, and an
        unsplit prompt must fit into one step."""
        chat = service.task == "chat"
        found: list[Arg] = []
        caching = self.value("prefix_caching", service, given)
        if caching and (chat or said("prefix_caching", service) is not None):
            flag = "--enable-prefix-caching" if caching.value else "--no-enable-prefix-caching"
            found.append(Arg((flag,), caching.origin, "prefix_caching"))
        if chat:
            reason = "a long prompt does not stop everybody else's tokens"
            found.append(Arg(("--enable-chunked-prefill",), Origin("definition", reason), "batch"))
        if batch := self.value("batch", service, given):
            origin, tokens = batch.origin, batch.value
            context = service.context_length or 0
            if not chat and said("batch", service) is None and context > tokens:
                origin, tokens = Origin("derived", "a whole input in one step"), context
            found.append(Arg(("--max-num-batched-tokens", str(tokens)), origin, "batch"))
        return found

    def warnings(self, service: Service, given: Given) -> tuple[str, ...]:
        if self._budget(service, given) or not (given.gpus or service.kv_tokens):
            return ()
        what = "kv_tokens" if service.gpu_memory is None else "gpu_memory"
        of = "each GPU" if given.gpus else "this machine's memory"
        return (f"{what} could not be turned into a budget: vLLM takes its own default share of {of}",)

    def asked(self, service: Service, given: Given) -> dict[str, Json]:
        asked: dict[str, Json] = {}
        for key in ("context_length", "parallel", "kv_cache_type", "prefix_caching", "kv_tokens", "attention_backend"):
            if (found := self.value(key, service, given)) and (key, found.value) != ("attention_backend", "auto"):
                asked[key] = found.value
        if service.task != "chat" and service.prefix_caching is None:
            del asked["prefix_caching"]
        return asked

    def calls_got(self) -> tuple[Call, ...]:
        return (Call("GET", "/v1/models"), Call("GET", "/metrics"))

    def got(self, payloads: Mapping[str, Any], log_text: str) -> dict[str, Json]:
        models = _models(payloads)
        info = parse(payloads.get("/metrics") or "").get("vllm:cache_config_info", [])
        labels = info[0].labels if info else {}
        pool, sequences, backend = (found.findall(log_text) for found in (_POOL, _SEQUENCES, _BACKEND))
        if not backend and _CPU in log_text:
            backend = ["CPU_ATTN"]  # there is no other, and it is not told
        tokens = _pool(labels) or (int(pool[-1].replace(",", "")) if pool else None)
        caching = labels.get("enable_prefix_caching")
        return {
            "context_length": models[0].get("max_model_len") if models else None,
            "parallel": int(sequences[-1]) if sequences else None,
            "kv_cache_type": labels.get("cache_dtype"),
            "prefix_caching": None if caching is None else caching == "True",
            "kv_tokens": tokens,
            "attention_backend": backend[-1] if backend else None,
        }

    def figures(self, metrics_text: str | None, slots: Any = None) -> Figures:
        figures = super().figures(metrics_text)
        info = parse(metrics_text or "").get("vllm:cache_config_info", [])
        pools = [pool for sample in info if (pool := _pool(sample.labels))]
        usage, written = figures.kv_cache_usage, figures.completion_tokens_total
        return replace(
            figures,
            kv_tokens_capacity=sum(pools) or None,
            kv_tokens_used=round(usage * pools[0]) if usage is not None and len(pools) == 1 else None,
            written={} if written is None else {"all": written},
        )

    def allocated(self, log_text: str) -> Allocated | None:
        """Of all ranks together. What the activations need at most is not told: it is overhead."""
        found = {part: pattern.findall(log_text) for part, pattern in _MEMORY.items()}
        sizes = {part: round(sum(map(float, said)) * 1024**3) for part, said in found.items() if said}
        return Allocated(gpu=Parts(**sizes)) if sizes else None

    def identity(self, payloads: Mapping[str, Any], name: str, service: Service) -> str:
        models = [str(model.get("id")) for model in _models(payloads)]
        if models and name not in models:
            return f"the engine serves {', '.join(models)}, not {name}"
        return ""


def _pool(labels: Mapping[str, str]) -> int | None:
    """Tokens of the KV cache; blocks × size where this release does not say them (one block is never used)."""
    said = [labels.get(key, "") for key in ("kv_cache_size_tokens", "num_gpu_blocks", "block_size")]
    tokens, blocks, size = (int(text) if text.isdigit() else None for text in said)
    return tokens or (blocks * size if blocks and size else None)


def _models(payloads: Mapping[str, Any]) -> list[dict[str, Any]]:
    body = payloads.get("/v1/models")
    data = body.get("data") if isinstance(body, dict) else None
    return [row for row in data if isinstance(row, dict)] if isinstance(data, list) else []
