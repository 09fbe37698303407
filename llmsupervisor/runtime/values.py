"""What a setting is worth for one service: said in the spec, or our production default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmsupervisor.base.units import parse_size
from llmsupervisor.runtime.command import Given, Origin
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.spec.model import Service


@dataclass(frozen=True, slots=True)
class Value:
    value: Any
    origin: Origin


def said(key: str, service: Service) -> Any:
    """None where the spec is silent; an empty list says nothing."""
    value = getattr(service, key, None)
    return None if value == () else value


def value(key: str, service: Service, definition: Definition, given: Given) -> Value | None:
    if (wish := said(key, service)) is not None:
        return Value(wish, given.origin(key))
    default = default_of(key, definition)
    return None if default is None else Value(default, Origin("production default"))


def default_of(key: str, definition: Definition) -> Any:
    setting = definition.settings.get(key)
    if setting is None:
        return None
    if setting.unit and isinstance(setting.default, str):
        return parse_size(setting.default)
    return setting.default


def command_words(service: Service, definition: Definition) -> tuple[str, ...]:
    """Executable and leading words, before the arguments; empty where nobody says them."""
    if service.command is not None:
        return service.command if len(service.command) > 1 else (*service.command, *definition.command[1:])
    if service.venv is not None and definition.command:
        return (f"{service.venv.rstrip('/')}/bin/{definition.command[0]}", *definition.command[1:])
    return definition.command
