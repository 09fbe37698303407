"""A search in a log that is long, or that never ends, and a daemon that answers all the while."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
import pytest
from support import control
from support.daemon import Daemon
from support.spec import fake
from support.wait import wait_until


def searching(daemon: Daemon) -> list[int]:
    """Processes of searches. One that has just ended is none."""
    assert daemon.process
    found = []
    for child in psutil.Process(daemon.process.pid).children():
        with contextlib.suppress(psutil.Error):
            if any("findlines" in word for word in child.cmdline()):
                found.append(child.pid)
    return found


def test_words_are_found_in_what_was_rotated_away_too(daemon: Daemon) -> None:
    daemon.write({"chat": fake(daemon.folder / "model.gguf")})
    daemon.up()
    daemon.wait_state("chat", "READY")
    folder = Path(daemon.state) / "services" / "chat"
    (folder / "log.7").write_text(
        "".join(f"long ago {n}\n" for n in range(5000)) + "a needle\x1b[31m\n" + "after\n" * 3
    )
    said = list(control.items(daemon.socket, "log_search", service="chat", words="needle"))
    [hit] = [hit for each in said for hit in each["hits"]]
    assert hit["text"].startswith("a needle") and "\x1b" not in hit["text"]
    assert said[-1]["complete"] is True and said[-1]["count"] == 1
    lines = daemon.call("log_at", service="chat", file=hit["file"], offset=hit["offset"], before=2, after=1)["lines"]
    assert [line["text"].split("\\")[0] for line in lines] == ["long ago 4998", "long ago 4999", lines[2]["text"].split("\\")[0], "after"]  # fmt: skip
    for wrong in ({"words": ""}, {"words": "x" * 501}, {"words": "x", "most": -1}, {"words": 5}):
        with pytest.raises(control.Refused):
            list(control.items(daemon.socket, "log_search", service="chat", **wrong))
    with pytest.raises(control.Refused, match="gone"):
        daemon.call("log_at", service="chat", file=1, offset=0)

    (folder / "log.8").write_text("a" * 60 + "!\n")
    endless = control.items(daemon.socket, "log_search", service="chat", words="(a+)+$")
    assert next(endless)["complete"] is None, "what came before the line that takes for ever"
    wait_until(lambda: searching(daemon), 20, "a search in a process of its own")
    assert all(daemon.call("ping")["pid"] == daemon.process.pid for _ in range(5))  # type: ignore[union-attr]
    endless.close()
    wait_until(lambda: not searching(daemon), 20, "its end with its asker")
