"""Starts that cannot succeed, on real engines: said in one sentence, of a class of its own, and not tried again."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import engines, process
from support.daemon import Daemon, Json
from support.http import chat
from support.kinds import embedded, llama_server, ollama, vllm

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
LAUNCHERS: dict[str, Callable[..., Json]] = {"llama-server": llama_server, "embedded": embedded}


@dataclass
class Box:
    """A daemon with one service, `chat`."""

    daemon: Daemon
    launcher: Callable[..., Json]

    def up(self, **settings: Any) -> None:
        self.daemon.write({"chat": self.launcher(**settings)})
        self.daemon.up(timeout=120)


@pytest.fixture(params=list(LAUNCHERS))
def box(request: pytest.FixtureRequest, daemon: Daemon) -> Box:
    return Box(daemon, (LAUNCHERS | {"ollama": ollama, "vllm": vllm})[request.param])


def told(status: Json) -> str:
    end = status["last_exit"] or {"text": "", "advice": ""}
    return "\n".join([status["reason"], end["text"], end["advice"]])


def settled(status: Json) -> None:
    """Ended for good, with a class and one sentence of advice."""
    assert status["pid"] is None and status["retry_at"] is None, status
    if status["state"] == "FAILED":
        end = status["last_exit"]
        assert end["cause"] not in ("exited", "signal"), "a class of its own"
        assert re.fullmatch(r"\S[^\n]{15,}\.", end["advice"]), end["advice"]


@dataclass(frozen=True)
class Failure:
    """`told`: pattern over reason, exit text and advice. `states`: where the service waits."""

    name: str
    told: str
    states: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    spoil: Callable[[Path], None] | None = None
    """Makes the model file at the given path."""
    launchers: tuple[str, ...] = tuple(LAUNCHERS)
    """The launcher takes other arguments than the server itself."""


def no_file(path: Path) -> None: ...


def not_gguf(path: Path) -> None:
    path.write_text("nota GGUF file at all\n" * 100)


def truncated(path: Path) -> None:
    shutil.copy(engines.smollm2(), path)
    os.truncate(path, 60_000_000)


FAILURES = [
    Failure("missing model", r"spoilt\.gguf.*is not there", ("PENDING",), spoil=no_file),
    Failure("not a GGUF", r"spoilt\.gguf.*GGUF", ("PENDING", "FAILED"), spoil=not_gguf),
    Failure("truncated model", r"not within the file bounds|truncated|incomplete", ("FAILED",), spoil=truncated),
    Failure(
        "unknown flag",
        r"--no-such-flag",
        ("PENDING", "FAILED"),
        {"extra_args": ["--no-such-flag"]},
        None,
        ("llama-server",),
    ),
    Failure(
        "bad value of a flag",
        r"not a directory",
        ("FAILED",),
        {"extra_args": ["--slot-save-path", "/no/such/folder"]},
        None,
        ("llama-server",),
    ),
    Failure(
        "KV cache beyond the memory of the box",
        r"insufficient memory|memory",
        ("FAILED",),
        {"context_length": 20_000_000, "parallel": 1, "gate": "off"},
        None,
        ("llama-server",),
    ),
    Failure(
        "KV cache that the gate knows not to fit",
        r"KV cache 228.0 GiB .* may take .* context_length = 8192 would fit",
        ("PENDING",),
        {"context_length": 20_000_000, "parallel": 1},
        None,
        ("llama-server",),
    ),
]


@pytest.mark.parametrize(
    ("box", "failure"),
    [pytest.param(engine, f, id=f"{engine}-{f.name}") for f in FAILURES for engine in f.launchers],
    indirect=["box"],
)
def test_a_start_that_cannot_succeed(box: Box, failure: Failure) -> None:
    settings = dict(failure.settings)
    if failure.spoil:
        spoilt = box.daemon.folder / "spoilt.gguf"
        failure.spoil(spoilt)
        settings["model"] = str(spoilt)
    box.up(**settings)
    status = box.daemon.wait_service(
        "chat", lambda s: s["state"] in failure.states and s["reason"], 200, str(failure.states)
    )
    assert re.search(failure.told, told(status), re.IGNORECASE), told(status)
    settled(status)
    assert process.listening(box.daemon.ports) == set()


def test_quantised_v_without_flash_attention_never_starts(box: Box) -> None:
    """The engine would refuse it (`failures.txt`); the text of the spec alone is enough to know."""
    box.daemon.write({"chat": box.launcher(kv_cache_type="q8_0", flash_attention=False)})
    box.daemon.launch()
    assert box.daemon.wait_exit() == 3
    assert "services.chat.flash_attention" in (said := box.daemon.told()) and "f16" in said


@pytest.mark.parametrize("box", [*LAUNCHERS, "ollama", pytest.param("vllm", marks=pytest.mark.slow)], indirect=True)
def test_port_in_use(box: Box) -> None:
    """A stranger holds the port: said at once, and started when it is free."""
    (port,) = process.free_ports(1)
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        box.up(port=port)
        status = box.daemon.wait_service("chat", lambda s: s["state"] == "PENDING" and s["reason"], 30, "PENDING")
        assert str(port) in status["reason"]
    assert box.daemon.wait_state("chat", "READY", 300)["endpoint"] == f"http://127.0.0.1:{port}"


def test_the_repaired_model_starts_by_itself(box: Box) -> None:
    spoilt = box.daemon.folder / "spoilt.gguf"
    not_gguf(spoilt)
    box.up(model=str(spoilt))
    box.daemon.wait_service("chat", lambda s: s["state"] in ("PENDING", "FAILED"), 200, "a refusal")
    new = spoilt.with_suffix(".new")
    new.symlink_to(engines.smollm2())
    new.replace(spoilt)
    assert chat(box.daemon.wait_state("chat", "READY", 300)["endpoint"], box.daemon.key("chat")).strip()
