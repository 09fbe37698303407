"""Fixtures of the fault tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import nvml
from support.daemon import Daemon
from support.faults import Box


@pytest.fixture
def faults(daemon: Daemon) -> Box:
    """A daemon, not started, and what the tests of faults ask of it."""
    return Box(daemon)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a stand-in for NVML's library, that plays the scenario in the file `$NVML_SCENARIO`."""
    return nvml.build(tmp_path_factory.mktemp("nvml"))
