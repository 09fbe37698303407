"""The clients' keys, read from where the spec names them. Only their hashes leave this file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmsupervisor.base.ids import sha256
from llmsupervisor.host.files import read_secret
from llmsupervisor.link.view import Key
from llmsupervisor.spec.model import ClientKey

SHORTEST = 16
"""Characters; a shorter key can be guessed."""
NO_KEY = ""
"""The hash of a key that cannot be used: nothing has it. The key stays in the list, so that a gateway whose only key
file vanished refuses everybody instead of letting everybody in."""


@dataclass(frozen=True, slots=True)
class Keys:
    known: tuple[Key, ...] = ()
    faults: tuple[str, ...] = ()
    """One sentence for each key that cannot be used; no value in them."""


def read_keys(keys: Mapping[str, ClientKey], environ: Mapping[str, str]) -> Keys:
    """Blocks on the disk. Space around a value is no part of it."""
    known: list[Key] = []
    faults: list[str] = []
    owners: dict[str, str] = {}
    for name, key in keys.items():
        kind, place = ("file", key.file) if key.file is not None else ("env", key.env or "")
        value = (read_secret((kind, place), environ) or "").strip()
        digest = sha256(value)
        fault = _fault(value) or (f"holds the same key as {owners[digest]}" if digest in owners else "")
        if fault:
            faults.append(f"{name}: {place} {fault}")
        else:
            owners[digest] = name
        models = None if key.models is None else list(key.models)
        known.append({"name": name, "sha256": NO_KEY if fault else digest, "models": models, "share": key.share})
    return Keys(tuple(known), tuple(faults))


def told(keys: Keys) -> str:
    """For the condition `gateway-key`; empty where all is well."""
    if not keys.faults:
        return ""
    return f"{'; '.join(keys.faults)}; requests with such a key are refused until it can be read"


def _fault(value: str) -> str:
    if not value:
        return "is missing, empty or cannot be read"
    if len(value) < SHORTEST:
        return f"holds a key of {len(value)} characters; {SHORTEST} or more are needed"
    if not value.isascii() or not value.isprintable() or " " in value:
        return "holds something that no header can carry: one line of ASCII without spaces is needed"
    return ""
