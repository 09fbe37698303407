"""Names, keys and limits of the spec reach the gateway at once, and restart nothing."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from gateway.box import BODY, Box
from support.daemon import Daemon
from support.http import request
from support.wait import wait_until

Json = dict[str, Any]
ALICE, OTHER = "alice-canary-0123456789", "other-canary-0123456789"


@pytest.fixture
def box(daemon: Daemon) -> Iterator[Box]:
    yield Box(daemon)


def view(box: Box, fits: Callable[[Json], bool]) -> Json:
    """The gateway's own copy of the view, once it fits."""
    file, last = box.daemon.run / "gateway" / "view.json", list[str]()

    def read() -> Json | None:
        last[:] = [file.read_text()] if file.exists() else []
        said: Json = json.loads(last[0]) if last else {}
        return said if said and fits(said) else None

    found = wait_until(read, 15, lambda: f"another view than {last}\n{box.daemon.told()}")
    assert found
    return found


def hashes(said: Json) -> dict[str, str]:
    return {key["name"]: key["sha256"] for key in said["keys"]}


def asked(box: Box, key: str) -> int:
    return request(box.chat_url, BODY, key=key)[0]


def digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def test_names_are_live(box: Box) -> None:
    box.up()
    pid, target = (
        box.daemon.service("chat")["pid"],
        view(box, lambda v: v["targets"][0]["state"] == "open")["targets"][0],
    )
    assert (target["model"], target["names"], target["context_length"]) == ("chat", ["chat", "smollm2"], 1024)
    assert target["traits"]["slots"] == "/slots" and target["traits"]["routes"]["/infill"] == "infill"
    policy = {"set": {"temperature": 0}, "strip": ["seed"], "listed": False}
    chat = {**box.service(), "aliases": ["other"], "names": {"exact": policy}, "listed": False}
    box.write({"chat": chat}, gateway={"queue_deadline": "7s"})
    said = view(box, lambda v: v["limits"]["queue_deadline_s"] == 7.0)
    target = said["targets"][0]
    assert target["names"] == ["chat", "other", "exact"] and target["policies"] == {"exact": policy}
    assert target["listed"] is False and target["state"] == "open"
    status = box.daemon.service("chat")
    assert (status["pid"], status["drift"]) == (pid, [])


def test_a_live_edit_beside_one_that_restarts(box: Box) -> None:
    box.up()
    pid = box.daemon.service("chat")["pid"]
    box.write({"chat": {**box.service(), "context_length": 2048, "aliases": ["new"]}})
    said = view(box, lambda v: v["targets"][0]["context_length"] == 2048 and v["targets"][0]["state"] == "open")
    assert said["targets"][0]["names"] == ["chat", "new"] and box.daemon.service("chat")["pid"] != pid


def test_keys_are_live(box: Box) -> None:
    file: Path = box.daemon.folder / "alice"
    keys = {"alice": {"file": "alice", "models": ["chat"], "share": 2.0}, "bob": {"env": "BOB"}}
    box.daemon.environ["BOB"] = OTHER
    file.write_text(ALICE + "\n")
    box.write(gateway={"keys": keys})
    box.daemon.up()
    said = view(box, lambda v: bool(v["keys"]))
    assert said["keys"][0] == {"name": "alice", "sha256": digest(ALICE), "models": ["chat"], "share": 2.0}
    assert hashes(said)["bob"] == digest(OTHER)
    box.daemon.wait_state("chat", "READY")
    assert [asked(box, key) for key in ("", "wrong", ALICE, OTHER)] == [401, 401, 200, 200]

    file.write_text(ALICE + "-2")
    view(box, lambda v: hashes(v)["alice"] == digest(ALICE + "-2"))
    wait_until(lambda: "gateway-key" not in box.conditions(), 15, "no condition")

    file.write_text("short")
    view(box, lambda v: hashes(v) == {"alice": "", "bob": digest(OTHER)})
    told = f"alice: {file} holds a key of 5 characters"
    wait_until(lambda: told in box.conditions().get("gateway-key", ""), 15, lambda: f"{told}: {box.conditions()}")
    assert [asked(box, key) for key in ("", "short", ALICE, OTHER)] == [401, 401, 401, 200]

    file.unlink()
    wait_until(lambda: "is missing" in box.conditions().get("gateway-key", ""), 15, "the other reason")
    file.write_text(ALICE)
    view(box, lambda v: hashes(v)["alice"] == digest(ALICE))
    wait_until(lambda: "gateway-key" not in box.conditions(), 15, "the end of the condition")

    box.write()
    view(box, lambda v: v["keys"] == [])
    assert asked(box, "") == 200
    texts = [box.daemon.told(), json.dumps(box.daemon.status()), json.dumps(box.daemon.events())]
    for path in box.daemon.state.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # replaced meanwhile
            texts += [path.read_text(errors="replace")] if path.is_file() else []
    assert not [text for text in texts if "canary" in text]


def test_a_stop_is_told_with_its_reason(box: Box) -> None:
    box.up()
    assert box.daemon.cli("stop", "chat").returncode == 0
    target = view(box, lambda v: v["targets"][0]["state"] == "gone")["targets"][0]
    assert re.match("(DRAINING|STOPPING|KILLING|STOPPED): stopped by ", target["reason"]), target["reason"]
