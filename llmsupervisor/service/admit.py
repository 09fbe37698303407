"""May a service that waits in PENDING start now?"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from llmsupervisor.plan.launch import Refusal
from llmsupervisor.service.room import Room
from llmsupervisor.service.states import Admitted, Refused, State, Status

HOLDS_GPU = frozenset({State.STARTING, State.STOPPING, State.KILLING})
"""GPU memory moves while a service is in one of these."""
FITS = Room(True)


def admission(
    name: str,
    statuses: Mapping[str, Status],
    gpus_of: Mapping[str, Sequence[str]],
    refusals: Sequence[Refusal],
    vram: Collection[str],
    room: Room = FITS,
    closed: str = "",
) -> Admitted | Refused:
    """`gpus_of`: UUIDs of every service that is in `statuses`, also of one that has left the spec.
    `vram`: UUIDs whose memory has not come back from an earlier run. `room`: what `make_room` says. `closed`: why nothing is
    started on one of its GPUs. Services without a
    GPU start side by side.
    """
    if closed:
        return Refused(closed)
    if refusals:
        return Refused("; ".join(refusal.text for refusal in refusals))
    wanted = gpus_of.get(name, ())
    for uuid in wanted:
        for other, status in statuses.items():
            if other != name and uuid in gpus_of.get(other, ()) and (why := _holds(status)):
                return Refused(f"waits for {other}, which {why} on {uuid}")
    for uuid in wanted:
        if uuid in vram:
            return Refused(f"waits until the memory of an earlier run is free on {uuid}")
    return Admitted() if room.fits else Refused(room.reason)


def _holds(status: Status) -> str:
    if status.unkillable:
        return "cannot be killed"
    if status.state in HOLDS_GPU:
        return "starts" if status.state is State.STARTING else "stops"
    return ""
