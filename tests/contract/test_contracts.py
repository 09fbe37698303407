"""The examples of `docs/contracts.md` are what the types of `llmsupervisor.link` say they are, key by key."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from support.shapes import mismatches

from llmsupervisor.base.errors import Exit
from llmsupervisor.link.advice import Advice, Fixed
from llmsupervisor.link.calls import Found
from llmsupervisor.link.events import Event
from llmsupervisor.link.gateway import Applied, Bad, Demand, Enrich, Finished, Hello, Lease, Metrics, Stats, Watch
from llmsupervisor.link.memory import Memory
from llmsupervisor.link.requests import RequestRecord
from llmsupervisor.link.runs import ExitRecord, Launch, RunRecord
from llmsupervisor.link.series import Series
from llmsupervisor.link.services import StateName, Target
from llmsupervisor.link.status import Status
from llmsupervisor.link.view import View
from llmsupervisor.service.states import State

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "contracts.md").read_text()
TYPES: dict[str, Any] = {
    "launch.json": Launch,
    "run.json": RunRecord,
    "exit.json": ExitRecord,
    "found": Found,
    "advice": Advice,
    "fixed": Fixed,
    "series": Series,
    "status": Status,
    "target": Target,
    "event": Event,
    "hello": Hello,
    "view": View,
    "applied": Applied,
    "lease": Lease,
    "stats": Stats,
    "demand": Demand,
    "bad": Bad,
    "finished": Finished,
    "enrich": Enrich,
    "watch": Watch,
    "metrics": Metrics,
    "record": RequestRecord,
    "memory": Memory,
}
"""Of the named blocks."""


def blocks() -> list[tuple[str, str]]:
    return re.findall(r"^```json (\S+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("name", "text"), blocks(), ids=[name for name, _ in blocks()])
def test_the_example_is_of_its_type(name: str, text: str) -> None:
    assert not (found := mismatches(json.loads(text), TYPES[name], name)), "\n".join(found)


def test_every_contract_has_one_example() -> None:
    assert sorted(name for name, _ in blocks()) == sorted(TYPES)


def test_the_list_of_record_fields_is_the_type() -> None:
    listed = re.search(r"^`(id, time, service, model, .*?)`\.$", TEXT, re.MULTILINE | re.DOTALL)
    assert listed
    assert re.split(r",\s+", listed[1]) == list(get_type_hints(RequestRecord))


def test_one_list_of_states() -> None:
    listed = re.search(r"`state` is one of `([A-Z ]+)`", TEXT)
    assert listed
    assert listed[1].split() == [s.value for s in State] == list(get_args(StateName))


def test_kinds_of_events_are_the_type() -> None:
    listed = re.search(r"^`kind`: (.*?)\n`service` is null", TEXT, re.MULTILINE | re.DOTALL)
    assert listed
    kinds = [part.strip().split("`")[1] for part in listed[1].split(" · ")]
    assert kinds == list(get_args(get_type_hints(Event)["kind"]))


def test_error_codes_are_exit_codes() -> None:
    assert "`code` an exit code of the command line" in TEXT
    assert {e.name: int(e) for e in Exit} == {
        "OK": 0,
        "FAILURE": 1,
        "USAGE": 2,
        "SPEC_INVALID": 3,
        "IMPOSSIBLE": 4,
        "UNREACHABLE": 5,
        "OWNED": 6,
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop("daemon"),
        lambda s: s.update(more=1),
        lambda s: s["services"][0].update(state="RUNNING"),
        lambda s: s["services"][0]["targets"][0].update(requests_running="0"),
        lambda s: s["services"][0]["last_exit"].pop("cause"),
        lambda s: s.update(v=None),
    ],
)
def test_the_comparison_sees(change: Any) -> None:
    status = json.loads(dict(blocks())["status"])
    change(status)
    assert mismatches(status, Status, "status")
