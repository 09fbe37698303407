"""vLLM's pool as it says itself (`vllm:cache_config_info`) against the plan that asked for it in tokens."""

from __future__ import annotations

import pytest
from support.daemon import Daemon
from support.kinds import vllm

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_pool_is_the_planned_one(daemon: Daemon) -> None:
    daemon.write({"chat": vllm(kv_tokens=20_000, env={}, extra_args=["--enforce-eager"])})
    daemon.up(timeout=180)
    got = daemon.wait_service("chat", lambda s: s["state"] == "READY" and s["got"], 300, "READY")["got"]
    (plan,) = daemon.call("plan", service="chat")["services"]
    blocks = -(-20_000 // 128) + 1  # and the one that it keeps empty
    words = [word for arg in plan["argv"] for word in arg["words"]]
    assert words[words.index("--kv-cache-memory-bytes") + 1] == str(blocks * 128 * 512)
    assert got["kv_tokens"] == plan["memory"]["kv_tokens"] == blocks * 128
    daemon.down()
