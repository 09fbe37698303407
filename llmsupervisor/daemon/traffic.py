"""What the gateway says of the requests of each service: how many run and wait, and when there last was one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llmsupervisor.base.clock import Clock
from llmsupervisor.link.gateway import EndpointStats

PUMPED = 0.5
"""Seconds after an endpoint was opened in which what waits for it begins: figures of before say nothing."""
DEMAND = 3.0
"""Seconds that a demand holds: it is told each second while it is true."""


@dataclass(frozen=True, slots=True)
class Load:
    running: int
    queued: int
    prefill_tokens: int | None
    """None: not known of one of its endpoints."""
    settled: bool
    """Told since its endpoint took requests: what waited for it is counted."""

    @property
    def idle(self) -> bool:
        return not self.running and not self.queued


class Traffic:
    """Times are monotonic seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._stats: dict[str, EndpointStats] = {}
        self._heard: float | None = None
        self._since: float | None = None
        """Since when every request of the running gateway is in `_used`."""
        self._opened: dict[str, float] = {}
        self._used: dict[str, float] = {}
        """By service, and by endpoint of a model among several."""
        self._waits: dict[str, tuple[float, float]] = {}
        """Service → (when it was told, since when its oldest request waits)."""

    # --- what the gateway says -----------------------------------------------------------------------------------

    def hello(self, age: float) -> None:
        """`age`: seconds for which this gateway process has remembered its requests."""
        self._since = self._clock.monotonic() - age
        self._heard, self._opened = None, {}

    def lost(self) -> None:
        """No word of it counts until it is back."""
        self._stats, self._heard, self._opened = {}, None, {}

    def applied(self, opened: Iterable[str]) -> None:
        """These endpoints take requests now, and no others."""
        now = self._clock.monotonic()
        self._opened = {endpoint: self._opened.get(endpoint, now) for endpoint in opened}

    def stats(self, endpoints: Mapping[str, EndpointStats]) -> None:
        self._stats, self._heard = dict(endpoints), self._clock.monotonic()
        ago = self._clock.wall() - self._heard
        for endpoint, said in endpoints.items():
            last = said.get("last_activity")
            used = self._heard if said["running"] or said["queued"] else None if last is None else last - ago
            if used is not None:
                for key in {service_of(endpoint), model_key(endpoint)}:
                    self._used[key] = min(self._heard, max(used, self._used.get(key, used)))

    def demand(self, service: str, oldest_ms: float) -> None:
        now = self._clock.monotonic()
        self._waits[service] = (now, now - oldest_ms / 1000)

    # --- what that means -----------------------------------------------------------------------------------------

    @property
    def known(self) -> bool:
        return self._heard is not None

    def of(self, service: str) -> Load | None:
        """Or of one model among several, `SERVICE/MODEL`. None: the gateway has not said, or there is none."""
        if self._heard is None:
            return None
        said = {e: one for e, one in self._stats.items() if service in (service_of(e), model_key(e))}
        prefill = [one.get("prefill_tokens") for one in said.values()]
        opened = [self._opened.get(endpoint) for endpoint in said]
        return Load(
            running=sum(one["running"] for one in said.values()),
            queued=sum(one["queued"] for one in said.values()),
            prefill_tokens=None if not prefill or None in prefill else sum(tokens or 0 for tokens in prefill),
            settled=any(at is not None and self._heard >= at + PUMPED for at in opened),
        )

    def used(self, service: str) -> float | None:
        """When a request of it last ran or waited; where none is remembered, since when one would be. None: no gateway yet."""
        return self._used.get(service, self._since)

    def waits_since(self, service: str) -> float | None:
        """Of its oldest request that waits for it to open. None: none does."""
        told, since = self._waits.get(service, (None, 0.0))
        return since if told is not None and self._clock.monotonic() - told <= DEMAND else None


def service_of(endpoint: str) -> str:
    """Of `SERVICE@ATTEMPT`, or `SERVICE@ATTEMPT/MODEL`."""
    return endpoint.partition("@")[0]


def model_key(endpoint: str) -> str:
    """`SERVICE/MODEL` where it is one model among several, whichever start; else the service."""
    service, _, rest = endpoint.partition("@")
    model = rest.partition("/")[2]
    return f"{service}/{model}" if model else service
