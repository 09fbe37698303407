"""The captured logs against those of the stand-in (or of a real Ollama): starts, deaths, and loads that fail."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import engines, ollama, process
from support.engines import REPOSITORY
from support.http import request
from support.ollama import Serve
from support.wait import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]


def captured(name: str) -> str:
    return (REPOSITORY / "tests" / "fixtures" / "ollama" / name).read_text()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Path]:
    """A folder of models with `smol`."""
    serve = Serve(tmp_path_factory.mktemp("ollama"), process.free_ports(1)[0])
    try:
        serve.start().create("smol", model)
    finally:
        serve.stop()
    yield serve.models


def told(log: str) -> list[tuple[str, str]]:
    found = re.findall(r'(?m)^time=\S+ level=(\w+) source=\S+ msg=(?:"((?:[^"\\]|\\.)*)"|(\S+))', log)
    plain = [(level, re.sub(r"[\d.]+ seconds|127\.0\.0\.1:\d+|: \d+$", "N", msg or word)) for level, msg, word in found]
    return [(level, msg) for level, msg in plain if "to become available" not in msg]


def test_the_log_of_a_start_a_death_and_a_reload(models: Path, tmp_path: Path) -> None:
    """Also of the access log: its lines have the captured form."""
    other = Serve(tmp_path, process.free_ports(1)[0], models=models)
    try:
        other.start(OLLAMA_NOPRUNE="", OLLAMA_FAKE_VERSION="0.0.0")
        request(f"{other.url}/api/generate", {"model": "smol"}, timeout=120)
        (pid,) = other.runners()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), 10, "the death, and Ollama's taking note of it")
        before = other.log()
        assert not [row for row in told(before) if row[0] in ("WARN", "ERROR")], "a death by itself is told nobody"
        request(f"{other.url}/api/generate", {"model": "smol"}, timeout=120)
        want, got = told(captured("serve_runner_killed_midstream_then_reload.stderr.log")), told(other.log())
        first = next(i for i, row in enumerate(want) if "disabling mmap" in row[1])
        assert sorted(want[:first]) == sorted(got[:first])
        second = next(i for i, row in enumerate(want) if i > first and row[0] == "WARN" and i > first + 13)
        assert got[first:] == want[first:second]
        access = re.compile(
            r'\[GIN\] \d{4}/\d\d/\d\d - \d\d:\d\d:\d\d \| \d{3} \| +\S+ \| +127\.0\.0\.1 \| [A-Z]+ +"/\S*"'
        )
        rows = [line for line in other.stdout.read_text().splitlines() if line.startswith("[GIN] ")]
        assert rows and all(map(access.fullmatch, rows))
        assert all(
            map(
                access.fullmatch,
                re.findall(r"(?m)^\[GIN\] .*$", captured("serve_start_load_requests_unload.stdout.log")),
            )
        )
    finally:
        assert other.stop() == 0


def failed(serve: Serve, **env: str) -> tuple[int, str]:
    """Status and error of a load by a server of these settings, which goes on living."""
    serve.start(OLLAMA_NOPRUNE="", OLLAMA_FAKE_VERSION="0.0.0", **env)
    status, text = request(f"{serve.url}/api/generate", {"model": "smol"}, timeout=120)
    assert not serve.ps()
    assert serve.child and serve.child.poll() is None and not serve.runners()
    return status, json.loads(text)["error"]


def ends(log: str) -> list[str]:
    """What it says a load failed of, without where it looked for its program."""
    errors = re.findall(r'msg="(?:Load failed|failed to create server)" .*error="((?:[^"\\]|\\.)*)"', log)
    return [error.partition(" (checked:")[0] for error in errors]


@pytest.mark.parametrize(
    ("name", "env"),
    [
        ("kv_unknown", {"OLLAMA_KV_CACHE_TYPE": "q9_9"}),
        ("kv_without_fa", {"OLLAMA_KV_CACHE_TYPE": "q8_0", "OLLAMA_FLASH_ATTENTION": "0"}),
    ],
)
def test_the_log_of_a_load_that_fails(models: Path, tmp_path: Path, name: str, env: dict[str, str]) -> None:
    other = Serve(tmp_path, process.free_ports(1)[0], models=models)
    try:
        assert failed(other, **env)[0] == 500
        want, got = captured(f"serve_load_fails_{name}.stderr.log"), other.log()
        assert sorted(told(want)) == sorted(told(got)) and ends(want) == ends(got)
    finally:
        other.stop()


def installed(folder: Path, *script: str) -> None:
    """The stand-in with a llama-server that does this before it is the real one; with none where there is no script."""
    (folder / "bin").mkdir()
    (folder / "bin" / "ollama").symlink_to(ollama.STAND_IN)
    (folder / "lib" / "ollama").mkdir(parents=True)
    if script:
        runner = folder / "lib" / "ollama" / "llama-server"
        runner.write_text("\n".join(["#!/bin/bash", *script, f'exec "{engines.llama_server()}" "$@"', ""]))
        runner.chmod(0o755)


@pytest.mark.skipif(bool(ollama.REAL), reason="its llama-server is taken away")
def test_the_log_where_llama_server_is_missing(models: Path, tmp_path: Path) -> None:
    other = Serve(tmp_path, process.free_ports(1)[0], models=models)
    installed(tmp_path)
    try:
        status, error = failed(other)
        want, got = captured("serve_llama_server_missing.stderr.log"), other.log()
        assert sorted(told(want)) == sorted(told(got)) and ends(want) == ends(got)
        assert status == 500 and error.startswith(ends(want)[0])
    finally:
        other.stop()


@pytest.mark.skipif(bool(ollama.REAL), reason="its llama-server is held in the midst of a load")
def test_the_log_of_a_runner_that_dies_while_it_loads(models: Path, tmp_path: Path) -> None:
    other = Serve(tmp_path, process.free_ports(1)[0], models=models)
    installed(tmp_path, '[[ " $* " == *" --model "* ]] && kill -STOP $$')
    answers: list[tuple[int, str]] = []
    asking = threading.Thread(target=lambda: answers.append(failed(other)))
    try:
        asking.start()
        (pid,) = wait_until(lambda: other.runners() if other.child else None, 30, "a runner") or ()
        wait_until(lambda: "not responding" in other.log(), 30, "Ollama's first look at it")
        os.kill(pid, signal.SIGKILL)
        asking.join(60)
        want, got = captured("serve_runner_killed_while_loading.stderr.log"), other.log()
        assert sorted(told(want)) == sorted(told(got)) and ends(want) == ends(got)
        assert answers == [(500, ends(want)[0])]
    finally:
        other.stop()


def test_a_port_in_use(models: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        other = Serve(tmp_path, port, models=models).launch()
        assert other.child and other.child.wait(20) == 1
    said = captured("serve_port_in_use.stderr.log").replace("11434", str(port))
    assert other.log().endswith(said)
