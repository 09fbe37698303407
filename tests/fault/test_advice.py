"""Findings on the applied spec: conditions that hold nothing up, `advise`, and the change staged through plan and reload."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
from support import control
from support.daemon import Daemon
from support.edits import Two
from support.faults import conditions
from support.records import record, write

from llmsupervisor.daemon import advice

COMMENT = "# said with care"
PATIENT = 30.0
"""Seconds; an edit is seen within a few, where the machine has nothing else to do."""


@pytest.fixture
def box(daemon: Daemon) -> Two:
    """`chat` has an f16 KV cache and a context that is padded; `other` has nothing to be told of."""
    box = Two(daemon)
    box.write(kv_cache_type="f16", context_length=1000)
    text = box.daemon.spec_path.read_text().replace("context_length = 1000", f"context_length = 1000   {COMMENT}")
    box.daemon.write_text(text)
    box.daemon.up()
    box.pids = {name: box.ready(name)["pid"] for name in ("chat", "other")}
    return box


def test_findings_are_conditions_until_they_are_cured_or_ignored(box: Two) -> None:
    told = conditions(box.daemon.service("chat"))
    assert set(told) == {"C13"} and "2 requests of 1000 tokens is left at f16" in told["C13"]
    assert conditions(box.daemon.service("other")) == {}
    assert "condition C13: the KV cache" in box.daemon.cli("status").stdout

    text = box.daemon.spec_path.read_text()
    ignored = text.replace(
        'kv_cache_type = "f16"', 'kv_cache_type = "f16"   # llmsupervisor: ignore C13 a small model', 1
    )
    box.daemon.write_text(ignored)
    box.daemon.wait_service("chat", lambda s: not conditions(s), PATIENT, "no condition")
    box.unchanged()
    (found,) = [f for f in box.daemon.call("advice", service="chat")["findings"] if f["rule"] == "C13"]
    assert found["ignored"] == "a small model"
    assert (
        "C13:chat" not in box.daemon.cli("advise").stdout
        and "1 ignored with a reason" in box.daemon.cli("advise").stdout
    )

    box.daemon.write_text(text.replace('"f16"', '"f16"   # llmsupervisor: ignore C13', 1))
    back = box.daemon.wait_service("chat", lambda s: "C13" in conditions(s), PATIENT, "the condition")
    assert "gives no reason to ignore C13" in conditions(back)["ignore"]
    rows = [(row["id"], row["on"]) for row in box.daemon.events(service="chat", kind="condition")]
    assert [on for id, on in rows if id == "C13"] == [True, False, True]


def test_a_change_is_shown_then_made_and_nothing_else(box: Two) -> None:
    before = box.daemon.spec_path.read_text()
    said = box.daemon.call("advice")
    assert said["sha256"] == box.sha and said["path"] == str(box.daemon.spec_path)
    assert [f["id"] for f in said["findings"]] == ["C13:chat", "C03:chat"]
    assert said["findings"][0]["changes"] == [{"key": "kv_cache_type", "old": "f16", "new": "q8_0", "restarts": True}]

    shown = box.daemon.call("fix", ids=["C13:chat", "C03:chat"])
    assert [(c["service"], c["action"]) for c in shown["changes"]] == [("chat", "restart")]
    assert '+kv_cache_type = "q8_0"' in shown["diff"] and not shown["applied"] and not shown["refusals"]
    assert box.daemon.spec_path.read_text() == before
    box.unchanged()

    done = box.daemon.cli("advise", "--fix", "C13:chat", "C03:chat", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["applied"] and "context_length 1000 → 1024" in done.stderr
    after = box.restarted("--cache-type-k q8_0")
    box.unchanged("other")
    assert conditions(after) == {} and box.daemon.call("advice")["findings"] == []
    assert box.daemon.spec_path.read_text() == before.replace("f16", "q8_0").replace("= 1000 ", "= 1024 ")
    assert [row["call"] for row in box.daemon.events(kind="operator")] == ["advice C13:chat, C03:chat"]


def test_what_cannot_be_staged_is_refused_and_nothing_is_written(box: Two) -> None:
    before = box.daemon.spec_path.read_text()
    for wish, words in (
        ({"ids": ["C99:chat"]}, "no finding C99:chat; there are: C13:chat, C03:chat"),
        ({"ids": []}, "findings of `advice` are expected"),
        ({"ids": ["C13:chat"], "sha256": "0" * 64}, "was changed by somebody else"),
        ({"ids": ["C13:chat"], "sha256": 1}, "sha256 is 1"),
    ):
        with pytest.raises(control.Refused, match=words):
            box.daemon.call("fix", dry_run=False, **wish)
    asked = box.daemon.cli("advise", "--fix", "C13:chat")
    assert asked.returncode == 2 and "--yes makes the change" in asked.stderr
    assert box.daemon.spec_path.read_text() == before

    broken = before.replace('"f16"', '"f17"')
    box.daemon.write_text(broken)
    box.refused("f17", PATIENT)
    with pytest.raises(control.Refused, match="was changed by somebody else"):
        box.daemon.call("fix", ids=["C13:chat"], dry_run=False)
    assert box.daemon.spec_path.read_text() == broken
    box.unchanged()


def test_a_dry_run_tells_what_the_new_spec_brings(box: Two) -> None:
    box.daemon.write_text(
        box.daemon.spec_path.read_text().replace("parallel = 2", "parallel = 2\nprefix_caching = false", 1)
    )
    said = box.daemon.cli("reload", "--dry-run")
    assert "warning C28 services.chat.prefix_caching" in said.stdout


def test_what_requests_show_is_told_with_their_number_until_the_spec_is_changed(box: Two) -> None:
    """Records of an earlier daemon's gateway."""
    now = time.time()
    short = (
        record(str(n), time=now - 7200 + n, prompt_tokens=100, max_tokens=50, completion_tokens=20) for n in range(600)
    )
    write(box.daemon.state / "requests.db", short)

    def told() -> list[str]:
        return [f["id"] for f in box.daemon.call("advice", PATIENT, service="chat")["findings"]]

    assert told() == ["C13:chat", "R63:chat", "C03:chat"]
    assert "600 requests asked for 150 tokens" in conditions(box.daemon.service("chat"))["R63"]
    shown = box.daemon.cli("advise", "chat")
    assert shown.returncode == 0 and "(600 requests)" in shown.stdout and "context_length 1000 → 256" in shown.stdout
    assert "R63" not in box.daemon.cli("advise", "chat", "--since", "10m").stdout

    assert box.daemon.cli("advise", "--fix", "R63:chat", "--yes").returncode == 0
    assert "R63" not in conditions(box.restarted("--ctx-size 512"))
    assert told() == ["C13:chat"]
    box.daemon.restart()
    assert told() == ["C13:chat"], "requests of before the change say nothing of what runs now"


def test_a_rule_that_fails_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(advice.lint, "lint", fail)
    planned = SimpleNamespace(plan=None, facts=None, applied=SimpleNamespace(loaded=None))
    (found,) = advice.findings(planned, {})  # type: ignore[arg-type]
    assert "ZeroDivisionError: by nothing" in found.says and found.severity == "warning"
