"""What the engine has against what it was asked for: equal on a real engine (`test_life.py`), told where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.daemon import Daemon
from support.spec import fake


def up(daemon: Daemon, **knobs: Any) -> dict[str, Any]:
    model = Path(daemon.folder / "m.gguf")
    daemon.write({"chat": fake(model, daemon.journal, knobs, context_length=1024, parallel=2, kv_cache_type="q8_0")})
    daemon.up()
    return daemon.wait_service("chat", lambda s: s["state"] == "READY" and s["got"], 30, "what the engine has")


def told(value: object) -> str:
    return ("off", "on")[value] if isinstance(value, bool) else str(value)


def test_equal(daemon: Daemon) -> None:
    status = up(daemon)
    assert status["got"] == status["asked"] and status["conditions"] == []


@pytest.mark.parametrize(
    ("knob", "value", "key", "got"),
    [
        ("got_n_ctx", 512, "context_length", 512),
        ("got_parallel", 1, "parallel", 1),
        ("got_kv", "f16", "kv_cache_type", "f16"),
        ("got_flash", "disabled", "flash_attention", False),
    ],
)
def test_something_else_is_a_condition(daemon: Daemon, knob: str, value: object, key: str, got: object) -> None:
    status = up(daemon, **{knob: value})
    assert status["got"][key] == got != status["asked"][key]
    known = lambda s: "not-as-asked" in [c["id"] for c in s["conditions"]]  # noqa: E731
    status = daemon.wait_service("chat", known, 30, "the condition")
    (condition,) = [c for c in status["conditions"] if c["id"] == "not-as-asked"]
    assert all(words in condition["text"] for words in (key, told(got), told(status["asked"][key])))
