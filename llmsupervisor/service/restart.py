"""When a service whose run ended by a fault is started again. Pure on the times in its status."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmsupervisor.base.units import format_duration
from llmsupervisor.service.states import ExitInfo, Policy, Status

JITTER = 0.2
"""± share of the delay: services that one driver reset killed do not come back in step."""

_WAITS_FOR = {
    "on-change": "waits for a change of the spec, the model or the binary",
    "when-vram-changes": "waits until GPU memory changes",
    "when-port-free": "waits until the port is free",
}


@dataclass(frozen=True, slots=True)
class Wait:
    delay: float
    """Seconds; 0: at once."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    retry_at: float | None
    """None: only a change brings it back."""
    reason: str


Decision = Wait | GiveUp


def settle_books(status: Status, policy: Policy, now: float) -> Status:
    """A run is over: a healthy one clears the counters, a fault is counted.

    The fault that ends a healthy run leaves `streak` at 0, so that the next start is immediate.
    """
    failures = () if status.healthy else tuple(t for t in status.failures if now - t < policy.window)
    streak = 0 if status.healthy else status.streak
    if status.fault is not None:
        failures = (*failures, now)[-policy.burst :]
        streak = 0 if status.healthy else streak + 1
    return replace(status, failures=failures, streak=streak, healthy=False)


def decide(status: Status, fault: ExitInfo, policy: Policy, now: float) -> Decision:
    """`status` after `settle_books`: `fault` is already counted."""
    if policy.restart == "never":
        return GiveUp(None, f'{fault.text}; stays down: restart policy is "never"')
    if fault.retry != "backoff":
        return GiveUp(None, f"{fault.text}; {_WAITS_FOR[fault.retry]}")
    if len(status.failures) >= policy.burst:
        text = f"{len(status.failures)} failures in {format_duration(policy.window)}, the last: {fault.text}"
        return GiveUp(now + policy.half_open, f"{text}; one more try {format_duration(policy.half_open)} later")
    return Wait(delay(status.streak, status.jitter, policy))


def delay(streak: int, jitter: float, policy: Policy) -> float:
    """0, 1, 2, 4, 8 … seconds up to `max_delay`, ± 20 % by `jitter` in [-1, 1]."""
    if streak == 0:
        return 0.0
    return float(min(policy.max_delay, 2.0 ** min(streak - 1, 60)) * (1 + JITTER * jitter))
