"""A command line in the making: arguments and environment, each item with the origin that `plan` shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from llmsupervisor.base.ids import Json

OriginKind = Literal["spec", "defaults", "production default", "definition", "derived", "allow-list"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Why an item is there: `spec configs/demo.toml:12`, `production default`, `derived 2048 × 4`."""

    kind: OriginKind
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.detail}".rstrip()


TEMPORARY = "{tmp}"
"""Value of a variable of a definition: a folder of the run for temporary files, which goes with it."""


@dataclass(frozen=True, slots=True)
class Arg:
    """One flag with its value, or a bare word."""

    words: tuple[str, ...]
    origin: Origin
    setting: str = ""


@dataclass(frozen=True, slots=True)
class EnvVar:
    """`secret` names where the value comes from (`file:/path`, `env:NAME`, `generated`); `value` is then `secret:NAME@hash8`."""

    name: str
    value: str
    origin: Origin
    secret: str = ""


@dataclass(frozen=True, slots=True)
class Given:
    """What a plan hands to `render`: everything that neither the spec nor the definition says."""

    name: str
    host: str
    port: int
    executable: str
    """Resolved path of the first word of `command_words`."""
    gpus: tuple[tuple[str, int], ...] = ()
    """(UUID, index); empty: on the CPU."""
    gpu_totals: tuple[int | None, ...] = ()
    """Bytes of each GPU, None = unknown."""
    kv_cache_bytes: int | None = None
    """Per GPU, computed from `kv_tokens`; None = not known."""
    origins: Mapping[str, Origin] = field(default_factory=dict)
    """Key of the service → where the spec said it."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """The allow-listed part of the daemon's environment."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Environment name → hash8 of its value; an unreadable one is missing."""
    cpus: int = 1

    def origin(self, key: str) -> Origin:
        return self.origins.get(key, Origin("spec"))


@dataclass(frozen=True, slots=True)
class Rendered:
    argv: tuple[Arg, ...]
    env: tuple[EnvVar, ...]
    """In the order of their names."""
    asked: dict[str, Json]
    """What the engine is asked for, under the names that the adapter's `got` uses."""
    warnings: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(word for arg in self.argv for word in arg.words)
