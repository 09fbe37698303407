"""Whether a value is what a type of `llmsupervisor.link` says it is."""

from __future__ import annotations

import types
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict


def mismatches(value: object, kind: Any, place: str) -> list[str]:
    """Where `value` is not of the type `kind`: a TypedDict, list, dict, union, Literal or plain type."""
    origin = get_origin(kind)
    if origin is NotRequired:
        return mismatches(value, get_args(kind)[0], place)
    if is_typeddict(kind):
        if not isinstance(value, dict):
            return [f"{place}: {value!r} is no object"]
        hints = get_type_hints(kind, include_extras=True)
        optional = {k for k, hint in hints.items() if get_origin(hint) is NotRequired or not kind.__total__}
        found = [f"{place}.{k}: not in the type" for k in sorted(set(value) - set(hints))]
        found += [f"{place}.{k}: missing" for k in sorted(set(hints) - optional - set(value))]
        return found + [m for k in value if k in hints for m in mismatches(value[k], hints[k], f"{place}.{k}")]
    if origin in (Union, types.UnionType):
        tried = [mismatches(value, option, place) for option in get_args(kind)]
        return min(tried, key=len)
    if origin is Literal:
        return [] if value in get_args(kind) else [f"{place}: {value!r} is none of {get_args(kind)}"]
    if origin is list and isinstance(value, list):
        return [m for i, item in enumerate(value) for m in mismatches(item, get_args(kind)[0], f"{place}[{i}]")]
    if origin is dict and isinstance(value, dict):
        return [m for k, item in value.items() for m in mismatches(item, get_args(kind)[1], f"{place}.{k}")]
    if kind is Any:
        return []
    plain = origin or kind
    fits = type(value) is plain or (plain is float and type(value) is int)
    return [] if fits else [f"{place}: {value!r} is no {plain.__name__}"]
