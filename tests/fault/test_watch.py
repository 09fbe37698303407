"""Faults C1, C3, C10 to C13, C19: whatever way a file is written, each settled content is reported, and only that."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from support.wait import PATIENCE, Spent

from llmsupervisor.host import watch as watching
from llmsupervisor.host.watch import Bell, digest, folders, watch


class Reports:
    """What a watch reports, with the content that the file had when it did."""

    def __init__(self, path: Path, settle: float, poll: float) -> None:
        self.seen: list[tuple[float, str | None]] = []
        self._path = path
        self._stream = watch(lambda: [str(path)], settle, poll)
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for paths in self._stream:
            assert paths == {str(self._path)}
            self.seen.append((time.monotonic(), self._path.read_text() if self._path.exists() else None))

    async def until(self, content: str | None, within: float) -> None:
        within = max(within, PATIENCE)
        end = time.monotonic() + within
        while not self.seen or self.seen[-1][1] != content:
            assert time.monotonic() < end, f"{content!r} not reported within {within} s, only {self.seen}"
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        await self._stream.aclose()


@contextlib.asynccontextmanager
async def watched(path: Path, settle: float = 0.1, poll: float = 60.0) -> AsyncIterator[Reports]:
    """The poll is out of reach, so that what is seen was seen by the watch."""
    reports = Reports(path, settle, poll)
    await asyncio.sleep(0.1)  # the first folders are armed
    try:
        yield reports
    finally:
        await reports.close()


def swap(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".swp")
    new.write_text(text)
    os.replace(new, path)


def run(case: Callable[[], object]) -> None:
    asyncio.run(case())  # type: ignore[arg-type]


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "box" / "spec.toml"
    path.parent.mkdir()
    path.write_text("old")
    return path


def test_in_place_write_is_reported_once(spec: Path) -> None:
    async def case() -> None:
        async with watched(spec) as reports:
            began = time.monotonic()
            spec.write_text("new")
            await reports.until("new", 2)
            print(f"\nwrite to report: {reports.seen[0][0] - began:.3f} s")
            await asyncio.sleep(0.5)
            assert len(reports.seen) == 1

    run(case)


def test_what_was_written_between_the_callers_read_and_the_watch_is_reported(tmp_path: Path) -> None:
    async def case() -> None:
        early, late, later = (tmp_path / name for name in ("early", "late", "later"))
        for path in (early, late, later):
            path.write_text("old")
        await asyncio.sleep(0.1)
        read_at = time.time()
        late.write_text("written after the read")
        stream = watch(lambda: [str(early), str(late), str(later)], since=read_at)
        later.write_text("written before the first wait")
        assert await asyncio.wait_for(anext(stream), PATIENCE) == {str(late), str(later)}
        await stream.aclose()

    run(case)


def test_c1_half_written_file_is_reported_whole_only(spec: Path) -> None:
    async def case() -> None:
        async with watched(spec) as reports:
            with open(spec, "w") as file:
                file.write("first half, ")
                file.flush()
                await asyncio.sleep(1.0)
                assert reports.seen == []
                file.write("second half")
            await reports.until("first half, second half", 1)
            assert len(reports.seen) == 1

    run(case)


def test_c1_half_written_by_closing_in_between_is_reported_whole_only(spec: Path) -> None:
    async def case() -> None:
        async with watched(spec, settle=1.0) as reports:
            spec.write_text("first half, ")
            await asyncio.sleep(0.1)
            with open(spec, "a") as file:
                file.write("second half")
            await reports.until("first half, second half", 2)
            assert len(reports.seen) == 1

    run(case)


def test_c2_truncated_to_nothing_is_a_change(spec: Path) -> None:
    async def case() -> None:
        async with watched(spec) as reports:
            os.truncate(spec, 0)
            await reports.until("", 2)

    run(case)


@pytest.mark.slow
def test_c3_a_hundred_rename_swaps_and_each_content_is_seen(spec: Path) -> None:
    async def case() -> None:
        async with watched(spec, settle=0.02) as reports:
            for number in range(100):
                swap(spec, f"content {number}")
                await reports.until(f"content {number}", 2)
            assert [content for _, content in reports.seen] == [f"content {number}" for number in range(100)]

    run(case)


@pytest.mark.slow
@pytest.mark.parametrize("every", [0.1, 0.2])
def test_c10_flapping_is_reported_every_two_seconds_at_most_and_the_last_content_wins(spec: Path, every: float) -> None:
    async def case() -> None:
        async with watched(spec) as reports:
            edits = round(6 / every)
            swapped = []
            for number in range(edits):
                swap(spec, f"content {number}")
                swapped.append(time.monotonic())
                await asyncio.sleep(every)
            pauses = sum(later - earlier > 0.25 for earlier, later in itertools.pairwise(swapped))
            await reports.until(f"content {edits - 1}", 3)
            times = [at for at, _ in reports.seen]
            gaps = [later - earlier for earlier, later in itertools.pairwise(times[:-1])]
            print(f"\n{len(times)} reports of {edits} edits in 6 s, gaps {[round(gap, 2) for gap in gaps]}")
            assert len(times) <= 5 + pauses, "what lies still for a while is reported"
            assert sum(gap < 1.9 for gap in gaps) <= pauses

    run(case)


def test_c11_back_to_the_old_content_is_no_change(spec: Path) -> None:
    async def case() -> None:
        async with watched(spec, settle=1.0) as reports:
            swap(spec, "new")
            await asyncio.sleep(0.1)
            swap(spec, "old")
            await asyncio.sleep(2.5)
            assert reports.seen == []
            swap(spec, "new")
            await reports.until("new", 2)

    run(case)


@pytest.mark.parametrize("gone", [0.0, 0.5])
def test_c12_folder_removed_and_recreated(spec: Path, gone: float) -> None:
    """At once, and after everything that the removal set off has come to rest."""

    async def case() -> None:
        async with watched(spec) as reports:
            for round in ("first", "second"):
                shutil.rmtree(spec.parent)
                await reports.until(None, 3)
                await asyncio.sleep(gone)
                spec.parent.mkdir()
                spec.write_text(round)
                await reports.until(round, 3)

    run(case)


def test_c12_folder_exchanged_by_rename_above_it_is_seen_by_the_poll(tmp_path: Path) -> None:
    async def case() -> None:
        path = tmp_path / "a" / "b" / "spec.toml"
        for folder, text in ((tmp_path / "a" / "b", "old"), (tmp_path / "other" / "b", "new")):
            folder.mkdir(parents=True)
            (folder / "spec.toml").write_text(text)
        async with watched(path, poll=0.5) as reports:
            await asyncio.sleep(0.1)
            os.rename(tmp_path / "a", tmp_path / "gone")
            os.rename(tmp_path / "other", tmp_path / "a")
            await reports.until("new", 3)
            path.write_text("newer")
            await reports.until("newer", 3)

    run(case)


def test_c13_kubernetes_swaps_its_data_link_twice(tmp_path: Path) -> None:
    async def case() -> None:
        def publish(version: int) -> None:
            data = tmp_path / f"..v{version}"
            data.mkdir()
            (data / "spec.toml").write_text(f"version {version}")
            os.symlink(data.name, tmp_path / "..tmp")
            os.replace(tmp_path / "..tmp", tmp_path / "..data")

        publish(0)
        path = tmp_path / "spec.toml"
        path.symlink_to("..data/spec.toml")
        async with watched(path) as reports:
            for version in (1, 2):
                publish(version)
                await reports.until(f"version {version}", 2)
                shutil.rmtree(tmp_path / f"..v{version - 1}")
            assert len(reports.seen) == 2

    run(case)


def test_c13_target_of_a_link_edited_elsewhere(tmp_path: Path) -> None:
    async def case() -> None:
        target = tmp_path / "elsewhere" / "real.toml"
        target.parent.mkdir()
        target.write_text("old")
        path = tmp_path / "box" / "spec.toml"
        path.parent.mkdir()
        path.symlink_to("../elsewhere/real.toml")
        async with watched(path) as reports:
            swap(target, "new")
            await reports.until("new", 2)
            path.unlink()
            path.write_text("no link any more")
            await reports.until("no link any more", 2)

    run(case)


def test_c14_what_is_no_file_is_told_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.symlink("loop", tmp_path / "loop")
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(1 << 30)
    spent = Spent()
    found = [digest(str(tmp_path / name)) for name in ("fifo", "loop", "huge", "missing", ".")]
    assert spent() < 0.5
    assert len(set(found)) == 5
    assert folders(str(tmp_path / "loop"))


async def without_inotify(spec: Path) -> None:
    """In a user namespace of its own, whose limit touches nobody else."""
    limit = Path("/proc/sys/user/max_inotify_instances")
    bell = Bell()
    for instances, armed in ((0, False), (10, True)):
        limit.write_text(str(instances))
        await bell.arm([str(spec)])
        assert bell.armed is armed
        await bell.close()
    limit.write_text("0")
    async with watched(spec, poll=0.5) as reports:
        spec.write_text("new")
        await reports.until("new", 3)
    async with watched(spec, poll=4.0) as reports:
        await asyncio.sleep(0.1)
        limit.write_text("10")
        spec.write_text("seen by the poll, which then arms the watch")
        await reports.until(spec.read_text(), 5)
        await asyncio.sleep(0.1)
        spec.write_text("seen by the watch")
        spent = Spent()
        await reports.until("seen by the watch", 3)
        assert spent() < 3, "the poll was not needed"


def test_c19_without_inotify_the_poll_sees_it_and_the_watch_comes_back(spec: Path) -> None:
    if subprocess.run(["unshare", "--map-root-user", "true"], capture_output=True).returncode:
        pytest.skip("user namespaces are not allowed here")
    here = Path(__file__)
    code = f"import asyncio, pathlib, test_watch; asyncio.run(test_watch.without_inotify(pathlib.Path({str(spec)!r})))"
    done = subprocess.run(
        ["unshare", "--map-root-user", sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{here.parent}:{here.parent.parent}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    print(f"\n{done.stdout}")


def test_deleted_and_absent_from_the_beginning(spec: Path) -> None:
    async def case() -> None:
        async with watched(spec) as reports:
            spec.unlink()
            await reports.until(None, 2)
        async with watched(spec) as reports:
            spec.write_text("born")
            await reports.until("born", 2)

    run(case)


def test_paths_may_change_and_a_newcomer_written_meanwhile_is_reported(tmp_path: Path) -> None:
    async def case() -> None:
        spec, template, old = (tmp_path / name for name in ("spec", "template", "old"))
        for path in (spec, template, old):
            path.write_text("1")
        await asyncio.sleep(0.1)
        wanted = [str(spec)]
        stream = watch(lambda: wanted, settle=0.02, poll=60)
        spec.write_text("2")
        assert await asyncio.wait_for(anext(stream), PATIENCE) == {str(spec)}
        wanted.extend([str(template), str(old)])
        template.write_text("written while the caller was reading")
        assert await asyncio.wait_for(anext(stream), PATIENCE) == {str(template)}
        old.write_text("3")
        assert await asyncio.wait_for(anext(stream), PATIENCE) == {str(old)}
        await stream.aclose()

    run(case)


def test_reading_files_that_are_only_read_changes_nothing_and_breaks_no_lease(spec: Path) -> None:
    assert not watching.is_being_written(str(spec))
    with open(spec) as _:
        assert not watching.is_being_written(str(spec))
    with open(spec, "a") as _:
        assert watching.is_being_written(str(spec))
