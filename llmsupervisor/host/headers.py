"""Headers of model files: read in growing pieces, never the weights, once per content of a file."""

from __future__ import annotations

import json
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llmsupervisor.host.binaries import identity
from llmsupervisor.plan import hf
from llmsupervisor.plan.facts import Tag
from llmsupervisor.plan.gguf import GgufError, GgufHeader, join, read_header
from llmsupervisor.plan.hf import HfError, HfModel, HfTensor

PIECES = (1 << 20, 8 << 20, 64 << 20)
"""Bytes read until the header is whole. A vocabulary of 256k tokens takes about 12 MiB."""
MOST_PARTS = 999
MANIFEST = 1 << 20
"""Bytes of an Ollama manifest."""

T = TypeVar("T")


@dataclass(slots=True)
class Headers:
    """Reads from any thread are safe; the same file is then read twice at worst. The same content gives the same object."""

    size: int = 256
    known: OrderedDict[Hashable, Any] = field(default_factory=OrderedDict)
    """(path, `dev:ino:size:mtime_ns`), or several → what the headers say."""

    def read(self, paths: Sequence[str]) -> GgufHeader | GgufError:
        """Of one file, or of all parts of a split one in order. Never raises; may take a second for a hostile file."""
        if len(paths) > MOST_PARTS:
            return GgufError("broken", f"{len(paths)} parts; allowed: at most {MOST_PARTS}")
        parts: list[GgufHeader] = []
        keys: list[Hashable] = []
        for path in paths:
            key, found = self._one(path)
            if isinstance(found, GgufError):
                return GgufError(found.kind, f"{path}: {found.wrong}", found.offset)
            parts.append(found)
            keys.append(key)
        return self._kept(("joined", *keys), lambda: join(parts))

    def _one(self, path: str) -> tuple[Hashable, GgufHeader | GgufError]:
        try:
            fd, st = open_regular(path)
            try:
                key = (path, identity(st))
                return key, self._kept(key, lambda: _read(fd, st.st_size))
            finally:
                os.close(fd)
        except (OSError, ValueError) as error:
            return None, GgufError("broken", _why(error))

    def folder(self, path: str) -> HfModel | HfError:
        """`config.json` and the headers of all safetensors files of a folder. Never raises."""
        try:
            config = hf.read_config(self.small(f"{path}/config.json", hf.MAX_CONFIG))
            if isinstance(config, HfError):
                return HfError(f"{path}/config.json {config}")
            names = self._files(path)
            if isinstance(names, HfError):
                return HfError(f"{path}/model.safetensors.index.json {names}")
            tensors: list[HfTensor] = []
            keys: list[Hashable] = []
            for name in names:
                key, found = self._tensors(f"{path}/{name}")
                if isinstance(found, HfError):
                    return HfError(f"{path}/{name} {found}")
                keys.append(key)
                tensors += found
        except (OSError, ValueError) as error:
            return HfError(f"{path}: {_why(error)}")
        if not names:
            return HfError(f"{path} holds no safetensors files")
        made = HfModel(config, tuple(tensors))
        return self._kept((path, json.dumps(config, sort_keys=True), *keys), lambda: made)

    def _files(self, path: str) -> tuple[str, ...] | HfError:
        index = f"{path}/model.safetensors.index.json"
        if os.path.exists(index):
            return hf.read_index(self.small(index, hf.MAX_INDEX))
        with os.scandir(path) as entries:
            return hf.file_names(entry.name for entry in entries if entry.name.endswith(".safetensors"))

    def _tensors(self, path: str) -> tuple[Hashable, tuple[HfTensor, ...] | HfError]:
        fd, st = open_regular(path)
        try:
            key = (path, identity(st))
            return key, self._kept(key, lambda: _safetensors(fd, st.st_size))
        finally:
            os.close(fd)

    def tag(self, tag: Tag, home: str | None) -> GgufHeader | GgufError:
        """Of the weights of an Ollama model. Never raises."""
        found = self.weights(tag, home)
        return found if isinstance(found, GgufError) else self.read([found])

    def weights(self, tag: Tag, home: str | None) -> str | GgufError:
        """Path of the weights of an Ollama model, by its manifest. Never raises."""
        folder, name = tag
        folder = folder or (f"{home}/.ollama/models" if home else "")
        if not folder:
            return GgufError("broken", "HOME is not set: where Ollama keeps its models is not known")
        model, _, version = name.rpartition(":")
        places = model.split("/")
        whole = [*("registry.ollama.ai", "library")[: max(0, 3 - len(places))], *places]
        if any(part in ("", ".", "..") for part in (*whole, version)):
            return GgufError("broken", f"{name!r} is no name of a model")
        manifest = f"{folder}/manifests/{'/'.join(whole)}/{version}"
        try:
            layers = json.loads(self.small(manifest, MANIFEST))["layers"]
            digests = [
                str(layer["digest"])
                for layer in layers
                if str(layer.get("mediaType", "")).endswith("ollama.image.model")
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return GgufError("broken", f"{manifest}: {_why(error)}")
        if len(digests) != 1 or not digests[0].removeprefix("sha256:").isalnum():
            return GgufError("unsupported", f"{manifest} does not name one file of weights")
        return f"{folder}/blobs/{digests[0].replace(':', '-')}"

    def small(self, path: str, limit: int) -> bytes:
        """All of a small regular file; OSError or ValueError."""
        fd, st = open_regular(path)
        try:
            if st.st_size > limit:
                raise ValueError(f"larger than {limit >> 10} KiB")
            return _first(fd, limit)
        finally:
            os.close(fd)

    def _kept(self, key: Hashable, make: Callable[[], T]) -> T:
        known: T | None = self.known.get(key)
        if known is None:
            known = self.known[key] = make()
            while len(self.known) > self.size:
                self.known.popitem(last=False)
        return known


def _why(error: Exception) -> str:
    return f"cannot be read: {(isinstance(error, OSError) and error.strerror) or error}"


def open_regular(path: str) -> tuple[int, os.stat_result]:
    """Of a regular file; OSError or ValueError. Never waits for a FIFO's writer."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("is not a file")
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    st = os.fstat(fd)
    if not stat.S_ISREG(st.st_mode):
        os.close(fd)
        raise ValueError("is not a file")
    return fd, st


def _read(fd: int, size: int) -> GgufHeader | GgufError:
    """OSError. A file shorter than its header says is cut off: it would crash its runtime."""
    found: GgufHeader | GgufError = GgufError("truncated", "the file is empty")
    for piece in PIECES:
        found = read_header(_first(fd, min(piece, size)))
        whole = isinstance(found, GgufHeader) or found.kind != "truncated" or piece >= size
        if whole:
            break
    else:
        return GgufError("broken", f"the header is longer than {PIECES[-1] >> 20} MiB")
    if isinstance(found, GgufError):
        return GgufError(found.kind, f"the file is cut off: {found.wrong}") if found.kind == "truncated" else found
    end = found.data_offset + found.data_bytes - (found.alignment - 1 if found.tensors else 0)
    if found.tensors and size < end:
        return GgufError(
            "truncated", f"the file is cut off: {size} bytes of {found.data_offset + found.data_bytes}; copy it again"
        )
    return found


def _safetensors(fd: int, size: int) -> tuple[HfTensor, ...] | HfError:
    length = hf.header_length(_first(fd, 8))
    if isinstance(length, HfError):
        return length
    header = _first(fd, 8 + length)[8:]
    if len(header) < length:
        return HfError(f"is cut off inside its header: {size} bytes; copy it again")
    return hf.read_tensors(header, size)


def _first(fd: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = os.pread(fd, size - len(data), len(data))
        if not piece:
            break
        data += piece
    return bytes(data)
