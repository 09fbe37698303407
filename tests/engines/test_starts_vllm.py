"""Starts of the real vLLM that cannot succeed: each told by a cause of its own, with one sentence of advice.

The plan refuses many of them before a process is made. So that vLLM itself must say what is wrong, a user's own script
stands between them and adds what the plan does not see. Every captured failure is here (`tests/fixtures/vllm`, named in
`captured`), and some that no capture has. What this build cannot show is held against its source or another run:

| cause | why not here |
|---|---|
| `oom-load`, `memory-moved` | only the memory of a GPU is measured so; of the host's, `oom-host` is shown |
| `fp8-unsupported` | the CPU computes with every KV type that it takes; the plan refuses by the capability of a card |
| `ray-unsupported` | needs Ray beside vLLM; run once by hand with Ray 2.60.0, the line is in `tests/contract` |
| `shared-memory` | the queue between several workers; there is one |
| `engine-start-failed` | what has no class of its own: everything provoked here has one |
"""

from __future__ import annotations

import itertools
import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import engines, process
from support.daemon import Daemon, Json
from support.kinds import vllm

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]
FIXTURES = engines.REPOSITORY / "tests" / "fixtures" / "vllm"
AT_ONCE = 8
"""Services that start side by side: 10 GB of memory at most."""

SCRIPT = """#!/bin/sh
command=$1
model=${MODEL:-$2}
shift 2
exec "${VLLM:-%s}" "$command" "$model" "$@" $MORE
"""
UNNAMED = """#!%s -IS
import sys
sys.path.insert(0, %r)
from vllm.entrypoints.cli.main import main
sys.exit(main())
"""


@dataclass(frozen=True)
class Failure:
    """`said`: of vLLM, as the exit's text has it."""

    cause: str
    said: str
    more: str = ""
    """Arguments of the script; `{folder}` is the test's."""
    settings: dict[str, Any] = field(default_factory=dict)
    spoil: Callable[[Path], None] | None = None
    """Damages a copy of the model, which is served then."""
    env: dict[str, str] = field(default_factory=dict)
    captured: str = ""
    passing: bool = False
    """It may be over by itself: tried again, later and later."""


def of_config(path: Path, **changes: Any) -> None:
    path = path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def architecture(model: Path) -> None:
    of_config(model, architectures=["NoSuchForCausalLM"])


def half_a_config(model: Path) -> None:
    (model / "config.json").write_text('{"architectures": ')


def no_tokenizer(model: Path) -> None:
    for path in model.glob("tokenizer*"):
        path.unlink()


def truncated(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FAILURES = {
    "pool below one request": Failure(
        "kv-too-small", "larger than the available KV cache", "--kv-cache-memory-bytes 70000", captured="kv_too_small"
    ),
    "no room for a pool": Failure(
        "no-kv-memory",
        "less than requested memory for kv",
        "--gpu-memory-utilization 0.0001",
        {"kv_tokens": None},
        captured="kv_zero_util",
    ),
    "flag": Failure("bad-argument", "unrecognized arguments: --no-such", "--no-such-flag 3", captured="bad_flag"),
    "choice": Failure("bad-argument", "invalid choice: 'float8'", "--dtype float8", captured="bad_choice"),
    "method": Failure("unknown-quantization", "nope", settings={"quantization": "nope"}, captured="bad_quant"),
    "value": Failure("bad-value", "VllmConfig|CacheConfig", "--gpu-memory-utilization 1.5", captured="bad_value"),
    "no config file": Failure("config-file", "read the config file", "--config {folder}/no.yaml", captured="bad_yaml"),
    "key in a config file": Failure(
        "bad-argument", "--no-such-key", "--config {folder}/key.yaml", captured="yaml_bad_key"
    ),
    "truncated weights": Failure(
        "weights-broken", "SafetensorError", "--kv-cache-memory-bytes 17000000", spoil=truncated
    ),
    "all of the memory": Failure(
        "oom-host", "startup is less than desired CPU", "--gpu-memory-utilization 1", {"kv_tokens": None}, passing=True
    ),
    "length": Failure(
        "context-too-long", "200000.* greater than", settings={"context_length": 200_000}, captured="len_too_big"
    ),
    "no statistics": Failure(
        "bad-argument", "validate_parsed_serve_args", "--disable-log-stats", captured="otlp_port_conf"
    ),
    "hub": Failure("model-missing", "LocalEntryNotFound", env={"MODEL": "no/such"}, captured="missing_hf_model"),
    "no folder": Failure("model-missing", "HFValidationError", env={"MODEL": "./no-such"}, captured="missing_model"),
    "empty folder": Failure(
        "model-missing", "Invalid repository", env={"MODEL": "{folder}/empty"}, captured="no_config"
    ),
    "unnamed distribution": Failure(
        "broken-install", "No package metadata", env={"VLLM": "{folder}/unnamed"}, captured="nodist_cli"
    ),
    "sleep": Failure("bad-value", "ModelConfig", "--enable-sleep-mode", captured="startup_fail_sleep_mode_unsupported"),
    "architecture": Failure("unknown-architecture", "NoSuchForCausalLM", spoil=architecture),
    "half a configuration": Failure("config-broken", "not a valid JSON", spoil=half_a_config),
    "no tokenizer": Failure("tokenizer-missing", "backend tokenizer", spoil=no_tokenizer),
    "not quantized so": Failure("quantization-mismatch", "awq", settings={"quantization": "awq"}),
    "no template": Failure("chat-template", "no.jinja", "--chat-template /no.jinja"),
    "no ray": Failure("ray-missing", "No module named 'ray'", settings={"distributed_executor": "ray"}),
    "port": Failure("port-in-use", "Address already in use", captured="port_in_use"),
}
"""By what is wrong."""


def test_every_capture_is_run() -> None:
    files = {path.stem.removeprefix("startfail_") for path in FIXTURES.glob("start*fail_*.txt")}
    assert {failure.captured for failure in FAILURES.values()} - {""} == files


@pytest.fixture
def script(daemon: Daemon) -> Path:
    """A user's own, around vLLM."""
    venv, folder = engines.vllm(), daemon.folder
    (folder / "empty").mkdir()
    (folder / "key.yaml").write_text("no-such-key: 1\n")
    packages = next(venv.glob("lib/python3*/site-packages"))
    (folder / "packages").mkdir()
    for path in packages.iterdir():
        if not re.fullmatch(r"vllm-\d.*\.dist-info", path.name):
            (folder / "packages" / path.name).symlink_to(path)
    for name, text in (
        ("vllm", SCRIPT % (venv / "bin" / "vllm")),
        ("unnamed", UNNAMED % (venv / "bin" / "python", str(folder / "packages"))),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder / "vllm"


def service(failure: Failure, name: str, script: Path) -> Json:
    folder = script.parent
    table = {key: value for key, value in vllm(**failure.settings).items() if value is not None} | {"gate": "off"}
    del table["venv"]
    if failure.spoil:
        model = folder / name
        model.mkdir()
        for path in (engines.vllm().parent / "tiny").iterdir():
            (model / path.name).write_bytes(path.read_bytes())
        failure.spoil(model)
        table["model"] = str(model)
    env = table["env"] | failure.env | ({"MORE": failure.more} if failure.more else {})
    return {
        **table,
        "command": [str(script)],
        "env": {key: value.format(folder=folder) for key, value in env.items()},
    }


def batches() -> Iterator[dict[str, Failure]]:
    cases = iter(FAILURES.items())
    while batch := dict(itertools.islice(cases, AT_ONCE)):
        yield {name.replace(" ", "-"): failure for name, failure in batch.items()}


def test_each_is_told_by_its_own_cause(daemon: Daemon, script: Path) -> None:
    """And tried once, where only a change mends it."""
    for batch in batches():
        with ExitStack() as stack:
            daemon.write({name: service(failure, name, script) for name, failure in batch.items()})
            if daemon.process is None:
                daemon.up(timeout=120)
            assert daemon.cli("reload", timeout=60).returncode == 0
            if "port" in batch:
                taken(stack, daemon, daemon.wait_service("port", lambda s: s["pid"], 60, "a process")["pid"])
            for name, failure in batch.items():
                told(daemon.wait_service(name, over(daemon, name, failure), 600, "its failure"), failure)
                assert failure.passing or len(daemon.events(service=name, kind="state", to="STARTING")) == 1
    daemon.down()


def taken(stack: ExitStack, daemon: Daemon, pid: int) -> None:
    """The port that the daemon gave, by a stranger, before vLLM has come to bind it."""
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    stranger = stack.enter_context(socket.socket())
    stranger.bind(("127.0.0.1", int(words[words.index("--port") + 1])))
    stranger.listen()


def over(daemon: Daemon, name: str, failure: Failure) -> Callable[[Json], bool]:
    """What passes may have been tried again by the time somebody looks."""

    def seen(status: Json) -> bool:
        if failure.passing:
            return bool(daemon.events(service=name, kind="state", to="BACKOFF"))
        return bool(status["state"] == "FAILED")

    return seen


def told(status: Json, failure: Failure) -> None:
    end = status["last_exit"]
    assert end["cause"] == failure.cause and re.search(failure.said, end["text"]), end
    assert re.fullmatch(r"\S[^\n]{15,}\.", end["advice"]), end["advice"]
    if not failure.passing:
        assert status["pid"] is None and status["retry_at"] is None and status["restarts"] == 0, status


def test_what_the_plan_refuses_needs_no_process(daemon: Daemon) -> None:
    cases = {
        "flag": ({"extra_args": ["--no-such-flag"]}, "--no-such-flag, which this build"),
        "folder": ({"model": str(daemon.folder)}, "config.json"),
        "nothing": ({"model": str(daemon.folder / "nothing")}, "is not there"),
        "template": ({"chat_template": str(daemon.folder / "no.jinja")}, "cannot be read"),
    }
    daemon.write({name: vllm(**settings) for name, (settings, _) in cases.items()})
    daemon.up(timeout=120)
    for name, (_, words) in cases.items():
        status = daemon.wait_service(name, lambda s: s["state"] == "PENDING" and s["reason"], 120, "a refusal")
        assert words in status["reason"] and status["pid"] is None and status["last_exit"] is None, status
    assert process.listening(daemon.ports) == set()
