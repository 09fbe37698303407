"""What Ollama is told: variables that died, types of keys and values, settings that all models share, and what the log of
a start says it made of it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.boxes import load
from support.findings import BOX, definitions, found, ollama

from llmsupervisor.plan.check import check
from llmsupervisor.plan.facts import Binary
from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.plan import plan
from llmsupervisor.runtime.adapter import adapter_for

LOG = (Path(__file__).parents[1] / "fixtures" / "ollama" / "serve_debug_parallel4_kv_q8_0.stderr.log").read_text()
TOLD = {
    "OLLAMA_NUM_PARALLEL": "4",
    "OLLAMA_KV_CACHE_TYPE": "q8_0",
    "OLLAMA_FLASH_ATTENTION": "1",
    "OLLAMA_CONTEXT_LENGTH": "2048",
    "OLLAMA_KEEP_ALIVE": "-1",
    "OLLAMA_LOAD_TIMEOUT": "300",
    "OLLAMA_MAX_QUEUE": "512",
    "OLLAMA_NO_CLOUD": "TRUE",
    "OLLAMA_HOST": "127.0.0.1:11434",
    "OLLAMA_DEBUG": "true",
    "OLLAMA_MODELS": '"/usr/share/ollama/.ollama/models"',
    "OLLAMA_ORIGINS": "https://box.example",
    "CUDA_VISIBLE_DEVICES": "",
    "GGML_NO_BACKTRACE": "1",
}
"""As the server of the captured log was started, and some that say the same."""


def planned(text: str) -> ServicePlan:
    spec, loaded = load(text, definitions())
    box = replace(BOX, binaries={"ollama": Binary("/usr/bin/ollama", "1:1:1:1", "0.33.0")})
    (made,) = plan(spec, definitions(), box, loaded.origins).services.values()
    assert made.refusals == ()
    return made


def env(text: str) -> dict[str, str]:
    return {item.name: item.value for item in planned(text).env}


def wrong(text: str) -> str:
    return "\n".join(map(str, check(text, "spec.toml", definitions()).problems))


# --- what it understood ---------------------------------------------------------------------------------------------


def misread(log: str = LOG, **changed: str) -> list[str]:
    return adapter_for(definitions()["ollama"]).misread(TOLD | changed, log)


def test_a_start_that_understood_everything() -> None:
    assert misread() == []
    assert misread("no such line", OLLAMA_NUM_PARALLEL="x") == []
    assert misread(OLLAMA_REMOTES="elsewhere", OLLAMA_EDITOR="secret:OLLAMA_EDITOR@12345678") == []


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("OLLAMA_NUM_PARALLEL", "four", "4"),
        ("OLLAMA_KEEP_ALIVE", "5m", "2562047h47m16.854775807s"),
        ("OLLAMA_LOAD_TIMEOUT", "long", "5m0s"),
        ("OLLAMA_LOAD_TIMEOUT", "0", "5m0s"),
        ("OLLAMA_LOAD_TIMEOUT", "1m30s", "5m0s"),
        ("OLLAMA_NOPRUNE", "on", "false"),
        ("OLLAMA_DEBUG", "2", "DEBUG"),
        ("OLLAMA_HOST", "http://127.0.0.1:80", "http://127.0.0.1:11434"),
        ("CUDA_VISIBLE_DEVICES", "GPU-1", ""),
    ],
)
def test_what_it_took_for_something_else(name: str, text: str, shown: str) -> None:
    assert misread(**{name: text}) == [f"{name} is {text!r}, and Ollama took it for {shown!r}"]


def test_what_this_release_does_not_know() -> None:
    assert misread(OLLAMA_SOON="1") == ["OLLAMA_SOON is '1', and this release of Ollama does not know it"]


def test_an_unreadable_switch_is_true_there_and_false_here() -> None:
    log = LOG.replace("OLLAMA_NOPRUNE:false", "OLLAMA_NOPRUNE:true")
    assert misread(log, OLLAMA_NOPRUNE="off") == ["OLLAMA_NOPRUNE is 'off', and Ollama took it for 'true'"]
    assert misread(log, OLLAMA_NOPRUNE="yes") == []


def test_other_runtimes_repeat_nothing() -> None:
    assert adapter_for(definitions()["vllm"]).misread({"OLLAMA_DEBUG": "9"}, LOG) == []


# --- what it is told ------------------------------------------------------------------------------------------------


def test_the_folder_of_models_is_said() -> None:
    assert env(ollama())["OLLAMA_MODELS"] == "/home/x/.ollama/models"
    assert env(ollama(env={"HOME": "/srv"}))["OLLAMA_MODELS"] == "/srv/.ollama/models"
    assert env(ollama(env={"OLLAMA_MODELS": "/srv/m"}))["OLLAMA_MODELS"] == "/srv/m"
    spec, loaded = load(ollama(), definitions())
    homeless = plan(spec, definitions(), replace(BOX, environ={}), loaded.origins).services["many"]
    assert "OLLAMA_MODELS" not in {item.name for item in homeless.env}


def test_keys_and_values_of_two_types() -> None:
    told = env(ollama(kv_cache_type="q8_0/q4_0", gpus=[]))
    assert (told["LLAMA_ARG_CACHE_TYPE_K"], told["LLAMA_ARG_CACHE_TYPE_V"]) == ("q8_0", "q4_0")
    assert told["OLLAMA_KV_CACHE_TYPE"] == "", "a type there would overrule both"
    assert "LLAMA_ARG_CACHE_TYPE_K" not in env(ollama())
    for odd in ("q8_0/q9", "q8_0/q8_0", "q8_0/q4_0/f16"):
        assert f"'{odd}' is nothing that ollama knows" in wrong(ollama(kv_cache_type=odd))
    assert "every load would fail" in wrong(ollama(kv_cache_type="f16/q8_0", flash_attention=False))
    assert planned(ollama(kv_cache_type="q8_0/q4_0", gpus=[])).asked["kv_cache_type"] == "q8_0/q4_0"


def test_two_types_on_a_gpu_are_found() -> None:
    (finding,) = (f for f in found(ollama(kv_cache_type="q8_0/q4_0")) if f.rule == "C10")
    assert "of one type only" in str(finding)
    assert "C10" not in {f.rule for f in found(ollama(kv_cache_type="q8_0/q4_0", gpus=[]))}


def test_llama_cpp_variables_that_ollama_has_no_word_for_pass() -> None:
    more = {"LLAMA_ARG_FIT_TARGET": "2048", "LLAMA_ARG_CTX_CHECKPOINTS": "4"}
    told = env(ollama(env=more))
    assert more.items() <= told.items() and told["LLAMA_ARG_ENDPOINT_METRICS"] == "1"


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "died"),
    [
        ("OLLAMA_NEW_ENGINE", "0.30.0"),
        ("OLLAMA_MULTIUSER_CACHE", "0.30.0"),
        ("OLLAMA_INTEL_GPU", "0.12.11"),
        ("OLLAMA_MAX_VRAM", "0.7.0"),
        ("OLLAMA_TMPDIR", "0.5.2"),
        ("OLLAMA_RUNNERS_DIR", "0.3.11"),
        ("OLLAMA_GPU_OVERHEAD", "0.30"),
        ("OLLAMA_NUM_CTX", "never"),
    ],
)
def test_a_dead_variable_says_when_it_died(name: str, died: str) -> None:
    told = wrong(ollama(env={name: "1"}))
    assert f"{name}: not allowed" in told and died in told


@pytest.mark.parametrize("key", ["parallel", "kv_cache_type", "flash_attention", "gpus"])
def test_a_setting_that_all_models_share(key: str) -> None:
    values: dict[str, Any] = {"parallel": 2, "kv_cache_type": "f16", "flash_attention": False, "gpus": [0]}
    told = wrong(ollama(models=[{"name": "a", "context_length": 4096, key: values[key]}]))
    assert "one for all models of an ollama service" in told and 'a second service with runtime = "ollama"' in told


def test_one_model_twice() -> None:
    twice = [{"name": "a", "context_length": 4096}, {"name": "a:latest", "context_length": 8192}]
    told = wrong(ollama(models=twice))
    assert "'a:latest' is listed twice" in told and 'a second service with runtime = "ollama"' in told


def test_one_file_twice() -> None:
    """Ollama has one process for the same weights, whatever they are called."""
    models = [{"name": name, "context_length": 4096, "file": "/m/a.gguf"} for name in ("a", "b")]
    told = wrong(ollama(models=models))
    assert "two models are made from /m/a.gguf" in told and 'a second service with runtime = "ollama"' in told
    assert wrong(ollama(models=[models[0], {**models[1], "file": "/m/b.gguf"}])) == ""


def test_one_name_of_two_files_in_one_folder() -> None:
    """Each service would make its model over the other's. The place of both is told."""

    def two(first: dict[str, Any], second: dict[str, Any], **keys: Any) -> str:
        models = [{"name": "a", "context_length": 4096, **more} for more in (first, second)]
        return wrong(ollama("one", models=[models[0]]) + ollama("two", models=[models[1]], **keys))

    told = two({"file": "/m/a.gguf"}, {"file": "/m/b.gguf"})
    assert "services.two.models: 'a' with context_length 4096 is made from /m/b.gguf" in told
    assert "services.one from /m/a.gguf" in told and "a:latest-ctx4096" in told and "spec.toml:" in told
    assert "from Ollama's a:latest, and in services.one from /m/a.gguf" in two({"file": "/m/a.gguf"}, {})
    same = {"file": "/m/a.gguf"}
    for fine in ({"file": "/m/b.gguf", "context_length": 8192}, same, {"file": "/m/b.gguf", "name": "b"}):
        assert two(same, fine) == ""
    assert two(same, {"file": "/m/b.gguf"}, env={"OLLAMA_MODELS": "/srv/m"}) == ""


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        ("ollama version is 0.33.0", "0.33.0"),
        ("Warning: could not connect to a running Ollama instance\nWarning: client version is 0.33.0", "0.33.0"),
        ("ollama version is 0.11.2\nWarning: client version is 0.33.0", "0.33.0"),
    ],
)
def test_the_version_is_that_of_the_program(printed: str, version: str) -> None:
    """The first line tells of whatever answers on the default port."""
    known = definitions()["ollama"].version
    assert known
    match = re.search(known.pattern, printed)
    assert match and match["v"] == version
