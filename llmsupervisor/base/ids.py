"""Names and fingerprints."""

from __future__ import annotations

import hashlib
import json
import re

SERVICE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""A service name is also a folder name and a metric label."""
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def hash8(text: str | bytes) -> str:
    """The first 8 hex digits of the SHA-256: enough to see that a secret changed, too little to learn it."""
    return sha256(text)[:8]
