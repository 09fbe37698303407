"""Relative paths in a spec start at the folder in which it lies; `~/` is the home of the daemon's user."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TypeVar

from llmsupervisor.spec.model import Gateway, Secret, Service, Spec

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_Secret = TypeVar("_Secret", bound=Secret)
_TEMPLATE_NAME = re.compile(r"[\w.-]+(?<!\.jinja)")


def resolve(spec: Spec, folder: PurePosixPath, home: PurePosixPath) -> Spec:
    """`folder` is absolute. Names stay as they are: of a Hugging Face model (`org/name`), of a built-in chat template."""
    services = {name: resolve_service(service, folder, home) for name, service in spec.services.items()}
    gateway = resolve_gateway(spec.gateway, folder, home) if spec.gateway else None
    return spec.model_copy(update={"services": services, "gateway": gateway})


def resolve_gateway(gateway: Gateway, folder: PurePosixPath, home: PurePosixPath) -> Gateway:
    keys = {name: _secret(key, folder, home) for name, key in gateway.keys.items()}
    return gateway.model_copy(update={"keys": keys})


def _path(text: str, folder: PurePosixPath, home: PurePosixPath) -> str:
    return str(home / text[2:] if text.startswith("~/") else folder / text)


def _secret(value: _Secret, folder: PurePosixPath, home: PurePosixPath) -> _Secret:
    return value.model_copy(update={"file": _path(value.file, folder, home)}) if value.file else value


def resolve_service(service: Service, folder: PurePosixPath, home: PurePosixPath) -> Service:
    def path(text: str) -> str:
        return _path(text, folder, home)

    update: dict[str, object] = {
        key: path(value) for key in ("mmproj", "draft", "venv", "cwd") if (value := getattr(service, key)) is not None
    }
    if service.model and (service.model.endswith(".gguf") or not _HUB_NAME.fullmatch(service.model)):
        update["model"] = path(service.model)
    if service.chat_template and not _TEMPLATE_NAME.fullmatch(service.chat_template):
        update["chat_template"] = path(service.chat_template)
    if service.models:
        files = [(m, path(m.file)) if m.file else (m, None) for m in service.models]
        update["models"] = tuple(m.model_copy(update={"file": file}) if file else m for m, file in files)
    if service.lora:
        update["lora"] = tuple(map(path, service.lora))
    if service.command and "/" in service.command[0]:
        update["command"] = (path(service.command[0]), *service.command[1:])
    if service.secret_env:
        update["secret_env"] = {name: _secret(value, folder, home) for name, value in service.secret_env.items()}
    return service.model_copy(update=update)
