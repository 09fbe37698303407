"""Places where a test lets this process die or fail: `LLMSUPERVISOR_FAILPOINT` = `NAME`, `NAME:N` (dies at the N-th pass),
`random:SEED:PROBABILITY` (dies at any place) or `raise:NAME:N` (the first N passes raise).
"""

from __future__ import annotations

import os
import random
import signal

_armed, _, _rest = os.environ.get("LLMSUPERVISOR_FAILPOINT", "").partition(":")
_first, _, _second = _rest.partition(":")
_random = random.Random(_first)
_passes = 0


def failpoint(name: str) -> None:
    global _passes
    if not _armed:
        return
    if _armed == "raise":
        _passes += name == _first
        if name == _first and _passes <= int(_second or 1):
            raise RuntimeError(f"failpoint {name}")
        return
    if _armed == "random":
        hit = _random.random() < float(_second)
    else:
        _passes += name == _armed
        hit = name == _armed and _passes == int(_rest or 1)
    if hit:
        os.kill(os.getpid(), signal.SIGKILL)
