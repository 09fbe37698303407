from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway.box import Box
from gateway.standalone import Engine, Standalone
from support.daemon import Daemon


@pytest.fixture
def gateway(short_folder: Path) -> Iterator[Standalone]:
    yield from standalone(short_folder)


@pytest.fixture(scope="module")
def shared() -> Iterator[Standalone]:
    """One for the many cases of a module that leave nothing behind but requests at the engine and records."""
    folder = Path(tempfile.mkdtemp(prefix="ls-"))
    yield from standalone(folder)
    shutil.rmtree(folder, ignore_errors=True)


def standalone(folder: Path) -> Iterator[Standalone]:
    gateway = Standalone(folder, Engine())
    gateway.apply()
    yield gateway
    gateway.close()


@pytest.fixture
def box(daemon: Daemon) -> Iterator[Box]:
    box = Box(daemon)
    yield box
    daemon.down() if daemon.process and daemon.process.poll() is None else daemon.close()
