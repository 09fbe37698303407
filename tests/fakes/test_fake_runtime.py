"""The fake is only of use where it behaves like the captured llama-server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import process
from support.engines import REPOSITORY
from support.http import Stream, chat, get_json, post_json, request
from support.journal import duplicates, starts
from support.spec import FAKE
from support.wait import wait_until

CAPTURES = REPOSITORY / "tests" / "fixtures" / "llama-server"


@contextlib.contextmanager
def fake(port: int, journal: Path, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    words = ["-m", "m.gguf", "-a", "chat", "--port", str(port), "-c", "2048", "-np", "2", "--metrics", *args]
    child = subprocess.Popen(
        [FAKE, *words], stderr=subprocess.PIPE, env={"PATH": os.environ["PATH"], "FAKE_JOURNAL": str(journal)}
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def healthy(port: int) -> bool:
    with contextlib.suppress(OSError):
        return request(f"http://127.0.0.1:{port}/health", timeout=2)[0] == 200
    return False


def wait_healthy(port: int) -> str:
    wait_until(lambda: healthy(port), 10, "a healthy fake")
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def test_its_answers_have_the_shape_of_the_captures(ports: range, journal: Path) -> None:
    with fake(ports[0], journal):
        url = wait_healthy(ports[0])
        real = json.loads((CAPTURES / "props.json").read_text())
        props = get_json(f"{url}/props")
        assert props.keys() <= real.keys()
        assert props["total_slots"] == 2 and props["default_generation_settings"]["n_ctx"] == 1024
        assert chat(url, tokens=3) == "tok0 tok1 tok2 "
        slot = get_json(f"{url}/slots")[0]
        assert slot.keys() == json.loads((CAPTURES / "slots_busy.json").read_text())[0].keys()
        names = {line.split()[0] for line in (CAPTURES / "metrics_busy.txt").read_text().splitlines() if line}
        ours = {line.split()[0] for line in request(f"{url}/metrics")[1].decode().splitlines()}
        assert ours - {"#"} <= names


def test_a_hang_of_decode_leaves_health(ports: range, journal: Path) -> None:
    with fake(ports[0], journal, "--fake-token-ms", "20"):
        url = wait_healthy(ports[0])
        with Stream(url) as stream:
            stream.first()
            post_json(f"{url}/fault", {"hang": "decode"})
            wait_until(lambda: _stands(url), 5, "decode to stand")
            before = _decoded(url)
            assert healthy(ports[0]) and _decoded(url) == before
            post_json(f"{url}/fault", {"hang": ""})
            wait_until(lambda: _decoded(url) > before, 5, "decode to go on")


def _stands(url: str) -> bool:
    """For as long as 15 tokens take."""
    before = _decoded(url)
    time.sleep(0.3)
    return _decoded(url) == before


def _decoded(url: str) -> int:
    slots = get_json(f"{url}/slots")
    return sum(s["next_token"][0]["n_decoded"] for s in slots if s["is_processing"])


def test_term_waits_for_the_stream_and_the_second_does_not(ports: range, journal: Path) -> None:
    with fake(ports[0], journal, "--fake-token-ms", "50") as child:
        url = wait_healthy(ports[0])
        with Stream(url) as stream:
            stream.first()
            child.send_signal(signal.SIGTERM)
            wait_until(lambda: not process.listening(ports), 5, "the listener to close")
            assert child.poll() is None
            child.send_signal(signal.SIGTERM)
            assert child.wait(20) == 1


def test_term_ends_an_idle_one(ports: range, journal: Path) -> None:
    with fake(ports[0], journal) as child:
        wait_healthy(ports[0])
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0


def test_the_journal_counts_starts_and_sees_two_at_once(ports: range, journal: Path) -> None:
    with fake(ports[0], journal) as first:
        wait_healthy(ports[0])
        with fake(ports[1], journal) as second:
            wait_healthy(ports[1])
        assert [s.pid for s in starts(journal, "chat")] == [first.pid, second.pid]
        assert duplicates(journal) == [second.pid]
        first.kill()
        first.wait()
        with fake(ports[2], journal):
            wait_healthy(ports[2])
    assert len(starts(journal)) == 3 and len(duplicates(journal)) == 1


def test_start_faults_can_be_limited_to_the_first_starts(ports: range, journal: Path) -> None:
    for _ in range(2):
        with fake(ports[0], journal, "--fake-oom", "1", "--fake-times", "2") as child:
            assert child.wait(20) == 1
            assert child.stderr and b"cudaMalloc failed: out of memory" in child.stderr.read()
    with fake(ports[0], journal, "--fake-oom", "1", "--fake-times", "2"):
        wait_healthy(ports[0])


def test_its_help_is_the_captured_one(journal: Path) -> None:
    text = subprocess.run([FAKE, "--help"], capture_output=True, text=True, check=True).stdout
    assert text.startswith((CAPTURES / "help.txt").read_text())
    assert "--fake-hang" in text
