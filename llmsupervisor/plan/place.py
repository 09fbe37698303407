"""Which cards a service gets: the spec's words to UUIDs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmsupervisor.base.ids import Json
from llmsupervisor.plan.facts import Facts, GpuFact
from llmsupervisor.plan.launch import Refusal
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.spec.model import Service


@dataclass(frozen=True, slots=True)
class Placed:
    gpus: tuple[GpuFact, ...] = ()
    refusals: tuple[Refusal, ...] = ()


def gpu_words(service: Service) -> list[Json]:
    """`gpus` as said, for keeping beside the UUIDs that it meant."""
    if service.gpus == "auto":
        return ["auto"]
    return list(service.gpus or ())


def place(
    name: str, service: Service, definition: Definition, facts: Facts, left: Mapping[str, int] | None = None
) -> Placed:
    """An index means the card that it meant when it was first applied; `auto` takes the card with the most memory left
    (`left`: UUID → bytes), at its first apply too.
    """
    if service.gpus is None:
        return _not_said(name, definition, facts)
    words = gpu_words(service)
    if not words:
        return Placed()
    key = f"services.{name}.gpus"
    if facts.gpus is None:
        return _refused(f"{key} asks for {_said(words)}, but {_unreadable(facts)}")
    if not facts.gpus:
        why = f" ({facts.gpu_error})" if facts.gpu_error else ""
        return _refused(f"{key} asks for {_said(words)}, but this box has no GPU{why}; `gpus = []` runs on the CPU")
    kept = facts.kept_gpus.get(name, ())
    if facts.kept_gpu_words.get(name, words) != words:
        kept = ()
    here = {gpu.uuid: gpu for gpu in facts.gpus}
    if words == ["auto"]:
        return _auto(key, kept, here, left or {})
    chosen: list[GpuFact] = []
    for place_in_list, word in enumerate(words):
        before = kept[place_in_list] if len(kept) == len(words) else None
        found = _one(key, word, before, here)
        if isinstance(found, str):
            return _refused(found)
        if found in chosen:
            return _refused(f"{key} names {_card(found)} twice")
        chosen.append(found)
    return Placed(tuple(chosen))


def _not_said(name: str, definition: Definition, facts: Facts) -> Placed:
    key = f"services.{name}.gpus"
    if definition.gpu is None or facts.gpus == ():
        return Placed()
    if facts.gpus is None:
        return _refused(f"{key} is not said, and {_unreadable(facts)}; `gpus = []` runs on the CPU")
    return _refused(
        f"{key} is not said, and this box has {_list(facts.gpus)}: write `gpus = [0]`, or `gpus = []` for the CPU"
    )


def _auto(key: str, kept: tuple[str, ...], here: dict[str, GpuFact], left: Mapping[str, int]) -> Placed:
    if kept:
        if kept[0] in here:
            return Placed((here[kept[0]],))
        return _refused(f'{key} = "auto" was given {kept[0]}, which is not on this box now; {_there(here)}')
    return Placed((max(here.values(), key=lambda gpu: (left.get(gpu.uuid, gpu.memory_total or 0), -gpu.index)),))


def _one(key: str, word: Json, before: str | None, here: dict[str, GpuFact]) -> GpuFact | str:
    """The card, or the sentence that says why there is none."""
    if isinstance(word, int):
        now = next((gpu for gpu in here.values() if gpu.index == word), None)
        if before is not None:
            if before in here:
                return here[before]
            other = f", and index {word} is now {_card(now)}" if now else ""
            return f"{key}: index {word} meant {before}, which is not on this box now{other}; write the UUID of the card to take"
        return now or f"{key}: no GPU has index {word}; {_there(here)}"
    matches = [gpu for uuid, gpu in here.items() if uuid == word or uuid.removeprefix("GPU-") == word]
    return matches[0] if matches else f"{key}: no GPU has the UUID {word}; {_there(here)}"


def _refused(text: str) -> Placed:
    return Placed(refusals=(Refusal("gpu", text, "gpu"),))


def _unreadable(facts: Facts) -> str:
    return f"the GPUs of this box cannot be read: {facts.gpu_error or 'NVML does not answer'}"


def _said(words: list[Json]) -> str:
    return ", ".join(str(w) for w in words)


def _card(gpu: GpuFact) -> str:
    return f"GPU {gpu.index} ({gpu.name}, {gpu.uuid})"


def _list(gpus: tuple[GpuFact, ...]) -> str:
    return ", ".join(_card(gpu) for gpu in sorted(gpus, key=lambda gpu: gpu.index))


def _there(here: dict[str, GpuFact]) -> str:
    return f"this box has {_list(tuple(here.values()))}"
