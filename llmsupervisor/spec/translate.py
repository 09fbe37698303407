"""What pydantic found, in plain sentences."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from llmsupervisor.base.errors import Problem
from llmsupervisor.spec.guide import GUIDES, choices, example, owner
from llmsupervisor.spec.locate import Path
from llmsupervisor.spec.model import ClientKey, Gateway, OllamaModel, Service, Spec, Table
from llmsupervisor.spec.near import near


class Finding(NamedTuple):
    """A problem whose key, file and line are still to be told from its path."""

    path: Path
    problem: Problem


_SHARED = (
    "it is one for all models of an ollama service, because Ollama is told by its environment: write it in "
    '[services.NAME], and models that need another one into a second service with runtime = "ollama"'
)

LATER: dict[type[Table], dict[str, str]] = {
    Spec: {
        "notify": "notifications are not part of this version; leave the table out",
        "gpus": "settings of a GPU (reserve) are not part of this version; leave the table out "
        "(which GPUs a service has is said in [services.NAME]: gpus = [0])",
    },
    Service: {
        "priority": "priorities are not part of this version: no service is ended for another; leave it out",
        "replicas": "replicas are not part of this version; write one service per replica with the same alias",
        "slo": "objectives are not part of this version; leave it out",
    },
    OllamaModel: dict.fromkeys(
        ("parallel", "kv_cache_type", "flash_attention", "split", "threads", "cache_ram", "gpus", "gpu_memory", "env"),
        _SHARED,
    ),
}
"""Keys that are refused with what to do instead: planned ones, and such as belong elsewhere."""


def findings(
    error: ValidationError, data: Mapping[str, Any], table: type[Table], foreign: Mapping[str, str]
) -> Iterator[Finding]:
    """`data` is what was validated as `table`; `foreign`: a runtime's own word → our key, or a sentence."""
    details: dict[Path, ErrorDetails] = {}
    for detail in error.errors(include_url=False):
        details.setdefault(_path(detail, data), detail)
    for path, detail in details.items():
        if any(path == other[: len(path)] for other in details if other != path):
            continue
        inner, key = owner(path, table)
        if detail["type"] == "extra_forbidden":
            yield Finding(path, unknown_key(inner, key, foreign))
        elif detail["type"] == "missing":
            yield Finding(path, Problem("", "is missing", GUIDES[inner][key].expected, "", example(inner, key)))
        else:
            secret = "secret_env" in path or inner is ClientKey or (inner is Gateway and key == "keys")
            yield Finding(path, wrong_value(inner, key, detail["input"], secret))


def _path(detail: ErrorDetails, data: Any) -> Path:
    """Where it is in the data: pydantic's `loc` also names the branches of a union."""
    path: Path = ()
    for part in detail["loc"]:
        inside: Any = dict(enumerate(data)) if isinstance(data, list) else data
        if isinstance(inside, Mapping) and part in inside:
            data = inside[part]
        elif detail["type"] != "missing":
            continue
        path = (*path, part)
    return path


def mismatch(expected: str, found: object, correct: str) -> Problem:
    return Problem("", f"expected {expected}, found {toml(found)}", example=correct)


def wrong_value(table: type[Table], key: str, value: object, secret: bool = False) -> Problem:
    words = choices(table, key)
    expected = "one of the allowed words" if words else GUIDES[table][key].expected
    meant = near(value, words) if isinstance(value, str) else ""
    found = "" if secret else f", found {toml(value)}"
    return Problem(
        "",
        f"expected {expected}{found}",
        ", ".join(map(toml, words)),
        toml(meant) if meant else "",
        example(table, key),
    )


def unknown_key(table: type[Table], word: str, foreign: Mapping[str, str]) -> Problem:
    keys = GUIDES[table]
    if later := LATER.get(table, {}).get(word):
        return Problem("", later)
    if answer := native(word, foreign):
        return _answered(table, f"{word} is the runtime's own word", answer)
    meant = near(word, keys)
    if home := next((home for home in _HOMES if word in GUIDES[home]), None):
        return Problem("", f"unknown key here; {word} belongs {_HOMES[home]}", nearest=meant)
    if meant:
        return Problem("", "unknown key", nearest=meant, example=example(table, meant))
    if meant := near(_plain(word), map(_plain, foreign)):
        return _answered(table, f"unknown key, near {meant}, the runtime's own word", native(meant, foreign))
    return Problem("", "unknown key", ", ".join(sorted(keys)))


_HOMES: dict[type[Table], str] = {
    Service: "in [services.NAME]",
    Spec: "at the top of the file, before the first [table]",
}


def _answered(table: type[Table], wrong: str, answer: str) -> Problem:
    if answer in GUIDES[table]:
        return Problem("", f"{wrong}; here it is {answer}", example=example(table, answer))
    if answer in GUIDES[Service]:
        return Problem("", f"{wrong}; here it is {answer} in [services.NAME]", example=example(Service, answer))
    return Problem("", f"{wrong}; {answer}")


def native(word: str, foreign: Mapping[str, str]) -> str:
    """The answer to a runtime's own word, however it is spelled: `--ctx-size`, `ctx-size`, `ctx_size`."""
    if word in foreign:
        return foreign[word]
    return next((foreign[name] for name in foreign if _plain(name) == _plain(word)), "")


def _plain(word: str) -> str:
    return word.lstrip("-").replace("-", "_").casefold()


def toml(value: object) -> str:
    """A value as it could stand in the file, short."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value if len(value) <= 60 else value[:57] + "...", ensure_ascii=False)
        case Mapping():
            return "a table" if value else "an empty table"
        case list():
            return "an empty list" if not value else f"a list of {len(value)}"
        case datetime.date() | datetime.time():
            return f"the date or time {value.isoformat()}"
        case _:
            return str(value)


def dotted(path: Iterable[str | int]) -> str:
    """`services.chat.gpus[0]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        bare = part and all(c.isascii() and (c.isalnum() or c in "_-") for c in part)
        text += ("." if text else "") + (part if bare else json.dumps(part, ensure_ascii=False))
    return text
