"""What a plan needs to know of this box, and what was found. Gathering is `host/files.py`; here are only the types
and `needs`, which names what to gather.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from llmsupervisor.base.ids import Json
from llmsupervisor.plan.gguf import GgufError, GgufHeader
from llmsupervisor.plan.hf import HfError, HfModel
from llmsupervisor.plan.learned import Lessons
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.runtime.models import tag
from llmsupervisor.spec.model import OllamaModel, Service, Spec


@dataclass(frozen=True, slots=True)
class Binary:
    """`executable` as asked, resolved. `path` is None where nothing was found; `error` says what was tried, or why
    what was found cannot be run.

    `flags` are the spellings that `--help` of this build lists; None: not checked. `version` None: unreadable.
    """

    path: str | None
    identity: str = ""
    version: str | None = None
    flags: frozenset[str] | None = None
    values: dict[str, frozenset[str]] = field(default_factory=dict)
    """Flag → allowed values, where the help lists them."""
    error: str = ""
    asked: bool = True
    """False: it was not run, and what it would say is not known from earlier."""


@dataclass(frozen=True, slots=True)
class File:
    """`kind`: file, dir, other or missing. `head` is the first KiB (magic numbers), `sha256` only where asked for."""

    kind: str
    size: int = 0
    identity: str = ""
    sha256: str | None = None
    readable: bool = True
    head: bytes = b""
    error: str = ""


@dataclass(frozen=True, slots=True)
class GpuFact:
    uuid: str
    index: int
    name: str
    memory_total: int | None
    compute_capability: tuple[int, int] | None = None
    memory_reserved: int | None = None
    """Bytes that the driver keeps for itself."""
    memory_free: int | None = None


Gguf = tuple[str, ...]
"""Path of a GGUF model, or of all parts of a split one in order."""
Tag = tuple[str, str]
"""Model of an Ollama: its folder of models (empty: the usual one) and `name:tag`."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What to gather. Binaries: (executable as said, help args, version args, version pattern)."""

    binaries: frozenset[tuple[str, tuple[str, ...], tuple[str, ...], str]] = frozenset()
    files: frozenset[str] = frozenset()
    contents: frozenset[str] = frozenset()
    """Files whose hash is wanted (templates)."""
    secrets: frozenset[tuple[str, str]] = frozenset()
    """("file", path) or ("env", NAME)."""
    ggufs: frozenset[Gguf] = frozenset()
    """Models whose headers are wanted."""
    folders: frozenset[str] = frozenset()
    """Folders of Hugging Face models, the same."""
    tags: frozenset[Tag] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            self.binaries | other.binaries,
            self.files | other.files,
            self.contents | other.contents,
            self.secrets | other.secrets,
            self.ggufs | other.ggufs,
            self.folders | other.folders,
            self.tags | other.tags,
        )


@dataclass(frozen=True, slots=True)
class Facts:
    """`gpus` None: could not be read, `gpu_error` says why; (): none, or no driver."""

    binaries: dict[str, Binary] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)
    secrets: dict[tuple[str, str], str | None] = field(default_factory=dict)
    """hash8 of the value; None: missing."""
    gpus: tuple[GpuFact, ...] | None = ()
    gpu_error: str = ""
    cpus: int = 1
    memory: int | None = None
    """Bytes of the host."""
    memory_limit: int | None = None
    """Of it what our cgroup may take; None: all."""
    memory_free: int | None = None
    """Of it what is free, or kept only as cache."""
    environ: dict[str, str] = field(default_factory=dict)
    """The allow-listed part of the daemon's environment."""
    kept_ports: dict[str, int] = field(default_factory=dict)
    """Service → port it had before: nobody moves."""
    kept_gpus: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Service → UUIDs it was first given for the same `gpus` words."""
    kept_gpu_words: dict[str, list[Json]] = field(default_factory=dict)
    """Service → the `gpus` words (`place.gpu_words`) that `kept_gpus` was given for; absent: for those of now."""
    busy_ports: frozenset[int] = frozenset()
    """TCP ports of 127.0.0.1 that somebody else holds."""
    ggufs: dict[Gguf, GgufHeader | GgufError] = field(default_factory=dict)
    folders: dict[str, HfModel | HfError] = field(default_factory=dict)
    tags: dict[Tag, GgufHeader | GgufError] = field(default_factory=dict)
    blobs: dict[Tag, str] = field(default_factory=dict)
    """Their weights, as `sha256-DIGEST`; several tags may have the same."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Identities of files that an Ollama's models were made from → SHA-256."""
    learned: Lessons = ()

    @property
    def unasked(self) -> list[str]:
        """Executables that were not run, and whose answers are not known from earlier."""
        return sorted(binary.path for binary in self.binaries.values() if binary.path and not binary.asked)


SHARD = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf")


def is_path(text: str) -> bool:
    """Paths of a resolved spec are absolute; everything else is a name (of a hub model, of a built-in template)."""
    return text.startswith("/")


def executable_of(service: Service, definition: Definition) -> str:
    """As said: `command`, else the definition's command inside `venv`, else the definition's. Empty: nobody says."""
    if service.command:
        return service.command[0]
    default = definition.command[0] if definition.command else ""
    if service.venv and default:
        return f"{service.venv.rstrip('/')}/bin/{default.rpartition('/')[2]}"
    return default


def model_files(service: Service) -> Iterator[tuple[str, str]]:
    """(setting, path) of every file that the engine loads; all parts of a split GGUF."""
    for setting, value in (("model", service.model), ("mmproj", service.mmproj), ("draft", service.draft)):
        if value and is_path(value):
            for part in parts(value):
                yield setting, part
    for path in service.lora or ():
        yield "lora", path


def gguf(path: str) -> Gguf:
    """A model by the path that the spec says."""
    return tuple(parts(path))


def parts(path: str) -> Iterator[str]:
    if (shard := SHARD.fullmatch(path)) and 0 < int(shard["parts"]) < 1000:
        for part in range(1, int(shard["parts"]) + 1):
            yield f"{shard['stem']}-{part:05d}-of-{shard['parts']}.gguf"
    else:
        yield path


def needs_of(service: Service, definition: Definition) -> Needs:
    files = {path for _, path in model_files(service)}
    if service.model and is_path(service.model):
        files.add(service.model.rstrip("/") + "/config.json")
    binaries = set()
    if name := executable_of(service, definition):
        # a wrapper's own --help says nothing about the engine behind it
        plain = not service.command or len(service.command) == 1
        version = definition.version if plain else None
        binaries.add(
            (
                name,
                definition.help if plain else (),
                version.command if version else (),
                version.pattern if version else "",
            )
        )
    llama, vllm, ollama = (definition.adapter == name for name in ("llama_server", "vllm", "ollama"))
    models = [path for path in (service.model, service.mmproj, service.draft) if path and is_path(path)]
    lora = service.lora or () if llama else ()
    imported = [model.file for model in service.models or () if model.file]
    return Needs(
        binaries=frozenset(binaries),
        files=frozenset(files | set(imported) | ({service.cwd} if service.cwd else set())),
        contents=frozenset({service.chat_template} if service.chat_template and is_path(service.chat_template) else ()),
        secrets=frozenset(secret_ref(s.file, s.env) for s in service.secret_env.values()),
        ggufs=frozenset(gguf(path) for path in [*(models if llama else ()), *lora, *imported]),
        folders=frozenset(path for path in models[:1] if vllm and service.model == path),
        tags=frozenset(tag_of(service, m.name) for m in service.models or () if ollama and not m.file),
    )


def header_of(service: Service, model: OllamaModel, facts: Facts) -> GgufHeader | GgufError | None:
    """Of the file that it is made from, else of the user's model."""
    return facts.ggufs.get(gguf(model.file)) if model.file else facts.tags.get(tag_of(service, model.name))


def weights_of(service: Service, model: OllamaModel, facts: Facts) -> str:
    """`sha256-DIGEST` of its weights, or the identity of a file that no model was made from yet; empty: nobody has seen it."""
    if not model.file:
        return facts.blobs.get(tag_of(service, model.name), "")
    file = facts.files.get(model.file)
    if file is None:
        return ""
    digest = facts.digests.get(file.identity)
    return f"sha256-{digest}" if digest else file.identity


def tag_of(service: Service, model: str) -> Tag:
    home = service.env.get("HOME")
    return service.env.get("OLLAMA_MODELS") or (f"{home}/.ollama/models" if home else ""), tag(model)


def secret_ref(file: str | None, env: str | None) -> tuple[str, str]:
    return ("file", file) if file else ("env", env or "")


def needs(spec: Spec, definitions: Mapping[str, Definition]) -> Needs:
    """What the plan of a resolved spec wants to know of this box."""
    wanted = Needs()
    for service in spec.services.values():
        if service.enabled and service.runtime in definitions:
            wanted |= needs_of(service, definitions[service.runtime])
    return wanted
