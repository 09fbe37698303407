"""A plan for people (`llmsupervisor plan`), for programs (`--json`) and for a shell (`--shell`)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llmsupervisor.base.ids import Json
from llmsupervisor.plan.launch import Plan, ServicePlan
from llmsupervisor.plan.show_memory import memory_lines
from llmsupervisor.plan.together import lines
from llmsupervisor.runtime.command import TEMPORARY, EnvVar

_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
WIDEST = 76
"""Columns up to which origins are aligned; a longer item has its origin right behind it."""


def quote(word: str) -> str:
    """For a POSIX shell."""
    return word if _PLAIN.fullmatch(word) else "'" + word.replace("'", "'\"'\"'") + "'"


def text(plan: Plan) -> str:
    """Every argument and variable on a line of its own, with its origin; then what holds the service back."""
    services = list(plan.services.values())
    return "\n\n".join(["\n".join(_service(service)) for service in services] + list(lines(services)))


def _service(plan: ServicePlan) -> Iterator[str]:
    gpus = ", ".join(plan.gpus) or "CPU"
    yield f"{plan.name}  {plan.definition.name}  http://{plan.host}:{plan.port}  {gpus}"
    argv = [(" ".join(quote(word) for word in arg.words), str(arg.origin)) for arg in plan.argv]
    env = [(f"{variable.name}={quote(variable.value)}", str(variable.origin)) for variable in plan.env]
    width = max((len(item) for item, _ in argv + env if len(item) <= WIDEST), default=0)
    for title, items in (("argv", argv), ("environment", env)):
        yield f"  {title}"
        for item, origin in items:
            yield f"    {_visible(item):<{width}}  {_visible(origin)}".rstrip()
    if plan.cwd:
        yield f"  cwd {quote(plan.cwd)}"
    if plan.memory is not None:
        yield from memory_lines(plan.memory)
    for warning in plan.warnings:
        yield f"  warning: {_visible(warning)}"
    for refusal in plan.refusals:
        yield f"  cannot start ({refusal.kind}): {_visible(refusal.text)}"


def _visible(line: str) -> str:
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", line)


def to_json(plan: Plan) -> dict[str, Json]:
    return {"v": 1, "services": [service_json(service) for service in plan.services.values()]}


def service_json(plan: ServicePlan) -> dict[str, Json]:
    argv: list[Json] = [
        {"words": list(arg.words), "origin": str(arg.origin), "setting": arg.setting or None} for arg in plan.argv
    ]
    env: list[Json] = [
        {"name": v.name, "value": v.value, "origin": str(v.origin), "secret": v.secret or None} for v in plan.env
    ]
    refusals: list[Json] = [{"kind": r.kind, "text": r.text, "retry": r.retry} for r in plan.refusals]
    return {
        "name": plan.name,
        "runtime": plan.definition.name,
        "endpoint": f"http://{plan.host}:{plan.port}",
        "argv": argv,
        "env": env,
        "cwd": plan.cwd or None,
        "gpus": list(plan.gpus),
        "asked": dict(plan.asked),
        "memory": plan.memory.to_json() if plan.memory else None,
        "inputs": [list(item) for item in plan.inputs],
        "artefacts": [list(item) for item in plan.artefacts],
        "warnings": list(plan.warnings),
        "refusals": refusals,
    }


def shell(plan: ServicePlan) -> str:
    """One command for a shell. No secret is in it: it is read from where the spec says when the line is run; a key
    that is drawn anew at each start is a word to be replaced.
    """
    line = " ".join(
        ["env -i", *(_assignment(v) for v in plan.env if v.value != TEMPORARY), *(quote(word) for word in plan.words)]
    )
    return f"(cd {quote(plan.cwd)} && exec {line})" if plan.cwd else line


def _assignment(variable: EnvVar) -> str:
    kind, _, where = variable.secret.partition(":")
    if kind == "file":
        return f'{variable.name}="$(cat {quote(where)})"'
    if kind == "env":
        return f'{variable.name}="${where}"'
    return f"{variable.name}={quote('replace-me' if variable.secret else variable.value)}"
