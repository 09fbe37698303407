"""Each key of the spec is explained, each example is right, and the schema for editors says the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from llmsupervisor.spec.guide import GUIDES, choices, example, owner
from llmsupervisor.spec.model import OllamaModel, Probe, Restart, Secret, Service, Spec, Table
from llmsupervisor.spec.schema import json_schema

KEYS = [(table, key) for table in GUIDES for key in table.model_fields]


def tables(table: type[Table]) -> set[type[Table]]:
    return {table}.union(*(tables(inner) for inner in table.__subclasses__()))


def test_no_key_is_forgotten() -> None:
    for table, keys in GUIDES.items():
        assert list(keys) == list(table.model_fields)
    spec = {table for table in tables(Table) if table.__module__ == Spec.__module__}
    assert set(GUIDES) == spec - {Table}


@pytest.mark.parametrize(("table", "key"), KEYS, ids=[f"{table.__name__}.{key}" for table, key in KEYS])
def test_each_example_is_accepted(table: type[Table], key: str) -> None:
    said = tomllib.loads(example(table, key))
    if key == "services":
        said["services"]["chat"]["runtime"] = "x"
    needed: dict[type[Table], dict[str, Any]] = {
        Service: {"runtime": "x"},
        OllamaModel: {"name": "m", "context_length": 1},
    }
    assert getattr(table.model_validate({**needed.get(table, {}), **said}), key) is not None or said[key] == "forever"


def test_words_of_a_key() -> None:
    assert choices(Service, "start") == ["boot", "demand"]
    assert choices(Service, "split") == ["tensor", "layer", "pipeline", "data", "row", "none"]
    assert choices(Service, "gpus") == [] == choices(Service, "runtime")


def test_the_table_that_a_key_stands_in() -> None:
    assert owner(("services",)) == (Spec, "services")
    assert owner(("services", "chat")) == (Spec, "services")
    assert owner(("services", "chat", "gpus", 0)) == (Service, "gpus")
    assert owner(("services", "chat", "restart", "burst")) == (Restart, "burst")
    assert owner(("services", "chat", "probe", "unknown")) == (Probe, "unknown")
    assert owner(("services", "chat", "models", 1, "name")) == (OllamaModel, "name")
    assert owner(("services", "chat", "secret_env", "A", "file")) == (Secret, "file")
    assert owner(("services", "chat", "env", "A")) == (Service, "env")
    assert owner(("unknown", "x")) == (Spec, "unknown")


TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
NOTES = {"$schema", "$defs", "title", "description", "default"}


def accepts(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """JSON Schema as far as ours uses it; a keyword that is not here fails the test."""

    def keyword(name: str, said: Any) -> bool:
        match name:
            case "$ref":
                return accepts(root["$defs"][said.removeprefix("#/$defs/")], value, root)
            case "type":
                return isinstance(value, TYPES[said]) and (said == "boolean" or not isinstance(value, bool))
            case "anyOf":
                return any(accepts(option, value, root) for option in said)
            case "enum":
                return value in said
            case "const":
                return bool(value == said)
            case "pattern":
                return not isinstance(value, str) or bool(re.search(said, value))
            case "minimum" | "exclusiveMinimum":
                return not isinstance(value, int) or value > said or (value == said and name == "minimum")
            case "exclusiveMaximum":
                return not isinstance(value, int) or value < said
            case "minLength" | "minItems":
                return not isinstance(value, str | list) or len(value) >= said
            case "required":
                return not isinstance(value, dict) or set(said) <= set(value)
            case "items":
                return not isinstance(value, list) or all(accepts(said, item, root) for item in value)
            case "properties":
                return not isinstance(value, dict) or all(
                    accepts(said[k], value[k], root) for k in set(said) & set(value)
                )
            case "additionalProperties":
                others = (
                    [v for k, v in value.items() if k not in schema.get("properties", {})]
                    if isinstance(value, dict)
                    else []
                )
                return not others if said is False else said is True or all(accepts(said, v, root) for v in others)
        raise AssertionError(f"the schema uses {name}")

    return all(keyword(name, said) for name, said in schema.items() if name not in NOTES)


def test_the_schema_takes_what_we_take() -> None:
    schema = json_schema()
    for path in sorted((Path(__file__).parents[2] / "configs").glob("*.toml")):
        assert accepts(schema, tomllib.loads(path.read_text()), schema), path
    for table, key in KEYS:
        if table is Service:
            said = tomllib.loads(example(table, key))
            assert accepts(schema, {"services": {"a": {"runtime": "x", **said}}}, schema), said
            assert accepts(schema, {"services": {}, "defaults": {**said, "vllm": said}}, schema), said


@pytest.mark.parametrize(
    "settings",
    [
        "context_length = '8k'",
        "keep_alive = 300",
        "gpu_memory = '22'",
        "drain_timeout = '1 week'",
        "start = 'bot'",
        "num_ctx = 1",
        "model = false",
        "port = 65536",
        "command = []",
        "models = [{ name = 'm' }]",
        "gpus = [-1]",
    ],
)
def test_the_schema_refuses_what_we_refuse(settings: str) -> None:
    schema, table = json_schema(), tomllib.loads(settings)
    assert not accepts(schema, {"services": {"a": {"runtime": "x", **table}}}, schema)
    assert not accepts(schema, {"services": {}, "defaults": {"vllm": table}}, schema)
    assert not accepts(schema, {"gateway": {}}, schema)
