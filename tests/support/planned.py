"""Plans of the real definitions on a box that has whatever they name, with models of known shape."""

from __future__ import annotations

from functools import cache
from pathlib import PurePosixPath
from typing import Any

from llmsupervisor.host.files import read_definitions
from llmsupervisor.plan.check import check
from llmsupervisor.plan.facts import Binary, Facts, File, GpuFact, needs
from llmsupervisor.plan.gguf import GgufHeader
from llmsupervisor.plan.hf import HfModel, HfTensor
from llmsupervisor.plan.launch import Plan, ServicePlan
from llmsupervisor.plan.plan import plan
from llmsupervisor.plan.sums import Place, Sums
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.spec.resolve import resolve
from support.boxes import service
from support.gguf_files import Type, decoder, header

GIB = 1024**3
A, B = "GPU-a", "GPU-b"
CARD = GpuFact(A, 0, "RTX 4090", 24 * GIB, (8, 9), 0, 20 * GIB)
OTHER = GpuFact(B, 1, "RTX 4070", 12 * GIB, (8, 9), 0, 12 * GIB)


@cache
def definitions() -> dict[str, Definition]:
    return read_definitions()[0]


@cache
def llama_8b(weights: Type = Type.Q8_0) -> GgufHeader:
    return header(decoder(layers=32, embd=4096, ff=14336, heads=32, heads_kv=8, vocabulary=128256, weights=weights))


def llama(name: str = "chat", **keys: Any) -> str:
    """TOML of a llama-server service on GPU 0."""
    said = {"runtime": "llama-server", "parallel": 4, "kv_cache_type": "q8_0", "context_length": 8192, "gpus": [0]}
    return service(name, **(said | {"model": "/m/8b.gguf"} | keys))


def vllm(**keys: Any) -> str:
    said = {"runtime": "vllm", "model": "/m/llama", "kv_cache_type": "auto", "parallel": 16, "gpu_memory": "22GiB"}
    return llama(**(said | keys))


def ollama(*models: str, **keys: Any) -> str:
    return ollama_of(dict.fromkeys(models, 4096), **keys)


def ollama_of(contexts: dict[str, int], **keys: Any) -> str:
    listed = ", ".join(f'{{ name = "{name}", context_length = {context} }}' for name, context in contexts.items())
    said = {"runtime": "ollama", "model": None, "context_length": None, "parallel": 2}
    return llama(**(said | keys)) + f"models = [{listed}]\n"


def box(text: str, **changed: Any) -> tuple[Plan, Facts]:
    """`ggufs`, `folders` and `tags` are by path and name; `gpus` one RTX 4090 unless said."""
    checked = check(text, "spec.toml", definitions())
    assert checked.spec is not None, "\n".join(map(str, checked.problems))
    spec = resolve(checked.spec, PurePosixPath("/etc/box"), PurePosixPath("/home/x"))
    wanted = needs(spec, definitions())
    ggufs = changed.pop("ggufs", {"/m/8b.gguf": llama_8b()})
    tags = changed.pop("tags", {})
    said: dict[str, Any] = {
        "gpus": (CARD,),
        "cpus": 8,
        "memory": 64 * GIB,
        "environ": {"PATH": "/usr/bin", "HOME": "/home/x"},
        "binaries": {
            name: Binary(name if "/" in name else f"/usr/bin/{name}", "1:1", "1") for name, *_ in wanted.binaries
        },
        "files": {path: File("file", 5000, path, head=b"GGUF\x03") for path in wanted.files},
        "ggufs": {model: ggufs[model[0]] for model in wanted.ggufs if model[0] in ggufs},
        "tags": {tag: tags[tag[1]] for tag in wanted.tags if tag[1] in tags},
    }
    facts = Facts(**(said | changed))
    return plan(spec, definitions(), facts, checked.loaded.origins), facts


def one(text: str, **changed: Any) -> ServicePlan:
    return box(text, **changed)[0].services["chat"]


def sums(plan: ServicePlan) -> Sums:
    assert plan.memory is not None
    return plan.memory


def at(plan: ServicePlan, gpu: str | None) -> Place:
    place = sums(plan).at(gpu)
    assert place is not None
    return place


def hf_llama(**config: Any) -> HfModel:
    """Llama 3.1 8B in bf16, as the Hub has it."""
    said = {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
    shapes = {"model.embed_tokens": (128256, 4096), "lm_head": (128256, 4096), "model.norm": (4096,)}
    for i in range(32):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.self_attn.{n}_proj": (4096, 4096) for n in ("q", "o")}
        shapes |= {f"{layer}.self_attn.{n}_proj": (1024, 4096) for n in ("k", "v")}
        shapes |= {f"{layer}.mlp.{n}_proj": (14336, 4096) for n in ("gate", "up", "down")}
        shapes |= {f"{layer}.{n}_layernorm": (4096,) for n in ("input", "post_attention")}
    tensors = []
    for name, shape in shapes.items():
        elements = shape[0] * (shape[1] if len(shape) > 1 else 1)
        tensors.append(HfTensor(f"{name}.weight", "BF16", shape, 2 * elements))
    return HfModel(said | config, tuple(tensors))
