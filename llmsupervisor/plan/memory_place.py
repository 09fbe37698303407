"""Which device holds which layer and which weights, as llama.cpp splits them."""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from llmsupervisor.plan.ggml_types import BLOCKS
from llmsupervisor.plan.gguf import GgufHeader, Tensor

Where = int | Literal["host"]
"""Index into the GPUs of the service, or the host's RAM."""

HOST: Literal["host"] = "host"

_INPUT = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.")
_ROW_PADDING = 512
"""CUDA pads the last row of a quantised matrix to so many elements."""


@dataclass(frozen=True, slots=True)
class Override:
    """Tensors whose names it finds lie there, wherever their layer is."""

    pattern: str
    where: Where


def layer_devices(layers: int, gpu_layers: int | None, split: Sequence[float]) -> list[Where]:
    """Device of each of `layers`, then of the output. `split`: shares of the GPUs (free memory by default), in order.

    The last `gpu_layers` go to GPUs; None: all, with the output.
    """
    wanted = layers + 1 if gpu_layers is None else gpu_layers
    first, count = max(layers + 1 - wanted, 0), min(wanted, layers + 1)
    if not split or count <= 0 or sum(split) <= 0:
        return [HOST] * (layers + 1)
    total = _single(sum(split))
    ends = [_single(_single(end) / total) for end in accumulate(split)]
    found: list[Where] = []
    for i in range(layers + 1):
        gpu = min(bisect_right(ends, _single((i - first) / count)), len(split) - 1)
        found.append(gpu if i >= first else HOST)
    return found


def _single(value: float) -> float:
    """Rounded to 32 bits, as llama.cpp computes."""
    try:
        (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    except OverflowError:
        return value
    return float(rounded)


def weights(
    header: GgufHeader, devices: Sequence[Where], skipped_from: int, overrides: Sequence[Override] = ()
) -> dict[Where, int]:
    """Bytes of the weights on each device. `skipped_from`: layers that are not loaded."""
    found: dict[Where, int] = {}
    output = devices[-1]
    for tensor in header.tensors:
        if tensor.layer is not None and tensor.layer >= min(skipped_from, len(devices) - 1):
            continue
        for where in places(header, tensor, devices, overrides):
            found[where] = found.get(where, 0) + _bytes_on(tensor, where)
    table = header.tensor("token_embd.weight")
    if table is not None and header.tensor("output.weight") is None:
        there = _overridden(table, overrides)
        output = output if there is None else there
        if output not in places(header, table, devices, overrides):
            found[output] = found.get(output, 0) + _bytes_on(table, output)
    return found


def adapter_weights(
    header: GgufHeader, adapters: Sequence[GgufHeader], devices: Sequence[Where], overrides: Sequence[Override] = ()
) -> dict[Where, int]:
    """Bytes of LoRA files: each matrix lies where the one that it changes does."""
    found: dict[Where, int] = {}
    for tensor in (tensor for adapter in adapters for tensor in adapter.tensors):
        changed = header.tensor(tensor.name.rpartition(".lora_")[0])
        if changed is not None and (changed.layer is None or changed.layer < len(devices) - 1):
            where = places(header, changed, devices, overrides)[0]
            found[where] = found.get(where, 0) + _bytes_on(tensor, where)
    return found


def _overridden(tensor: Tensor, overrides: Sequence[Override]) -> Where | None:
    return next((one.where for one in overrides if re.search(one.pattern, tensor.name)), None)


def places(
    header: GgufHeader, tensor: Tensor, devices: Sequence[Where], overrides: Sequence[Override] = ()
) -> Sequence[Where]:
    if (there := _overridden(tensor, overrides)) is not None:
        return (there,)
    if tensor.layer is not None:
        return (devices[tensor.layer],)
    if tensor.name.startswith(_INPUT):
        return (HOST,)
    if tensor.name.startswith("rope_"):
        return list(dict.fromkeys(devices[:-1]))
    if tensor.name.startswith("token_embd_norm.") and not header.architecture.startswith("lfm2"):
        return (devices[0],)
    return (devices[-1],)


def _bytes_on(tensor: Tensor, where: Where) -> int:
    """With the padding of the buffer's allocator."""
    size, row = tensor.bytes, tensor.shape[0] if tensor.shape else 1
    block, block_bytes = BLOCKS[tensor.type]
    if where == HOST:
        return -(-size // 32) * 32
    if block > 1 and row % _ROW_PADDING:
        size += (_ROW_PADDING - row % _ROW_PADDING) // block * block_bytes
    return -(-size // 128) * 128
