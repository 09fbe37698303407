"""What the gateway is told of a service in each of its states, of the run and of the spec beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from support.boxes import MODEL, engine, planned, service

from llmsupervisor.daemon.modelwork import Entry
from llmsupervisor.daemon.runner import Runner
from llmsupervisor.daemon.targets import limits_of, targets_of
from llmsupervisor.gateway.view import ROUTES, table
from llmsupervisor.link.view import ViewTarget
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.runtime.adapter import adapter_for
from llmsupervisor.service.states import State, Status
from llmsupervisor.service.target import Target, TargetState
from llmsupervisor.spec.model import Gateway

NOW, HORIZON = 1000.0, 1060.0
MODELS = [{"name": "a:1", "context_length": 8}, {"name": "b:1", "context_length": 16}]


@dataclass
class Run:
    plan: ServicePlan
    attempt: int = 3
    endpoint: str = "http://127.0.0.1:18400"
    key: tuple[str, str] | None = ("Authorization", "Bearer x")


@dataclass
class Written:
    """As much of the models of a runner."""

    entries: dict[str, Entry] = field(default_factory=dict)


@dataclass
class Stands:
    """As much of a runner as is looked at."""

    plan: ServicePlan
    process: Run | None = None
    name: str = "chat"
    models: Written = field(default_factory=Written)


def chat(extra: str = "", **keys: Any) -> ServicePlan:
    definitions = engine()
    return planned(service(**keys) + extra, definitions=definitions).services["chat"]


def told(runner: Stands, status: Status) -> list[ViewTarget]:
    found = targets_of(cast(Runner, runner), status, HORIZON)
    assert len(table({"generation": 1, "targets": found}).targets) == len(found)
    return found


def one(status: Status, plan: ServicePlan | None = None) -> ViewTarget:
    plan = plan or chat()
    (found,) = told(Stands(plan, Run(plan)), status)
    return found


def test_a_card_that_is_closed_for_long() -> None:
    """What waits, waits in vain; what runs, runs."""
    plan = chat()

    def state(of: State) -> str:
        (found,) = targets_of(cast(Runner, Stands(plan, Run(plan))), Status(of, "up"), HORIZON, "GPU 0 is lent to ann")
        return f"{found['state']} {found['reason']}".strip()

    assert state(State.READY) == "open"
    for gone in (State.IDLE, State.PENDING, State.DRAINING, State.STOPPING):
        assert state(gone) == f"gone {gone.value}: GPU 0 is lent to ann"


@pytest.mark.parametrize(
    ("status", "state", "reason"),
    [
        (Status(State.READY, "up"), "open", ""),
        (Status(State.READY, "up", reason="x"), "open", ""),
        (Status(State.DRAINING, "up", reason="context_length 1 → 2"), "drain", "DRAINING: context_length 1 → 2"),
        (Status(State.DRAINING, "down", reason="stopped by ann"), "gone", "DRAINING: stopped by ann"),
        (Status(State.STOPPING, "down", stopped_by="ann"), "gone", "STOPPING: stopped by ann"),
        (Status(State.STOPPED, "down", stopped_by="ann"), "gone", "STOPPED: stopped by ann"),
        (Status(State.STOPPED, "down"), "gone", "STOPPED"),
        (Status(State.READY, "down", stopped_by="ann"), "gone", "READY: stopped by ann"),
        (Status(State.IDLE, "up"), "hold", "IDLE"),
        (Status(State.PENDING, "up", reason="no file"), "hold", "PENDING: no file"),
        (Status(State.STARTING, "up"), "hold", "STARTING"),
        (Status(State.UNREADY, "up", reason="503"), "hold", "UNREADY: 503"),
        (Status(State.STOPPING, "up"), "hold", "STOPPING"),
        (Status(State.KILLING, "up"), "hold", "KILLING"),
        (Status(State.BACKOFF, "up", retry_at=HORIZON + 60), "hold", "BACKOFF"),
        (Status(State.FAILED, "up", reason="bad flag"), "gone", "FAILED: bad flag"),
        (Status(State.FAILED, "up", retry_at=HORIZON + 1), "gone", "FAILED"),
        (Status(State.FAILED, "up", retry_at=HORIZON - 1), "hold", "FAILED"),
        (Status(State.FAILED, "up", retry_at=NOW, unkillable=True), "gone", "FAILED"),
    ],
)
def test_where_its_requests_go(status: Status, state: str, reason: str) -> None:
    found = one(status)
    assert (found["state"], found["reason"]) == (state, reason)


@pytest.mark.parametrize(
    ("status", "at"),
    [
        (Status(State.FAILED, "up", retry_at=HORIZON + 240.2), 90_001_301),
        (Status(State.BACKOFF, "up", retry_at=NOW + 8), 90_001_008),
        (Status(State.FAILED, "up"), None),
        (Status(State.FAILED, "down", retry_at=NOW + 8), None),
        (Status(State.FAILED, "up", retry_at=NOW, unkillable=True), None),
        (Status(State.READY, "up", retry_at=NOW), None),
        (Status(State.STARTING, "up"), None),
    ],
)
def test_when_it_tries_again(status: Status, at: int | None) -> None:
    """In whole Unix seconds, so that a view is the same at each look."""
    (found,) = targets_of(cast(Runner, Stands(chat())), status, HORIZON, zero=90_000_000.0)
    assert found["retry_at"] == at and table({"generation": 1, "targets": [found]}).targets[0].retry_at == at


@pytest.mark.parametrize(
    ("status", "load", "said"),
    [
        (Status(State.STARTING, "up", started=NOW - 10.5), 33.2, (34, 90_000_989)),
        (Status(State.STARTING, "up", started=NOW - 10.5), None, (None, 90_000_989)),
        (Status(State.IDLE, "up"), 33.2, (34, None)),
        (Status(State.DRAINING, "up", started=NOW - 900), 33.2, (34, None)),
        (Status(State.BACKOFF, "up", started=NOW - 900, retry_at=NOW + 8), 33.2, (34, None)),
        (Status(State.READY, "up", started=NOW - 900), 33.2, (None, None)),
        (Status(State.UNREADY, "up", started=NOW - 900), 33.2, (None, None)),
        (Status(State.STOPPED, "down"), 33.2, (None, None)),
    ],
)
def test_how_long_a_start_takes(status: Status, load: float | None, said: tuple[int | None, int | None]) -> None:
    """By the last one; who is READY, or was and comes back without a start, loads nothing."""
    (found,) = targets_of(cast(Runner, Stands(chat())), status, HORIZON, zero=90_000_000.0, load=load)
    target = table({"generation": 1, "targets": [found]}).targets[0]
    assert (found["load_s"], found["loading_since"]) == (target.load, target.loading_since) == said


def test_when_its_card_is_back() -> None:
    def at(status: Status, until: float | None) -> int | None:
        (found,) = targets_of(cast(Runner, Stands(chat())), status, HORIZON, "GPU 0 is lent to ann", until)
        return found["retry_at"]

    waiting = Status(State.BACKOFF, "up", retry_at=NOW)
    assert at(waiting, 90_007_200.5) == 90_007_201 and at(waiting, None) is None
    assert at(Status(State.STOPPED, "down"), 90_007_200.0) is None


def test_a_model_that_failed_tries_again_by_itself() -> None:
    """Its service is READY all the while."""
    definitions = engine('[settings.models]\nrequest = "POST /create"\n')
    definitions["engine"] = definitions["engine"].model_copy(update={"adapter": "ollama"})
    plan = planned(service(model=None, context_length=None, models=MODELS), definitions=definitions).services["chat"]
    models = adapter_for(definitions["engine"]).models(plan.service)
    entries = {model.name: Entry(model, Target(TargetState.LOADED)) for model in models}
    entries["b:1"].target = Target(TargetState.FAILED, deadline=HORIZON + 60)
    runner = Stands(plan, Run(plan), models=Written(entries))
    found = targets_of(cast(Runner, runner), Status(State.READY, "up"), HORIZON, zero=90_000_000.0)
    assert [(t["state"], t["retry_at"]) for t in found] == [("open", None), ("gone", 90_001_120)]


def test_where_it_is() -> None:
    found = one(Status(State.DRAINING, "down", attempt=7))
    assert (found["endpoint"], found["address"]) == ("chat@3", "http://127.0.0.1:18400")
    assert found["inject"] == {"headers": {"Authorization": "Bearer x"}}
    (found,) = told(Stands(chat()), Status(State.BACKOFF, "up", attempt=7))
    assert (found["endpoint"], found["address"], found["inject"]) == ("chat@7", None, {"headers": {}})


def test_the_run_says_what_it_is_and_the_spec_how_it_is_called() -> None:
    before = chat(context_length=2048, aliases=["old"])
    names = 'names."chat-0" = { set = { temperature = 0 }, strip = ["seed"], listed = false }\n'
    after = chat(
        f"{names}overflow = 'long'\nlisted = false\n" + service("long", context_length=9000),
        context_length=4096,
        aliases=["new"],
    )
    (found,) = told(Stands(after, Run(before)), Status(State.READY, "up"))
    assert found["context_length"] == 2048 and found["names"] == ["chat", "new", "chat-0"]
    assert found["policies"] == {"chat-0": {"set": {"temperature": 0}, "strip": ["seed"], "listed": False}}
    assert found["overflow"] == "long" and found["listed"] is False
    (found,) = told(Stands(after), Status(State.BACKOFF, "up"))
    assert found["context_length"] == 4096


def test_the_name_that_the_engine_knows() -> None:
    assert one(Status(State.READY, "up"))["model"] == MODEL


def test_an_engine_with_several_models_is_several_targets() -> None:
    definitions = engine('[settings.models]\nrequest = "POST /create"\n')
    definitions["engine"] = definitions["engine"].model_copy(update={"adapter": "ollama"})
    text = service(model=None, context_length=None, models=MODELS, aliases=["x"])
    plan = planned(text, definitions=definitions).services["chat"]
    found = told(Stands(plan, Run(plan)), Status(State.READY, "up"))
    assert [(t["target"], t["model"], t["names"], t["context_length"]) for t in found] == [
        ("chat/a:1", "a:1-ctx8", ["chat", "x", "a:1"], 8),
        ("chat/b:1", "b:1-ctx16", ["b:1"], 16),
    ]
    assert [t["endpoint"] for t in found] == ["chat@3/a:1", "chat@3/b:1"] and {t["service"] for t in found} == {"chat"}
    text = service(model=None, context_length=None, models=MODELS[:1])
    plan = planned(text, definitions=definitions).services["chat"]
    (single,) = told(Stands(plan), Status(State.IDLE, "up"))
    assert (single["target"], single["names"]) == ("chat", ["chat", "a:1"])


def test_what_its_definition_says_of_an_engine() -> None:
    extra = """
[timing]
prefill_ms = "t.p"
[answer]
remove = ["metrics"]
usage_forced = true
progress = { return_progress = true }
[count.completions]
path = "/tokenize"
body = { content = "prompt" }
answer = "tokens"
"""
    definitions = engine(extra)
    definitions["engine"] = definitions["engine"].model_copy(update={"slots": "/slots"})
    plan = planned(service(), definitions=definitions).services["chat"]
    found = one(Status(State.READY, "up"), plan)
    assert found["traits"] == {
        "routes": {},
        "timing": {"prefill_ms": "t.p"},
        "remove": ["metrics"],
        "usage_forced": True,
        "count": {"completions": {"path": "/tokenize", "body": {"content": "prompt"}, "set": {}, "answer": "tokens"}},
        "progress": {"return_progress": True},
        "slots": "/slots",
    }
    (read,) = table({"generation": 1, "targets": [found]}).targets
    assert read.traits.routes == ROUTES and read.traits.count["completions"].answer == "tokens"


@pytest.mark.parametrize(
    ("settings", "hosts"),
    [
        ({}, ()),
        ({"listen": "0.0.0.0:8088"}, None),
        ({"hosts": ["x"]}, ("x",)),
        ({"listen": "0.0.0.0:8088", "hosts": ["x"]}, ("x",)),
    ],
)
def test_names_under_which_it_is_reached(settings: dict[str, Any], hosts: tuple[str, ...] | None) -> None:
    said = limits_of(Gateway.model_validate(settings))
    assert table({"generation": 1, "targets": [], "limits": said}).limits.hosts == hosts


def test_limits() -> None:
    said = Gateway.model_validate(
        {"queue_deadline": "5s", "queue_size": 7, "max_body": "1MiB", "origins": ["https://x"], "scrape": "all"}
        | {"trusted_proxies": ["::1"], "prefix_hashes": False, "history_age": "forever", "history_size": "1GiB"}
    )
    read = table({"generation": 1, "targets": [], "limits": limits_of(said)}).limits
    assert (read.queue_deadline, read.queue_size, read.body) == (5.0, 7, 1024**2)
    assert (read.origins, read.trusted_proxies, read.scrape) == (("https://x",), ("::1",), "all")
    assert (read.prefix_hashes, read.history_age, read.history_bytes) == (False, None, 1024**3)
