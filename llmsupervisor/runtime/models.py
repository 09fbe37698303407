"""The models of a service that loads them by itself (Ollama): what each is to be, the calls that make it so, and what the
answers are worth. Calls are described here and never made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

from llmsupervisor.runtime.engine import Call
from llmsupervisor.spec.model import OllamaModel, Service

_FROM = re.compile(r"^FROM (\S.*)$", re.MULTILINE)
_NUM_CTX = re.compile(r"^num_ctx\s+(\d+)$", re.MULTILINE)
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_STARTING = 'msg="starting llama-server"'
_ENDED = 'msg="llama-server terminated"'
_LOAD_FAILED = 'msg="Load failed" model='
_COMPLAINT = re.compile(
    r"^.*(?:error while handling argument|error: |error loading model|GGML_ASSERT|CUDA error|out of memory|failed to allocate).*$",
    re.MULTILINE,
)
_NO_GPU = re.compile(r'msg="inference compute" .*library=cpu')
_LASTING = re.compile(r"not found|invalid model name|no such file|unsupported|not supported|does not support|digest")
LATEST = "latest"


def tag(model: str) -> str:
    """`smol` is `smol:latest`."""
    return model if ":" in model.rsplit("/", 1)[-1] else f"{model}:{LATEST}"


def canonical(name: str) -> str:
    """The same of all names of one model: Ollama takes letters in either case for one (`getExistingName`,
    server/routes.go), and its own host and namespace may be left out (types/model/name.go)."""
    return tag(name).casefold().removeprefix("registry.ollama.ai/").removeprefix("library/")


@dataclass(frozen=True, slots=True)
class Model:
    """`tag` is what the engine calls it: a name of ours, so that no model of the user is changed."""

    name: str
    tag: str
    context_length: int
    keep_alive: float | None
    preload: bool
    file: str
    """The GGUF that it is made from; empty: the engine's model `name`."""
    pull: bool
    task: str

    @property
    def base(self) -> str:
        return tag(self.name)

    def other_than(self, old: Model) -> str:
        """Why it is made anew, in words."""
        if self.context_length != old.context_length:
            return f"context_length {old.context_length} → {self.context_length}"
        return f"file {old.file or 'none'} → {self.file or 'none'}"


def model_of(said: OllamaModel, service: Service) -> Model:
    return Model(
        name=said.name,
        tag=f"{tag(said.name)}-ctx{said.context_length}",
        context_length=said.context_length,
        keep_alive=said.keep_alive,
        preload=said.preload,
        file=said.file or "",
        pull=said.pull,
        task=service.task,
    )


# --- calls --------------------------------------------------------------------------------------------------------


def show(name: str) -> Call:
    return Call("POST", "/api/show", {"model": name})


def blob(digest: str) -> Call:
    """200: the engine has it."""
    return Call("HEAD", f"/api/blobs/sha256:{digest}")


def upload(digest: str, file: str) -> Call:
    return Call("POST", f"/api/blobs/sha256:{digest}", file=file)


def pull(model: Model) -> Call:
    return Call("POST", "/api/pull", {"model": model.base, "stream": True})


def create(model: Model, digest: str = "") -> Call:
    """Copies nothing: only the parameters are new. A base that is missing would be pulled: it is looked for before."""
    made_of: dict[str, Any] = {"files": {PurePosixPath(model.file).name: f"sha256:{digest}"}}
    source = made_of if model.file else {"from": model.base}
    parameters = {"num_ctx": model.context_length}
    return Call("POST", "/api/create", {"model": model.tag, **source, "parameters": parameters, "stream": True})


def load(model: Model) -> Call:
    """With no options, like the traffic: those of the tag hold for both."""
    return Call("POST", _road(model.task), {"model": model.tag, "keep_alive": -1})


def unload(tag: str, task: str) -> Call:
    """Of its weights, whichever tag they were loaded by."""
    return Call("POST", _road(task), {"model": tag, "keep_alive": 0})


def delete(name: str) -> Call:
    return Call("DELETE", "/api/delete", {"model": name})


def _road(task: str) -> str:
    return "/api/embed" if task == "embed" else "/api/generate"


# --- answers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shown:
    """Of `/api/show`. `blob`: the name of the file of its weights."""

    blob: str = ""
    context_length: int | None = None


def shown(body: Any) -> Shown:
    body = body if isinstance(body, dict) else {}
    origin = _FROM.findall(str(body.get("modelfile") or ""))
    context = _NUM_CTX.findall(str(body.get("parameters") or ""))
    return Shown(PurePosixPath(origin[-1]).name if origin else "", int(context[-1]) if context else None)


@dataclass(frozen=True, slots=True)
class Progress:
    """Of a create, an upload or a pull; bytes."""

    status: str
    completed: int | None = None
    total: int | None = None


def progress(line: Any) -> Progress | str:
    """Of one line of a streamed answer; a text: what it failed of."""
    line = line if isinstance(line, dict) else {}
    if error := line.get("error"):
        return str(error)
    done, total = line.get("completed"), line.get("total")
    return Progress(
        str(line.get("status") or ""),
        done if isinstance(done, int) else (0 if isinstance(total, int) else None),
        total if isinstance(total, int) else None,
    )


def lasting(status: int | None, text: str) -> bool:
    """The same call would fail again until somebody changes the spec or the box."""
    return status is not None and 400 <= status < 500 and status not in (408, 429, 499) and bool(_LASTING.search(text))


# --- runners ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunnerArgs:
    """What the command line of a runner says of it. `context_length` is that of one slot."""

    blob: str
    port: int
    context_length: int | None
    parallel: int | None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def runner_of(argv: Sequence[str]) -> RunnerArgs | None:
    """None: no process that has a model. Those that look for GPUs have none."""
    said: Mapping[str, str] = dict(pairwise(argv))
    if "--model" not in said or not said.get("--port", "").isdigit():
        return None
    context, parallel = (int(v) if (v := said.get(flag, "")).isdigit() else None for flag in ("-c", "-np"))
    slots = parallel or 1
    return RunnerArgs(
        PurePosixPath(said["--model"]).name,
        int(said["--port"]),
        None if context is None else context // slots,
        parallel,
    )


@dataclass(frozen=True, slots=True)
class Offload:
    """Layers on the GPU. `no_gpu`: the engine found none."""

    some: int | None = None
    every: int | None = None
    no_gpu: bool = False

    def missing(self) -> str:
        """Why it is not as asked, where all layers were to be on the GPU; empty: nothing against it."""
        if self.every is not None and self.some == self.every:
            return ""
        if self.every is not None:
            return f"asked {self.every}/{self.every} layers on the GPU, got {self.some}"
        return "asked all layers on the GPU, got none: the engine found no GPU" if self.no_gpu else ""


def offload(log_text: str, port: int) -> Offload:
    """Of the load that started a runner on `port`: what stands from there to the next start."""
    found = _OFFLOADED.findall(load_of(log_text, port))
    some, every = (int(found[-1][0]), int(found[-1][1])) if found else (None, None)
    return Offload(some, every, no_gpu=bool(_NO_GPU.search(log_text)))


def load_of(log_text: str, port: int) -> str:
    """The part of a log in which the runner on `port` was loaded; loads come one after the other."""
    start = log_text.rfind(f"--port {port} ")
    return log_text[start:].partition(_STARTING)[0] if start >= 0 else ""


def load_error(log_text: str, blob: str) -> str | None:
    """Why the last load of these weights failed, in the words of the runner: the engine tells its clients no more than a code
    of some. Empty: it did not say; None: no end of a load stands there."""
    matches = list(re.finditer(rf"{_LOAD_FAILED}\S*{re.escape(blob)}\b", log_text)) if blob else []
    if not matches:
        return None
    said = _COMPLAINT.findall(log_text[: matches[-1].start()].rpartition(_STARTING)[2])
    return said[-1].strip() if said else ""


def in_memory(body: Any, name: str) -> tuple[int, int] | None:
    """Bytes of a loaded model, and those of them on GPUs, as `/api/ps` says: a hint only."""
    rows = body.get("models") if isinstance(body, dict) else None
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and canonical(str(row.get("name"))) == canonical(name):
            size, vram = row.get("size"), row.get("size_vram", 0)
            return (size, vram) if isinstance(size, int) and isinstance(vram, int) else None
    return None


def ended_by_engine(line: str) -> bool:
    """The engine says so of each runner that it ends itself, at level ERROR; one that dies is not mentioned."""
    return _ENDED in line
