"""What a killed run leaves outside its processes: shared memory that its tree had mapped, and its folder of temporary
files. A segment is ours where we saw our own tree map it, and is removed once nobody maps it any more: what another still
maps when the tree is empty stays on a list until then."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from llmsupervisor.base.layout import ServiceFolder
from llmsupervisor.host import records, tree

SHARED = "/dev/shm/"
_LISTS = threading.Lock()
_MAPPED = re.compile(rb"^\S+ \S+ \S+ \S+ (\d+) +(/dev/shm/[^\n]+)$", re.MULTILINE)


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
            known = _segments(said["segments"]) if said["run"] == run else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            known = {}
        return cls(folder, run, known)

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
        gone = clear_left(self.folder, self.segments)
        self.segments = {}
        clear_files(self.folder)
        return gone


def clear_left(folder: ServiceFolder, more: Mapping[str, int] | None = None) -> list[str]:
    """What runs before left, and `more`, where nobody maps it now; the rest is kept on the list. What was removed."""
    with _LISTS:
        before = _left(folder)
        known = {**before, **(more or {})}
        gone, still = [], {}
        held = mapped(int(name) for name in os.listdir("/proc") if name.isdigit()) if known else set()
        for path, inode in known.items():
            with contextlib.suppress(OSError):
                st = os.stat(path)
                if (st.st_ino, st.st_uid) != (inode, os.getuid()):
                    continue
                if path in held:
                    still[path] = inode
                else:
                    os.unlink(path)
                    gone.append(path)
        with contextlib.suppress(OSError):
            if still and still != before:
                records.save(folder.left, {"v": 1, "boot": tree.boot_id(), "segments": still})
            elif not still:
                os.unlink(folder.left)
        return gone


def _left(folder: ServiceFolder) -> dict[str, int]:
    """Nothing where it is of another boot: names and inodes come again."""
    try:
        with open(folder.left, encoding="utf-8") as file:
            said = json.load(file)
        return _segments(said["segments"]) if said["boot"] == tree.boot_id() else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _segments(said: Mapping[str, object]) -> dict[str, int]:
    return {path: int(str(inode)) for path, inode in said.items() if path.startswith(SHARED)}


def clear_files(folder: ServiceFolder) -> None:
    with contextlib.suppress(OSError):
        os.unlink(folder.segments)
    shutil.rmtree(folder.temporary, ignore_errors=True)


def mapped(pids: Iterable[int]) -> set[str]:
    """Shared memory with a name; processes that are gone or not ours to read have none.

    glibc makes a semaphore under a name of the moment and links it to its own: only the inode is the same then.
    """
    found: set[str] = set()
    renamed: set[int] = set()
    for pid in pids:
        try:
            with open(f"/proc/{pid}/maps", "rb") as file:
                text = file.read()
        except OSError:
            continue
        for inode, path in _MAPPED.findall(text):
            if path.endswith(b" (deleted)"):
                renamed.add(int(inode))
            else:
                found.add(os.fsdecode(path))
    if renamed:
        with contextlib.suppress(OSError), os.scandir(SHARED) as entries:
            found |= {entry.path for entry in entries if entry.inode() in renamed}
    return found
