"""The models folder: blobs and manifests, laid out as Ollama does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ollamafake import gguf
from ollamafake.env import rfc3339
from ollamafake.http1 import ApiError, dumps
from ollamafake.template import CHATML, CHATML_STOP

KINDS = "application/vnd.ollama.image."
DIGEST = re.compile(r"sha256[:-][0-9a-f]{64}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")


@dataclass(frozen=True)
class Name:
    host: str
    space: str
    model: str
    tag: str

    @property
    def short(self) -> str:
        if (self.host, self.space) == ("registry.ollama.ai", "library"):
            return f"{self.model}:{self.tag}"
        host = "" if self.host == "registry.ollama.ai" else f"{self.host}/"
        return f"{host}{self.space}/{self.model}:{self.tag}"

    @property
    def full(self) -> str:
        return f"{self.host}/{self.space}/{self.model}:{self.tag}"

    @property
    def path(self) -> Path:
        return Path(self.host, self.space, self.model, self.tag)


def parse(text: str) -> Name | None:
    rest = text.split("://")[-1]
    rest, _, tag = rest.rpartition(":") if ":" in rest.rsplit("/", 1)[-1] else (rest, "", "latest")
    *lead, model = rest.split("/")
    space = lead[-1] if lead else "library"
    host = lead[-2] if len(lead) > 1 else "registry.ollama.ai"
    parts = (host, space, model, tag)
    return Name(*parts) if len(lead) < 3 and all(map(_PART.fullmatch, parts)) else None


@dataclass
class Model:
    name: Name
    digest: str
    size: int
    modified: int
    weights: Path
    config: dict[str, Any]
    parent: str = ""
    template: str = ""
    system: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def gguf(self) -> gguf.Gguf:
        return gguf.load(self.weights)

    @property
    def capabilities(self) -> list[str]:
        return ["embedding"] if self.gguf.embeds else ["completion"]

    def details(self, lengths: bool = False) -> dict[str, Any]:
        found = {"parent_model": self.parent, "format": "gguf", "family": self.config["model_family"]}
        found |= {"families": self.config["model_families"], "parameter_size": self.config["model_type"]}
        found |= {"quantization_level": self.config["file_type"]}
        if lengths:
            found |= {
                "context_length": self.gguf.of("context_length"),
                "embedding_length": self.gguf.of("embedding_length"),
            }
        return found


class Store:
    def __init__(self, root: Path) -> None:
        self.root, self.blobs, self.manifests = root, root / "blobs", root / "manifests"
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.manifests.mkdir(exist_ok=True)

    # --- blobs ---

    def blob(self, digest: str) -> Path:
        return self.blobs / digest.replace(":", "-")

    def prune(self) -> int:
        """Blobs older than an hour that no manifest names."""
        used = {layer["digest"] for m in self.read() for layer in m}
        old = time.time() - 3600
        paths = (p for p in self.blobs.iterdir() if p.name.replace("-", ":") not in used and p.stat().st_mtime < old)
        return sum(1 for path in paths if not path.unlink())

    async def upload(self, digest: str, chunks: AsyncIterator[bytes]) -> bool:
        """False: it was there. A wrong digest leaves the bytes under their true one."""
        if not DIGEST.fullmatch(digest):
            raise ApiError(400, f"invalid digest format: {digest}")
        if self.blob(digest).exists():
            return False
        summed, part = hashlib.sha256(), self.blobs / f"upload-{os.getpid()}-{time.time_ns()}"
        try:
            with part.open("wb") as file:
                async for chunk in chunks:
                    summed.update(chunk)
                    file.write(chunk)
        except BaseException:
            part.unlink()
            raise
        true = f"sha256:{summed.hexdigest()}"
        part.rename(self.blob(true))
        if true != digest:
            raise ApiError(400, f'digest mismatch, expected "{digest}", got "{true}"')
        return True

    def layer(self, kind: str, data: bytes) -> tuple[dict[str, Any], str]:
        """A layer of few bytes, and what `create` says of it."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        known = self.blob(digest).exists()
        if not known:
            self.blob(digest).write_bytes(data)
        made = {"mediaType": KINDS + kind, "digest": digest, "size": len(data)}
        return made, f"{'using existing' if known else 'creating new'} layer {digest}"

    # --- manifests ---

    def read(self) -> Iterator[list[dict[str, Any]]]:
        for path in self.manifests.glob("*/*/*/*"):
            content = json.loads(path.read_text())
            yield [content["config"], *content["layers"]]

    def models(self) -> list[Model]:
        paths = self.manifests.glob("*/*/*/*")
        found = [self.get(Name(*path.relative_to(self.manifests).parts)) for path in paths]
        return sorted(filter(None, found), key=lambda m: m.modified // 10**9, reverse=True)

    def get(self, name: Name | None) -> Model | None:
        path = self.manifests / name.path if name else None
        if not name or not path or not path.is_file():
            return None
        data = path.read_bytes()
        content = json.loads(data)
        layers = {layer["mediaType"].removeprefix(KINDS): layer for layer in content["layers"]}
        texts = {kind: self.blob(layer["digest"]).read_text() for kind, layer in layers.items() if kind != "model"}
        return Model(
            name=name,
            digest=hashlib.sha256(data).hexdigest(),
            size=content["config"]["size"] + sum(layer["size"] for layer in content["layers"]),
            modified=path.stat().st_mtime_ns,
            weights=self.blob(layers["model"]["digest"]),
            config=json.loads(self.blob(content["config"]["digest"]).read_text()),
            parent=layers["model"].get("from", ""),
            template=texts.get("template", ""),
            system=texts.get("system", ""),
            parameters=json.loads(texts.get("params", "{}")),
        )

    def delete(self, name: Name) -> None:
        gone = {layer["digest"] for layer in self._layers(name)}
        (self.manifests / name.path).unlink()
        for digest in gone - {layer["digest"] for m in self.read() for layer in m}:
            self.blob(digest).unlink(missing_ok=True)

    def _layers(self, name: Name) -> list[dict[str, Any]]:
        content = json.loads((self.manifests / name.path).read_text())
        return [content["config"], *content["layers"]]

    def copy(self, source: Name, target: Name) -> None:
        self._write(target, (self.manifests / source.path).read_bytes())

    def _write(self, name: Name, data: bytes) -> None:
        path = self.manifests / name.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    # --- create ---

    def create(self, name: Name, request: dict[str, Any]) -> Iterator[str]:
        """Steps, as `/api/create` tells them. ApiError where one fails."""
        base = self.get(parse(request["from"])) if request.get("from") else None
        if base:
            layers, told = self._based(name, base, str(request["from"]))
        else:
            files = request.get("files") or {}
            if not files:
                raise ApiError(400, "neither 'from' or 'files' was specified")
            layers, told = yield from self._imported(str(next(iter(files.values()))))
        for kind in ("template", "system"):
            if request.get(kind):
                layers[kind], said = self.layer(kind, str(request[kind]).encode())
                told = [line for line in told if kind not in line] + [said]
                told = told if kind != "template" else [line for line in told if "autodetected" not in line]
        if request.get("parameters"):
            old = json.loads(self.blob(layers["params"]["digest"]).read_text()) if "params" in layers else {}
            if "params" in layers:
                told = [line for line in told if layers["params"]["digest"] not in line]
            layers["params"], said = self.layer("params", _params(old | request["parameters"]))
            told.append(said)
        yield from told
        yield "writing manifest"
        self._manifest(name, list(layers.values()))

    def _based(self, name: Name, base: Model, source: str) -> tuple[dict[str, Any], list[str]]:
        layers = {layer["mediaType"].removeprefix(KINDS): dict(layer) for layer in self._layers(base.name)[1:]}
        if name != base.name:
            layers["model"]["from"] = base.name.short
        return layers, [f"using existing layer {layer['digest']}" for layer in layers.values()]

    def _imported(self, digest: str) -> Iterator[str]:  # type: ignore[misc]
        yield "parsing GGUF"
        path = self.blob(digest)
        if not path.exists():
            raise ApiError(500, f"open {path}: no such file or directory")
        try:
            model = gguf.load(path)
        except gguf.BadModel as error:
            raise ApiError(500, str(error)) from None
        yield "verifying conversion"
        weights = {"mediaType": KINDS + "model", "digest": digest, "size": path.stat().st_size}
        known = any(layer["digest"] == digest for m in self.read() for layer in m)
        layers, told = {"model": weights}, [f"{'using existing' if known else 'creating new'} layer {digest}"]
        if "<|im_start|>" in str(model.kv.get("tokenizer.chat_template", "")):
            layers["template"], _ = self.layer("template", CHATML.encode())
            layers["params"], said = self.layer("params", _params({"stop": list(CHATML_STOP)}))
            told += ["using autodetected template chatml", said]
        return layers, told  # type: ignore[return-value]

    def _manifest(self, name: Name, layers: list[dict[str, Any]]) -> None:
        weights = next(layer for layer in layers if layer["mediaType"] == KINDS + "model")
        model = gguf.load(self.blob(weights["digest"]))
        config = {"model_format": "gguf", "model_family": model.architecture, "model_families": [model.architecture]}
        config |= {"model_type": model.human, "file_type": model.quantisation, "architecture": "amd64", "os": "linux"}
        config |= {"rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}}
        made, _ = self.layer("config", (dumps(config) + "\n").encode())
        made["mediaType"] = "application/vnd.docker.container.image.v1+json"
        content = {"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json"}
        self._write(name, (dumps(content | {"config": made, "layers": layers}) + "\n").encode())


def _params(values: dict[str, Any]) -> bytes:
    return (dumps(dict(sorted(values.items()))) + "\n").encode()


def show(model: Model, verbose: bool) -> dict[str, Any]:
    rows = [(key, item) for key, value in sorted(model.parameters.items()) for item in _items(value)]
    file = '# Modelfile generated by "ollama show"\n# To build a new Modelfile based on this, replace FROM with:\n'
    file += f"# FROM {model.name.short}\n\nFROM {model.weights}\n"
    file += f'TEMPLATE "{model.template}"\n' if model.template else ""
    file += f'SYSTEM "{model.system}"\n' if model.system else ""
    file += "".join(f"PARAMETER {key} {_shown(item, '')}\n" for key, item in rows)
    lists = None if not verbose else []
    info = {key: lists if value is None else value for key, value in sorted(model.gguf.kv.items())}
    info = {k: v for k, v in info.items() if k not in ("general.name", "tokenizer.chat_template")}
    info["general.parameter_count"] = model.gguf.parameters
    found: dict[str, Any] = {"modelfile": file}
    if rows:
        found["parameters"] = "\n".join(f"{key:<30} {_shown(item, chr(34))}" for key, item in rows)
    found |= {"template": model.template} if model.template else {}
    found |= {"system": model.system} if model.system else {}
    found |= {"details": model.details(), "model_info": dict(sorted(info.items())), "tensors": model.gguf.tensors}
    return found | {"capabilities": model.capabilities, "modified_at": rfc3339(model.modified)}


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _shown(value: Any, quote: str) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{quote}{value}{quote}"
        if isinstance(value, str)
        else str(value)
    )
