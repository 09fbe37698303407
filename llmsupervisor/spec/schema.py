"""The JSON schema of the spec, for editors."""

from __future__ import annotations

from typing import Any

from llmsupervisor.spec.guide import GUIDES
from llmsupervisor.spec.model import Service, Spec


def json_schema() -> dict[str, Any]:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Spec.model_json_schema(mode="validation")}
    schema["title"] = "llmsupervisor spec"
    guides = {table.__name__: keys for table, keys in GUIDES.items()}
    for name, table in {**schema["$defs"], "Spec": schema}.items():
        table["properties"] = {
            key: _as_written(about) | {"description": guides[name][key].expected}
            for key, about in table["properties"].items()
        }
    service = schema["$defs"][Service.__name__]
    del service["required"]  # the runtime may come from [defaults]
    settings = service["properties"]
    schema["$defs"]["Defaults"] = {"type": "object", "properties": settings, "additionalProperties": False}
    schema["properties"]["defaults"] |= {"properties": settings, "additionalProperties": {"$ref": "#/$defs/Defaults"}}
    schema["required"] = ["services"]
    return schema


def _as_written(about: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null, and the default of a duration or a size is text too: such defaults are left out."""
    kept = {key: value for key, value in about.items() if key not in ("anyOf", "title", "default")}
    options = [option for option in about.get("anyOf", []) if option != {"type": "null"}]
    if len(options) == 1:
        kept |= options[0]
    elif options:
        kept["anyOf"] = options
    default = about.get("default")
    if default is not None and (isinstance(default, str) or about.get("type") != "string"):
        kept["default"] = default
    return kept
