"""Text of a definition → `Definition`, and the runtimes' own words → our keys."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping

from pydantic import ValidationError

from llmsupervisor.base.errors import Problem, SpecError
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.runtime.help import flag_of
from llmsupervisor.spec.locate import locate
from llmsupervisor.spec.model import Service


def parse(text: str, source: str) -> Definition:
    """SpecError with every problem, each at its line. `source` is the path shown with them."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        at = int(line[1]) if line else len(text.splitlines())
        raise SpecError([Problem("", f"not TOML: {error}", file=source, line=at)]) from error
    try:
        return Definition.model_validate(data | {"source": source})
    except ValidationError as error:
        lines = locate(text)
        raise SpecError(
            [
                Problem(
                    ".".join(str(part) for part in e["loc"]),
                    "unknown key" if e["type"] == "extra_forbidden" else e["msg"].removeprefix("Value error, "),
                    file=source,
                    line=lines.line(e["loc"]),
                )
                for e in error.errors()
            ]
        ) from error


def foreign(definitions: Mapping[str, Definition]) -> dict[str, dict[str, str]]:
    """Runtime → its own word (`num_ctx`, `-np`, `OLLAMA_NUM_PARALLEL`) → our key, or a sentence (it has a space).

    Flags stand with and without dashes. `*`: words that mean the same wherever they
    are a key.
    """
    words = {name: _words(definition) for name, definition in definitions.items()}
    answers: dict[str, set[str]] = {}
    for own in words.values():
        for word, answer in own.items():
            answers.setdefault(word, set()).add(answer)
    common: dict[str, str] = {}
    for word, found in answers.items():
        keys = {answer for answer in found if " " not in answer} or found
        if len(keys) == 1:
            common[word] = keys.pop()
    return words | {"*": common}


def _words(definition: Definition) -> dict[str, str]:
    words: dict[str, str] = {}
    for key, setting in definition.settings.items():
        own = (*setting.flags, *setting.also, *setting.native, *filter(None, (setting.off, setting.env)))
        words.update((variant, key) for word in own for variant in _variants(word))
    for fixed in definition.fixed:
        own = (*filter(flag_of, fixed.args), *fixed.also, *fixed.env)
        words.update((variant, f"is always set: {fixed.reason}") for word in own for variant in _variants(word))
    for word, sentence in definition.native.items():
        words.update((variant, sentence) for variant in _variants(word))
    return {word: answer for word, answer in words.items() if word not in Service.model_fields}


def _variants(word: str) -> set[str]:
    plain = word.lstrip("-")
    return {word} | {v for v in (plain, plain.replace("-", "_")) if len(v) > 1}
