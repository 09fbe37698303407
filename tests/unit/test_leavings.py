"""What a run leaves outside its processes, and whose it is."""

from __future__ import annotations

import contextlib
import mmap
import os
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from llmsupervisor.base.layout import ServiceFolder
from llmsupervisor.host.leavings import SHARED, Leavings, mapped


@contextlib.contextmanager
def mapping(path: Path) -> Iterator[None]:
    """This process maps it."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096):
        yield


@pytest.fixture
def segment() -> Iterator[Path]:
    path = Path(f"{SHARED}llmsupervisor-test-{uuid.uuid4().hex}")
    path.write_bytes(bytes(4096))
    yield path
    path.unlink(missing_ok=True)


def test_what_our_tree_had_mapped_goes_with_it(tmp_path: Path, segment: Path) -> None:
    folder = ServiceFolder(PurePosixPath(tmp_path))
    other = segment.with_name(segment.name + "-other")
    other.write_bytes(bytes(4096))
    with mapping(segment):
        assert str(segment) in mapped([os.getpid(), 2**22])
        Leavings(folder, "run1").look([os.getpid()])
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "socket").touch()
    gone = Leavings.of(folder, "run1").clear()
    assert str(segment) in gone and not segment.exists() and other.exists()
    assert list(tmp_path.iterdir()) == []
    other.unlink()


def test_what_somebody_maps_still_stays(tmp_path: Path, segment: Path) -> None:
    with mapping(segment):
        ours = Leavings(ServiceFolder(PurePosixPath(tmp_path)), "run1")
        ours.look([os.getpid()])
        assert str(segment) not in ours.clear()
    assert segment.exists()


def test_a_name_that_another_has_taken_since_stays(tmp_path: Path, segment: Path) -> None:
    ours = Leavings(ServiceFolder(PurePosixPath(tmp_path)), "run1")
    with mapping(segment):
        ours.look([os.getpid()])
    inode = segment.stat().st_ino
    new = segment.with_name(segment.name + "-new")
    new.write_bytes(b"")
    new.replace(segment)
    assert segment.stat().st_ino != inode
    ours.clear()
    assert segment.exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"v": 1, "run": "other", "segments": {"/dev/shm/x": 1}}',
        '{"v": 1, "run": "run1", "segments": {"/etc/passwd": 1}}',
        '{"v": 1, "run": "run1", "segments": []}',
    ],
)
def test_a_record_of_another_run_or_another_place_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "segments").write_text(text)
    assert Leavings.of(ServiceFolder(PurePosixPath(tmp_path)), "run1").segments == {}
