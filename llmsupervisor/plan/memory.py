"""How much memory a llama.cpp server takes, from the header of its model alone: every part with its reason.

On the host every figure is llama.cpp's own, to the byte. On a GPU the weights, the KV cache and the states are; the
compute buffer is the same graph on one device, which the scheduler's copies and the kernels may exceed: `exact` says
which. What has no formula is named in `Memory.unknown` and is in no sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmsupervisor.plan.ggml_types import BLOCKS, KV_TYPES
from llmsupervisor.plan.gguf import GgufHeader
from llmsupervisor.plan.memory_compute import Compute, compute
from llmsupervisor.plan.memory_graph import Run
from llmsupervisor.plan.memory_place import HOST, Override, Where, adapter_weights, layer_devices, places, weights
from llmsupervisor.plan.memory_pooling import POOLINGS, pooling_of
from llmsupervisor.plan.memory_shape import Layer, NoFormula, Shape, shape_of

COPIES = 4
"""Of every input, where several GPUs work as a pipeline (GGML_SCHED_MAX_COPIES)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """`context_length`: tokens per request. `unified`: one pool of cells for all, of `pool` tokens (None:
    `context_length` × `parallel`); else each slot has its own. `outputs`: rows of logits at once; None: what
    llama-server reserves, one per slot and drafted token.

    `gpus`: free bytes of each GPU, or any shares, in the order of the service; () = CPU only. `gpu_layers` None: all.
    `gpu_overhead`: bytes of a process on each GPU beside its buffers (CUDA context, libraries), None where not measured.
    """

    context_length: int
    parallel: int = 1
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    flash_attention: bool = True
    unified: bool = False
    pool: int | None = None
    swa_full: bool = False
    batch: int = 2048
    ubatch: int = 512
    outputs: int | None = None
    draft_tokens: int = 0
    state_snapshots: int = 0
    embedding: bool = False
    pooling: str = ""
    """Of an embedding server; empty: as the file says."""
    gpus: tuple[float, ...] = ()
    gpu_layers: int | None = None
    kv_offload: bool = True
    overrides: tuple[Override, ...] = ()
    tensor: bool = False
    """Matrices are split over all GPUs (`memory_tensor.py`)."""
    gpu_overhead: int | None = None

    @property
    def tokens(self) -> int:
        """What the server is given as its context size."""
        return self.pool if self.unified and self.pool else self.context_length * self.parallel

    @property
    def cells(self) -> int:
        """Of a KV cache, per stream: a slot's, or the whole pool."""
        padded = _up(self.tokens, 256)
        return padded if self.unified else _up(padded // self.parallel, 256)

    @property
    def streams(self) -> int:
        return 1 if self.unified else self.parallel

    @property
    def rows(self) -> int:
        """Of logits at once."""
        return self.outputs or self.parallel * (1 + self.draft_tokens)

    @property
    def batch_tokens(self) -> int:
        """Of one ubatch."""
        return min(self.tokens, self.batch, self.ubatch or self.batch)

    def cells_sliding(self, window: int) -> int:
        if self.swa_full:
            return self.cells
        return _up(min(self.cells, window * (self.parallel if self.unified else 1) + self.batch_tokens), 256)


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    bytes: int
    where: Where
    why: str
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Memory:
    parts: tuple[Part, ...]
    unknown: tuple[str, ...] = ()
    """What no part stands for, and why. Empty: the sums are complete."""

    def sum_at(self, where: Where) -> int:
        return sum(part.bytes for part in self.parts if part.where == where)

    @property
    def total(self) -> int | None:
        """None where a part is unknown."""
        return None if self.unknown else sum(part.bytes for part in self.parts)

    @property
    def exact(self) -> bool:
        return not self.unknown and all(part.exact for part in self.parts)

    def and_(self, other: Memory, prefix: str) -> Memory:
        """With what a second model (draft, projector) of the same process takes."""
        named = tuple(replace(part, name=f"{prefix} {part.name}") for part in other.parts)
        return Memory(self.parts + named, self.unknown + tuple(f"{prefix}: {text}" for text in other.unknown))


@dataclass(frozen=True, slots=True)
class Refused:
    """llama.cpp does not start with these settings."""

    reason: str


def kv_bytes_per_token(header: GgufHeader, type_k: str, type_v: str) -> int | NoFormula:
    """KV bytes that one more token of context costs: of the layers whose cache grows with it. Sliding layers and
    recurrent states have a size of their own (`estimate`)."""
    shape = shape_of(header)
    if isinstance(shape, NoFormula):
        return shape
    for name in (type_k, type_v):
        if name not in KV_TYPES:
            return NoFormula(f"KV type {name!r} is not one of {', '.join(KV_TYPES)}")
    return sum(_kv_bytes(layer, type_k, type_v) for layer in shape.layers if not layer.sliding)


def estimate(header: GgufHeader, settings: Settings, adapters: Sequence[GgufHeader] = ()) -> Memory | Refused:
    """`adapters`: LoRA files that are loaded with it."""
    shape = shape_of(header)
    if isinstance(shape, NoFormula):
        return _weights_only(header, settings, shape.reason)
    if problem := _problem(shape, settings):
        return Refused(problem)
    devices = layer_devices(shape.layers_all, settings.gpu_layers, settings.gpus)
    loaded = len(shape.layers)
    parts: list[Part] = []
    unknown: list[str] = []
    for place, size in weights(header, devices, loaded, settings.overrides).items():
        layers = sum(1 for device in devices[:loaded] if device == place)
        parts.append(Part("weights", size, place, f"tensors of {layers} of {loaded} layers" + _also(place, devices)))
    for place, size in adapter_weights(header, adapters, devices, settings.overrides).items():
        parts.append(Part("LoRA weights", size, place, f"{len(adapters)} LoRA files, beside what they change"))
    parts += _caches(shape, settings, devices)
    _add_compute(header, shape, settings, devices, adapters, parts, unknown)
    if vocabulary := header.vocabulary:
        rows, width = settings.rows, vocabulary
        if settings.embedding:  # grows with the first full batch: logits and embedding of every token
            rows, width = settings.batch_tokens, vocabulary + shape.embedding
        parts.append(Part("output buffer", 4 * width * rows, HOST, f"{rows} rows of {width} figures × 4 B"))
    for gpu in _gpus(devices):
        if settings.gpu_overhead is None:
            unknown.append(f"GPU {gpu}: what a process takes beside its buffers is not measured yet")
        else:
            parts.append(Part("process", settings.gpu_overhead, gpu, "measured: CUDA context and libraries", False))
    return Memory(tuple(part for part in parts if part.bytes), tuple(unknown))


def _weights_only(header: GgufHeader, settings: Settings, reason: str) -> Memory:
    """For an architecture without a formula, where one device must hold everything."""
    if len(settings.gpus) > 1 or (settings.gpus and settings.gpu_layers is not None):
        return Memory((), (reason,))
    where: Where = 0 if settings.gpus else HOST
    return Memory((Part("weights", header.weight_bytes, where, "all tensors of the file", exact=False),), (reason,))


def projector(header: GgufHeader, where: Where) -> Memory:
    """Of an `mmproj` file. What it computes with depends on the size of the pictures."""
    weights_part = Part("weights", header.weight_bytes, where, "all tensors of the file")
    return Memory((weights_part,), ("its compute buffer depends on the size of the pictures",))


def _gpus(devices: Sequence[Where]) -> list[int]:
    return sorted({device for device in devices if device != HOST})


def _also(place: Where, devices: list[Where]) -> str:
    said = [text for text, there in (("the embedding", HOST), ("the output", devices[-1])) if there == place]
    return " and " + " and ".join(said) if said else ""


def _problem(shape: Shape, settings: Settings) -> str:
    for which, name in (("K", settings.kv_type_k), ("V", settings.kv_type_v)):
        if name not in KV_TYPES:
            return f"KV type {name!r}; allowed: {', '.join(KV_TYPES)}"
        block = BLOCKS[name][0] if settings.flash_attention else 1
        for layer in shape.layers:
            size = layer.head_k if which == "K" else layer.head_v
            if block > 1 and shape.cache and size % block:
                return f"KV type {name} needs heads of a multiple of {block}; layer {layer.index} has {which} heads of {size}"
    if shape.mla and settings.kv_type_k != settings.kv_type_v:
        return f"K and V must be of one type with latent attention, not {settings.kv_type_k} and {settings.kv_type_v}"
    if BLOCKS[settings.kv_type_v][0] > 1 and not settings.flash_attention:
        return f"KV type {settings.kv_type_v} for V needs flash attention"
    if (
        settings.context_length < 1
        or settings.parallel < 1
        or settings.batch < 1
        or settings.tokens < settings.parallel
    ):
        return "context length, parallel and batch must be at least 1"
    return ""


def _kv_bytes(layer: Layer, type_k: str, type_v: str) -> int:
    """Of one cell. The row of a cell is a whole number of blocks."""
    total = 0
    for elements, name in ((layer.k, type_k), (layer.v, type_v)):
        block, size = BLOCKS[name]
        total += elements // block * size
    return total


def _caches(shape: Shape, settings: Settings, devices: list[Where]) -> list[Part]:
    sizes: dict[tuple[str, Where], int] = {}
    why: dict[str, str] = {}
    types = (
        settings.kv_type_k if settings.kv_type_k == settings.kv_type_v else f"{settings.kv_type_k}/{settings.kv_type_v}"
    )
    widest = max((layer.v for layer in shape.layers), default=0)

    def add(name: str, where: Where, size: int, text: str) -> None:
        sizes[name, where] = sizes.get((name, where), 0) + size
        why[name] = text

    for layer in shape.layers:
        where = devices[layer.index] if settings.kv_offload else HOST
        if layer.k or layer.v:
            # without flash attention V is kept transposed, every layer as wide as the widest
            wide = layer if settings.flash_attention or not layer.v else replace(layer, v=widest)
            cells = settings.cells_sliding(shape.window) if layer.sliding else settings.cells
            name = "KV cache, sliding" if layer.sliding else "KV cache"
            text = f"{cells * settings.streams} cells, {types}"
            size = cells * settings.streams * _kv_bytes(wide, settings.kv_type_k, settings.kv_type_v)
            add(name, where, size, text + (f", window {shape.window}" if layer.sliding else ""))
        if layer.conv_state or layer.state:
            rows = settings.parallel * (1 + settings.state_snapshots)
            size = 4 * rows * (layer.conv_state + layer.state)
            add("recurrent state", where, size, f"{rows} sequences, whatever their length")
    return [Part(name, size, where, why[name]) for (name, where), size in sizes.items()]


def run_of(shape: Shape, settings: Settings, *, device: bool, pooling: str = "") -> Run:
    per_batch = settings.batch_tokens
    sequences = settings.parallel
    attending = [layer for layer in shape.layers if layer.k]
    rotate_k, rotate_v = (
        _rotation([layer.head_k for layer in attending], settings.kv_type_k, grows=True),
        _rotation([layer.head_v for layer in attending], settings.kv_type_v, grows=False),
    )
    return Run(
        tokens=_up(per_batch, sequences),
        sequences=sequences,
        unified=settings.unified,
        cells=settings.cells,
        cells_sliding=settings.cells_sliding(shape.window),
        rows=min(per_batch, settings.outputs or per_batch) if settings.embedding else min(per_batch, settings.rows),
        pooling=pooling if settings.embedding else "",
        flash=settings.flash_attention,
        rotate_k=rotate_k,
        rotate_v=rotate_v,
        cast_k=settings.kv_type_k == "f32",
        cast_v=(settings.kv_type_k if shape.mla else settings.kv_type_v) == "f32",
        device=device,
        copy_k=device and settings.kv_type_k not in ("f16", "f32"),
        copy_v=device and settings.kv_type_v not in ("f16", "f32"),
    )


def _rotation(sizes: list[int], kind: str, *, grows: bool) -> int:
    """Side of the Hadamard matrix that llama.cpp turns quantised keys and values with."""
    if BLOCKS[kind][0] == 1 or len(set(sizes)) != 1 or sizes[0] % 64:
        return 0
    side = 64
    while grows and sizes[0] % (2 * side) == 0:
        side *= 2
    return side


def _add_compute(
    header: GgufHeader,
    shape: Shape,
    settings: Settings,
    devices: list[Where],
    adapters: Sequence[GgufHeader],
    parts: list[Part],
    unknown: list[str],
) -> None:
    pooling = settings.pooling or pooling_of(header)
    if settings.embedding and pooling not in POOLINGS:
        unknown.append(f"no formula for an embedding server with pooling {pooling or '(unknown)'}")
        return
    gpus = _gpus(devices)
    on_host = compute(header, shape, run_of(shape, settings, device=False, pooling=pooling), adapters)
    if isinstance(on_host, NoFormula):
        unknown.append(on_host.reason)
        return
    text = f"{settings.batch_tokens} tokens at once"
    if not gpus:
        parts.append(Part("compute", on_host.bytes, HOST, text))
        return
    on_gpu = compute(header, shape, run_of(shape, settings, device=True, pooling=pooling), adapters)
    assert isinstance(on_gpu, Compute), on_gpu  # the device takes no part in whether there is a formula
    moved = _largest_on_host(header, devices[: len(shape.layers)], settings.overrides)
    partly = any(device == HOST for device in devices) or bool(moved) or not settings.kv_offload
    width = 4 * shape.embedding * settings.batch_tokens
    host = on_host.bytes if partly else on_host.inputs + 3 * width
    parts.append(Part("compute", host, HOST, text + (", layers on the host" if partly else ", inputs"), exact=False))
    pipeline = len(gpus) > 1 and not partly and not settings.overrides
    for gpu in gpus:
        size = on_gpu.bytes + (COPIES - 1) * on_gpu.inputs * pipeline
        more = f", inputs {COPIES} times for the pipeline" if pipeline else ""
        parts.append(Part("compute", size, gpu, text + more, exact=False))
    if moved:
        parts.append(
            Part("compute, weights of the host", moved, gpus[0], "the largest tensor, for prompts", exact=False)
        )


def _largest_on_host(header: GgufHeader, devices: Sequence[Where], overrides: Sequence[Override]) -> int:
    sizes = (
        tensor.bytes
        for tensor in header.tensors
        if tensor.layer is not None
        and tensor.layer < len(devices)
        and HOST in places(header, tensor, devices, overrides)
    )
    return max(sizes, default=0)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
