"""What a run leaves outside its processes, and whose it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import mmap
import multiprocessing
import os
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import pytest

from llmsupervisor.base.layout import Layout, ServiceFolder
from llmsupervisor.daemon import leftovers
from llmsupervisor.host import tree
from llmsupervisor.host.leavings import SHARED, Leavings, clear_left, mapped


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


def test_a_semaphore_is_mapped_under_another_name() -> None:
    """One of vLLM's is left where its tree is killed."""
    before = set(os.listdir(SHARED))
    semaphore = multiprocessing.get_context("spawn").Semaphore()
    (name,) = {name for name in set(os.listdir(SHARED)) - before if name.startswith("sem.mp-")}
    assert f"{SHARED}{name}" in mapped([os.getpid()])
    del semaphore
    assert f"{SHARED}{name}" not in mapped([os.getpid()])


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


def test_what_somebody_maps_still_stays_until_nobody_does(tmp_path: Path, segment: Path) -> None:
    folder = ServiceFolder(PurePosixPath(tmp_path))
    with mapping(segment):
        ours = Leavings(folder, "run1")
        ours.look([os.getpid()])
        assert str(segment) not in ours.clear()
        Leavings.of(folder, "run2").clear()  # another run comes and goes meanwhile
        assert clear_left(folder) == []
    assert segment.exists()
    assert clear_left(folder) == [str(segment)] and not segment.exists()
    assert list(tmp_path.iterdir()) == []


def test_what_an_earlier_run_left_goes_at_the_end_of_the_next(tmp_path: Path, segment: Path) -> None:
    folder = ServiceFolder(PurePosixPath(tmp_path))
    with mapping(segment):
        ours = Leavings(folder, "run1")
        ours.look([os.getpid()])
        ours.clear()
    assert Leavings.of(folder, "run2").clear() == [str(segment)] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("why", ["another boot", "another file", "garbage"])
def test_a_list_that_may_mean_something_else_removes_nothing(tmp_path: Path, segment: Path, why: str) -> None:
    folder = ServiceFolder(PurePosixPath(tmp_path))
    inode = segment.stat().st_ino + (why == "another file")
    said = {"v": 1, "boot": "x" if why == "another boot" else tree.boot_id(), "segments": {str(segment): inode}}
    (tmp_path / "left").write_text("[" if why == "garbage" else json.dumps(said))
    assert clear_left(folder) == [] and segment.exists()
    assert not (tmp_path / "left").exists(), "it would be read again and again"


def test_the_daemon_looks_again(tmp_path: Path, segment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the folder of a service that it does not know."""
    monkeypatch.setattr(leftovers, "LOOK", 0.02)
    layout = Layout(run=PurePosixPath(tmp_path), state=PurePosixPath(tmp_path))
    (tmp_path / "services" / "gone").mkdir(parents=True)
    ours = Leavings(layout.service("gone"), "run1")

    async def case() -> None:
        with mapping(segment):
            ours.look([os.getpid()])
            ours.clear()
            looking = asyncio.create_task(leftovers.watch_leftovers(SimpleNamespace(layout=layout)))  # type: ignore[arg-type]
            await asyncio.sleep(0.1)
            assert segment.exists()
        for _ in range(500):
            if not segment.exists():
                break
            await asyncio.sleep(0.02)
        looking.cancel()
        assert not segment.exists()

    asyncio.run(case())


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
