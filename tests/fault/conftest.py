"""Fixtures of the fault tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import nvml
from support.daemon import Daemon
from support.faults import Box
from support.nvml import Scenario


@pytest.fixture
def faults(daemon: Daemon) -> Box:
    """A daemon, not started, and what the tests of faults ask of it."""
    return Box(daemon)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a stand-in for NVML's library, that plays the scenario in the file `$NVML_SCENARIO`."""
    return nvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def card(faults: Box, library: Path) -> Scenario:
    card = Scenario(faults.folder / "scenario")
    faults.daemon.environ |= {"LD_LIBRARY_PATH": str(library), "NVML_SCENARIO": str(card.path)}
    card.play("gpu GPU-a 24576 1000 0")
    return card


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process of somebody else."""
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield child.pid
    child.kill()
    child.communicate()
