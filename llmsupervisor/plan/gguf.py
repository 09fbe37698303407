"""The header of a GGUF file: metadata and tensor infos, from bytes. The files are hostile input: nothing is allocated
by a claimed count, every loop is bounded by the bytes at hand, and whatever is wrong is a `GgufError` value.

Format and limits: ggml's `gguf.cpp` (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from llmsupervisor.base.text import printable
from llmsupervisor.plan.ggml_types import TYPES

MAX_LAYERS = 512
"""llama.cpp's own limit."""
MAX_KEYS = 4_096
MAX_TENSORS = 100_000
"""More than any model has (512 layers, about 60 tensors each)."""
MAX_KEPT_ARRAY = 1_024
MAX_KEPT_STRING = 4_096
MAX_DIMS = 4
MAX_NAME = 64
MAX_KEY = 65_535
MAX_BYTES = 2**63 - 1

Scalar = int | float | bool | str
Value = Scalar | tuple[int | float | bool, ...]

_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_LAYER = re.compile(r"blk\.(\d{1,4})\.")


@dataclass(frozen=True, slots=True)
class GgufError:
    """`truncated`: the bytes end inside the header (read more, or the file is cut off); `broken`: no runtime reads it;
    `unsupported`: a runtime newer than this reader may read it."""

    kind: Literal["truncated", "broken", "unsupported"]
    wrong: str
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.wrong} (at byte {self.offset})"


@dataclass(frozen=True, slots=True)
class Tensor:
    """`shape` as ggml counts it: the row length first. `layer` None: of the input or the output."""

    name: str
    shape: tuple[int, ...]
    type: str
    bytes: int
    layer: int | None


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """`values`: scalars and short arrays of numbers; of longer arrays, arrays of strings and long strings only the
    length is kept (`lengths`). A figure that the file does not say, or says in another type, is None."""

    version: int
    values: Mapping[str, Value]
    lengths: Mapping[str, int]
    tensors: tuple[Tensor, ...]
    alignment: int
    data_offset: int
    data_bytes: int
    """Tensor data with padding: the file is `data_offset + data_bytes` long (the last padding may be missing)."""

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """A non-negative integer of the architecture: `attention.head_count`."""
        return _count(self.values.get(f"{self.architecture}.{key}"))

    def numbers(self, key: str, n: int) -> tuple[int, ...] | None:
        """One per layer, as said or one for all. None: not said, or fewer than `n`."""
        if n > MAX_LAYERS:
            return None
        value = self.values.get(f"{self.architecture}.{key}")
        if isinstance(value, tuple):
            counts = [_count(item) for item in value]
            if len(counts) < n or None in counts:
                return None
            return tuple(c for c in counts[:n] if c is not None)
        one = _count(value)
        return None if one is None else (one,) * n

    @property
    def architecture(self) -> str:
        return self.text("general.architecture") or ""

    @property
    def n_layers(self) -> int | None:
        """All blocks, also those that only predict further tokens (`nextn_predict_layers`)."""
        return self.number("block_count")

    @property
    def context_train(self) -> int | None:
        return self.number("context_length")

    @property
    def embedding(self) -> int | None:
        return self.number("embedding_length")

    @property
    def heads(self) -> tuple[int, ...] | None:
        return self.numbers("attention.head_count", self.n_layers or 0)

    @property
    def heads_kv(self) -> tuple[int, ...] | None:
        """0 for a layer without attention. Not said: as many as heads."""
        if f"{self.architecture}.attention.head_count_kv" not in self.values:
            return self.heads
        return self.numbers("attention.head_count_kv", self.n_layers or 0)

    @property
    def vocabulary(self) -> int | None:
        """Tokens of the tokenizer; else of the embedding (a header without a tokenizer)."""
        return self.lengths.get("tokenizer.ggml.tokens") or self.number("vocab_size")

    @property
    def split_count(self) -> int:
        return _count(self.values.get("split.count")) or 1

    @property
    def weight_bytes(self) -> int:
        return sum(t.bytes for t in self.tensors)

    def tensor(self, name: str) -> Tensor | None:
        return next((t for t in self.tensors if t.name == name), None)

    def bytes_by_type(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for tensor in self.tensors:
            found[tensor.type] = found.get(tensor.type, 0) + tensor.bytes
        return found


def _count(value: Value | None) -> int | None:
    return int(value) if isinstance(value, int) and value >= 0 else None


class _BadHeader(Exception):
    def __init__(self, error: GgufError) -> None:
        self.error = error


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def wrong(self, text: str, kind: Literal["truncated", "broken", "unsupported"] = "broken") -> _BadHeader:
        return _BadHeader(GgufError(kind, printable(text), self.at))

    def need(self, size: int, what: str) -> None:
        if size > len(self.data) - self.at:
            raise self.wrong(f"the bytes end inside {what}", "truncated")

    def u32(self, what: str) -> int:
        self.need(4, what)
        (value,) = _U32.unpack_from(self.data, self.at)
        self.at += 4
        return int(value)

    def u64(self, what: str) -> int:
        self.need(8, what)
        (value,) = _U64.unpack_from(self.data, self.at)
        self.at += 8
        return int(value)

    def string(self, what: str, most: int) -> str:
        length = self.u64(what)
        if length > most:
            raise self.wrong(f"{what} claims {length} bytes; allowed: at most {most}")
        self.need(length, what)
        text = self.data[self.at : self.at + length].decode("utf-8", "replace")
        self.at += length
        return text

    def skip_strings(self, n: int, what: str) -> None:
        data, at, end, unpack = self.data, self.at, len(self.data) - 8, _U64.unpack_from
        for _ in range(n):
            if at > end:
                raise self.wrong(f"the bytes end inside {what}", "truncated")
            at += 8 + unpack(data, at)[0]
        if at > len(data):
            raise self.wrong(f"the bytes end inside {what}", "truncated")
        self.at = at


def read_header(data: bytes) -> GgufHeader | GgufError:
    """From the beginning of a file, as much as there is. At most about 2 s for 64 MiB made to be slow."""
    try:
        return _read(_Reader(data))
    except _BadHeader as bad:
        return bad.error


def _read(reader: _Reader) -> GgufHeader:
    reader.need(4, "the magic number")
    if reader.data[:4] != b"GGUF":
        raise reader.wrong("not a GGUF file: it does not begin with GGUF")
    reader.at = 4
    version = reader.u32("the version")
    if version & 0xFFFF == 0:
        raise reader.wrong("a big-endian file; runtimes on this machine read little-endian ones")
    if version < 2:
        raise reader.wrong(f"GGUF version {version}; allowed: 2, 3")
    if version > 3:
        raise reader.wrong(f"GGUF version {version}; this reader knows 2 and 3", "unsupported")
    n_tensors = reader.u64("the number of tensors")
    n_keys = reader.u64("the number of keys")
    if n_tensors > MAX_TENSORS:
        raise reader.wrong(f"claims {n_tensors} tensors; allowed: at most {MAX_TENSORS}")
    if n_keys > MAX_KEYS:
        raise reader.wrong(f"claims {n_keys} keys; allowed: at most {MAX_KEYS}")
    values, lengths = _metadata(reader, n_keys)
    alignment = values.get("general.alignment", 32)
    if isinstance(alignment, bool) or not isinstance(alignment, int) or not 0 < alignment < 2**32:
        raise reader.wrong("general.alignment is not a positive 32-bit number")
    if alignment & (alignment - 1):
        raise reader.wrong(f"general.alignment is {alignment}; allowed: a power of 2")
    tensors, data_bytes = _tensors(reader, n_tensors, alignment)
    return GgufHeader(version, values, lengths, tensors, alignment, _padded(reader.at, alignment), data_bytes)


def _metadata(reader: _Reader, n: int) -> tuple[dict[str, Value], dict[str, int]]:
    values: dict[str, Value] = {}
    lengths: dict[str, int] = {}
    seen: set[str] = set()
    for i in range(n):
        key = reader.string(f"key {i + 1}", MAX_KEY)
        if not key:
            raise reader.wrong(f"key {i + 1} is empty")
        if key in seen:
            raise reader.wrong(f"key {key[:80]!r} is there twice")
        seen.add(key)
        kind = reader.u32(f"the type of {key[:80]!r}")
        if kind == _ARRAY:
            item = reader.u32(f"the item type of {key[:80]!r}")
            count = reader.u64(f"the length of {key[:80]!r}")
            lengths[key] = count
            kept = _array(reader, key[:80], item, count)
            if kept is not None:
                values[key] = kept
        elif kind == _STRING:
            text = reader.string(f"the value of {key[:80]!r}", len(reader.data))
            lengths[key] = len(text)
            if len(text) <= MAX_KEPT_STRING:
                values[key] = text
        else:
            values[key] = _numbers(reader, f"the value of {key[:80]!r}", kind, 1)[0]
    return values, lengths


def _array(reader: _Reader, key: str, item: int, count: int) -> tuple[int | float | bool, ...] | None:
    """None: not kept."""
    what = f"the items of {key!r}"
    if item == _STRING:
        if count > MAX_BYTES // 8:
            raise reader.wrong(f"{key!r} claims {count} strings")
        reader.skip_strings(count, what)
        return None
    if item not in _NUMBERS:
        raise reader.wrong(f"{key!r} is an array of type {item}; allowed: numbers and strings")
    size = struct.calcsize("<" + _NUMBERS[item])
    if count > MAX_BYTES // size:
        raise reader.wrong(f"{key!r} claims {count} items")
    if count > MAX_KEPT_ARRAY:
        reader.need(count * size, what)
        reader.at += count * size
        return None
    return _numbers(reader, what, item, count)


def _numbers(reader: _Reader, what: str, kind: int, count: int) -> tuple[int | float | bool, ...]:
    if kind not in _NUMBERS:
        raise reader.wrong(f"{what} has type {kind}; allowed: 0 to 12")
    form = struct.Struct(f"<{count}{_NUMBERS[kind]}")
    reader.need(form.size, what)
    found: tuple[int | float | bool, ...] = form.unpack_from(reader.data, reader.at)
    reader.at += form.size
    return found


def _tensors(reader: _Reader, n: int, alignment: int) -> tuple[tuple[Tensor, ...], int]:
    """Tensors and the bytes of all of them, padded."""
    tensors: list[Tensor] = []
    names: set[str] = set()
    total = 0
    for i in range(n):
        name = reader.string(f"the name of tensor {i + 1}", MAX_NAME - 1)
        if name in names:
            raise reader.wrong(f"tensor {name!r} is there twice")
        names.add(name)
        dims = reader.u32(f"tensor {name!r}")
        if dims > MAX_DIMS:
            raise reader.wrong(f"tensor {name!r} has {dims} dimensions; allowed: at most {MAX_DIMS}")
        shape = tuple(reader.u64(f"the shape of {name!r}") for _ in range(dims))
        type_id = reader.u32(f"the type of {name!r}")
        offset = reader.u64(f"the offset of {name!r}")
        tensor = _tensor(reader, name, shape, type_id)
        if offset != total:
            raise reader.wrong(f"tensor {name!r} lies at {offset}; the tensors before it end at {total}")
        total += _padded(tensor.bytes, alignment)
        if total > MAX_BYTES:
            raise reader.wrong(f"tensor {name!r} ends beyond any file")
        tensors.append(tensor)
    return tuple(tensors), total


def _tensor(reader: _Reader, name: str, shape: tuple[int, ...], type_id: int) -> Tensor:
    if max(shape, default=1) > MAX_BYTES or prod(shape) > MAX_BYTES:
        raise reader.wrong(f"tensor {name!r} has an impossible shape")
    if type_id not in TYPES:
        raise reader.wrong(f"tensor {name!r} has type {type_id}, which this reader does not know", "unsupported")
    type_name, block, block_bytes = TYPES[type_id]
    if (shape[0] if shape else 1) % block:
        raise reader.wrong(f"tensor {name!r} has rows of {shape[0] if shape else 1}, not a multiple of {block}")
    size = prod(shape) // block * block_bytes
    if size > MAX_BYTES:
        raise reader.wrong(f"tensor {name!r} has an impossible size")
    found = _LAYER.match(name)
    return Tensor(name, shape, type_name, size, int(found[1]) if found else None)


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def join(parts: Sequence[GgufHeader]) -> GgufHeader | GgufError:
    """The whole model of a split file, from the headers of all its parts in order."""
    if not parts:
        return GgufError("broken", "no part was read")
    first = parts[0]
    if first.split_count != len(parts):
        return GgufError("broken", f"a model of {first.split_count} parts; {len(parts)} were read")
    for number, part in enumerate(parts):
        said = _count(part.values.get("split.no"))
        if len(parts) > 1 and said != number:
            return GgufError("broken", f"part {number + 1} of {len(parts)} says that it is part {_one_more(said)}")
    tensors = tuple(t for part in parts for t in part.tensors)
    if twice := _twice(t.name for t in tensors):
        return GgufError("broken", printable(f"tensor {twice!r} is in two parts"))
    stated = _count(first.values.get("split.tensors.count"))
    if stated is not None and stated != len(tensors):
        return GgufError("broken", f"a model of {stated} tensors; its parts hold {len(tensors)}")
    return replace(first, tensors=tensors, data_bytes=sum(part.data_bytes for part in parts))


def _one_more(number: int | None) -> str:
    return "none" if number is None else str(number + 1)


def _twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
