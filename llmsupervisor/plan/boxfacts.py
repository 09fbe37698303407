"""What of this box holds one service back: every refusal but those about GPUs (`place.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmsupervisor.plan.facts import Binary, Facts, GpuFact, is_path, model_files, secret_ref
from llmsupervisor.plan.launch import Refusal
from llmsupervisor.runtime.command import Arg
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.runtime.help import flag_of, unknown_flags, unknown_values
from llmsupervisor.runtime.values import said
from llmsupervisor.spec.model import Service

GGUF = b"GGUF"


def binary(name: str, binary: Binary) -> Iterator[Refusal]:
    if binary.error:
        yield Refusal(
            "binary",
            f'services.{name}: {binary.error}; install it, or say where it is with `command = ["/path/to/it"]` or `venv`',
            "binary",
        )


def files(name: str, service: Service, definition: Definition, facts: Facts) -> Iterator[Refusal]:
    for setting, path in model_files(service):
        if wrong := _model(path, definition, facts):
            yield Refusal("model", f"services.{name}.{setting}: {path} {wrong}", "file")
    template = service.chat_template
    if template and is_path(template) and (file := facts.files.get(template)) and file.sha256 is None:
        yield Refusal(
            "template",
            f"services.{name}.chat_template: {template} cannot be read: {file.error or 'not a file'}",
            "file",
        )
    if service.cwd and (folder := facts.files.get(service.cwd)) and folder.kind != "dir":
        yield Refusal("cwd", f"services.{name}.cwd: {service.cwd} is not a folder that can be entered", "file")


def _model(path: str, definition: Definition, facts: Facts) -> str:
    """What is wrong with a model file; empty: nothing, or nothing is known."""
    file = facts.files.get(path)
    if file is None:
        return ""
    if file.kind == "missing":
        return "is not there"
    if not file.readable or file.kind == "other":
        return f"cannot be read: {file.error or 'permission denied'}"
    if file.kind == "dir":
        if definition.adapter == "llama_server":
            return "is a directory; this runtime loads one GGUF file"
        config = facts.files.get(path.rstrip("/") + "/config.json")
        if definition.adapter == "vllm" and config is not None and config.kind != "file":
            return "has no config.json: not a model directory"
        return ""
    if not file.size:
        return "is empty"
    if path.endswith(".gguf") and file.head[:4] != GGUF:
        return "is not a GGUF file (its first four bytes are not GGUF): an unfinished download, or another format"
    return ""


def secrets(name: str, service: Service, facts: Facts) -> Iterator[Refusal]:
    for variable, secret in service.secret_env.items():
        kind, where = secret_ref(secret.file, secret.env)
        if facts.secrets.get((kind, where)) is None:
            what = "file" if kind == "file" else "environment variable"
            yield Refusal(
                "secret",
                f"services.{name}.secret_env.{variable}: {what} {where} is missing, unreadable or empty",
                "secret",
            )


def capability(name: str, service: Service, definition: Definition, gpus: Sequence[GpuFact]) -> Iterator[Refusal]:
    """Values that one of the cards cannot compute with; a card that does not tell what it can is believed."""
    for key, setting in definition.settings.items():
        wish = str(said(key, service))
        least = _capability(setting.least.get(wish))
        for gpu in gpus:
            has = gpu.compute_capability
            if has is None or least is None or has >= least:
                continue
            instead = [word for word, need in setting.least.items() if (_capability(need) or (0, 0)) <= has]
            yield Refusal(
                "capability",
                f'services.{name}.{key} = "{wish}" needs compute capability {setting.least[wish]}, and GPU {gpu.index} '
                f"({gpu.name}) has {has[0]}.{has[1]}; on this card: {', '.join(instead)}",
                "gpu",
            )
            break


def _capability(text: str | None) -> tuple[int, int] | None:
    major, _, minor = (text or "").partition(".")
    return (int(major), int(minor)) if minor else None


def port(name: str, service: Service, port: int | None, ports: str, facts: Facts) -> Iterator[Refusal]:
    if port is None:
        yield Refusal("port", f'services.{name}: no port of `ports = "{ports}"` is free; widen the range', "port")
    elif port in facts.busy_ports:
        said = "port" if service.port else f"kept port; `port` in services.{name} names another one"
        yield Refusal("port", f"services.{name}: somebody else listens on 127.0.0.1:{port} ({said})", "port")


def flags(name: str, args: tuple[Arg, ...], binary: Binary, runtime: str) -> tuple[list[Refusal], list[str]]:
    """(refusals, warnings): flags and values of the command line that `--help` of this build does not list."""
    rendered = [arg for arg in args if flag_of(arg.words[0])]
    if binary.flags is None or not rendered:
        return [], []
    unknown = unknown_flags(rendered, binary.flags)
    if len(unknown) == len(rendered):
        return [], [f"services.{name}: {binary.path} lists none of our flags in its help: flags are not checked"]
    build = f"this build ({binary.version or 'version unknown'})"

    def said(arg: Arg) -> str:
        return f"services.{name}.{arg.setting}" if arg.setting else f"services.{name}: {runtime} ({arg.origin})"

    refusals = [
        Refusal("flag", f"{said(arg)} renders {flag_of(arg.words[0])}, which {build} does not know", "binary")
        for arg in unknown
    ]
    refusals += [
        Refusal(
            "value",
            f"{said(arg)} renders {' '.join(arg.words)}, which {build} does not know; it knows {', '.join(sorted(allowed))}",
            "binary",
        )
        for arg, allowed in unknown_values(rendered, binary.values)
    ]
    return refusals, []
