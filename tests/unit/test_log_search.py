"""Words in a log of any size: the newest first, none twice, none lost where pieces meet."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmsupervisor.daemon import logsearch
from llmsupervisor.host import findlines, logplace
from llmsupervisor.link.frames import encode


def found(words: str, *paths: Path, most: int = 1000) -> list[Any]:
    command = [sys.executable, "-I", findlines.__file__, words, str(most), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


def texts(said: list[Any]) -> list[str]:
    return [hit["text"] for each in said for hit in each["hits"]]


@pytest.mark.parametrize("seed", range(6))
def test_blocks_are_whole_lines_from_the_end_and_all_of_them(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findlines, "CHUNK", 64)
    monkeypatch.setattr(findlines, "LONGEST", 400)
    choose = random.Random(seed)
    lines = [b"x" * choose.choice([0, 1, 30, 63, 64, 65, 200]) for _ in range(60)]
    data = b"\n".join(lines) + (b"\n" if seed % 2 else b"")
    path = tmp_path / "log"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    got = list(findlines.blocks(fd, len(data)))
    os.close(fd)
    assert b"".join(block for _, block in reversed(got)) == data
    for begin, block in got:
        assert data[begin : begin + len(block)] == block and (begin == 0 or data[begin - 1] == 0x0A)


@pytest.mark.parametrize("words", ["out of memory", "O.T of", "^error", "memory$", "[", r"a\s+b", "é"])
def test_hits_are_the_lines_that_match(words: str) -> None:
    lines = ["Error out of memory", "out", "of memory", "", "an error [x]", "a", "b", "a  b", "OUT OF MEMORY", "caf é"]
    data = "\n".join(lines).encode()
    search, line = findlines.searcher(words)
    got = [text.decode() for _, text in findlines.hits(data, search, line)]
    try:
        pattern = re.compile(words, re.IGNORECASE)
    except re.error:
        pattern = re.compile(re.escape(words), re.IGNORECASE)
    assert got == [each for each in lines if pattern.search(each)]


def test_the_newest_are_told_and_all_are_counted(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"new {n} hit\n" for n in range(30)))
    (tmp_path / "log.1").write_text("".join(f"old {n} hit\n" if n % 2 else "no\n" for n in range(100)))
    paths = logplace.files(tmp_path / "log")
    said = found("HIT", *paths, most=40)
    assert texts(said) == [f"new {n} hit" for n in range(29, -1, -1)] + [f"old {n} hit" for n in range(99, 79, -2)]
    last = said[-1]
    assert last["count"] == 80 and last["complete"] is True
    assert last["read"] == last["of"] == sum(path.stat().st_size for path in paths)
    assert found("nothing", tmp_path / "gone")[-1] == {"hits": [], "count": 0, "read": 0, "of": 0, "complete": True}


@pytest.mark.parametrize("byte", [b"\xff", b"\x1b", b"\\"], ids=["no UTF-8", "control", "escaped"])
def test_what_stands_around_a_place_fits_into_an_answer(tmp_path: Path, byte: bytes) -> None:
    path = tmp_path / "log"
    line = byte * 999 + b"\n"
    path.write_bytes(line * 1200)
    args = {"file": path.stat().st_ino, "offset": 600 * len(line), "before": 300, "after": 300}
    answer = asyncio.run(logsearch.around(path, args))
    assert len(answer["lines"]) > 190
    assert encode({"id": 1, "ok": True, "result": answer})


def test_a_place_is_shown_with_what_stands_around_it(tmp_path: Path) -> None:
    log, rotated = tmp_path / "log", tmp_path / "log.2"
    log.write_text("later\n")
    rotated.write_text("".join(f"row {n}\r\n" for n in range(100)) + "no end")
    said = found("row 50", log, rotated)
    [hit] = [hit for each in said for hit in each["hits"]]
    lines = logplace.around(log, hit["file"], hit["offset"], 2, 1)
    assert lines and [line.text for line in lines] == ["row 48", "row 49", "row 50", "row 51"]
    assert lines[2].offset == hit["offset"]
    everything = logplace.around(log, hit["file"], hit["offset"], 500, 500)
    assert everything and (everything[0], everything[-1].text, len(everything)) == ((0, "row 0"), "no end", 101)
    rotated.unlink()
    assert logplace.around(log, hit["file"], hit["offset"], 2, 1) is None


def test_files_are_in_the_order_of_their_age(tmp_path: Path) -> None:
    for name in ("log", "log.1", "log.2", "log.10", "log.gz", "log.1x", "other.1"):
        (tmp_path / name).write_text("")
    assert [path.name for path in logplace.files(tmp_path / "log")] == ["log", "log.1", "log.2", "log.10"]
