"""What the text alone can tell beyond types: names, clashes, references."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from llmsupervisor.base.errors import Problem
from llmsupervisor.base.ids import ENV_NAME, SERVICE_NAME
from llmsupervisor.spec.gateway import gateway, one_source
from llmsupervisor.spec.guide import example
from llmsupervisor.spec.locate import Path
from llmsupervisor.spec.model import Service, Spec, port_range
from llmsupervisor.spec.names import clashes, policies
from llmsupervisor.spec.translate import Finding, mismatch, toml

OWNED_ENV = {
    **dict.fromkeys(
        ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
        "the setting gpus owns it: write gpus = [0]",
    ),
    **dict.fromkeys(
        ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"), "listening sockets are the daemon's: write port = 8081"
    ),
    **dict.fromkeys(
        ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"),
        "it is between systemd and the daemon: readiness is set by ready",
    ),
}
"""Environment variables that are ours to set or to keep away, and which setting owns them."""

_CONTROL = re.compile(r"[\0\r\n]")
_CPUS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def service_name(name: str) -> Iterator[Finding]:
    if not SERVICE_NAME.fullmatch(name):
        yield Finding(
            ("services", name),
            Problem(
                "",
                f"{toml(name)} cannot be the name of a service",
                "1 to 63 of a-z 0-9 . _ -, the first a letter or digit",
                "",
                "[services.chat]",
            ),
        )


def service(value: Service, foreign: Mapping[str, str]) -> Iterator[Finding]:
    """Paths are those inside the service."""
    if value.model is not None and value.models is not None:
        yield Finding(("models",), Problem("", "model and models exclude each other", "one of the two"))
    if value.command is not None and value.venv is not None:
        yield Finding(("venv",), Problem("", "command and venv exclude each other", "one of the two"))
    gpus = value.gpus if isinstance(value.gpus, tuple) else ()
    yield from _repeated("gpus", gpus)
    yield from _whole_cards(gpus)
    yield from _repeated("aliases", value.aliases)
    yield from _repeated("models", tuple(model.name for model in value.models or ()))
    if value.cpus is not None and not all(map(_cpus, value.cpus.split(","))):
        yield Finding(("cpus",), mismatch("a list of CPUs as text", value.cpus, example(Service, "cpus")))
    if value.ready is not None and not value.ready.startswith("/"):
        yield Finding(("ready",), mismatch("a path that starts with /", value.ready, example(Service, "ready")))
    yield from policies(value)
    yield from _environment(value, foreign)
    yield from _one_line(value)


def _cpus(part: str) -> bool:
    """`8`, or `0-3`."""
    match = _CPUS.fullmatch(part)
    return match is not None and int(match[1]) <= int(match[2] or match[1])


def _repeated(key: str, values: tuple[object, ...]) -> Iterator[Finding]:
    for index, value in enumerate(values):
        if value in values[:index]:
            yield Finding((key, index), Problem("", f"{toml(value)} stands here twice", "each one once"))


def _whole_cards(gpus: tuple[int | str, ...]) -> Iterator[Finding]:
    for index, word in enumerate(gpus):
        if str(word).upper().startswith("MIG-"):
            wrong = f"{toml(word)} is a MIG instance, and those are shown but not served"
            allowed = "a whole card: its index, or the UUID (GPU-…) that `llmsupervisor gpus` prints"
            yield Finding(("gpus", index), Problem("", wrong, allowed, "", "gpus = [0]"))


def _environment(value: Service, foreign: Mapping[str, str]) -> Iterator[Finding]:
    for key, names in (("env", tuple(value.env)), ("secret_env", tuple(value.secret_env))):
        for name in names:
            if not ENV_NAME.fullmatch(name):
                yield Finding(
                    (key, name),
                    Problem(
                        "",
                        f"{toml(name)} cannot be the name of an environment variable",
                        "letters, digits and _, the first no digit",
                    ),
                )
            elif owner := OWNED_ENV.get(name):
                yield Finding((key, name), Problem("", f"{name} cannot be set here; {owner}"))
            elif (setting := foreign.get(name, "")) in Service.model_fields:
                yield Finding(
                    (key, name),
                    Problem(
                        "", f"the setting {setting} owns {name}", nearest=setting, example=example(Service, setting)
                    ),
                )
    for name, secret in value.secret_env.items():
        if name in value.env:
            yield Finding(("secret_env", name), Problem("", f"{name} also stands in env", "one of the two"))
        yield from one_source(("secret_env", name), secret)


def _one_line(value: Service) -> Iterator[Finding]:
    for name, text in value.env.items():
        if "\0" in text:
            yield Finding(("env", name), Problem("", "a NUL character cannot be passed to a program"))
    said = value.model_dump(exclude={"env", "aliases", "names"}, exclude_unset=True)
    for path, text in _texts((), said):
        if _CONTROL.search(text):
            yield Finding(path, Problem("", "the text contains a line break or a NUL character", "text on one line"))


def _texts(path: Path, value: object) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts((*path, key), inner)
    elif isinstance(value, tuple):
        for index, inner in enumerate(value):
            yield from _texts((*path, index), inner)


def across(services: Mapping[str, Service]) -> Iterator[Finding]:
    """What concerns two services."""
    ports: dict[int, str] = {}
    for name, value in services.items():
        if value.port is not None and value.enabled:
            first = ports.setdefault(value.port, name)
            if first != name:
                yield Finding(
                    ("services", name, "port"),
                    Problem(
                        "", f"port {value.port} is also that of services.{first}", "each port once; leave port out"
                    ),
                )
    yield from clashes(services)


def whole(spec: Spec) -> Iterator[Finding]:
    """What concerns the file: ports, gateway. `services` as far as they are valid."""
    listens = yield from gateway(spec)
    try:
        ports = port_range(spec.ports)
    except ValueError:
        expected = "a range of ports FIRST-LAST between 1 and 65535"
        yield Finding(("ports",), mismatch(expected, spec.ports, example(Spec, "ports")))
        return
    if listens in ports:
        yield Finding(
            ("gateway", "listen"), Problem("", f"port {listens} lies in ports ({spec.ports})", "a port outside of it")
        )
    automatic = 0
    for name, value in spec.services.items():
        automatic += value.enabled and value.port is None
        if value.port is not None and value.port == listens:
            yield Finding(
                ("services", name, "port"), Problem("", f"port {listens} is that of gateway.listen", "another port")
            )
        if value.port in ports:
            wrong = f"port {value.port} lies in ports ({spec.ports}), from which services without port get theirs"
            yield Finding(("services", name, "port"), Problem("", wrong, "a port outside of it, or no port"))
    if automatic > len(ports):
        wrong = f"{toml(spec.ports)} holds {len(ports)} ports for {automatic} services"
        yield Finding(("ports",), Problem("", wrong, "at least one port per service", "", example(Spec, "ports")))
