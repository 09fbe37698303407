"""`desired.json`: what survives the daemon. Wishes of people, ports, GPUs, and the last state that worked."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from llmsupervisor.base.ids import Json

VERSION = 1


@dataclass
class Wish:
    """One service. `stopped_by` set: a person stopped it, during the boot `stopped_boot`."""

    stopped_by: str = ""
    stopped_boot: str = ""
    port: int | None = None
    gpu_words: list[Json] = field(default_factory=list)
    gpus: list[str] = field(default_factory=list)
    ready_run: str = ""
    """Run id that became READY: adopted as READY by the next daemon."""
    told_run: str = ""
    """Run id whose end, while no daemon watched, was told."""
    rejected: dict[str, Json] | None = None
    """A `wanted` of the spec that did not become READY: not tried again until it changes or a person asks."""
    good: dict[str, Json] | None = None
    """The last `wanted` that became READY."""
    ready_at: float | None = None
    """Unix seconds: when `ready_run` became READY."""
    load_s: float | None = None
    """Seconds that the last start took until READY."""
    vram: dict[str, Any] | None = None
    """`gpus`: UUID → bytes that it held when it last was READY; `of`: hash of what it was started with."""
    made: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of an Ollama: tag of ours → `file`, `identity` and `sha256` of the GGUF that it was made from. No `file`: made by us from a model
    that the engine had. A `file` without `sha256`: it was there, nobody saw how it was made."""
    unloaded_boot: str = ""
    """During this boot it was unloaded, and waits for a demand."""


@dataclass
class GpuWish:
    """One GPU, during the boot `boot`."""

    lent: dict[str, Any] | None = None
    """`by`, `since`, `until` (Unix seconds; None: until it is taken back)."""
    quarantine: dict[str, Any] | None = None
    """`reason`, `since`, `lost`: what ran there cannot go on."""
    boot: str = ""


@dataclass
class Desired:
    generation: int = 0
    spec_path: str = ""
    down: bool = False
    """A `down` was begun and not finished."""
    services: dict[str, Wish] = field(default_factory=dict)
    gpus: dict[str, GpuWish] = field(default_factory=dict)
    """By UUID: those that are lent or quarantined."""

    def wish(self, name: str) -> Wish:
        return self.services.setdefault(name, Wish())

    def made_from(self) -> dict[str, str]:
        """Identities of files → SHA-256, where one is known."""
        made = [one for wish in self.services.values() for one in wish.made.values()]
        return {one["identity"]: one["sha256"] for one in made if one["identity"] and one["sha256"]}

    def to_json(self) -> dict[str, Any]:
        return {"v": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Desired:
        known = {f.name for f in fields(Wish)}
        services = {
            name: Wish(**{k: v for k, v in wish.items() if k in known})
            for name, wish in dict(data.get("services") or {}).items()
        }
        of_gpu = {f.name for f in fields(GpuWish)}
        gpus = {
            uuid: GpuWish(**{k: v for k, v in wish.items() if k in of_gpu})
            for uuid, wish in dict(data.get("gpus") or {}).items()
        }
        return cls(
            generation=int(data.get("generation") or 0),
            spec_path=str(data.get("spec_path") or ""),
            down=bool(data.get("down")),
            services=services,
            gpus=gpus,
        )
