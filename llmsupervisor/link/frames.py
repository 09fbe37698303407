"""JSON lines, as both ends of a Unix socket read and write them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

LIMIT = 1 << 20
"""Bytes of one line, its newline included."""


class FrameError(ValueError):
    """The peer sent what is no line of this protocol; the connection cannot go on."""


def encode(message: Mapping[str, Any]) -> bytes:
    """One ASCII line. A float that JSON lacks (NaN, infinity) is sent as null. FrameError over 1 MiB."""
    try:
        text = json.dumps(message, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(message), separators=(",", ":"), allow_nan=False)
    line = text.encode("ascii") + b"\n"
    if len(line) > LIMIT:
        raise FrameError(f"the message has {len(line)} bytes; a line may have {LIMIT}")
    return line


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def decode(line: bytes) -> dict[str, Any]:
    """FrameError for anything but one JSON object within the limit."""
    if len(line) > LIMIT:
        raise FrameError(f"a line of {len(line)} bytes; {LIMIT} are allowed")
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"not JSON: {error}") from None
    if not isinstance(message, dict):
        raise FrameError(f"a JSON object was expected, found {type(message).__name__}")
    return message


class Splitter:
    """Cuts a byte stream into lines and never holds more than one line's limit."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The complete lines, without their newline. FrameError where a line passes the limit."""
        start = len(self._rest)
        self._rest += data
        while (end := self._rest.find(b"\n", start)) >= 0:
            line = bytes(self._rest[:end])
            del self._rest[: end + 1]
            start = 0
            if len(line) >= LIMIT:
                raise FrameError(f"a line of {len(line)} bytes; {LIMIT} are allowed")
            yield line
        if len(self._rest) >= LIMIT:
            raise FrameError(f"no end of line within {LIMIT} bytes")
