"""Fixtures of all tests; what they are made of is in `support/`."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support import engines, process
from support.daemon import Daemon

# How long a machine with other work takes says nothing of what is tested.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


def pytest_configure() -> None:
    """A shell starts what it puts in the background with SIGINT ignored, and every child inherits that: tests that send
    it would wait for ever."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def llama_server() -> Path:
    return engines.llama_server()


@pytest.fixture(scope="session")
def model() -> Path:
    """A small instruct model, 98 MB of GGUF."""
    return engines.smollm2()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A temporary folder whose path leaves room for a Unix socket (107 bytes)."""
    folder = Path(tempfile.mkdtemp(prefix="ls-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def ports() -> range:
    return process.free_ports(10)


@pytest.fixture
def daemon(short_folder: Path, ports: range) -> Iterator[Daemon]:
    """Not started: `daemon.write(services)`, then `daemon.up()`. Whatever the test did, nothing may survive it."""
    daemon = Daemon(short_folder, ports)
    yield daemon
    left = daemon.close()
    assert not left, f"left after the test: {left}\n{daemon.told()}"
