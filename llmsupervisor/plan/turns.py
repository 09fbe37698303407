"""The edits of a finding as people see them: which key, from what to what, and whether its service restarts for it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from llmsupervisor.base.ids import Json
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.rules.rule import Edit
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.spec.model import LIVE

_BYTES = re.compile(r"(\d+)B")
_NEXT_START = frozenset({"ready"})


@dataclass(frozen=True, slots=True)
class Turn:
    key: str
    """Of the service, `env.NAME` inside a table."""
    old: Json
    """What it is worth now, also where the spec is silent; None: nothing."""
    new: Json
    """None: the key goes."""
    restarts: bool


def turns(plan: ServicePlan, edits: Iterable[Edit]) -> tuple[Turn, ...]:
    before: dict[str, Any] = plan.service.model_dump(mode="json")
    after = copy.deepcopy(before)
    keys = []
    for edit in edits:
        _turn(after, edit)
        keys.append(str(edit.path[0]))
    return tuple(turn for key in dict.fromkeys(keys) for turn in _of(key, before[key], after.get(key), plan.definition))


def _turn(table: Any, edit: Edit) -> None:
    *parents, last = edit.path
    for part in parents:
        table = table[part]
    if edit.value is not None:
        table[last] = edit.value
    elif isinstance(table, list):
        del table[int(last)]
    else:
        table.pop(last, None)


def _of(key: str, old: Any, new: Any, definition: Definition) -> Iterator[Turn]:
    setting = definition.settings.get(key)
    restarts = key not in LIVE | _NEXT_START and (setting is None or setting.change == "restart")
    if isinstance(old, dict) and isinstance(new, dict):
        for inner in sorted(old.keys() | new.keys()):
            if old.get(inner) != new.get(inner):
                yield Turn(f"{key}.{inner}", old.get(inner), new.get(inner), restarts)
    else:
        yield Turn(key, _plain(setting.default if old is None and setting else old), _plain(new), restarts)


def _plain(value: Any) -> Json:
    """Bytes as people write them, where that is exact."""
    found = _BYTES.fullmatch(value) if isinstance(value, str) else None
    for unit, size in (("GiB", 1024**3), ("MiB", 1024**2)) if found else ():
        if int(found[1]) and int(found[1]) % size == 0:  # type: ignore[index]
            return f"{int(found[1]) // size}{unit}"  # type: ignore[index]
    said: Json = value
    return said
