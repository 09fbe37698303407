"""What an edit, an upgrade, or a replaced file means for what runs: restart, live, drift or nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.boxes import CARDS, GGUF, MODEL, engine, facts, planned, service

from llmsupervisor.plan.diff import Change, changes, drift
from llmsupervisor.plan.facts import Binary, Facts, File
from llmsupervisor.plan.launch import ServicePlan

TEMPLATE = {"/t.jinja": File("file", 5, "1", sha256="ab"), MODEL: GGUF}
OTHER = {"/t.jinja": File("file", 5, "2", sha256="cd"), MODEL: GGUF}


def change(old: str, new: str, box: Facts | None = None, now: Facts | None = None) -> Change:
    box = box or facts()
    definitions = engine()
    before = {name: chat.wanted for name, chat in planned(old, box, definitions).services.items()}
    (found,) = changes(before, planned(new, now or box, definitions), definitions, now or box)
    return found


@pytest.mark.parametrize(
    ("old", "new", "action", "why"),
    [
        ({}, {}, "none", ""),
        ({}, {"context_length": 4096}, "restart", "context_length 2048 → 4096"),
        ({}, {"kv_cache_type": "q8_0"}, "restart", "kv_cache_type (not said) → q8_0"),
        ({}, {"flash_attention": True}, "none", ""),
        ({}, {"flash_attention": False}, "restart", "flash_attention (not said) → false"),
        ({}, {"restart": {"policy": "always"}}, "none", ""),
        ({}, {"restart": {"burst": 3}}, "live", "restart.burst 5 → 3"),
        ({}, {"drain_timeout": "1m"}, "live", "drain_timeout 30s → 60s"),
        ({"keep_alive": "10m"}, {"keep_alive": "forever"}, "live", "keep_alive 600s → forever"),
        ({}, {"keep_alive": "forever"}, "none", ""),
        ({}, {"aliases": ["a"]}, "live", 'aliases [] → ["a"]'),
        ({}, {"names": {"a": {"strip": ["seed"]}}}, "live", "names.a"),
        ({}, {"names": {}}, "none", ""),
        ({}, {"listed": False}, "live", "listed true → false"),
        ({}, {"listed": True}, "none", ""),
        ({}, {"gpu_memory": "1GiB"}, "live", "gpu_memory (not said) → 1073741824B"),
        ({}, {"ready": "/ok"}, "live", "ready (not said) → /ok"),
        ({"env": {"A": "1", "B": "1"}}, {"env": {"A": "2", "C": "1"}}, "restart", "env.A, env.B, env.C"),
        ({}, {"cwd": "/srv"}, "restart", "cwd (not said) → /srv"),
        ({}, {"port": 9000}, "restart", "port (not said) → 9000"),
        ({}, {"flash_attention": True, "kv_cache_type": "f16"}, "restart", "kv_cache_type (not said) → f16"),
        ({"port": 9000}, {}, "restart", "port 9000 → (not said)"),
        ({"model": MODEL}, {"model": "/m/" + "x" * 80}, "restart", f"model {MODEL} → /m/{'x' * 56}…"),
        (
            {"drain_timeout": "1s", "context_length": 1},
            {"drain_timeout": "2s", "context_length": 2},
            "restart",
            "context_length 1 → 2, drain_timeout 1s → 2s",
        ),
    ],
)
def test_one_edit(old: dict[str, Any], new: dict[str, Any], action: str, why: str) -> None:
    assert change(service(**old), service(**new)) == Change("chat", action, why)  # type: ignore[arg-type]


@pytest.mark.parametrize(("change", "action"), [("restart", "restart"), ("live", "live")])
def test_what_an_engine_is_told_by_a_request_is_seen_too(change: str, action: str) -> None:
    definitions = engine(f'[settings.models]\nrequest = "POST /create"\nchange = "{change}"\n')

    def models(context: int) -> str:
        return service(model=None, models=[{"name": "a:1b", "context_length": context}])

    before = {"chat": planned(models(1), facts(), definitions).services["chat"].wanted}
    (found,) = changes(before, planned(models(2), facts(), definitions), definitions, facts())
    assert (found.action, found.why.partition(" ")[0]) == (action, "models")


def test_services_come_and_go_stops_first() -> None:
    old = {name: planned(service(name)).services[name].wanted for name in ("a", "b")}
    new = planned(service("c") + service("b"))
    assert changes(old, new, engine(), facts()) == (
        Change("a", "stop", "not in the spec any more, or disabled"),
        Change("c", "start", "new in the spec"),
        Change("b", "none"),
    )


def test_new_content_of_a_template_restarts() -> None:
    text = service(chat_template="/t.jinja")
    assert change(text, text, facts(files=TEMPLATE)) == Change("chat", "none")
    found = change(text, text, facts(files=TEMPLATE), facts(files=OTHER))
    assert found == Change("chat", "restart", "content of chat_template")


def test_an_index_and_its_uuid_are_the_same_card() -> None:
    box = facts(gpus=CARDS)
    assert change(service(gpus=[0]), service(gpus=[CARDS[0].uuid]), box).action == "live"
    assert change(service(gpus=[0]), service(gpus=[1]), box) == Change("chat", "restart", "gpus [0] → [1]")


def test_a_new_range_of_ports_restarts_nothing() -> None:
    now = facts(kept_ports={"chat": 18400})
    found = change(service(), 'ports = "500-501"\n' + service(), facts(), now)
    assert found.action == "none"
    edited = change(service(), 'ports = "500-501"\n' + service(flash_attention=True), facts(), now)
    assert edited.action == "none", "spelling out a default restarts nothing, whatever else is due"


def test_code_that_renders_more_restarts_nothing_and_is_drift() -> None:
    before = planned(service(), definitions=engine()).services["chat"]
    newer = engine('[[fixed]]\nargs = ["--metrics"]\nenv = { NEW = "1" }\nreason = "figures"\n')
    now = planned(service(), definitions=newer)
    assert changes({"chat": before.wanted}, now, newer, facts()) == (Change("chat", "none"),)
    spelled = planned(service(flash_attention=True), definitions=newer)
    assert changes({"chat": before.wanted}, spelled, newer, facts())[0].action == "none"
    assert drift(now.services["chat"], launch(before)) == ("argv: --metrics added", "environment: NEW added")
    assert drift(before, launch(now.services["chat"])) == ("argv: --metrics removed", "environment: NEW removed")


def test_a_users_own_definition_is_theirs_to_change() -> None:
    mine = engine(source="/etc/box/runtimes/engine.toml")
    before = planned(service(), definitions=mine).services["chat"].wanted
    edited = engine('[[fixed]]\nargs = ["--more"]\nreason = "mine"\n', source="/etc/box/runtimes/engine.toml")
    found = changes({"chat": before}, planned(service(), definitions=edited), edited, facts())
    assert found == (Change("chat", "restart", "definition of runtime engine"),)
    doc = {"engine": edited["engine"].model_copy(update={"doc": "other words"})}
    was = {"chat": planned(service(), definitions=edited).services["chat"].wanted}
    assert changes(was, planned(service(), definitions=doc), doc, facts()) == (
        Change("chat", "live", "definition of runtime engine"),
    )


def test_a_spec_that_this_version_cannot_read_is_replaced() -> None:
    (found,) = changes({"chat": {"service": {"gone": 1}}}, planned(service()), engine(), facts())
    assert found == Change("chat", "restart", "the spec that runs cannot be read by this version")


def test_a_box_that_changed_under_both_restarts_nothing() -> None:
    text = service(flash_attention=True)
    moved = facts(binaries={"engine": Binary("/opt/engine", "9", "2")}, environ={"PATH": "/new"})
    assert change(service(), text, facts(), moved).action == "none"


# --- drift --------------------------------------------------------------------------------------------------------


def launch(plan: ServicePlan, **changed: Any) -> dict[str, Any]:
    return {"rendered": {**plan.rendered, **changed}, "artefacts": [list(a) for a in plan.artefacts]}


CHAT = planned(service(chat_template="/t.jinja"), facts(files=TEMPLATE)).services["chat"]


def test_what_runs_as_planned_has_no_drift() -> None:
    assert drift(CHAT, launch(CHAT)) == ()
    assert drift(replace(CHAT, refusals=(), warnings=("x",)), launch(CHAT)) == ()


def test_other_cpus_are_a_restart_and_drift_until_then() -> None:
    before, now = (planned(service(cpus=cpus)).services["chat"] for cpus in ("0-2,8", None))
    assert drift(now, launch(before)) == ("cpus: 0-2,8 → all",)
    assert drift(before, launch(now)) == ("cpus: all → 0-2,8",)
    assert change(service(), service(cpus="1")) == Change("chat", "restart", "cpus (not said) → 1")


def test_replaced_files_are_drift_and_no_restart() -> None:
    text = service(mmproj="/m/p.gguf")
    old = facts(files={MODEL: GGUF, "/m/p.gguf": replace(GGUF, identity="p")})
    new = facts(
        files={MODEL: replace(GGUF, identity="new"), "/m/p.gguf": replace(GGUF, identity="q")},
        binaries={"engine": Binary("/usr/bin/engine", "newer")},
    )
    before, now = (planned(text, box).services["chat"] for box in (old, new))
    assert change(text, text, old, new) == Change("chat", "none")
    assert drift(now, launch(before)) == (
        "binary replaced: /usr/bin/engine",
        f"model file replaced: {MODEL}",
        "file replaced: /m/p.gguf",
    )
    gone = facts(files={MODEL: File("missing"), "/m/p.gguf": replace(GGUF, identity="p")})
    assert drift(planned(text, gone).services["chat"], launch(before)) == (), "a refusal tells it"


def test_a_replaced_model_directory_is_told_by_its_config() -> None:
    def box(identity: str) -> Facts:
        return facts(files={"/m/d": File("dir"), "/m/d/config.json": File("file", 5, identity)})

    before, now = (planned(service(model="/m/d"), box(i)).services["chat"] for i in "12")
    assert drift(now, launch(before)) == ("model file replaced: /m/d/config.json",)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"argv": ["/old/engine", *CHAT.words[1:]]}, ("argv: /old/engine → /usr/bin/engine",)),
        ({"argv": [*CHAT.words[:-1], "1"]}, ("argv: --port 1 → 18400",)),
        ({"argv": [*CHAT.words, "--seed", "-1"]}, ("argv: --seed -1 removed",)),
        ({"argv": [CHAT.words[0], "serve", *CHAT.words[1:]]}, ("argv: serve removed",)),
        ({"env": {**CHAT.rendered["env"], "HOME": "/y"}}, ("environment: HOME changed",)),  # type: ignore[dict-item]
        ({"cwd": "/srv"}, ("cwd: /srv → (its run folder)",)),
        ({"inputs": [["/t.jinja", "cd"]]}, ("content of /t.jinja changed",)),
        ({"inputs": []}, ("content of /t.jinja changed",)),
    ],
)
def test_each_difference_is_one_sentence(changed: dict[str, Any], told: tuple[str, ...]) -> None:
    assert drift(CHAT, launch(CHAT, **changed)) == told


def test_gpus_that_cannot_be_read_for_a_while_are_no_drift() -> None:
    before = planned(service(gpus=[0]), facts(gpus=CARDS)).services["chat"]
    now = planned(service(gpus=[0]), facts(gpus=None, files={MODEL: replace(GGUF, identity="new")})).services["chat"]
    assert drift(now, launch(before)) == (f"model file replaced: {MODEL}",)


def test_a_launch_that_says_nothing_is_all_drift() -> None:
    assert drift(CHAT, {})[0] == "argv: (not said) → /usr/bin/engine"
