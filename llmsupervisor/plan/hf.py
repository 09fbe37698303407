"""A model in Hugging Face's layout: its `config.json`, and the headers of its safetensors files. Hostile input, as GGUF is:
every length is bounded, nothing is run, whatever is wrong is an `HfError` value."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from llmsupervisor.base.ids import Json
from llmsupervisor.base.text import printable

MAX_HEADER = 16 * 1024**2
"""Bytes; 100,000 tensors have 15 MB."""
MAX_CONFIG = 1024**2
MAX_INDEX = 16 * 1024**2
MAX_TENSORS = 200_000
MAX_FILES = 1000
MAX_BYTES = 2**63 - 1


@dataclass(frozen=True, slots=True)
class HfError:
    wrong: str

    def __str__(self) -> str:
        return self.wrong


@dataclass(frozen=True, slots=True)
class HfTensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class HfModel:
    config: Mapping[str, Json]
    tensors: tuple[HfTensor, ...]

    @property
    def text(self) -> Mapping[str, Json]:
        """The configuration of the language model inside a model of several."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) else self.config

    def number(self, *keys: str) -> int | None:
        """The first that is said, a positive whole number."""
        for key in keys:
            value = self.text.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31:
                return value
        return None

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)


def header_length(first: bytes) -> int | HfError:
    """Of the header that follows the first 8 bytes of a safetensors file."""
    if len(first) < 8:
        return HfError("is no safetensors file: it is shorter than 8 bytes")
    length = int.from_bytes(first[:8], "little")
    if not 2 <= length <= MAX_HEADER:
        return HfError(f"is no safetensors file: its header claims {length} bytes; allowed: 2 to {MAX_HEADER}")
    return length


def read_tensors(header: bytes, size: int) -> tuple[HfTensor, ...] | HfError:
    """`header`: the JSON; `size`: bytes of the whole file."""
    data = _object(header)
    if isinstance(data, HfError):
        return data
    if len(data) > MAX_TENSORS:
        return HfError(f"has a header of {len(data)} entries; allowed: at most {MAX_TENSORS}")
    found: list[HfTensor] = []
    end = 0
    for name, entry in data.items():
        if name == "__metadata__":
            continue
        tensor = _tensor(name, entry)
        if tensor is None:
            return HfError(printable(f"has a broken header: tensor {name[:80]!r} is not described as tensors are"))
        found.append(tensor[0])
        end = max(end, tensor[1])
    if end > size - 8 - len(header):
        return HfError(f"is cut off: {size} bytes of {end + 8 + len(header)}; copy it again")
    return tuple(found)


def _tensor(name: str, entry: Json) -> tuple[HfTensor, int] | None:
    """With the end of its data."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            sizes = tuple(n for n in shape if isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= MAX_BYTES)
            if len(sizes) == len(shape) <= 8 and prod(sizes) <= MAX_BYTES and 0 <= start <= end <= MAX_BYTES:
                return HfTensor(name, dtype, sizes, end - start), end
    return None


def read_config(text: bytes) -> Mapping[str, Json] | HfError:
    return _object(text)


def read_index(text: bytes) -> tuple[str, ...] | HfError:
    """Names of the files of `model.safetensors.index.json`, all in the model's own folder."""
    data = _object(text)
    if isinstance(data, HfError):
        return data
    weights = data.get("weight_map")
    if not isinstance(weights, dict):
        return HfError("has no weight_map")
    return file_names(weights.values())


def file_names(values: Iterable[Json]) -> tuple[str, ...] | HfError:
    names = sorted({value for value in values if isinstance(value, str)})
    if len(names) > MAX_FILES:
        return HfError(f"names {len(names)} files; allowed: at most {MAX_FILES}")
    if wrong := [name for name in names if "/" in name or "\0" in name or not name.endswith(".safetensors")]:
        return HfError(printable(f"names {wrong[0][:80]!r}, which is no safetensors file of its folder"))
    return tuple(names)


def _object(text: bytes) -> dict[str, Json] | HfError:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        return HfError(printable(f"is not JSON: {str(error)[:100]}"))
    return data if isinstance(data, dict) else HfError("is no JSON object")
