"""The definitions held against what the engines themselves print: their help, and how they fail to start."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from llmsupervisor.runtime.command import Given
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.runtime.help import flag_of, unknown_flags, unknown_values
from llmsupervisor.runtime.help import parse as parse_help
from llmsupervisor.runtime.load import parse
from llmsupervisor.runtime.owned import flags as owned_flags
from llmsupervisor.runtime.render import problems, render
from llmsupervisor.spec.model import Service

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
GOLDEN = ROOT / "tests" / "golden"
DEFINITIONS = {d.name: d for d in (parse(p.read_text(), p.name) for p in sorted((ROOT / "runtimes").glob("*.toml")))}
GPUS = (("GPU-1", 0), ("GPU-2", 1))

COMMON: dict[str, Any] = {"model": "/m", "context_length": 1024, "parallel": 2, "gpus": (0, 1), "aliases": ("a",)}
LLAMA: dict[str, Any] = COMMON | {"kv_cache_type": "q8_0", "draft": "/d", "mmproj": "/p", "lora": ("/l",)}
VLLM: dict[str, Any] = COMMON | {"kv_cache_type": "fp8", "gpu_memory": "8GiB", "kv_tokens": 4096, "lora": ("/l",)}
VLLM |= {"tool_parser": "t", "reasoning_parser": "r", "quantization": "awq", "attention_backend": "X"}
VLLM |= {"nodes": 2, "distributed_executor": "ray"}
VLLM |= {"chat_template": "/t", "cache_ram": "8GiB"}
EVERYTHING = {
    "llama-server": (
        LLAMA | {"chat_template": "chatml"},
        LLAMA
        | {"chat_template": "/t.jinja", "prefix_caching": False, "flash_attention": False, "kv_cache_type": "f16"},
        LLAMA | {"task": "embed", "gpus": ()},
        LLAMA | {"task": "rerank"},
    ),
    "vllm": (
        VLLM,
        VLLM | {"prefix_caching": False, "command": ("python", "api_server.py")},
        VLLM | {"task": "embed", "split": "pipeline"},
        VLLM | {"nodes": 1, "split": "data"},
    ),
}


def render_all(runtime: str) -> Iterable[Any]:
    """Every argument that the definition can bring onto a command line."""
    for keys in EVERYTHING[runtime]:
        service = Service.model_validate(keys | {"runtime": runtime})
        assert problems("chat", service, DEFINITIONS[runtime]) == []
        on = GPUS if service.gpus else ()
        for kv in (None, 2**30):
            given = Given("chat", "h", 1, "/x", gpus=on, gpu_totals=(2**34,) * len(on), kv_cache_bytes=kv)
            yield from render(service, DEFINITIONS[runtime], given).argv


def refused(runtime: str, flags: frozenset[str], allowed: dict[str, frozenset[str]]) -> list[str]:
    argv = list(render_all(runtime))
    unknown = [f"{arg.setting}: {arg.words[0]}" for arg in unknown_flags(argv, flags)]
    return unknown + [f"{arg.words}: {sorted(values)}" for arg, values in unknown_values(argv, allowed)]


# --- flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", EVERYTHING)
def test_everything_is_rendered_somewhere(runtime: str) -> None:
    """Else the tests below would prove less than they say."""
    definition = DEFINITIONS[runtime]
    own = {flag for s in definition.settings.values() for flag in (*s.flags, *filter(None, (s.off,)))}
    rendered = {flag_of(word) for arg in render_all(runtime) for word in arg.words}
    assert own - rendered == set()


def test_llama_server_knows_every_flag() -> None:
    assert refused("llama-server", *parse_help((FIXTURES / "llama-server" / "help.txt").read_text())) == []


def test_llama_server_knows_every_spelling_that_we_own() -> None:
    """A flag that no build has any more stands in `native`, with what to do instead."""
    flags, _ = parse_help((FIXTURES / "llama-server" / "help.txt").read_text())
    gone = {word for word, text in DEFINITIONS["llama-server"].native.items() if text.startswith("gone")}
    assert set(owned_flags(DEFINITIONS["llama-server"])) - flags == {word for word in gone if word.startswith("-")}


@pytest.mark.engine
def test_the_real_llama_server_knows_every_flag(llama_server: Path) -> None:
    shown = subprocess.run([llama_server, "--help"], capture_output=True, text=True, timeout=100, check=True)
    assert refused("llama-server", *parse_help(shown.stdout)) == []


@pytest.mark.engine
def test_the_real_llama_server_tells_its_version(llama_server: Path) -> None:
    version = DEFINITIONS["llama-server"].version
    assert version is not None
    shown = subprocess.run([llama_server, *version.command], capture_output=True, text=True, timeout=100, check=True)
    found = re.search(version.pattern, shown.stdout + shown.stderr)
    assert found is not None and found["v"] == version.written_for
    captured = re.search(version.pattern, (FIXTURES / "llama-server" / "version.txt").read_text())
    assert captured is not None and captured["v"] == version.written_for


def test_vllm_knows_every_flag() -> None:
    """Against the arguments in its source, negative forms not among them: no `--help=all` was captured."""
    known = {line for line in (FIXTURES / "vllm" / "flags.txt").read_text().splitlines() if line.startswith("-")}
    negative = {f"--no-{flag.removeprefix('--')}" for flag in known if flag.startswith("--enable")}
    assert refused("vllm", frozenset(known | negative), {}) == []


def test_vllm_knows_every_kv_cache_type() -> None:
    told = re.search(
        r"--kv-cache-dtype: .*choose from (.*)\)", (FIXTURES / "vllm" / "startfail_bad_choice.txt").read_text()
    )
    assert told is not None
    assert set(DEFINITIONS["vllm"].settings["kv_cache_type"].values) == set(re.findall(r"'([^']+)'", told[1]))


def test_versions_are_found() -> None:
    for runtime, shown, wanted in (
        ("vllm", "INFO something\n0.32.0\n", "0.32.0"),
        ("ollama", "ollama version is 0.33.0\n", "0.33.0"),
        ("ollama", "Warning: could not connect\nWarning: client version is 0.33.0\n", "0.33.0"),
        ("llama-server", "ggml_cuda_init: found 1 CUDA devices:\nversion: 8763 (ff5ef8278)\n", "8763"),
    ):
        version = DEFINITIONS[runtime].version
        assert version is not None
        found = re.search(version.pattern, shown)
        assert found is not None and found["v"] == wanted


# --- what an exit means ------------------------------------------------------------------------------------------------


def cause(definition: Definition, log: str, phase: str = "start") -> str:
    """The first class whose pattern is in the log; the rule of `docs/contracts.md` without codes and signals."""
    for name, rule in definition.exit.items():
        if rule.phase in ("any", phase) and rule.pattern and re.search(rule.pattern, log, re.MULTILINE):
            return name
    return "–"


def captured() -> Iterable[tuple[str, str, str]]:
    text = (FIXTURES / "llama-server" / "failures.txt").read_text()
    for block in re.split(r"^=== ", text, flags=re.MULTILINE)[1:]:
        command, log = block.split("\n", 1)
        line = re.sub(r"-m (/models/)?|--port 18120 ", "", command)
        yield "llama-server", line, log
    for path in sorted((FIXTURES / "vllm").glob("start*fail_*.txt")):
        yield "vllm", path.stem, path.read_text()
    yield "ollama", "serve_port_in_use", (FIXTURES / "ollama" / "serve_port_in_use.stderr.log").read_text()


def test_captured_start_failures() -> None:
    """UPDATE_GOLDEN=1 writes the file anew."""
    lines = []
    for runtime, what, log in captured():
        name = cause(DEFINITIONS[runtime], log)
        rule = DEFINITIONS[runtime].exit.get(name)
        told = f"{name} [{rule.retry}] {rule.advice}" if rule else name
        lines.append(f"{runtime}: {' '.join(what.split())}\n    {told}\n")
    path = GOLDEN / "start_failures.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text("".join(lines))
    assert "".join(lines) == path.read_text()


def test_only_starts_that_went_well_have_no_class() -> None:
    fine = [what for runtime, what, log in captured() if cause(DEFINITIONS[runtime], log) == "–"]
    assert len(fine) == 3, fine


@pytest.mark.parametrize(
    "name", ["load_fails_kv_unknown", "load_fails_kv_without_fa", "runner_killed_while_loading", "llama_server_missing"]
)
def test_a_load_that_fails_is_the_end_of_no_ollama(name: str) -> None:
    """It goes on, and answers: its log may not be taken for that of a crash."""
    log = (FIXTURES / "ollama" / f"serve_{name}.stderr.log").read_text()
    assert [cause(DEFINITIONS["ollama"], log, phase) for phase in ("start", "run")] == ["–", "–"]


@pytest.mark.parametrize(
    ("runtime", "phase", "log", "name"),
    [
        ("llama-server", "start", "cudaMalloc failed: out of memory\nexiting due to model loading error", "oom-load"),
        ("llama-server", "run", "CUDA error: out of memory\n  current device: 0, in function", "oom-run"),
        ("llama-server", "run", "CUDA error: an illegal memory access was encountered", "cuda-error"),
        ("llama-server", "run", "ggml.c:1: GGML_ASSERT(x) failed", "assert"),
        ("llama-server", "run", "srv: invalid magic characters", "–"),
        (
            "vllm",
            "start",
            "ValueError: Free memory on startup is less than desired GPU memory utilization",
            "oom-load",
        ),
        ("vllm", "start", "torch.OutOfMemoryError: CUDA out of memory.", "oom-load"),
        ("vllm", "run", "torch.OutOfMemoryError: CUDA out of memory.", "oom-run"),
        ("vllm", "start", "Value error, Model architectures ['X'] are not supported for now.", "unknown-architecture"),
        ("vllm", "start", "safetensors_rust.SafetensorError: Error while deserializing header", "weights-broken"),
        ("vllm", "start", "RuntimeError: Cannot find any model weights with `/models/x`", "weights-broken"),
        (
            "vllm",
            "start",
            "Value error, Cannot find the config file for awq [type=value_error",
            "quantization-mismatch",
        ),
        (
            "vllm",
            "start",
            "ERROR [core.py:1510] ValueError: current platform cpu does not support ray.\n"
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
            "ray-unsupported",
        ),
        ("ollama", "start", "panic: $HOME is not defined", "home-missing"),
        ("ollama", "run", "panic: runtime error\n\ngoroutine 1 [running]:", "panic"),
        ("command", "start", "OSError: [Errno 98] Address already in use", "port-in-use"),
    ],
)
def test_what_no_capture_shows(runtime: str, phase: str, log: str, name: str) -> None:
    assert cause(DEFINITIONS[runtime], log, phase) == name


@pytest.mark.parametrize(
    ("capture", "name"),
    [
        ("crash_kill_ec_log.txt", "engine-died"),
        ("crash_kill_worker_log.txt", "engine-died"),
        ("crash_yaml_grpc_log.txt", "hung-worker"),
    ],
)
def test_captured_crashes_of_vllm(capture: str, name: str) -> None:
    assert cause(DEFINITIONS["vllm"], (FIXTURES / "vllm" / capture).read_text(), "run") == name


def test_advice_is_one_sentence() -> None:
    for definition in DEFINITIONS.values():
        for name, rule in definition.exit.items():
            assert rule.advice.endswith(".") and "\n" not in rule.advice and len(rule.advice) < 160, (
                definition.name,
                name,
            )
