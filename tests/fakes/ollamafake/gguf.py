"""Metadata and tensor list of a GGUF file."""

from __future__ import annotations

import math
import struct
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

_PLAIN = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
         13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 20: "IQ4_NL", 30: "BF16"}  # fmt: skip
FILE_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 12: "Q3_K_M",
              14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 32: "BF16"}  # fmt: skip


class BadModel(ValueError):
    pass


class Gguf:
    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise BadModel("invalid file magic")
            _, tensors, pairs = _take(file, "IQQ")
            self.kv: dict[str, Any] = {}
            for _ in range(pairs):
                key = _text(file)
                self.kv[key] = _value(file, _take(file, "I")[0])
            self.tensors = [_tensor(file) for _ in range(tensors)]
        self.parameters = sum(math.prod(t["shape"]) for t in self.tensors)
        self.architecture = str(self.kv.get("general.architecture", "unknown"))
        self.quantisation = FILE_TYPES.get(self.kv.get("general.file_type", -1), "unknown")

    def of(self, key: str) -> Any:
        return self.kv.get(f"{self.architecture}.{key}")

    @property
    def embeds(self) -> bool:
        return self.of("pooling_type") is not None

    @property
    def human(self) -> str:
        for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
            if self.parameters >= size:
                shown = self.parameters / size
                return f"{shown:.1f}{unit}" if unit == "B" else f"{shown:.2f}{unit}"
        return str(self.parameters)


@cache
def load(path: Path) -> Gguf:
    """Blobs never change."""
    return Gguf(path)


def _take(file: BinaryIO, form: str) -> tuple[Any, ...]:
    size = struct.calcsize(f"<{form}")
    return struct.unpack(f"<{form}", file.read(size))


def _text(file: BinaryIO) -> str:
    return file.read(_take(file, "Q")[0]).decode(errors="replace")


def _value(file: BinaryIO, kind: int) -> Any:
    """None for a list."""
    if kind in _PLAIN:
        found = _take(file, _PLAIN[kind])[0]
        return _short(found) if kind == 6 else found
    if kind == 8:
        return _text(file)
    item, count = _take(file, "IQ")
    if item in _PLAIN:
        file.seek(count * struct.calcsize(_PLAIN[item]), 1)
    else:
        for _ in range(count):
            _value(file, item)
    return None


def _short(value: float) -> float:
    """The shortest decimal that is this 32-bit number."""
    for digits in range(1, 10):
        found = float(f"{value:.{digits}g}")
        if struct.pack("<f", found) == struct.pack("<f", value):
            return found
    return value


def _tensor(file: BinaryIO) -> dict[str, Any]:
    name = _text(file)
    shape = list(_take(file, f"{_take(file, 'I')[0]}Q"))
    kind, _ = _take(file, "IQ")
    return {"name": name, "type": TYPES.get(kind, f"UNKNOWN_{kind}"), "shape": shape}
