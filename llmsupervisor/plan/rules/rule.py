"""What a rule is, and what it may look at."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from llmsupervisor.base.ids import Json
from llmsupervisor.plan.facts import Facts, GpuFact, executable_of
from llmsupervisor.plan.launch import Plan, ServicePlan
from llmsupervisor.plan.observed import SOME, Seen
from llmsupervisor.plan.place import gpu_words
from llmsupervisor.spec.locate import Path
from llmsupervisor.spec.model import Gateway

Severity = Literal["error", "warning", "info"]
"""error: the start fails, requests fail, or answers are wrong. warning: it works, and will hurt. info: worth knowing."""

LLAMA, OLLAMA, VLLM = "llama_server", "ollama", "vllm"
"""Adapters: a user's own definition that uses one is looked at like ours."""
ENGINES = (LLAMA, OLLAMA, VLLM)


@dataclass(frozen=True, slots=True)
class Edit:
    """One change inside `[services.NAME]`; `value` None takes the key, or the element of a list, out."""

    path: Path
    value: Json = None


@dataclass(frozen=True, slots=True)
class Hit:
    """What a rule found in one service."""

    key: str
    """The setting to turn."""
    says: str
    """One sentence with the numbers of this spec."""
    change: str
    """What to write."""
    evidence: Mapping[str, Json] = field(default_factory=dict)
    """Settings and facts that it is read from."""
    fix: tuple[Edit, ...] = ()
    """The change as edits; those of a list from its end on."""
    judgement: bool = False
    """The edits are one good choice among others: advice stages them, `check --fix` leaves them to people."""
    effect: str = ""
    """Of the change, with the numbers of this spec; empty: what the rule says of it."""
    requests: int | None = None
    """Recorded requests that it rests on; None: on the plan alone."""


@dataclass(frozen=True, slots=True)
class Box:
    """Every service of the plan, and the facts that it was made with."""

    plan: Plan
    facts: Facts
    seen: Mapping[str, tuple[Seen, ...]] = field(default_factory=dict)
    """Of services, per model, what recorded requests say."""
    gateway: Gateway | None = None
    """None: the spec has none, or nobody said."""

    def cards(self, plan: ServicePlan) -> tuple[GpuFact, ...]:
        return tuple(gpu for gpu in self.facts.gpus or () if gpu.uuid in plan.gpus)

    def beside(self, plan: ServicePlan) -> list[ServicePlan]:
        """Other services on a GPU of this one."""
        mine = _places(plan)
        return [other for other in self.plan.services.values() if other is not plan and mine & _places(other)]


Look = Callable[[ServicePlan, Box], Iterator[Hit]]


@dataclass(frozen=True, slots=True)
class Rule:
    id: str
    name: str
    severity: Severity
    runtimes: tuple[str, ...]
    """Adapters; empty: all."""
    when: str
    """The condition, in words."""
    harm: str
    effect: str
    """What the change is worth."""
    source: str
    look: Look

    @property
    def observed(self) -> bool:
        """It looks at recorded figures; without them it is silent."""
        return self.id.startswith("R")


def rule(
    id: str, name: str, severity: Severity, *runtimes: str, when: str, harm: str, effect: str, source: str
) -> Callable[[Look], Rule]:
    return lambda look: Rule(id, name, severity, runtimes, when, harm, effect, source, look)


def observed_rule(
    id: str, name: str, severity: Severity, *runtimes: str, when: str, harm: str, effect: str, source: str,
    of: str = "requests", least: int = SOME,
) -> Callable[[Callable[[ServicePlan, Seen, Box], Hit | None]], Rule]:  # fmt: skip
    """On the records of each model of a service, where they are enough: at least `least` of the kind `of`."""

    def made(look: Callable[[ServicePlan, Seen, Box], Hit | None]) -> Rule:
        def each(plan: ServicePlan, box: Box) -> Iterator[Hit]:
            for seen in box.seen.get(plan.name, ()):
                count = getattr(seen, of)
                hit = look(plan, seen, box) if count >= least else None
                if hit is not None:
                    yield replace(hit, requests=count)

        return Rule(id, name, severity, runtimes, when, harm, effect, source, each)

    return made


def _places(plan: ServicePlan) -> set[str]:
    """UUIDs, or the words of the spec where the box has no such GPU."""
    return set(plan.gpus) or {str(word) for word in gpu_words(plan.service)} - {"auto"}


def on_gpu(plan: ServicePlan) -> bool:
    return bool(plan.gpus or plan.service.gpus)


def flag(word: str) -> str:
    """Of a word of the command line, in the spelling with dashes; empty where it is none."""
    name = word.partition("=")[0]
    return name.replace("_", "-") if name.startswith("-") else ""


def said(plan: ServicePlan, *flags: str) -> str:
    """The first of `flags` on the command line, empty where none is there."""
    return next((flag(word) for word in plan.words if flag(word) in flags), "")


def value(plan: ServicePlan, *flags: str) -> str | None:
    """Of the last of `flags` on the command line."""
    found = None
    words = plan.words
    for word, after in zip(words, (*words[1:], ""), strict=True):
        if flag(word) in flags:
            _, equals, inside = word.partition("=")
            found = inside if equals else after
    return found


def number(plan: ServicePlan, *flags: str) -> float | None:
    text = value(plan, *flags)
    return float(text) if text is not None and re.fullmatch(r"\d+(\.\d+)?", text) else None


def without(plan: ServicePlan, *flags: str) -> tuple[Edit, ...]:
    """Takes `flags` and their values out of `extra_args`."""
    words = plan.service.extra_args
    out = set()
    for index, word in enumerate(words):
        if flag(word) in flags:
            out.add(index)
            if "=" not in word and index + 1 < len(words) and not words[index + 1].startswith("-"):
                out.add(index + 1)
    if out and len(out) == len(words):
        return (Edit(("extra_args",)),)
    return tuple(Edit(("extra_args", index)) for index in sorted(out, reverse=True))


def variable(plan: ServicePlan, name: str) -> str | None:
    """Of the environment that the process gets."""
    return next((item.value for item in plan.env if item.name == name), None)


def release(plan: ServicePlan, box: Box) -> tuple[int, int] | None:
    """Of its engine's binary. None: not known, or a plain number, as builds of llama-server had before 0.6."""
    binary = box.facts.binaries.get(executable_of(plan.service, plan.definition))
    found = re.match(r"(\d+)\.(\d+)", (binary and binary.version) or "")
    return (int(found[1]), int(found[2])) if found else None


def count(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")
