"""Who may ask: Host and Origin of a request, the key of its client, and where it comes from. Pure.

Header names are in small letters. No value of a key is ever told.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from llmsupervisor.gateway.route import Refusal
from llmsupervisor.gateway.view import Key, Table

Headers = tuple[tuple[str, str], ...]
Address = IPv4Address | IPv6Address

PREFLIGHT_AGE = 600
"""Seconds for which a browser remembers that a page may call."""
_ASKED_HEADERS = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,1000}")
_FORWARDED = ("x-forwarded-for", "forwarded", "x-real-ip")
_EXPOSED = "Retry-After, X-Request-Id"


@dataclass(frozen=True, slots=True)
class Client:
    name: str
    """Of its key; empty where no key is needed."""
    models: frozenset[str] | None
    """Names that it may ask for; None: all."""
    share: float
    address: str

    def may(self, model: str) -> bool:
        return self.models is None or model in self.models


class Guard:
    """Of one view: made when it comes, asked for each request. `peer` is the address of the connection."""

    def __init__(self, table: Table) -> None:
        limits = table.limits
        self._keys: dict[str, Key] = {key.sha256: key for key in table.keys if key.sha256}
        self._closed = bool(table.keys)
        """A key that cannot be read opens nothing."""
        self._hosts = None if limits.hosts is None else frozenset(map(_plain_host, limits.hosts))
        self._origins = frozenset(limits.origins)
        self._proxies = tuple(ip_network(network) for network in limits.trusted_proxies)
        self._scrape = limits.scrape

    # --- a request ------------------------------------------------------------------------------------------------

    def admit(self, headers: Mapping[str, str], peer: str, wanted: str | None = None) -> Client | Refusal:
        """`wanted`: the name of the model, where the request has one; it can be asked again once it is known."""
        if (refusal := self.reaches(headers)) is not None:
            return refusal
        address = self.client_address(headers, peer) if self._proxies else peer
        if not self._closed:
            return Client("", None, 1.0, address)
        key = self._key(headers)
        if isinstance(key, Refusal):
            return key
        client = Client(key.name, key.models, key.share, address)
        return client if wanted is None else self.allows(client, wanted) or client

    def reaches(self, headers: Mapping[str, str]) -> Refusal | None:
        """What a browser tells of itself: a page that nobody allowed, and a page under a name that was bent to our
        address (DNS rebinding), get nothing. Other clients tell no Origin."""
        if self._hosts is not None and (host := headers.get("host")) and not self._is_host(host):
            text = f"no answer under the name {host[:100]!r}; allowed names stand in [gateway] hosts, beside localhost"
            return Refusal(403, text, "host_not_allowed")
        if (origin := headers.get("origin")) is not None:
            if not self._is_origin(origin):
                text = f"pages of {origin[:100]!r} may not call; allowed ones stand in [gateway] origins"
                return Refusal(403, text, "origin_not_allowed")
        elif headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            text = "pages of other sites may not call; allowed ones stand in [gateway] origins"
            return Refusal(403, text, "origin_not_allowed")
        return None

    def allows(self, client: Client, model: str) -> Refusal | None:
        """The same for names that there are and that there are not: a key learns no names but its own."""
        if client.may(model):
            return None
        allowed = ", ".join(sorted(client.models or ()))
        return Refusal(403, f"this key may not use {model[:200]!r}; it may use: {allowed}", "model_not_allowed")

    def _key(self, headers: Mapping[str, str]) -> Key | Refusal:
        """By hash: how long the look takes tells nothing of the value."""
        said = [headers["x-api-key"].strip()] if "x-api-key" in headers else []
        scheme, _, value = headers.get("authorization", "").strip().partition(" ")
        if scheme.lower() == "bearer":
            said.insert(0, value.strip())
        for text in filter(None, said):
            if key := self._keys.get(hashlib.sha256(text.encode("latin-1", "replace")).hexdigest()):
                return key
        wrong = "this key is not known" if any(said) else "a key is needed"
        text = f"{wrong}: Authorization: Bearer KEY, or x-api-key: KEY"
        return Refusal(401, text, "invalid_api_key", (("WWW-Authenticate", 'Bearer realm="llmsupervisor"'),))

    def _is_host(self, host: str) -> bool:
        name = _plain_host(host)
        return name == "localhost" or name in (self._hosts or ()) or _is_loopback(name)

    def _is_origin(self, origin: str) -> bool:
        return origin in self._origins or "*" in self._origins

    # --- where it comes from --------------------------------------------------------------------------------------

    def client_address(self, headers: Mapping[str, str], peer: str) -> str:
        """The first address on the way back that is no trusted proxy; what lies behind it is only its own word."""
        if not self._is_proxy(peer):
            return peer
        address = peer
        for hop in reversed(headers.get("x-forwarded-for", "").split(",")):
            if (found := _address(hop.strip())) is None:
                break
            address = str(found)
            if not self._is_proxy(address):
                break
        return address

    def _is_proxy(self, text: str) -> bool:
        address = _address(text)
        return address is not None and any(address in network for network in self._proxies)

    # --- /metrics -------------------------------------------------------------------------------------------------

    def may_scrape(self, headers: Mapping[str, str], peer: str) -> Refusal | None:
        """A request that another proxy than a trusted one has passed on is not from this machine."""
        if (refusal := self.reaches(headers)) is not None or self._scrape == "all":
            return refusal
        forwarded = any(name in headers for name in _FORWARDED)
        direct = not forwarded or self._is_proxy(peer)
        if self._scrape == "loopback" and direct and _is_loopback(self.client_address(headers, peer)):
            return None
        if self._closed:
            key = self._key(headers)
            return key if isinstance(key, Refusal) else None
        text = 'metrics are told on this machine only; [gateway] scrape = "all" tells them to everybody'
        return Refusal(403, text, "scrape_not_allowed")

    # --- CORS -----------------------------------------------------------------------------------------------------

    def cors(self, headers: Mapping[str, str]) -> Headers:
        """Headers of an answer to a page that may call; none for everybody else."""
        origin = headers.get("origin")
        if origin is None or not self._is_origin(origin):
            return ()
        return (
            ("Access-Control-Allow-Origin", origin),
            ("Access-Control-Expose-Headers", _EXPOSED),
            ("Vary", "Origin"),
        )

    def preflight(self, headers: Mapping[str, str]) -> Headers | Refusal:
        """Of OPTIONS: headers for a 204. It carries no key."""
        if (refusal := self.reaches(headers)) is not None:
            return refusal
        if "origin" not in headers or "access-control-request-method" not in headers:
            return Refusal(405, "OPTIONS is for web pages only", "method_not_allowed", (("Allow", "GET, POST"),))
        asked = headers.get("access-control-request-headers", "")
        found = [*self.cors(headers), ("Access-Control-Allow-Methods", "GET, POST")]
        if _ASKED_HEADERS.fullmatch(asked):
            found.append(("Access-Control-Allow-Headers", asked))
        if headers.get("access-control-request-private-network") == "true":
            found.append(("Access-Control-Allow-Private-Network", "true"))
        return (*found, ("Access-Control-Max-Age", str(PREFLIGHT_AGE)))


def _plain_host(host: str) -> str:
    """Without the port, small, without a final dot; an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    name, colon, port = host.rpartition(":")
    if colon and ":" not in name and port.isdigit():
        host = name
    return host.lower().removesuffix(".")


def _is_loopback(text: str) -> bool:
    address = _address(text)
    return address is not None and address.is_loopback


@lru_cache(maxsize=1024)
def _address(text: str) -> Address | None:
    """Also with a port, as some proxies write it; an IPv4 address inside an IPv6 one is the IPv4 address."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
