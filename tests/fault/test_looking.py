"""What people ask when something went wrong, of a real daemon: crash records, processes, the spec on disk, earlier logs."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from support import control
from support.daemon import Daemon
from support.spec import fake
from support.wait import wait_until


def listed(daemon: Daemon, name: str, **args: Any) -> list[Any]:
    return list(control.items(daemon.socket, name, **args))


def test_after_a_crash_and_a_wrong_edit(daemon: Daemon) -> None:
    service = fake(daemon.folder / "model.gguf")
    daemon.write({"chat": service})
    daemon.up()
    first = daemon.wait_state("chat", "READY")
    assert listed(daemon, "crashes") == []

    [main, *_] = daemon.call("processes", service="chat")["processes"]
    assert main["pid"] == first["pid"] and main["rss_bytes"] > 0 and main["started"] > 0
    same = daemon.call("spec")
    assert (same["error"], same["changes"], same["diff"]) == (None, [], [])
    assert same["path"] == str(daemon.spec_path) and same["changed"] == pytest.approx(daemon.spec_path.stat().st_mtime)

    before = len(listed(daemon, "logs", service="chat", lines=1000, follow=False))
    os.kill(first["pid"], signal.SIGKILL)
    daemon.wait_service("chat", lambda s: s["state"] == "READY" and s["pid"] != first["pid"], what="READY again")
    [crash] = wait_until(lambda: listed(daemon, "crashes", service="chat"), 10, "a crash record")
    assert crash["service"] == "chat" and crash["exit"]["signal"] in (9, "SIGKILL") and "log" not in crash
    assert listed(daemon, "crashes", service="other") == []
    [whole] = listed(daemon, "crashes", record=crash["record"])
    assert whole["rendered"]["argv"] and whole["log"] and whole["record"] == crash["record"]
    with pytest.raises(control.Refused, match="no crash record"):
        listed(daemon, "crashes", record="../desired.json")

    lines = listed(daemon, "logs", service="chat", lines=1000, follow=False, previous=True)
    earlier = [bool(line.get("earlier")) for line in lines]
    assert sum(earlier) >= before > 0 and earlier == sorted(earlier, reverse=True) and not earlier[-1]

    daemon.write({"chat": {**service, "parallel": "many"}})
    wrong = daemon.call("spec")
    assert "parallel" in wrong["error"] and any(line.startswith("+parallel") for line in wrong["diff"])
    assert daemon.service("chat")["state"] == "READY"
