"""A service and its runtime's definition → the command line and environment, and what is wrong with the pair."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llmsupervisor.base.errors import Problem
from llmsupervisor.runtime.adapter import adapter_for
from llmsupervisor.runtime.command import Arg, EnvVar, Given, Origin, Rendered
from llmsupervisor.runtime.definition import Definition, Setting
from llmsupervisor.runtime.owned import GPU_ORDER, environment, flags, owner_of
from llmsupervisor.runtime.values import Value, command_words, said, value
from llmsupervisor.spec.model import Secret, Service
from llmsupervisor.spec.near import near

__all__ = ["Given", "Rendered", "command_words", "problems", "render"]

OWN = frozenset(
    {
        "runtime",
        "enabled",
        "aliases",
        "names",
        "listed",
        "overflow",
        "client_options",
        "task",
        "start",
        "keep_alive",
        "restart",
        "probe",
        "slo",
        "leak",
    }
    | {"start_timeout", "drain_timeout", "command", "venv", "cwd", "ready", "port", "env", "secret_env", "extra_args"}
    | {"gpus", "gpu_memory", "cpus", "gate"}
)
"""Keys of a service that mean something whatever the runtime."""
_UNIT = {"MiB": 2**20, "GiB": 2**30, "bytes": 1, "": 1}


# --- what is wrong ----------------------------------------------------------------------------------------------


def problems(name: str, service: Service, definition: Definition) -> list[Problem]:
    """Everything that text and definition decide. `file` and `line` are the caller's."""
    at = f"services.{name}"
    found = [*_command_problems(at, service, definition)]
    for key in Service.model_fields:
        setting, wish = definition.settings.get(key), said(key, service)
        if setting is None:
            if wish is not None and key not in OWN:
                found.append(_unknown(f"{at}.{key}", key, definition))
        elif wish is None:
            if setting.required:
                found.append(_missing(f"{at}.{key}", key, setting, definition))
        elif problem := _not_allowed(f"{at}.{key}", key, setting, wish, definition):
            found.append(problem)
    if definition.probe and service.task not in definition.probe:
        found.append(
            Problem(f"{at}.task", f"{definition.name} cannot do {service.task!r}", ", ".join(definition.probe))
        )
    found += _extra_problems(at, service, definition)
    found += _env_problems(at, service, definition)
    return found + adapter_for(definition).problems(name, service)


def _command_problems(at: str, service: Service, definition: Definition) -> Iterable[Problem]:
    if service.command is not None and service.venv is not None:
        yield Problem(f"{at}.venv", "venv and command both name the executable", "one of them")
    if not command_words(service, definition):
        yield Problem(
            f"{at}.command",
            f"missing: the runtime {definition.name} starts whatever it says",
            "executable and arguments; {host}, {port} and {model} are filled in",
            example='command = ["/usr/bin/server", "--port", "{port}"]',
        )


def _unknown(at: str, key: str, definition: Definition) -> Problem:
    keys = [*definition.settings, *OWN]
    return Problem(
        at,
        f"{definition.name} has no setting for it",
        ", ".join(definition.settings),
        near(key, keys),
    )


def _missing(at: str, key: str, setting: Setting, definition: Definition) -> Problem:
    allowed = ", ".join(str(v) for v in setting.values) or setting.doc
    return Problem(at, f"missing: {definition.name} must be told", allowed, example=_example(key, setting.example))


def _not_allowed(at: str, key: str, setting: Setting, wish: Any, definition: Definition) -> Problem | None:
    allowed = setting.values or tuple(setting.choices)
    if not allowed or all(part in allowed for part in _parts(setting, wish)):
        return None
    words = [str(v) for v in allowed]
    nearest = near(str(wish), words)
    return Problem(
        at,
        f"{wish!r} is nothing that {definition.name} knows",
        ", ".join(words),
        nearest,
        _example(key, nearest or setting.example or words[0]),
    )


def _parts(setting: Setting, wish: Any) -> list[Any]:
    parts = str(wish).split("/") if setting.pair else []
    return parts if len(parts) == len(setting.pair) and len(set(parts)) > 1 else [wish]


def _example(key: str, example: object) -> str:
    if example is None:
        return ""
    if isinstance(example, str):
        return f"{key} = {example}" if example.startswith("[") else f'{key} = "{example}"'
    return f"{key} = {str(example).lower()}"


def _extra_problems(at: str, service: Service, definition: Definition) -> Iterable[Problem]:
    owners = flags(definition)
    for word in service.extra_args:
        if owned := owner_of(word, owners, definition.abbreviates):
            flag, owner = owned
            yield Problem(
                f"{at}.extra_args", f"{flag} is not allowed here: {owner.why}", example=_instead(owner, definition)
            )


def _env_problems(at: str, service: Service, definition: Definition) -> Iterable[Problem]:
    owners = environment(definition)
    for table, names in (("env", service.env), ("secret_env", service.secret_env)):
        for name in names:
            if owner := owners.get(name):
                yield Problem(f"{at}.{table}.{name}", f"not allowed: {owner.why}", example=_instead(owner, definition))
            elif table == "secret_env" and name in service.env:
                yield Problem(f"{at}.secret_env.{name}", f"{name} is in env too", "one of them")


def _instead(owner: Any, definition: Definition) -> str:
    setting = definition.settings.get(owner.key)
    return _example(owner.key, setting.example) if setting else ""


# --- the command line -------------------------------------------------------------------------------------------


def render(service: Service, definition: Definition, given: Given) -> Rendered:
    """`service` has no `problems`."""
    adapter = adapter_for(definition)
    derived = adapter.derive(service, given)
    argv = [*_command(service, definition, given), *_settings(service, definition, given, derived)]
    argv += _address(service, definition, given)
    argv += [Arg(tuple(fixed.args), Origin("definition", fixed.reason)) for fixed in definition.fixed if fixed.args]
    argv += _extra(service, given)
    env: dict[str, EnvVar] = {}
    for item in (
        *(EnvVar(name, text, Origin("allow-list")) for name, text in given.environ.items()),
        *(
            EnvVar(name, text, Origin("definition", fixed.reason))
            for fixed in definition.fixed
            for name, text in fixed.env.items()
        ),
        *_setting_env(service, definition, given),
        *(item for item in derived if isinstance(item, EnvVar)),
        *_address_env(definition, given),
        *_gpu_env(definition, given),
        *(EnvVar(name, text, given.origin("env")) for name, text in service.env.items()),
        *_secrets(service, definition, given),
    ):
        env[item.name] = item
    return Rendered(
        tuple(argv),
        tuple(env[name] for name in sorted(env)),
        adapter.asked(service, given),
        adapter.warnings(service, given),
    )


def _command(service: Service, definition: Definition, given: Given) -> Iterable[Arg]:
    said_by = "command" if service.command is not None else "venv" if service.venv is not None else ""
    origin = given.origin(said_by) if said_by else Origin("definition", definition.name)
    whole = service.command is not None and len(service.command) > 1
    yield Arg((given.executable,), origin)
    filled = {"{host}": given.host, "{port}": str(given.port), "{model}": service.model or ""}
    for word in command_words(service, definition)[1:]:
        text = word
        for mark, content in filled.items():
            text = text.replace(mark, content)
        yield Arg((text,), origin if whole else Origin("definition", definition.name))


def _settings(
    service: Service, definition: Definition, given: Given, derived: tuple[Arg | EnvVar, ...]
) -> Iterable[Arg]:
    special = [item for item in derived if isinstance(item, Arg)]
    for key, setting in definition.settings.items():
        yield from (arg for arg in special if arg.setting == key)
        if setting.flags and setting.style != "none" and (found := value(key, service, definition, given)):
            yield from _args(key, setting, found)
    yield from (arg for arg in special if arg.setting not in definition.settings)


def _args(key: str, setting: Setting, found: Value) -> Iterable[Arg]:
    for flag in setting.flags:
        if setting.style == "switch":
            if found.value or setting.off:
                yield Arg((flag if found.value else str(setting.off),), found.origin, key)
        elif setting.style == "repeat":
            yield from (Arg((flag, setting.word(item)), found.origin, key) for item in found.value)
        else:
            yield Arg((flag, _text(setting, found.value)), found.origin, key)


def _text(setting: Setting, wish: Any) -> str:
    if setting.style == "on_off":
        return "on" if wish else "off"
    if setting.style == "comma":
        return ",".join(setting.word(item) for item in wish)
    if setting.unit:
        return str(wish // _UNIT[setting.unit])
    return setting.word(wish)


def _setting_env(service: Service, definition: Definition, given: Given) -> Iterable[EnvVar]:
    for key, setting in definition.settings.items():
        if setting.env and setting.style != "none" and (found := value(key, service, definition, given)):
            parts = _parts(setting, found.value)
            yield EnvVar(setting.env, _text(setting, found.value) if len(parts) == 1 else "", found.origin)
            if len(parts) > 1:
                yield from (EnvVar(name, part, found.origin) for name, part in zip(setting.pair, parts, strict=True))


def _address(service: Service, definition: Definition, given: Given) -> Iterable[Arg]:
    listen = definition.listen
    if listen.host:
        yield Arg((listen.host, given.host), Origin("derived", "loopback: only the gateway talks to it"))
    if listen.port:
        yield Arg((listen.port, str(given.port)), _port_origin(service, given), "port")


def _port_origin(service: Service, given: Given) -> Origin:
    return Origin("derived", "from ports") if service.port is None else given.origin("port")


def _address_env(definition: Definition, given: Given) -> Iterable[EnvVar]:
    listen = definition.listen
    if listen.env:
        yield EnvVar(
            listen.env, listen.template.format(host=given.host, port=given.port), Origin("derived", "from ports")
        )


def _gpu_env(definition: Definition, given: Given) -> Iterable[EnvVar]:
    gpu = definition.gpu
    if gpu is None:
        return
    yield EnvVar(GPU_ORDER, "PCI_BUS_ID", Origin("definition", "indices mean the same to every program"))
    if given.gpus:
        ids = (str(index) if gpu.form == "index" else uuid for uuid, index in given.gpus)
        yield EnvVar(gpu.env, ",".join(ids), given.origin("gpus"))
    else:
        yield EnvVar(gpu.env, gpu.none, Origin("derived", "on the CPU"))


def _extra(service: Service, given: Given) -> list[Arg]:
    """A value stays with its flag, as far as one can tell without the runtime's help."""
    args: list[Arg] = []
    for word in service.extra_args:
        last = args[-1].words if args else ()
        if not word.startswith("-") and len(last) == 1 and last[0].startswith("-") and "=" not in last[0]:
            args[-1] = Arg((*last, word), args[-1].origin, "extra_args")
        else:
            args.append(Arg((word,), given.origin("extra_args"), "extra_args"))
    return args


def _secrets(service: Service, definition: Definition, given: Given) -> Iterable[EnvVar]:
    for name, secret in service.secret_env.items():
        mark = given.secrets.get(name, "missing")
        yield EnvVar(name, f"secret:{name}@{mark}", given.origin("secret_env"), _reference(secret))
    if definition.key:
        name = definition.key.env
        yield EnvVar(name, f"secret:{name}@generated", Origin("derived", "a new key for every start"), "generated")


def _reference(secret: Secret) -> str:
    return f"file:{secret.file}" if secret.file is not None else f"env:{secret.env}"
