"""`make pictures`: the command runs, and what it makes is of the app as it is. Bytes are never compared."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest
from support import process
from tui import pictures

WORDS = {
    "box-overview": "qwen-32b: KV cache over 95",
    "box-requests": "agent-2",
    "box-gpus": "held down by: power cap",
    "demo-overview": "llama-server",
    "demo-requests": "REQUESTS",
    "demo-request": "CONTEXT",
}
COMMITTED = Path(__file__).resolve().parents[2] / "docs" / "pictures"


def text_of(path: Path) -> str:
    tree = xml.parse(path)
    return "".join("".join(node.itertext()) for node in tree.iter()).replace("\xa0", " ")


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_the_command_makes_every_picture(tmp_path: Path, short_folder: Path) -> None:
    program = Path(pictures.__file__)
    words, environ = [sys.executable, program, "--live", tmp_path], {**os.environ, "TMPDIR": str(short_folder)}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=880, env=environ)
    finally:
        process.kill(process.inside(short_folder))  # where it was too slow: whoever comes next has no engine beside it
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in tmp_path.glob("*.svg")} == {*pictures.EXAMPLE, *pictures.LIVE} == set(WORDS)
    for path in tmp_path.glob("*.svg"):
        assert WORDS[path.stem] in text_of(path)
        assert path.stat().st_size < 100_000 and "https:" not in path.read_text().replace(
            "https://www.textualize.io", ""
        )


@pytest.mark.parametrize("name", WORDS)
def test_those_in_the_repository_are_of_these_pages(name: str) -> None:
    assert WORDS[name] in text_of(COMMITTED / f"{name}.svg")
