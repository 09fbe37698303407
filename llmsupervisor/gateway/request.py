"""A request as it was read from a connection, and what RFC 9112, section 3, asks of its target and Host. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_HOST = r"(?:\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~%-]+)?\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?"
_NAMED = re.compile(_HOST)
_PATH = re.compile(rb"/[!-\"$-~]*")
_ABSOLUTE = re.compile(rb"(?i:https?)://(?![:/?])(%s)((?:[/?][!-\"$-~]*)?)" % _HOST.encode())
"""The empty name of a host is none (RFC 9110, 4.2.1), and there is no user in it (4.2.4)."""

_LISTS = ("x-forwarded-for",)
"""Each proxy on the way adds itself, some of them as a header of its own: that is one list (RFC 9110, 5.3)."""


@dataclass(slots=True)
class Request:
    came: float
    """When its first byte came, in seconds of the loop's clock."""
    method: str = ""
    url: bytes = b""
    """The target, as it came; `settle` makes a path and a query of it."""
    headers: dict[str, str] = field(default_factory=dict)
    """Of several with one name the last, of those in `_LISTS` all."""
    fields: int = 0
    """Headers that came, `hosts` of them Host."""
    hosts: int = 0
    body: bytearray = field(default_factory=bytearray)
    version: str = "1.1"
    keep_alive: bool = True

    @property
    def path(self) -> str:
        return self.url.partition(b"?")[0].decode("latin-1")

    def add(self, name: str, value: str) -> None:
        """`name` in small letters."""
        self.fields += 1
        self.hosts += name == "host"
        value = value.strip(" \t")
        if name in _LISTS and name in self.headers:
            value = f"{self.headers[name]}, {value}"
        self.headers[name] = value

    def settle(self) -> str:
        """What is wrong with its target or its Host; empty: nothing. Of a target in absolute form the path stays, and
        its authority is the Host, whatever that says (3.2.2)."""
        host = self.headers.get("host")
        if self.hosts > 1:
            return "a request has one Host header, this one has more"
        if host is None and self.version not in ("0.9", "1.0"):
            return f"a request of HTTP/{self.version} has one Host header, this one has none"
        if host is not None and not _NAMED.fullmatch(host):
            return "the Host header is no host with a port or without"
        if _PATH.fullmatch(self.url) or (self.url == b"*" and self.method == "OPTIONS"):
            return ""
        absolute = _ABSOLUTE.fullmatch(self.url)
        if absolute is None:
            return (
                "the target of a request is a path, with a query or without, or an http URL with a host and no fragment"
            )
        self.headers["host"] = absolute[1].decode()
        self.url = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
        return ""
