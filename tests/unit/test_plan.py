"""From spec and facts to what would be executed: ports, origins, and every way in which a box says no."""

from __future__ import annotations

from typing import Any

import pytest
from support.boxes import CARDS, GGUF, MODEL, engine, facts, load, planned, service

from llmsupervisor.host.files import read_definitions
from llmsupervisor.plan import boxfacts
from llmsupervisor.plan.facts import Binary, Facts, File, GpuFact, Needs, executable_of, needs, needs_of
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.plan import plan, replan
from llmsupervisor.spec.model import Service


def one(box: Facts | None = None, **keys: Any) -> ServicePlan:
    return planned(service(**keys), box).services["chat"]


def refusals(box: Facts | None = None, **keys: Any) -> list[tuple[str, str]]:
    return [(refusal.kind, refusal.text) for refusal in one(box, **keys).refusals]


def only(kind: str, box: Facts | None = None, **keys: Any) -> str:
    found = refusals(box, **keys)
    assert [k for k, _ in found] == [kind], found
    return found[0][1]


def test_a_service_without_trouble_is_ready_to_start() -> None:
    chat = one(kv_cache_type="q8_0")
    assert chat.refusals == () and chat.warnings == ()
    assert (chat.host, chat.port, chat.cwd, chat.gpus) == ("127.0.0.1", 18400, "", ())
    assert chat.words[0] == "/usr/bin/engine"
    said = {arg.words: str(arg.origin) for arg in chat.argv}
    assert said["-m", MODEL] == "spec spec.toml:3"
    assert said["--kv", "q8_0"] == "spec spec.toml:6"
    assert said["--flash-attn", "on"].startswith("production default")
    assert chat.artefacts == (("/usr/bin/engine", "8:1:7:7"), (MODEL, "8:1:1:1"))
    assert {e.name for e in chat.env} >= {"PATH", "HOME", "CUDA_VISIBLE_DEVICES"}


def test_origins_of_defaults_are_told() -> None:
    text = '[defaults]\nkv_cache_type = "f16"\n' + service()
    chat = planned(text).services["chat"]
    assert {str(a.origin) for a in chat.argv if a.setting == "kv_cache_type"} == {"defaults spec.toml:2"}


def test_disabled_services_are_left_out_and_the_order_is_the_specs() -> None:
    text = service("b", port=9000) + service("off", enabled=False) + service("a")
    assert list(planned(text).services) == ["b", "a"]


# --- ports --------------------------------------------------------------------------------------------------------


def ports(text: str, **box: Any) -> dict[str, int]:
    return {name: chat.port for name, chat in planned(text, facts(**box)).services.items()}


def test_ports_are_said_kept_or_the_lowest_free() -> None:
    text = service("a") + service("b") + service("c", port=9000) + service("d")
    kept = {"b": 18400, "gone": 18402}
    assert ports(text, kept_ports=kept, busy_ports=frozenset({18401})) == {
        "b": 18400,
        "a": 18403,
        "c": 9000,
        "d": 18404,
    }


def test_a_kept_port_outside_the_range_is_given_up() -> None:
    text = 'ports = "500-501"\n[gateway]\nlisten = "127.0.0.1:8088"\n' + service("a")
    assert ports(text, kept_ports={"a": 18400}) == {"a": 500}


def test_a_port_of_somebody_else_refuses() -> None:
    box = facts(busy_ports=frozenset({9000, 18400}), kept_ports={"chat": 18400})
    assert "127.0.0.1:9000" in only("port", box, port=9000)
    assert "127.0.0.1:18400" in only("port", box)
    assert one(box).port == 18400


def test_no_free_port_refuses() -> None:
    chat = planned('ports = "500-501"\n' + service(), facts(busy_ports=frozenset({500, 501}))).services["chat"]
    assert [r.kind for r in chat.refusals] == ["port"] and "500-501" in chat.refusals[0].text


# --- binaries -----------------------------------------------------------------------------------------------------


def test_a_missing_binary_says_what_was_tried() -> None:
    box = facts(binaries={"engine": Binary(None, error="engine was not found in /usr/bin, /opt/v/bin")})
    text = only("binary", box)
    assert "services.chat" in text and "/opt/v/bin" in text and "command" in text
    assert one(box).words[0] == "engine"


def test_a_binary_that_is_not_executable_refuses() -> None:
    box = facts(binaries={"engine": Binary("/usr/bin/engine", error="/usr/bin/engine is not executable")})
    assert "not executable" in only("binary", box)


KNOWN = frozenset({"-m", "--ctx", "--kv", "--flash-attn", "--host", "--port"})


def build(flags: frozenset[str] | None, **values: frozenset[str]) -> Facts:
    told = {f"--{flag}": allowed for flag, allowed in values.items()}
    return facts(binaries={"engine": Binary("/usr/bin/engine", "8:1:7:7", "1.0", flags, told)})


def test_flags_and_values_that_this_build_does_not_know_name_the_setting() -> None:
    assert refusals(build(KNOWN)) == [] == refusals(build(None))
    text = only("flag", build(KNOWN - {"--flash-attn"}))
    assert text == "services.chat.flash_attention renders --flash-attn, which this build (1.0) does not know"
    text = only("value", build(KNOWN, kv=frozenset({"f16", "q4_0"})), kv_cache_type="q8_0")
    assert "services.chat.kv_cache_type renders --kv q8_0" in text and "it knows f16, q4_0" in text
    assert "services.chat.extra_args renders --foo" in only("flag", build(KNOWN), extra_args=["--foo"])
    definitions = engine("[[fixed]]\nargs = ['--always']\nreason = 'why'\n")
    fixed = planned(service(), build(KNOWN), definitions).services["chat"].refusals
    assert [r.text for r in fixed] == [
        "services.chat: engine (definition why) renders --always, which this build (1.0) does not know"
    ]


def test_a_help_that_is_somebody_elses_is_a_warning() -> None:
    chat = one(build(frozenset({"--cookies"})))
    assert chat.refusals == () and "not checked" in chat.warnings[0]


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (File("missing"), "is not there"),
        (File("file", 0), "is empty"),
        (File("file", 5000, head=b"<!DOCTYPE html>"), "not a GGUF file"),
        (File("other", error="is a FIFO"), "is a FIFO"),
        (File("other", readable=False), "permission denied"),
    ],
)
def test_a_model_that_cannot_be_loaded_refuses(file: File, words: str) -> None:
    text = only("model", facts(files={MODEL: file}))
    assert words in text and text.startswith(f"services.chat.model: {MODEL}")


@pytest.mark.parametrize("key", ["mmproj", "draft"])
def test_companions_of_a_model_are_looked_at(key: str) -> None:
    box = facts(files={MODEL: GGUF, "/m/b.gguf": File("missing")})
    assert f"services.chat.{key}: /m/b.gguf is not there" in only("model", box, **{key: "/m/b.gguf"})


def test_adapters_are_looked_at() -> None:
    assert "/m/l.gguf" in only("model", facts(files={MODEL: GGUF, "/m/l.gguf": File("missing")}), lora=["/m/l.gguf"])


def test_each_part_of_a_split_model_is_looked_at() -> None:
    parts = [f"/m/x-{n:05d}-of-00002.gguf" for n in (1, 2)]
    box = facts(files={parts[0]: GGUF, parts[1]: File("missing")})
    assert parts[1] in only("model", box, model=parts[0])


@pytest.mark.parametrize(
    ("adapter", "files", "words"),
    [
        ("llama_server", {"/m/d": File("dir")}, "loads one GGUF file"),
        ("vllm", {"/m/d": File("dir"), "/m/d/config.json": File("missing")}, "no config.json"),
        ("vllm", {"/m/d": File("dir", identity="1"), "/m/d/config.json": File("file", 5, "2")}, ""),
        ("generic", {"/m/d": File("dir")}, ""),
        ("generic", {}, ""),
    ],
)
def test_a_directory_is_a_model_only_for_some(adapter: str, files: dict[str, File], words: str) -> None:
    definition = engine()["engine"].model_copy(update={"adapter": adapter})
    chat = Service.model_validate({"runtime": "engine", "model": "/m/d"})
    found = [r.text for r in boxfacts.files("chat", chat, definition, facts(files=files))]
    assert bool(found) == bool(words) and all(words in text for text in found)


def test_the_identity_of_a_model_directory_is_its_config() -> None:
    box = facts(files={"/m/d": File("dir", identity="1"), "/m/d/config.json": File("file", 5, "2")})
    assert one(box, model="/m/d").artefacts[1:] == (("/m/d/config.json", "2"),)


def test_a_hub_name_is_no_path() -> None:
    chat = one(facts(files={}), model="Qwen/Qwen2.5-7B")
    assert chat.refusals == () and len(chat.artefacts) == 1


def test_a_template_belongs_to_the_spec() -> None:
    box = facts(files={MODEL: GGUF, "/etc/box/t.jinja": File("file", 5, "1", sha256="ab")})
    chat = one(box, chat_template="t.jinja")
    assert chat.inputs == (("/etc/box/t.jinja", "ab"),)
    assert chat.watched == ("/etc/box/t.jinja",)
    assert chat.wanted["inputs"] == [["/etc/box/t.jinja", "ab"]]


def test_a_template_that_cannot_be_read_refuses() -> None:
    box = facts(files={MODEL: GGUF, "/etc/box/t.jinja": File("missing", error="No such file or directory")})
    text = only("template", box, chat_template="t.jinja")
    assert text == "services.chat.chat_template: /etc/box/t.jinja cannot be read: No such file or directory"


def test_a_working_folder_must_be_one() -> None:
    box = facts(files={MODEL: GGUF, "/srv": File("missing")})
    assert "/srv" in only("cwd", box, cwd="/srv")
    there = one(facts(files={MODEL: GGUF, "/srv": File("dir")}), cwd="/srv")
    assert there.refusals == () and there.cwd == "/srv"


def test_a_missing_secret_is_named_and_never_told() -> None:
    keys = {"secret_env": {"A": {"file": "/k/a"}, "B": {"env": "BB"}, "C": {"env": "CC"}}}
    box = facts(secrets={("file", "/k/a"): None, ("env", "BB"): None, ("env", "CC"): "12345678"})
    chat = one(box, **keys)
    assert [r.text for r in chat.refusals] == [
        "services.chat.secret_env.A: file /k/a is missing, unreadable or empty",
        "services.chat.secret_env.B: environment variable BB is missing, unreadable or empty",
    ]
    assert {e.value for e in chat.env if e.name == "C"} == {"secret:C@12345678"}
    assert chat.watched == ("/k/a",)


def test_more_threads_than_cpus_is_a_warning() -> None:
    assert "16 threads on 8 CPUs" in one(threads=16).warnings[0]
    assert one(threads=8).warnings == ()


def test_one_services_trouble_does_not_touch_another() -> None:
    text = service("a") + service("b", model="/m/gone.gguf")
    found = planned(text, facts(files={MODEL: GGUF, "/m/gone.gguf": File("missing")})).services
    assert found["a"].refusals == () and len(found["b"].refusals) == 1


# --- needs --------------------------------------------------------------------------------------------------------


def test_needs_name_everything_to_look_at() -> None:
    text = (
        service(chat_template="t.jinja", mmproj="/m/p.gguf", lora=["/m/l.gguf", "x=/k.gguf"], cwd="/srv")
        + service("off", enabled=False, model="/m/off")
        + service("hub", model="a/b", secret_env={"A": {"file": "/k"}, "B": {"env": "B"}})
    )
    found = needs(load(text)[0], engine())
    assert found == Needs(
        binaries=frozenset({("engine", ("--help",), ("--version",), r"version: (?P<v>\S+)")}),
        files=frozenset({MODEL, f"{MODEL}/config.json", "/m/p.gguf", "/m/l.gguf", "/etc/box/x=/k.gguf", "/srv"}),
        contents=frozenset({"/etc/box/t.jinja"}),
        secrets=frozenset({("file", "/k"), ("env", "B")}),
    )


def test_needs_of_an_unknown_runtime_are_none() -> None:
    spec, _ = load(service())
    assert needs(spec, {}) == Needs()


def test_a_wrapper_is_not_asked_for_its_help() -> None:
    found = needs(load(service(command=["/opt/run", "engine"]))[0], engine())
    assert found.binaries == {("/opt/run", (), (), "")}


@pytest.mark.parametrize(
    ("keys", "name"),
    [({}, "engine"), ({"venv": "/v/"}, "/v/bin/engine"), ({"command": ["/x/y"]}, "/x/y")],
)
def test_which_executable(keys: dict[str, Any], name: str) -> None:
    assert executable_of(Service.model_validate({"runtime": "engine", **keys}), engine()["engine"]) == name


def test_a_definition_without_command_names_no_executable() -> None:
    bare = engine()["bare"]
    chat = Service(runtime="bare", venv="/v")
    assert executable_of(chat, bare) == "" and needs_of(chat, bare) == Needs()


# --- wanted -------------------------------------------------------------------------------------------------------


def test_wanted_holds_what_was_said_and_renders_again() -> None:
    text = service(kv_cache_type="f16", keep_alive="10m", restart={"burst": 3}, drain_timeout="1m30s")
    chat = planned(text).services["chat"]
    assert chat.wanted == {
        "service": {
            "runtime": "engine",
            "model": MODEL,
            "context_length": 2048,
            "gpus": [],
            "kv_cache_type": "f16",
            "keep_alive": "600s",
            "restart": {"burst": 3},
            "drain_timeout": "90s",
        },
        "definition": "engine",
        "inputs": [],
    }
    again = replan(chat.wanted, "chat", engine(), facts(), 18400)
    assert again is not None and again.service == chat.service
    assert (again.fingerprint, again.wanted) == (chat.fingerprint, chat.wanted)


def test_a_users_definition_is_part_of_wanted_and_survives_its_file() -> None:
    mine = engine(source="/etc/box/runtimes/engine.toml")
    chat = planned(service(), definitions=mine).services["chat"]
    assert isinstance(chat.wanted["definition"], dict) and "/etc/box/runtimes/engine.toml" in chat.watched
    again = replan(chat.wanted, "chat", {}, facts(), 18400)
    assert again is not None and (again.fingerprint, again.wanted) == (chat.fingerprint, chat.wanted)


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"service": {"runtime": "engine", "later": 1}, "definition": "engine", "inputs": []},
        {"service": {"runtime": "engine"}, "definition": "gone", "inputs": []},
        {"service": {"runtime": "engine"}, "definition": {"name": 5}, "inputs": []},
        {"service": {"runtime": "engine"}, "definition": "engine", "inputs": [5]},
        {"service": {"runtime": "engine"}, "definition": "engine", "inputs": None},
        {"service": {"runtime": "engine", "kv_cache_type": "q9"}, "definition": "engine", "inputs": []},
    ],
)
def test_a_wanted_that_cannot_be_read_or_rendered_is_none(wanted: Any) -> None:
    assert replan(wanted, "chat", engine(), facts()) is None


def test_replan_takes_the_said_the_kept_then_the_given_port() -> None:
    def port(said: int | None, kept: dict[str, int], given: int | None) -> int:
        wanted = planned(service(port=said)).services["chat"].wanted
        again = replan(wanted, "chat", engine(), facts(kept_ports=kept), given)
        assert again is not None
        return again.port

    assert [port(9000, {"chat": 1}, 2), port(None, {"chat": 1}, 2), port(None, {}, 2), port(None, {}, None)] == [
        9000,
        1,
        2,
        0,
    ]


def test_gpus_reach_the_engine_as_uuids() -> None:
    chat = one(facts(gpus=CARDS), gpus=[1, 0])
    assert chat.gpus == ("GPU-bbbb", "GPU-aaaa")
    assert {e.name: e.value for e in chat.env}["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb,GPU-aaaa"


CARDS_OF_24 = {"RTX 4090": (8, 9), "L4": (8, 9), "RTX 3090": (8, 6), "A10": (8, 6), "T4": (7, 5), "H100": (9, 0)}


@pytest.mark.parametrize(
    ("card", "kv", "instead"),
    [
        ("RTX 4090", "fp8", ""),
        ("L4", "fp8_e4m3", ""),
        ("RTX 3090", "fp8", "auto, float16, bfloat16"),
        ("A10", "fp8_e5m2", "auto, float16, bfloat16"),
        ("T4", "bfloat16", "auto, float16"),
        ("H100", "nvfp4", "auto, float16, bfloat16, fp8, "),
        ("A10", "int8_per_token_head", ""),
        ("unknown", "fp8", ""),
    ],
)
def test_a_kv_cache_that_a_card_cannot_compute_with_refuses(card: str, kv: str, instead: str) -> None:
    definitions, _ = read_definitions()
    gpu = GpuFact("GPU-x", 0, card, 24 * 1024**3, CARDS_OF_24.get(card))
    text = service(runtime="vllm", kv_cache_type=kv, parallel=2, gpu_memory="8GiB", gpus=[0])
    box = facts(gpus=(gpu,), binaries={"vllm": Binary("/usr/bin/vllm")}, files={})
    refusals = planned(text, box, definitions).services["chat"].refusals
    if not instead:
        assert refusals == ()
        return
    (refusal,) = refusals
    assert f'services.chat.kv_cache_type = "{kv}"' in refusal.text and card in refusal.text
    assert f"on this card: {instead}" in refusal.text


def test_a_plan_of_nothing_is_empty() -> None:
    spec, loaded = load(service(enabled=False))
    assert plan(spec, engine(), facts(), loaded.origins).services == {}
