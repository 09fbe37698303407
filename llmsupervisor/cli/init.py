"""`init`: an explicit, commented spec from the runtimes, GPUs and models that are found here."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from typing import TYPE_CHECKING

from llmsupervisor.base.errors import Exit, LlmsupervisorError, UsageError
from llmsupervisor.base.text import printable
from llmsupervisor.base.units import format_size

if TYPE_CHECKING:
    from llmsupervisor.host.discover import Model, Server

Gpu = tuple[int, str, int | None]
"""Index, name, bytes of memory."""
WAYS = {
    "Ollama": 'its vendor\'s unit owns it: `systemctl disable --now ollama`, then add a service with runtime = "ollama"; '
    "or leave it alone: llmsupervisor uses ports of its own, but the two share the GPUs' memory without knowing",
}
KV = {"q8_0": "half the memory of f16", "fp8": "half the memory of auto", "auto": "the type of the weights"}
BUDGET = 0.85
"""Share of a GPU's memory that init proposes for vLLM: the rest is its CUDA context, the driver's and a desktop's."""
FIRST = 4
"""Models that become services; the others are named in a comment."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models", nargs="*", help="model files or folders (else ~/models, /models, the caches of HF and Ollama)"
    )
    parser.add_argument(
        "-o", "--output", default="llmsupervisor.toml", metavar="FILE", help="default: llmsupervisor.toml; - = print"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the file")


def run(args: argparse.Namespace) -> int:
    from llmsupervisor.host import discover
    from llmsupervisor.host.files import read_definitions
    from llmsupervisor.host.gpu import once

    if args.output != "-" and os.path.exists(args.output) and not args.force:
        raise UsageError(f"{args.output} exists; --force overwrites it, -o writes elsewhere, -o - prints")
    definitions, _ = read_definitions()
    runtimes = discover.runtimes(definitions)
    sample = once(10.0)
    gpus = [(g.index, g.name or "GPU", g.memory_total_bytes) for g in sample.gpus or () if g.error is None]
    models = discover.models(args.models)
    if args.models and not models:
        raise UsageError(f"neither a GGUF file nor a folder with models: {', '.join(args.models)}")
    text = spec_text(runtimes, gpus, models, discover.servers())
    if args.output == "-":
        print(text, end="")
        return Exit.OK
    try:
        with open(args.output, "w" if args.force else "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise LlmsupervisorError(f"cannot write {args.output}: {error.strerror}; -o writes elsewhere") from None
    if not models:
        print(f"no model was found: write the path of one as model in {args.output}", file=sys.stderr)
    print(
        f"wrote {args.output}; next: llmsupervisor check {args.output}, llmsupervisor plan {args.output}",
        file=sys.stderr,
    )
    return Exit.OK


def spec_text(runtimes: dict[str, str], gpus: list[Gpu], models: list[Model], servers: list[Server]) -> str:
    """The whole file. Every number that a person should choose says so."""
    from llmsupervisor.host.discover import Model

    lines = ["# Written by `llmsupervisor init`. Every number marked `choose` is yours to choose.", "#"]
    for name in ("llama-server", "vllm", "ollama"):
        lines.append(f"# runtime {name}: {runtimes.get(name, 'not found on the PATH')}")
    for index, name, memory in gpus:
        lines.append(f"# GPU {index}: {printable(name)}, {format_size(memory)}")
    if not gpus:
        lines.append("# no GPU found: services run on the CPU (gpus = [])")
    for server in servers:
        owner = f"pid {server.pid}, {printable(server.command)}" if server.pid else server.command
        lines.append(f"# already runs on port {server.port} (usually {server.usual}): {owner}")
        lines.append(f"#   {WAYS.get(server.usual, 'stop it, or leave it: it shares the memory of this box unseen')}")
    for model in models[FIRST:]:
        lines.append(f"# also found: {printable(model.path)} ({format_size(model.size)}, {model.runtime})")
    if not models:
        lines.append(
            "# No model was found in ~/models, /models, the Hugging Face cache or Ollama's store: write one below."
        )
    names: set[str] = set()
    chosen = models[:FIRST] or [Model("/models/chat.gguf", "llama-server", None)]
    for place, model in enumerate(chosen):
        gpu = gpus[place % len(gpus)] if gpus else None
        sharing = sum(other % len(gpus) == place % len(gpus) for other in range(len(chosen))) if gpus else 1
        lines += ["", *_service(_name(model.path, names), model, gpu, sharing, model.runtime in runtimes)]
    return "\n".join(lines) + "\n"


def _service(name: str, model: Model, gpu: Gpu | None, sharing: int, installed: bool) -> list[str]:
    """`sharing`: services on that GPU."""
    note = "" if installed else f'   # not on the PATH: add command = ["/path/to/{model.runtime}"]'
    vllm = model.runtime == "vllm"
    kv = ("fp8" if gpu else "auto") if vllm else "q8_0"
    head = [f"[services.{name}]", f'runtime = "{model.runtime}"{note}']
    body = [
        "parallel = 4                   # choose: requests decoded at once",
        f'kv_cache_type = "{kv}"         # choose: {KV[kv]}',
        f"gpus = [{gpu[0] if gpu else ''}]",
    ]
    if vllm and gpu:
        share = max(1, int((gpu[2] or 0) * BUDGET / sharing / 1024**3))
        body.append(f'gpu_memory = "{share}GiB"           # choose: weights, KV cache and buffers on this GPU')
    path = json.dumps(model.path, ensure_ascii=False)
    if model.runtime == "ollama":
        one = f'{{ name = {path}, context_length = 8192, keep_alive = "forever", preload = true }}'
        return [*head, *body, f"models = [{one}]   # choose: context_length"]
    size = f"   # {format_size(model.size)}" if model.size is not None else "   # choose: the path of a GGUF file"
    return [
        *head,
        f"model = {path}{size}",
        "context_length = 8192          # choose: tokens of one request, prompt and answer",
        *body,
    ]


def _name(path: str, taken: set[str]) -> str:
    stem = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", path.rstrip("/").rpartition("/")[2]).lower()
    base = re.sub(r"[^a-z0-9_-]+", "-", stem).strip("-_")[:40] or "model"
    name, number = base, 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    taken.add(name)
    return name
