"""How many bytes of a model's weights one token reads: all of a dense one, the chosen experts of the others."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from llmsupervisor.host.headers import Headers
from llmsupervisor.plan.facts import SHARD
from llmsupervisor.plan.gguf import GgufHeader
from llmsupervisor.plan.hf import MAX_CONFIG

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Of the config.json of models on the hub."""


def active_bytes(paths: Sequence[str], headers: Headers) -> int | None:
    """None: not known. `paths`: the model, a file, all parts of a split one, or a folder; what else is loaded is not counted."""
    if paths and os.path.isdir(paths[0]):
        return _of_folder(paths[0], headers)
    if not paths or not paths[0].endswith(".gguf"):
        return None
    shard = SHARD.fullmatch(paths[0])
    header = headers.read(paths[: int(shard["parts"])] if shard else paths[:1])
    return _of_gguf(header) if isinstance(header, GgufHeader) else None


def _of_gguf(header: GgufHeader) -> int | None:
    """A row of the embedding is looked up, not read whole; without an output matrix of its own it is that too."""
    every, used = header.number("expert_count"), header.number("expert_used_count")
    if every and not used:
        return None
    share = used / every if every and used else 1.0
    names = {tensor.name for tensor in header.tensors}
    total = 0.0
    for tensor in header.tensors:
        if tensor.name == "token_embd.weight" and "output.weight" in names:
            continue
        total += tensor.bytes * (share if "_exps." in tensor.name else 1.0)
    return round(total)


def _of_folder(folder: str, headers: Headers) -> int | None:
    try:
        config = json.loads(headers.small(f"{folder}/config.json", MAX_CONFIG))
        if any(config.get(name) or (config.get("text_config") or {}).get(name) for name in EXPERTS):
            return None
        names = [name for name in os.listdir(folder) if name.endswith(".safetensors")]
        return sum(os.path.getsize(f"{folder}/{name}") for name in names) or None
    except (OSError, ValueError, AttributeError):
        return None
