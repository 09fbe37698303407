"""Which port an engine listens on. Nobody moves."""

from __future__ import annotations

from llmsupervisor.plan.facts import Facts
from llmsupervisor.spec.model import Spec, port_range


def gateway_port(spec: Spec) -> int | None:
    port = spec.gateway.listen.rpartition(":")[2] if spec.gateway else ""
    return int(port) if port.isascii() and port.isdigit() else None


def assign(spec: Spec, facts: Facts) -> dict[str, int | None]:
    """Port of every enabled service: the spec's, the kept one, else the lowest of `ports` that is free. None: none is free.

    A kept port outside `ports` is given up: the range was changed, or the spec no longer names that port.
    """
    allowed = port_range(spec.ports)
    services = {name: s for name, s in spec.services.items() if s.enabled}
    said = {name: s.port for name, s in services.items() if s.port}
    ports: dict[str, int | None] = dict(said)
    used = set(said.values()) | {gateway_port(spec)}
    for name in services:
        kept = facts.kept_ports.get(name)
        if name not in ports and kept in allowed and kept not in used:
            ports[name] = kept
            used.add(kept)
    used |= set(facts.kept_ports.values()) | facts.busy_ports
    for name in services:
        if name not in ports:
            ports[name] = next((port for port in allowed if port not in used), None)
            used.add(ports[name])
    return ports
