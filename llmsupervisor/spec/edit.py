"""Changes to the text of a spec that keep its comments and its layout."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import tomlkit

from llmsupervisor.base.ids import sha256
from llmsupervisor.spec.locate import Path


@dataclass(frozen=True, slots=True)
class Conflict:
    """The file changed after it was read: the new text must not be written over it."""

    base: str
    found: str

    def __str__(self) -> str:
        return (
            f"the file was changed by somebody else (read {self.base[:8]}, now {self.found[:8]}); nothing was written: "
            "look at it and repeat the change"
        )


def set_value(text: str, path: Path, value: object) -> str:
    """Tables that are missing on the way are made. KeyError where the way leads through something else."""
    document = tomlkit.parse(text)
    *parents, last = path
    table: Any = document
    for depth, part in enumerate(parents, 1):
        if isinstance(table, MutableMapping) and part not in table:
            table[part] = tomlkit.table(is_super_table=depth < len(parents))
        table = _inner(table, part)
    if not isinstance(table, MutableMapping):
        _inner(table, last)
    table[last] = value
    return tomlkit.dumps(document)


def remove(text: str, path: Path) -> str:
    """KeyError where there is no such key."""
    document = tomlkit.parse(text)
    *parents, last = path
    table: Any = document
    for part in parents:
        table = _inner(table, part)
    _inner(table, last)
    del table[last]
    return tomlkit.dumps(document)


def _inner(table: Any, part: str | int) -> Any:
    """tomlkit's errors of a missing key are KeyErrors already."""
    if isinstance(table, MutableMapping):
        return table[part]
    if isinstance(table, list) and isinstance(part, int) and part < len(table):
        return table[part]
    raise KeyError(part)


def edited(text_on_disk: str, base_sha: str, new_text: str) -> str | Conflict:
    """`new_text` was made from the text with the SHA-256 `base_sha`; the loser of two writers is told."""
    found = sha256(text_on_disk)
    return new_text if found == base_sha else Conflict(base_sha, found)
