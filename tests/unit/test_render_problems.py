"""What text and definition decide: every mistake is told with the key, what is allowed and what to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmsupervisor.base.errors import Problem, SpecError
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.runtime.load import foreign, parse
from llmsupervisor.runtime.render import OWN, problems
from llmsupervisor.spec.model import Service

ROOT = Path(__file__).parents[2]
DEFINITIONS = {d.name: d for d in (parse(p.read_text(), p.name) for p in sorted((ROOT / "runtimes").glob("*.toml")))}
GOOD: dict[str, dict[str, Any]] = {
    "llama-server": {"model": "/m.gguf", "context_length": 2048, "parallel": 2, "kv_cache_type": "q8_0"},
    "vllm": {
        "model": "/m",
        "context_length": 2048,
        "parallel": 2,
        "kv_cache_type": "auto",
        "gpu_memory": "8GiB",
    },
    "ollama": {"parallel": 2, "kv_cache_type": "f16", "models": [{"name": "a", "context_length": 512}]},
    "command": {"command": ("/usr/bin/x",)},
}


def found(runtime: str = "llama-server", **keys: Any) -> list[Problem]:
    said = {key: value for key, value in (GOOD[runtime] | keys).items() if value is not None}
    return problems("chat", Service(runtime=runtime, **said), DEFINITIONS[runtime])


def one(runtime: str = "llama-server", **keys: Any) -> Problem:
    problem, *more = found(runtime, **keys)
    assert more == []
    return problem


@pytest.mark.parametrize("runtime", GOOD)
def test_the_good_ones_are_good(runtime: str) -> None:
    assert found(runtime) == []
    assert found(runtime, aliases=("x",), env={"A": "b"}, extra_args=("--unheard-of", "-1", "word")) == []


@pytest.mark.parametrize("key", ["model", "context_length", "parallel", "kv_cache_type"])
def test_what_is_required(key: str) -> None:
    problem = one(**{key: None})
    assert problem.key == f"services.chat.{key}"
    assert "missing" in problem.wrong and problem.allowed and problem.example.startswith(f"{key} = ")


def test_required_of_ollama_and_command() -> None:
    assert one("ollama", models=None).example.startswith("models = [{")
    assert "missing" in one("command", command=None).wrong


def test_a_value_that_is_not_allowed() -> None:
    problem = one(kv_cache_type="q8_O")
    assert (problem.key, problem.nearest) == ("services.chat.kv_cache_type", "q8_0")
    assert "q5_1" in problem.allowed and problem.example == 'kv_cache_type = "q8_0"'
    assert one(split="pipeline").key == "services.chat.split"
    assert one("ollama", split="tensor").allowed == "layer, none"


def test_a_setting_that_the_runtime_does_not_have() -> None:
    problem = one(tool_parser="hermes")
    assert problem.key == "services.chat.tool_parser" and "llama-server has no setting" in problem.wrong
    assert "context_length" in problem.allowed
    assert one("ollama", model="llama3").nearest == "models"
    assert one("command", kv_tokens=5).key == "services.chat.kv_tokens"


def test_a_task_that_the_runtime_cannot_do() -> None:
    assert one("ollama", task="rerank").allowed == "chat, embed"
    assert found("command", task="rerank") == []


def test_every_key_is_somebodys() -> None:
    settings = {key for d in DEFINITIONS.values() for key in d.settings}
    assert set(Service.model_fields) == OWN | settings


# --- extra_args and env --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "owner"),
    [
        ("-c", "context_length"),
        ("--ctx-size=4096", "context_length"),
        ("--ctx_size", "context_length"),
        ("--parallel=4", "parallel"),
        ("-ctv", "kv_cache_type"),
        ("--no-cache-prompt", "prefix_caching"),
        ("--port", "address"),
        ("--host=0.0.0.0", "address"),
        ("--fit", "always set"),
        ("--kv-unified", "always set"),
        ("--api-key", "read by everybody"),
        ("--api-key=x", "read by everybody"),
        ("--embeddings", 'task = "embed"'),
    ],
)
def test_flags_that_are_owned(word: str, owner: str) -> None:
    problem = one(extra_args=("--seed", "1", word))
    assert problem.key == "services.chat.extra_args"
    assert word.split("=")[0].replace("_", "-") in problem.wrong and owner in problem.wrong


def test_the_setting_is_shown_instead() -> None:
    assert one(extra_args=("-np", "4")).example == "parallel = 4"
    assert one(extra_args=("-fa", "on")).example == "flash_attention = true"
    assert one(extra_args=("--lora", "x")).example == ""


def test_argparse_takes_beginnings() -> None:
    assert "--max-model-len" in one("vllm", extra_args=("--max-model=5",)).wrong
    assert "--api-key" in one("vllm", extra_args=("--api-k", "x")).wrong
    assert found("vllm", extra_args=("--max-log-len", "5")) == []
    assert found(extra_args=("--ctx",)) == []


@pytest.mark.parametrize(
    ("runtime", "name", "owner"),
    [
        ("ollama", "OLLAMA_NUM_PARALLEL", "setting parallel"),
        ("ollama", "OLLAMA_HOST", "address"),
        ("ollama", "OLLAMA_CONTEXT_LENGTH", "models"),
        ("llama-server", "LLAMA_ARG_CTX_SIZE", "setting context_length"),
        ("llama-server", "LLAMA_ARG_FIT", "always set"),
        ("llama-server", "LLAMA_API_KEY", "every start"),
        ("llama-server", "CUDA_VISIBLE_DEVICES", "setting gpus"),
        ("vllm", "CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
        ("vllm", "VLLM_API_KEY", "every start"),
        ("vllm", "VLLM_ATTENTION_BACKEND", "setting attention_backend"),
    ],
)
def test_environment_that_is_owned(runtime: str, name: str, owner: str) -> None:
    problem = one(runtime, env={name: "1"})
    assert problem.key == f"services.chat.env.{name}" and owner in problem.wrong
    assert one(runtime, secret_env={name: {"env": "X"}}).key == f"services.chat.secret_env.{name}"


def test_a_definition_without_gpus_leaves_them_to_the_spec() -> None:
    definition = Definition.model_validate({"name": "mine", "doc": "x", "command": ("mine",)})
    service = Service(runtime="mine", env={"CUDA_VISIBLE_DEVICES": "0"})
    assert problems("chat", service, definition) == []


def test_a_name_twice() -> None:
    assert "in env too" in one(env={"A": "1"}, secret_env={"A": {"env": "B"}}).wrong


# --- contradictions ------------------------------------------------------------------------------------------------


def test_a_quantised_kv_cache_needs_flash_attention() -> None:
    assert one(flash_attention=False).key == "services.chat.flash_attention"
    assert found(flash_attention=False, kv_cache_type="f16") == []
    assert one("ollama", flash_attention=False, kv_cache_type="q4_0").key == "services.chat.flash_attention"
    assert found("ollama", flash_attention=False) == []


def test_on_the_cpu_nothing_is_put_on_a_gpu() -> None:
    assert one(gpus=(), gpu_layers="all").key == "services.chat.gpu_layers"
    assert found(gpus=(), gpu_layers=0) == []
    assert one(gpus=(), split="row").key == "services.chat.split"
    assert one(gpus=(), gpu_memory="1GiB").key == "services.chat.gpu_memory"
    assert one("vllm", gpus=()).key == "services.chat.gpu_memory"


def test_vllm_needs_a_budget_and_a_batch() -> None:
    assert one("vllm", gpu_memory=None).example == 'gpu_memory = "22GiB"'
    assert found("vllm", gpu_memory=None, kv_tokens=4096) == []
    assert found("vllm", gpu_memory=None, gpus=()) == []
    assert one("vllm", parallel=4096).example == "batch = 4096"
    assert one("vllm", parallel=64, batch=32).key == "services.chat.batch"


def test_other_contradictions() -> None:
    assert one(task="embed", batch=512, ubatch=256).example == "ubatch = 512"
    assert found(batch=512, ubatch=256) == []
    twice = [{"name": n, "context_length": 512} for n in ("smol", "smol:latest", "reg/a:1")]
    assert "smol:latest" in one("ollama", models=twice).wrong
    assert one("vllm", command=("x",), venv="/v").key == "services.chat.venv"


# --- the runtimes' own words ---------------------------------------------------------------------------------------


def test_foreign_words() -> None:
    words = foreign(DEFINITIONS)
    assert words["llama-server"]["-np"] == words["llama-server"]["np"] == "parallel"
    assert words["llama-server"]["ctx_size"] == words["llama-server"]["ctx-size"] == "context_length"
    assert words["llama-server"]["LLAMA_ARG_CTX_SIZE"] == "context_length"
    assert words["vllm"]["max_model_len"] == "context_length"
    assert words["ollama"]["OLLAMA_NUM_PARALLEL"] == "parallel"
    assert "context_length for each of models" in words["ollama"]["num_ctx"]
    assert "at once" in words["llama-server"]["fit"]
    assert words["*"]["num_ctx"] == "context_length" and words["*"]["max_num_seqs"] == "parallel"
    assert not set(words["*"]) & set(Service.model_fields)


def test_a_word_with_two_meanings_is_nobodys() -> None:
    def named(name: str, key: str) -> Definition:
        table = {"name": name, "doc": "x", "command": ("x",), "settings": {key: {"flags": ("--size",)}}}
        return Definition.model_validate(table)

    both = foreign({"a": named("a", "batch"), "b": named("b", "ubatch")})
    assert both["a"]["size"] == "batch" and "size" not in both["*"]


# --- definitions ---------------------------------------------------------------------------------------------------

HEAD = 'name = "x"\ndoc = "x"\ncommand = ["x"]\n'


@pytest.mark.parametrize(
    ("text", "line", "key", "wrong"),
    [
        ("name = ", 1, "", "not TOML"),
        (HEAD + "bogus = 1\n", 4, "bogus", "unknown key"),
        (HEAD + "[settings.batch]\n", 4, "settings.batch", "exactly one of"),
        (HEAD + '[settings.batch]\nflags = ["-b"]\nenv = "B"\n', 4, "settings.batch", "exactly one of"),
        (HEAD + '[settings.batch]\nflags = ["-b"]\noff = "-n"\n', 4, "settings.batch", "switch"),
        (HEAD + "[exit.a]\npattern = '('\nadvice = 'x'\n", 5, "exit.a.pattern", "not a regular expression"),
        (HEAD + "[exit.a]\nadvice = 'x'\n", 4, "exit.a", "at least one of"),
        (
            HEAD + "[ready]\nsteps = [{ pattern = '(?P<n>x)', says = '{m}' }]\n",
            5,
            "ready.steps.0",
            "does not have: 'm'",
        ),
        (HEAD + "version = { command = ['-v'], pattern = 'x', written_for = '1' }\n", 4, "version.pattern", "(?P<v>"),
        (HEAD + "[settings.a]\nflags = ['-x']\n[settings.b]\nflags = ['-x']\n", 0, "", "-x belongs to both a and b"),
    ],
)
def test_a_wrong_definition_is_told_at_its_line(text: str, line: int, key: str, wrong: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(text, "runtimes/x.toml")
    (problem,) = caught.value.problems
    assert (problem.file, problem.line, problem.key) == ("runtimes/x.toml", line, key)
    assert wrong in problem.wrong


def test_every_problem_of_a_definition_is_told() -> None:
    with pytest.raises(SpecError) as caught:
        parse("name = 1\nbogus = 2\n", "x")
    assert {p.key for p in caught.value.problems} == {"name", "bogus", "doc", "command"}
