"""Faults S8 and S12 of the daemon and its services. Numbers: README.md."""

from __future__ import annotations

import contextlib
import os
import stat

from support.faults import Box


def test_S8_nobody_else_reads_the_state_whatever_the_umask(faults: Box) -> None:
    faults.daemon.write({"chat": faults.fake()})
    before = os.umask(0o000)
    try:
        faults.daemon.up()
    finally:
        os.umask(before)
    faults.ready()
    state = faults.daemon.state
    modes = {}
    for path in state.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a temporary file that was just renamed
            if not stat.S_ISLNK(found := path.lstat().st_mode):
                modes[path] = stat.S_IMODE(found)
    assert faults.daemon.socket in modes and state / "services" / "chat" / "log" in modes
    assert stat.S_IMODE(state.stat().st_mode) & 0o077 == 0
    assert {str(path): oct(mode) for path, mode in modes.items() if mode & 0o077} == {}


def test_S12_a_value_is_a_word_and_never_a_command(faults: Box) -> None:
    odd = "m; touch pwned; $(touch pwned) `touch pwned` | touch pwned & \" ' .gguf"
    faults.model = faults.folder / odd
    faults.up()
    faults.ready()
    assert str(faults.model) in faults.starts()[0].argv
    assert not list(faults.folder.rglob("pwned"))
