"""An `ollama serve` of the tests: the stand-in on the real llama-server, or the real one that `LLMSUPERVISOR_OLLAMA` names."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import http.client
import json
import os
import shutil
import signal
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from support import engines, process
from support.http import get_json, request
from support.wait import wait_until

STAND_IN = engines.REPOSITORY / "tests" / "fakes" / "ollama"
REAL = os.environ.get("LLMSUPERVISOR_OLLAMA", "")


def install(folder: Path) -> Path:
    """`bin/ollama` and `lib/ollama` in `folder`, as a release unpacks them. The program."""
    program = folder / "bin" / "ollama"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        (folder / "lib").mkdir()
        program.symlink_to(STAND_IN)
        (folder / "lib" / "ollama").symlink_to(engines.llama_server().parent)
    return program


def program(folder: Path) -> Path:
    return Path(REAL) if REAL else install(folder)


@cache
def home() -> Path:
    """Of this session: an installation and a folder of models."""
    folder = Path(tempfile.mkdtemp(prefix="ls-ollama-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def post(url: str, path: str, body: Any, timeout: float = 120.0) -> Any:
    """The answer, or the last line of a stream."""
    status, data = request(f"{url}{path}", body, timeout=timeout)
    assert status == 200, f"POST {path}: {status} {data[:500]!r}"
    return json.loads(data.splitlines()[-1])


class Serve:
    """Its own folder of models, port and home. `start` returns when it answers."""

    def __init__(self, folder: Path, port: int, models: Path | None = None) -> None:
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"
        self.models, self.port = models or folder / "models", port
        self.child: subprocess.Popen[bytes] | None = None
        self.stdout, self.stderr = folder / "serve.out", folder / "serve.err"

    def launch(self, **env: str) -> Serve:
        self.folder.mkdir(parents=True, exist_ok=True)
        own = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "OLLAMA_HOST": f"127.0.0.1:{self.port}"}
        own |= {"OLLAMA_MODELS": str(self.models), "OLLAMA_NO_CLOUD": "true", "OLLAMA_NOPRUNE": "true"}
        with self.stdout.open("ab") as out, self.stderr.open("ab") as err:
            self.child = subprocess.Popen(
                [program(self.folder), "serve"],
                cwd=self.folder,
                env=own | env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # ignored below nohup
            )
        return self

    def start(self, timeout: float = 60.0, **env: str) -> Serve:
        child = self.launch(**env).child
        assert child

        def answers() -> bool:
            assert child.poll() is None, f"ollama serve ended with {child.returncode}\n{self.log()}"
            with contextlib.suppress(OSError, http.client.HTTPException):
                return request(f"{self.url}/api/version", timeout=2)[0] == 200
            return False

        wait_until(answers, timeout, lambda: f"an answer of ollama serve\n{self.log()}")
        return self

    def create(self, name: str, model: Path, **more: Any) -> None:
        """From a local GGUF, by upload."""
        found = digest(model)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with model.open("rb") as file, contextlib.closing(connection):
            connection.request("POST", f"/api/blobs/{found}", file, {"Content-Length": str(model.stat().st_size)})
            assert connection.getresponse().status in (200, 201)
        last = post(self.url, "/api/create", {"model": name, "files": {"model.gguf": found}, **more})
        assert last == {"status": "success"}, last

    def ps(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = get_json(f"{self.url}/api/ps", timeout=60)["models"]
        return rows

    def runners(self) -> list[int]:
        """Its llama-servers with a model, living ones."""
        assert self.child
        found = []
        for pid in process.below(self.child.pid):
            with contextlib.suppress(OSError):
                if b"\0--model\0" in Path(f"/proc/{pid}/cmdline").read_bytes() and process.alive(pid):
                    found.append(pid)
        return found

    def log(self) -> str:
        return self.stderr.read_text(errors="replace") if self.stderr.exists() else ""

    def stop(self) -> int:
        """SIGTERM, and what survived it is killed. The exit code."""
        assert self.child
        group = self.child.pid
        with contextlib.suppress(ProcessLookupError):
            self.child.send_signal(signal.SIGTERM)
        try:
            return self.child.wait(60)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
            self.child.wait(20)


def embedding_model(model: Path, made: Path) -> Path:
    """A copy of `model` that says of itself that it pools: Ollama takes it for one that embeds. What is added has a length
    that leaves the weights where they are aligned."""
    data = model.read_bytes()
    version, tensors, pairs = struct.unpack_from("<IQQ", data, 4)
    added = _pair(b"llama.pooling_type", 4, struct.pack("<I", 1))
    added += _pair(b"general.note", 8, struct.pack("<Q", 30) + b"-" * 30)
    assert len(added) % 32 == 0
    made.write_bytes(b"GGUF" + struct.pack("<IQQ", version, tensors, pairs + 2) + added + data[24:])
    return made


def _pair(key: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value
