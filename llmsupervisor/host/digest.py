"""The SHA-256 of a large file, with its progress."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

PIECE = 4 * 1024 * 1024


def sha256_of(path: str, told: Callable[[int], None]) -> str:
    """Blocks for seconds; `told` gets the bytes that are read, in the same thread."""
    digest, done = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            done += len(piece)
            told(done)
    return digest.hexdigest()
