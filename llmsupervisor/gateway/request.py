"""A request as it was read from a connection. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Request:
    came: float
    """When its first byte came, in seconds of the loop's clock."""
    method: str = ""
    url: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    version: str = "1.1"
    keep_alive: bool = True

    @property
    def path(self) -> str:
        return self.url.partition(b"?")[0].decode("latin-1")
