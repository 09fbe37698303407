"""`docs/settings.md`: every key of a service, from the spec's model and the definitions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from llmsupervisor.base.units import format_size
from llmsupervisor.runtime.definition import Definition, Setting
from llmsupervisor.spec.guide import GUIDES, choices, example
from llmsupervisor.spec.model import LIVE, ClientKey, Gateway, Leak, Logs, Name, Probe, Restart, Service, Slo, Table

HEAD = """# Settings

Generated from the spec's model and from `runtimes/*.toml`; a test holds it against them.

A key that a runtime does not have is refused for it. Where a cell names a default, that value is rendered on the command line (or in
the environment) when the spec is silent, also where the runtime would choose the same; `plan` marks it as "production default".
"Restart" means: a change restarts the service (and only it). "Live": the daemon obeys it at once. "Next start": it restarts nothing.
All of `[gateway]` is live."""

DAY = 86400
UNRENDERED = frozenset({"ready"})
"""Neither live nor part of the command line."""


def settings_page(definitions: Mapping[str, Definition]) -> str:
    told = {key for definition in definitions.values() for key in definition.settings}
    ours = [key for key in Service.model_fields if key not in told]
    parts = [
        HEAD,
        "## What a service tells its engine\n\n`[services.NAME]`, or `[defaults]` and `[defaults.RUNTIME]` for many.",
        _engine(definitions),
        "## What the daemon itself obeys\n\n`[services.NAME]` too.",
        _own(Service, ours),
        *(f"### `{title}`\n\n{_own(table, table.model_fields)}" for title, table in _tables()),
        *(_runtime(definitions[name]) for name in sorted(definitions)),
    ]
    return "\n\n".join(parts) + "\n"


def _tables() -> Iterator[tuple[str, type[Table]]]:
    yield "restart = { … }", Restart
    yield "probe = { … }", Probe
    yield "slo = { … }", Slo
    yield "leak = { … }", Leak
    yield 'names = { "NAME" = { … } }', Name
    yield "[gateway]", Gateway
    yield "[gateway.keys.NAME]", ClientKey
    yield "[logs]", Logs


def _engine(definitions: Mapping[str, Definition]) -> str:
    names = sorted(name for name, definition in definitions.items() if definition.settings)
    rows = []
    for key in Service.model_fields:
        settings = [definitions[name].settings.get(key) for name in names]
        if any(settings):
            changes = {setting.change for setting in settings if setting}
            rows.append(
                [f"`{key}`", _expects(Service, key), *(_cell(s) for s in settings), " / ".join(sorted(changes))]
            )
    return _table(["key", "value", *names, "a change"], rows)


def _cell(setting: Setting | None) -> str:
    if setting is None:
        return "–"
    way = " ".join(f"`{word}`" for word in setting.flags) or (f"`{setting.env}`" if setting.env else "")
    if setting.request:
        way = f"per request: `{setting.request}`"
    if setting.required:
        said = "**required**"
    elif setting.default is not None:
        said = f"default `{_toml(setting.default)}`"
    else:
        said = ""
    allowed = ", ".join(f"`{_toml(v)}`" for v in setting.values)
    return "; ".join(part for part in (way, said, allowed and f"one of {allowed}") if part) or "yes"


def _own(table: type[Table], keys: Iterable[str]) -> str:
    rows = []
    for key in keys:
        field = table.model_fields[key]
        default = (
            "**required**"
            if field.is_required()
            else _default(field.get_default(call_default_factory=True), table, key)
        )
        change = (
            ["live" if key in LIVE else "next start" if key in UNRENDERED else "restart"] if table is Service else []
        )
        rows.append([f"`{key}`", _expects(table, key), default, f"`{example(table, key)}`", *change])
    return _table(["key", "value", "default", "for example", *(["a change"] if table is Service else [])], rows)


def _default(value: Any, table: type[Table], key: str) -> str:
    if value is None and key == "keep_alive":
        return '`"forever"`'
    if value is None or value in ((), {}):
        return "–"
    if isinstance(value, Table):
        return "see below"
    dumped = table.model_construct(**{key: value}).model_dump(mode="json", include={key})[key]
    if isinstance(dumped, str) and (size := re.fullmatch(r"(\d+)B", dumped)):
        dumped = format_size(int(size[1])).replace(".0 ", "").replace(" ", "")
    if (
        isinstance(dumped, str)
        and (seconds := re.fullmatch(r"(\d+)s", dumped))
        and int(seconds[1]) % DAY == 0 < int(seconds[1])
    ):
        dumped = f"{int(seconds[1]) // DAY}d"
    return f"`{_toml(dumped)}`"


def _expects(table: type[Table], key: str) -> str:
    words = choices(table, key)
    return (", ".join(f"`{word}`" for word in words) if words else GUIDES[table][key].expected).replace("|", "\\|")


def _runtime(definition: Definition) -> str:
    lines = [f"## {definition.name}", "", definition.doc]
    notes = [(key, setting.doc) for key, setting in definition.settings.items() if setting.doc != "–"]
    if notes:
        lines += ["", *(f"- `{key}`: {doc}" for key, doc in notes)]
    if definition.fixed:
        lines += ["", "Always set:", ""]
        for fixed in definition.fixed:
            what = " ".join([*fixed.args, *(f"{name}={value}" for name, value in fixed.env.items())])
            lines.append(f"- `{what}`: {fixed.reason}")
    return "\n".join(lines)


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
