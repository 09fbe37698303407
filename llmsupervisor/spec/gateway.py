"""What the text alone can tell of `[gateway]`: its address, who may ask, and that no stranger can."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Generator, Iterator, Mapping

from llmsupervisor.base.errors import Problem
from llmsupervisor.base.ids import ENV_NAME
from llmsupervisor.spec.guide import example
from llmsupervisor.spec.locate import Path
from llmsupervisor.spec.model import ClientKey, Gateway, Secret, Service, Spec
from llmsupervisor.spec.names import all_names
from llmsupervisor.spec.near import near
from llmsupervisor.spec.translate import Finding, mismatch, toml

KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
"""It stands in records, metrics and on the screen."""
ANY_ORIGIN = "*"

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?)*")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@*]+")


def gateway(spec: Spec) -> Generator[Finding, None, int | None]:
    """Returns the port that it listens on, None where it has none."""
    if spec.gateway is None:
        return None
    port = yield from _listen(spec.gateway)
    for name, key in spec.gateway.keys.items():
        yield from _key(name, key, spec.services)
    yield from _guard(spec.gateway)
    return port


def is_loopback(listen: str) -> bool:
    """Of a checked `listen`."""
    return _loopback(listen.rpartition(":")[0])


def _loopback(host: str) -> bool:
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        if host.startswith("[") and host.endswith("]"):
            return ipaddress.IPv6Address(host[1:-1])
        return ipaddress.IPv4Address(host)
    except ValueError:
        return None


def _listen(gateway: Gateway) -> Generator[Finding, None, int | None]:
    at: Path = ("gateway", "listen")
    correct = example(Gateway, "listen")
    host, _, port = gateway.listen.rpartition(":")
    if host == "*":
        wrong = f"{toml(gateway.listen)} is no address"
        yield Finding(at, Problem("", wrong, "0.0.0.0 for every IPv4 address, [::] for every one", "", correct))
        return None
    numeric = re.fullmatch(r"[0-9.]+", host) or host.startswith("[")
    if (
        not re.fullmatch(r"[0-9]{1,5}", port)
        or not 0 < int(port) < 65536
        or not (_address(host) if numeric else _HOST.fullmatch(host))
    ):
        expected = "an address HOST:PORT ([HOST]:PORT for IPv6)"
        yield Finding(at, mismatch(expected, gateway.listen, correct))
        return None
    if not _loopback(host) and not gateway.keys and not gateway.allow_unauthenticated:
        wrong = f"{host} is not a loopback address, and without keys everybody who reaches it could use the models"
        allowed = "[gateway.keys], a loopback address, or allow_unauthenticated = true"
        yield Finding(at, Problem("", wrong, allowed, "", example(Gateway, "keys")))
    return int(port)


def _key(name: str, key: ClientKey, services: Mapping[str, Service]) -> Iterator[Finding]:
    at: Path = ("gateway", "keys", name)
    if not KEY_NAME.fullmatch(name):
        wrong = f"{toml(name)} cannot be the name of a key"
        allowed = "1 to 63 of A-Z a-z 0-9 . _ @ -, the first a letter or digit"
        yield Finding(at, Problem("", wrong, allowed, "", "[gateway.keys.alice]"))
    yield from one_source(at, key)
    known = all_names(services)
    for index, model in enumerate(key.models or ()):
        place = (*at, "models", index)
        if model not in known:
            meant = near(model, known)
            allowed = ", ".join(map(toml, known))
            wrong = f"no service answers to {toml(model)}"
            yield Finding(place, Problem("", wrong, allowed, toml(meant) if meant else ""))
        elif model in (key.models or ())[:index]:
            yield Finding(place, Problem("", f"{toml(model)} stands here twice", "each one once"))


def one_source(at: Path, secret: Secret) -> Iterator[Finding]:
    """A secret is named, by exactly one of `file` and `env`; it never stands in the spec."""
    if (secret.file is None) == (secret.env is None):
        both = "both file and env are given" if secret.file else "neither file nor env is given"
        yield Finding(at, Problem("", both, "exactly one of the two", "", example(type(secret), "file")))
    elif secret.env is not None and not ENV_NAME.fullmatch(secret.env):
        wrong = "the name of an environment variable is expected here, not the secret itself"
        yield Finding((*at, "env"), Problem("", wrong, example=example(type(secret), "env")))


def _guard(gateway: Gateway) -> Iterator[Finding]:
    if gateway.keys and gateway.allow_unauthenticated:
        wrong = "keys and allow_unauthenticated exclude each other: where there are keys, each request needs one"
        yield Finding(("gateway", "allow_unauthenticated"), Problem("", wrong, "one of the two"))
    for index, host in enumerate(gateway.hosts or ()):
        if not (_HOST.fullmatch(host.removesuffix(".")) or _address(host)):
            expected = "a host name without scheme and port"
            yield Finding(("gateway", "hosts", index), mismatch(expected, host, example(Gateway, "hosts")))
    for index, origin in enumerate(gateway.origins):
        at: Path = ("gateway", "origins", index)
        if origin == ANY_ORIGIN:
            if not gateway.keys:
                wrong = "without keys any web page that somebody here opens could use the models"
                yield Finding(at, Problem("", wrong, "[gateway.keys], or the origins by name"))
        elif not _ORIGIN.fullmatch(origin):
            expected = "an origin SCHEME://HOST[:PORT] in small letters, without a path"
            yield Finding(at, mismatch(expected, origin, example(Gateway, "origins")))
    for index, network in enumerate(gateway.trusted_proxies):
        yield from _network(("gateway", "trusted_proxies", index), network)
    if gateway.scrape == "keys" and not gateway.keys:
        wrong = 'scrape = "keys" and there are no keys: nobody could read /metrics'
        yield Finding(("gateway", "scrape"), Problem("", wrong, 'keys, "loopback" or "all"'))


def _network(at: Path, network: str) -> Iterator[Finding]:
    try:
        wider = ipaddress.ip_network(network, strict=False)
    except ValueError:
        yield Finding(at, mismatch("an address or a network", network, example(Gateway, "trusted_proxies")))
        return
    if "/" in network and ipaddress.ip_interface(network).ip != wider.network_address:
        wrong = f"{toml(network)} is an address inside a network"
        yield Finding(at, Problem("", wrong, "the network, or the address alone", toml(str(wider))))
