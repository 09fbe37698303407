"""A runtime that speaks OpenAI and Prometheus needs a definition and no code: SGLang's, on a stand-in for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.box import Box
from support.daemon import Daemon, Json
from support.engines import REPOSITORY

FAKE = REPOSITORY / "tests" / "fakes" / "fake_sglang.py"


def service(folder: Path, **settings: Any) -> Json:
    model = folder / "model"
    model.mkdir(exist_ok=True)
    return {
        "runtime": "sglang",
        "command": [str(FAKE)],
        "model": str(model),
        "context_length": 4096,
        "parallel": 4,
        "kv_cache_type": "auto",
        "kv_tokens": 16384,
        "gpus": [],
        "aliases": ["other"],
        **settings,
    }


def test_it_starts_answers_and_ends(daemon: Daemon) -> None:
    box = Box(daemon)
    box.write({"chat": service(daemon.folder)})
    daemon.up()
    box.ready()
    status, said = box.post(model="other")
    assert (status, said["model"], said["choices"][0]["message"]["content"]) == (200, "other", "hi")
    (record,) = [r for r in box.records(1) if r["status"] == 200]
    assert (record["prompt_tokens"], record["completion_tokens"], record["api"]) == (5, 8, "chat.completions")
    told = daemon.wait_service("chat", lambda s: s["targets"][0]["kv_cache_usage"], 15, "figures")
    assert told["targets"][0]["kv_cache_usage"] == 0.25 and told["targets"][0]["requests_waiting"] == 0
    daemon.down()


def test_its_failures_have_classes(daemon: Daemon) -> None:
    daemon.write(
        {
            "flag": service(daemon.folder, extra_args=["--no-such-flag"]),
            "memory": service(daemon.folder, env={"FAKE_OOM": "1"}),
        }
    )
    daemon.up()
    for name, cause in (("flag", "bad-argument"), ("memory", "oom-load")):
        status = daemon.wait_state(name, "FAILED")
        assert status["last_exit"]["cause"] == cause and status["retry_at"] is None, status
