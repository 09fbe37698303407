"""The engine suite's cases run over every runtime of `support.kinds`; what a definition cannot do is switched off and said."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import process
from support.daemon import Daemon
from support.enginebox import EngineBox
from support.kinds import KINDS, Kind

OFF: list[str] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" not in metafunc.fixturenames:
        return
    needed = {word for mark in metafunc.definition.iter_markers("needs") for word in mark.args}
    fit = [name for name, kind in KINDS.items() if needed <= kind.capabilities]
    for name in KINDS.keys() - fit:
        lacks = ", ".join(sorted(needed - KINDS[name].capabilities))
        OFF.append(f"{name}: {metafunc.definition.name} (no {lacks})")
    metafunc.parametrize("kind", fit, indirect=True, scope="module")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if OFF:
        terminalreporter.section("engine cases switched off by their definition")
        for line in sorted(OFF):
            terminalreporter.line(line)


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def box(kind: Kind) -> Iterator[EngineBox]:
    """Started once; whatever the cases did, nothing may survive it."""
    folder = Path(tempfile.mkdtemp(prefix="ls-"))
    daemon = Daemon(folder, process.free_ports(10))
    box = EngineBox(daemon, kind)
    box.first_start()
    yield box
    left = daemon.close()
    told = daemon.told()
    shutil.rmtree(folder, ignore_errors=True)
    assert not left, f"left after the cases: {left}\n{told}"
