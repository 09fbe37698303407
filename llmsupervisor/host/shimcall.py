"""With what a shim is called: an interpreter that is a real binary, and the shim's program in its fastest form."""

from __future__ import annotations

import functools
import importlib.util
import os
import py_compile
import struct
import sys
from pathlib import Path

from llmsupervisor.base.errors import LlmsupervisorError

SHIM = Path(__file__).with_name("shim.py")


class ShimFailed(LlmsupervisorError):
    """The shim ended, or did nothing, before it had started a process."""


def interpreter() -> str:
    """The real interpreter binary: a script that stands in for it would be the process that we take for the shim."""
    for path in (getattr(sys, "_base_executable", ""), "/proc/self/exe"):
        real = os.path.realpath(path) if path else ""
        try:
            with open(real, "rb") as file:
                if file.read(4) == b"\x7fELF":
                    return real
        except OSError:
            continue
    raise ShimFailed(f"no interpreter for the shim: {sys.executable} does not lead to a program file")


@functools.cache
def program() -> str:
    """The shim's bytecode where it can be had, which starts a third faster than its source. It is run by its path, so
    that nobody but us checks that it is that of the source."""
    try:
        found = Path(importlib.util.cache_from_source(str(SHIM)))
        source = SHIM.stat()
        stamp = struct.pack("<LL", int(source.st_mtime) & 0xFFFFFFFF, source.st_size & 0xFFFFFFFF)
        if not found.exists() or found.read_bytes()[4:16] != b"\0\0\0\0" + stamp:
            py_compile.compile(str(SHIM), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
        return str(found)
    except (OSError, NotImplementedError, py_compile.PyCompileError):
        return str(SHIM)
