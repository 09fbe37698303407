"""The names that requests may use for a model: of services, aliases, `names` and Ollama's models."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping

from llmsupervisor.base.errors import Problem
from llmsupervisor.spec.guide import example
from llmsupervisor.spec.locate import Path
from llmsupervisor.spec.model import Name, Service
from llmsupervisor.spec.near import near
from llmsupervisor.spec.translate import Finding, toml

LONGEST = 200
"""Characters of a name."""
OURS = frozenset({"model", "stream", "messages", "prompt", "input"})
"""Keys of a request that no policy touches: what is asked, of whom, and in which form the answer comes."""


def names_of(name: str, service: Service) -> tuple[str, ...]:
    """Every name that a service answers to, its own first."""
    models = (model.name for model in service.models or ())
    return tuple(dict.fromkeys((name, *service.aliases, *service.names, *models)))


def all_names(services: Mapping[str, Service]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(n for name, service in services.items() for n in names_of(name, service)))


# --- one service --------------------------------------------------------------------------------------------------


def policies(service: Service) -> Iterator[Finding]:
    """Paths are those inside the service."""
    for index, alias in enumerate(service.aliases):
        yield from _readable(("aliases", index), alias)
    for name, policy in service.names.items():
        at: Path = ("names", name)
        yield from _readable(at, name)
        yield from _policy(at, policy)
        if name in service.aliases:
            wrong = f"{toml(name)} stands in aliases too"
            yield Finding(at, Problem("", wrong, "one of the two"))


def _readable(at: Path, name: str) -> Iterator[Finding]:
    unseen = any(unicodedata.category(c) in _UNSEEN for c in name)
    if not 0 < len(name) <= LONGEST or name != name.strip() or unseen:
        wrong = f"{toml(name)} cannot be the name of a model"
        yield Finding(at, Problem("", wrong, f"1 to {LONGEST} visible characters, no space at its ends"))


_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def _policy(at: Path, policy: Name) -> Iterator[Finding]:
    keys: list[tuple[Path, str]] = [((*at, "set", key), key) for key in policy.set]
    keys += [((*at, "strip", index), key) for index, key in enumerate(policy.strip)]
    for path, key in keys:
        if key in OURS:
            wrong = f"{key} is the request itself and is left as it is"
            yield Finding(path, Problem("", wrong, f"any key but {', '.join(sorted(OURS))}"))
    for index, key in enumerate(policy.strip):
        if key in policy.set:
            wrong = f"{toml(key)} is also set: setting replaces what the client said"
            yield Finding((*at, "strip", index), Problem("", wrong, "one of the two"))
    for path, value in _leaves((*at, "set"), policy.set):
        if not (isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))):
            yield Finding(path, Problem("", f"{toml(value)} does not exist in JSON", example=example(Name, "set")))


def _leaves(path: Path, value: object) -> Iterator[tuple[Path, object]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves((*path, key), inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves((*path, index), inner)
    else:
        yield path, value


# --- several services ---------------------------------------------------------------------------------------------


def clashes(services: Mapping[str, Service]) -> Iterator[Finding]:
    """Aliases may repeat (replicas); the names of services and the keys of `names` may not."""
    owners: dict[str, str] = {}
    aliases = {alias for service in services.values() for alias in _shared(service)}
    for name, service in services.items():
        at: Path = ("services", name)
        for index, alias in enumerate(service.aliases):
            if alias in services and alias != name:
                wrong = f"{toml(alias)} is the name of a service"
                allowed = "a name that is no service's; several services may share an alias"
                yield Finding((*at, "aliases", index), Problem("", wrong, allowed))
        for extra in service.names:
            first = owners.setdefault(extra, name)
            wrong = ""
            if extra in services:
                wrong = f"{toml(extra)} is the name of a service"
            elif first != name:
                wrong = f"{toml(extra)} is also a name of services.{first}"
            elif extra in aliases and extra not in service.aliases:
                wrong = f"{toml(extra)} is also an alias or a model of another service"
            if wrong:
                yield Finding((*at, "names", extra), Problem("", wrong, "a name that nobody else has"))
        yield from _overflow((*at, "overflow"), name, service, services)


def _shared(service: Service) -> tuple[str, ...]:
    return (*service.aliases, *(model.name for model in service.models or ()))


def _overflow(at: Path, name: str, service: Service, services: Mapping[str, Service]) -> Iterator[Finding]:
    """Each step leads to a larger context: there are no circles."""
    wanted = service.overflow
    if wanted is None:
        return
    others = [other for other, found in services.items() if other != name and found.enabled]
    known = ", ".join(map(toml, others)) or "none: there is no other service"
    if wanted == name:
        yield Finding(at, Problem("", "a service cannot take its own overflow", known))
        return
    target = services.get(wanted)
    if target is None:
        meant = near(wanted, others)
        wrong = f"there is no service {toml(wanted)}"
        yield Finding(at, Problem("", wrong, known, toml(meant) if meant else ""))
    elif not target.enabled:
        yield Finding(at, Problem("", f"services.{wanted} is not enabled", known))
    elif target.task != service.task:
        yield Finding(at, Problem("", f"services.{wanted} does {target.task}, not {service.task}"))
    else:
        own, larger = max(_contexts(service), default=0), min(_contexts(target), default=0)
        if not own or not larger:
            lacks = wanted if own else name
            wrong = f"services.{lacks} says no context_length: what fits where cannot be told"
            yield Finding(at, Problem("", wrong, example=example(Service, "context_length")))
        elif larger <= own:
            wrong = f"services.{wanted} has context_length {larger}, which is not more than {own}"
            yield Finding(at, Problem("", wrong, "a service with a larger context_length"))


def _contexts(service: Service) -> list[int]:
    own = [service.context_length] if service.context_length else []
    return own or [model.context_length for model in service.models or ()]
