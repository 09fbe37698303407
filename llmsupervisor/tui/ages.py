"""Ages that read in whole minutes from one minute on: a screen on which nothing happens is not drawn again."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from llmsupervisor.link.services import Service

MINUTE = 60.0


def coarse(seconds: float) -> float:
    return seconds if seconds < MINUTE else seconds // MINUTE * MINUTE


def settled(service: Service, now: float) -> Service:
    """With times that are as long ago as they are to read."""

    def moved(time: float | None) -> float | None:
        return None if time is None else now - coarse(now - time)

    last = service["last_exit"]
    return {
        **service,
        "since": cast(float, moved(service["since"])),
        "conditions": [{**c, "since": moved(c["since"])} for c in service["conditions"]],
        "last_exit": None if last is None else {**last, "time": moved(last["time"])},
    }
