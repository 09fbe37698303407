"""XIDs: what the driver's numbers for critical errors mean, and whose fault they are. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["application", "gpu", "unknown"]


@dataclass(frozen=True, slots=True)
class Meaning:
    kind: Kind
    """`application`: a process did it, and may be broken by it; `gpu`: nothing more is started on the card."""
    text: str
    lost: bool = False
    """The card is gone: what runs on it cannot go on."""


_KNOWN = {
    13: Meaning("application", "graphics engine exception"),
    31: Meaning("application", "GPU memory page fault"),
    43: Meaning("application", "GPU stopped processing"),
    45: Meaning("application", "preemptive cleanup after an earlier error"),
    48: Meaning("gpu", "double bit ECC error"),
    63: Meaning("gpu", "a row of memory was remapped: the card wants a reset"),
    64: Meaning("gpu", "a row of memory could not be remapped"),
    74: Meaning("gpu", "NVLink error"),
    79: Meaning("gpu", "GPU has fallen off the bus", lost=True),
    92: Meaning("gpu", "high rate of single bit ECC errors"),
    94: Meaning("gpu", "contained ECC error"),
    95: Meaning("gpu", "uncontained ECC error"),
    119: Meaning("gpu", "the GPU's system processor does not answer"),
    120: Meaning("gpu", "error of the GPU's system processor"),
}


def meaning(code: int) -> Meaning:
    return _KNOWN.get(code, Meaning("unknown", "see NVIDIA's list of XID errors"))
