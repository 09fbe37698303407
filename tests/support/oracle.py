"""What the real llama-server says of its own memory."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any

from llmsupervisor.plan.gguf import GgufHeader, read_header
from support import engines

MIB = 1024 * 1024
COMPUTE = r"compute buffer size = +([\d.]+) MiB"


def header_of(path: Path) -> GgufHeader:
    with path.open("rb") as file:
        found = read_header(file.read(4 * MIB))
    assert isinstance(found, GgufHeader), found
    return found


def server_log(arguments: list[Any], folder: Path, pattern: str, times: int = 1, flash: bool = True) -> str:
    """Of a server that has said this so often."""
    log = folder / "log"
    usual = ["-ub", 512, "-fa", "on" if flash else "off", "--no-warmup", "--fit", "off", "--no-repack"]
    with log.open("wb") as output:
        words = [engines.llama_server(), *map(str, (*arguments, *usual, "--port", 0, "--verbosity", 5))]
        server = subprocess.Popen(words, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 200
        while len(re.findall(pattern, log.read_text(errors="replace"))) < times:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-2000:]
            time.sleep(0.05)
    finally:
        server.kill()
        server.wait()
    return log.read_text(errors="replace")
