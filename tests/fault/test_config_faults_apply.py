"""Faults C17, C18, C20, and what an edit may cost."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from support import process
from support.daemon import Daemon
from support.edits import SEEN, Two
from support.faults import PATIENT_STOPS, conditions
from support.wait import wait_until

from llmsupervisor.base.ids import sha256
from llmsupervisor.spec.edit import Conflict, edited, set_value


@pytest.fixture
def box(daemon: Daemon) -> Two:
    return Two(daemon)


# --- when it comes ------------------------------------------------------------------------------------------------


def test_c17_edits_during_a_load_cost_one_start(box: Two) -> None:
    """The first ends the load; those that come before its process is gone cost nothing more."""
    box.stops(PATIENT_STOPS)
    box.daemon.write(box.spec(box.fake({"ready_after": 60, "ignore_term": 1})))
    box.daemon.up()
    first = box.wait_starts(1).pid
    box.listens()
    for length in (2048, 3072, 4096):
        box.daemon.write(box.spec(box.fake({"ready_after": 0.2}, context_length=length)))
        assert box.daemon.cli("reload").returncode == 0
    os.kill(first, signal.SIGKILL)
    assert box.daemon.wait_service("chat", lambda s: s["state"] == "READY", 60, "READY")["generation"] == 4
    assert "--ctx-size 8192" in " ".join(box.starts()[-1].argv), "the newest wins"
    box.once(2)
    assert len(box.starts("other")) == 1


def test_c18_a_wrong_spec_at_the_start_runs_the_last_good_one(box: Two) -> None:
    box.two_up()
    box.daemon.down()
    good = box.daemon.spec_path.read_text()
    box.daemon.write_text(good.replace('kv_cache_type = "q8_0"', 'kv_cache_type = "q9_0"'))
    box.daemon.up()
    assert "kv_cache_type" in box.error and f"{box.daemon.spec_path}:" in box.error
    assert "kv_cache_type" in box.daemon.cli("status").stdout
    assert "the last good one runs" in box.daemon.told()
    for name in ("chat", "other"):
        box.ready(name)
        box.once(2, name)
    assert "--cache-type-k q8_0" in " ".join(box.starts()[-1].argv)

    box.daemon.write_text(good.replace("context_length = 1024", "context_length = 2048", 1))
    box.restarted("--ctx-size 4096", starts=3)
    assert not box.error
    box.once(2, "other")


def test_c18_without_a_last_good_one_there_is_nothing_to_run(box: Two) -> None:
    box.daemon.write_text("[services.chat\n")
    box.daemon.launch()
    assert box.daemon.wait_exit() == 3
    assert f"{box.daemon.spec_path}:1: not valid TOML" in box.daemon.told()
    assert not process.inside(box.daemon.state)


def test_an_edit_while_the_daemon_starts_is_not_lost(box: Two) -> None:
    """Between the first read and the first watch."""
    box.write()
    box.daemon.environ["LLMSUPERVISOR_FAILPOINT"] = "raise:watch_files:1"
    box.daemon.up()
    box.write(context_length=2048)
    box.applied()
    wait_until(lambda: any("--ctx-size 4096" in " ".join(s.argv) for s in box.starts()[-1:]), 20, "what it runs with")
    box.ready()


def test_c20_of_two_writers_the_second_is_told(tmp_path: Path) -> None:
    """A change by a program against an editor's save in between."""
    path = tmp_path / "llmsupervisor.toml"
    path.write_text("[services.chat]\nparallel = 2 # two\n")
    read = path.read_text()
    mine = set_value(read, ("services", "chat", "parallel"), 4)
    assert edited(path.read_text(), sha256(read), mine) == "[services.chat]\nparallel = 4 # two\n"
    path.write_text(read + "context_length = 2048\n")
    told = edited(path.read_text(), sha256(read), mine)
    assert isinstance(told, Conflict)
    assert "changed by somebody else" in str(told) and "nothing was written" in str(told)


# --- what an edit may cost ----------------------------------------------------------------------------------------


def test_what_changes_no_command_line_restarts_nothing(box: Two) -> None:
    """A comment, a default that is spelled out, a live key."""
    box.two_up()
    text = box.daemon.spec_path.read_text()
    box.daemon.write_text("# of the box in the cellar\n" + text)
    box.applied()
    box.write(flash_attention=True, batch=2048, start="boot")
    box.applied()
    assert box.daemon.call("reload", dry_run=True)["changes"] == []
    box.write(drain_timeout="7s", restart={"policy": "never"})
    box.applied()
    changes = [c for row in box.daemon.events(kind="reload") if row["why"] != "started" for c in row["changes"]]
    assert [(c["service"], c["action"]) for c in changes] == [("chat", "live")]
    assert box.daemon.service("chat")["drift"] == []
    box.unchanged()
    os.kill(box.pids["chat"], 9)
    assert "restart policy" in box.daemon.wait_state("chat", "FAILED", 5)["reason"], "it is live"
    box.once(1)


def test_an_edited_template_or_definition_restarts_its_own_service_alone(box: Two) -> None:
    """Both are files beside the spec, which itself stays as it is."""
    template = box.folder / "chat.jinja"
    template.write_text("{{ messages }}")
    mine = box.folder / "runtimes" / "mine.toml"
    text = (box.folder / "runtimes" / "llama-server.toml").read_text()
    mine.write_text(text.replace('name = "llama-server"', 'name = "mine"', 1))
    third = box.fake() | {"runtime": "mine"}
    box.daemon.write({**box.spec(chat_template=str(template)), "third": third})
    box.daemon.up()
    box.pids = {name: box.ready(name)["pid"] for name in ("chat", "other", "third")}

    template.write_text("{{ messages }} again")
    box.restarted(f"--chat-template-file {template}")
    box.unchanged("other", "third")
    box.pids["chat"] = box.ready()["pid"]

    before = '["--log-colors", "off"]'
    assert before in text
    mine.write_text(mine.read_text().replace(before, '["--log-colors", "auto"]'))
    box.wait_starts(2, "third")
    box.ready("third")
    assert "--log-colors auto" in " ".join(box.starts("third")[-1].argv)
    box.once(2, "third")
    box.unchanged("other")
    assert box.ready()["pid"] == box.pids["chat"]
    box.once(2)


@pytest.mark.slow
def test_a_box_fact_keeps_the_running_generation(box: Two) -> None:
    box.two_up()
    box.daemon.write(
        {
            "chat": box.fake(context_length=2048) | {"model": str(box.folder / "none.gguf")},
            "other": box.fake(batch=1024),
        }
    )
    held = box.daemon.wait_service("chat", lambda s: "refused" in conditions(s), SEEN, "the refusal")
    assert held["state"] == "READY" and held["generation"] == 1 and held["asked"]["context_length"] == 1024
    assert "none.gguf" in conditions(held)["refused"] and "context_length 1024 → 2048" in conditions(held)["refused"]
    box.wait_starts(2, "other")
    box.ready("other")
    box.unchanged("chat")
    shutil.copy(box.model, box.folder / "none.gguf")
    status = box.daemon.wait_service("chat", lambda s: s["pid"] != box.pids["chat"] and s["state"] == "READY", 15, "it")
    assert "refused" not in conditions(status) and status["asked"]["context_length"] == 2048
    box.once(2)


def test_a_generation_that_does_not_become_ready_is_rolled_back(box: Two) -> None:
    box.two_up()
    box.daemon.write(box.spec(box.fake({"oom": 1}, context_length=2048)))
    box.wait_starts(2)
    back = box.daemon.wait_service(
        "chat", lambda s: s["state"] == "READY" and s["pid"] != box.pids["chat"], 20, "READY"
    )
    assert back["asked"]["context_length"] == 1024
    assert "did not become READY" in conditions(back)["rolled-back"] and "memory" in conditions(back)["rolled-back"]
    box.once(3)

    assert box.daemon.cli("reload").returncode == 0
    box.daemon.write_text(box.daemon.spec_path.read_text() + "# not tried again for a comment\n")
    box.applied()
    box.daemon.kill9()
    box.daemon.restart()
    kept = box.ready()
    assert kept["pid"] == back["pid"] and "rolled-back" in conditions(kept)
    box.once(3)

    box.write(context_length=3072)
    done = box.restarted("--ctx-size 6144", starts=4)
    assert "rolled-back" not in conditions(done)
    assert len(box.starts("other")) == 1


# --- how often it is told -----------------------------------------------------------------------------------------


def test_an_edit_is_told_once_however_often_the_box_is_looked_at(box: Two) -> None:
    """What is live was applied, also where the process was started before it; what is refused goes on to be refused."""
    box.two_up(drain_timeout="30s")

    def told() -> list[str]:
        for _ in range(2):
            assert box.daemon.cli("reload").returncode == 0
        events = [event for event in box.daemon.events(kind="reload") if event["why"] != "started"]
        return [f"{change['action']} {change['why']}" for event in events for change in event["changes"]]

    expected = []
    for settings, change in (
        ({"drain_timeout": "77s"}, "live drain_timeout 30s → 77s"),
        ({"drain_timeout": "77s", "start_timeout": "9m"}, "live start_timeout (not said) → 540s"),
        ({"drain_timeout": "30s", "start_timeout": "9m"}, "live drain_timeout 77s → 30s"),
        ({"context_length": 2048, "gpus": [5]}, "restart context_length 1024 → 2048, gpus [] → [5]"),
    ):
        box.write(**settings)
        expected.append(change)
        found = told()
        assert len(found) == len(expected), found
        assert all(text.startswith(change) for text, change in zip(found, expected, strict=True)), found
    assert "refused" in conditions(box.daemon.service("chat"))
    box.unchanged()
