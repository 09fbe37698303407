"""What a killed run leaves outside its processes: shared memory that its tree had mapped, and its folder of temporary
files. A segment is ours where we saw our own tree map it, and is removed once nobody maps it any more."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field

from llmsupervisor.base.layout import ServiceFolder
from llmsupervisor.host import records

SHARED = "/dev/shm/"
_MAPPED = re.compile(rb" (/dev/shm/[^\n]+)$", re.MULTILINE)


@dataclass(slots=True)
class Leavings:
    """Of one run. `segments`: path → inode."""

    folder: ServiceFolder
    run: str
    segments: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: ServiceFolder, run: str) -> Leavings:
        """With what an earlier daemon saw."""
        try:
            with open(folder.segments, encoding="utf-8") as file:
                said = json.load(file)
            known = {str(path): int(inode) for path, inode in said["segments"].items()} if said["run"] == run else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            known = {}
        return cls(folder, run, {path: inode for path, inode in known.items() if path.startswith(SHARED)})

    def look(self, pids: Iterable[int]) -> None:
        """What the tree maps now is remembered, on disk too."""
        new = {}
        for path in mapped(pids) - self.segments.keys():
            with contextlib.suppress(OSError):
                new[path] = os.stat(path).st_ino
        if new:
            self.segments |= new
            with contextlib.suppress(OSError):
                records.save(self.folder.segments, {"v": 1, "run": self.run, "segments": self.segments})

    def clear(self) -> list[str]:
        """The tree is empty. What was removed."""
        gone = []
        held = mapped(int(name) for name in os.listdir("/proc") if name.isdigit()) if self.segments else set()
        for path, inode in self.segments.items():
            with contextlib.suppress(OSError):
                st = os.stat(path)
                if path not in held and (st.st_ino, st.st_uid) == (inode, os.getuid()):
                    os.unlink(path)
                    gone.append(path)
        self.segments = {}
        clear_files(self.folder)
        return gone


def clear_files(folder: ServiceFolder) -> None:
    with contextlib.suppress(OSError):
        os.unlink(folder.segments)
    shutil.rmtree(folder.temporary, ignore_errors=True)


def mapped(pids: Iterable[int]) -> set[str]:
    """Shared memory with a name; processes that are gone or not ours to read have none."""
    found: set[str] = set()
    for pid in pids:
        try:
            with open(f"/proc/{pid}/maps", "rb") as file:
                text = file.read()
        except OSError:
            continue
        found |= {os.fsdecode(path) for path in _MAPPED.findall(text) if not path.endswith(b" (deleted)")}
    return found
