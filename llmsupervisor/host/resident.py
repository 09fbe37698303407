"""Memory of process trees, read from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable

from llmsupervisor.host.tree import read_stat

_PRIVATE = ("RssAnon:", "RssShmem:", "VmSwap:")


def trees(roots: Iterable[int]) -> dict[int, list[int]]:
    """Root → everything below it, zombies left out: one look at all processes, whatever the number of roots."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (found := read_stat(int(name))) and found.state not in "ZX":
            children.setdefault(found.parent, []).append(int(name))
    known: dict[int, list[int]] = {}
    for root in roots:
        below = known[root] = list(children.get(root, ()))
        for pid in below:
            below.extend(children.get(pid, ()))
    return known


def memory(pids: Iterable[int]) -> tuple[int, int] | None:
    """Bytes that are no file's, and bytes in swap, over all of them. None: not one can be read."""
    resident = swapped = 0
    seen = False
    for pid in pids:
        try:
            with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
                sizes = {words[0]: int(words[1]) * 1024 for line in file if (words := line.split())[0] in _PRIVATE}
        except (OSError, ValueError, IndexError):
            continue
        if sizes:
            seen = True
            swapped += sizes.pop("VmSwap:", 0)
            resident += sum(sizes.values())
    return (resident, swapped) if seen else None


def held(pids: Iterable[int]) -> int | None:
    """Bytes of RAM, mapped files included, what they share counted for each; None: none of them could be read."""
    pages = []
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm", encoding="ascii") as file:
                pages.append(int(file.readline().split()[1]))
        except (OSError, IndexError, ValueError):
            continue
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") if pages else None
