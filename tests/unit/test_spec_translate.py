"""What is wrong is told in plain sentences, and foreign words are answered with ours."""

from __future__ import annotations

import pytest

from llmsupervisor.base.errors import Problem
from llmsupervisor.spec.load import load

FOREIGN = {
    "*": {"--host": "the daemon chooses the address"},
    "llama-server": {
        "-np": "parallel",
        "--ctx-size": "context_length",
        "n_gpu_layers": "gpu_layers",
        "--api-key": "a key is made for each start",
    },
    "ollama": {"num_ctx": "context_length", "OLLAMA_NUM_PARALLEL": "parallel"},
    "vllm": {"max_model_len": "context_length", "tensor_parallel_size": "leave it out: it is the number of gpus"},
    "command": {},
}
CHAT = '[services.chat]\nruntime = "llama-server"\n'


def one(text: str) -> Problem:
    (problem,) = load(text, "box.toml", FOREIGN).problems
    return problem


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        (
            'context_length = "8k"',
            "services.chat.context_length: expected a whole number above 0 (tokens per request, prompt + output), "
            'found "8k"; for example: context_length = 8192',
        ),
        (
            'start = "bot"',
            'services.chat.start: expected one of the allowed words, found "bot"; allowed: "boot", "demand"; '
            'did you mean "boot"? For example: start = "boot"',
        ),
        (
            "keep_alive = 300",
            'services.chat.keep_alive: expected a duration with a unit, such as "30s", "10m" or "1h30m", or "forever", '
            'found 300; for example: keep_alive = "10m"',
        ),
        (
            'gpu_memory = "22"',
            'services.chat.gpu_memory: expected a size with a unit, such as "512MiB" or "22GiB", above 0, per GPU, '
            'found "22"; for example: gpu_memory = "22GiB"',
        ),
        (
            "gpus = [0, true]",
            'services.chat.gpus[1]: expected a list of GPU indices or UUIDs, "auto", or [] for the CPU, found true; '
            "for example: gpus = [0]",
        ),
        (
            'models = [{ name = "m" }]',
            "services.chat.models[0].context_length: is missing; allowed: a whole number above 0 (tokens per request, "
            "prompt + output); for example: context_length = 8192",
        ),
        (
            "restart.burts = 3",
            "services.chat.restart.burts: unknown key; did you mean burst? For example: burst = 5",
        ),
        ("paralel = 3", "services.chat.paralel: unknown key; did you mean parallel? For example: parallel = 4"),
        ("wholly_other = 3", "services.chat.wholly_other: unknown key; allowed: aliases, attention_backend, "),
        (
            "num-gpu-layers = 3",
            "services.chat.num-gpu-layers: unknown key, near n_gpu_layers, the runtime's own word; here it is gpu_layers; "
            'for example: gpu_layers = "all"',
        ),
        (
            "np = 4",
            "services.chat.np: np is the runtime's own word; here it is parallel; for example: parallel = 4",
        ),
        (
            "ctx_size = 4",
            "services.chat.ctx_size: ctx_size is the runtime's own word; here it is context_length; "
            "for example: context_length = 8192",
        ),
        (
            "n_gpu_layer = 4",
            "services.chat.n_gpu_layer: unknown key; did you mean gpu_layers? For example: gpu_layers = ",
        ),
        ("api-key = 'x'", "services.chat.api-key: api-key is the runtime's own word; a key is made for each start"),
        ("host = 'x'", "services.chat.host: host is the runtime's own word; the daemon chooses the address"),
        (
            "models = [{ name = 'm', context_length = 1, np = 4 }]",
            "services.chat.models[0].np: np is the runtime's own word; here it is parallel in [services.NAME]; "
            "for example: parallel = 4",
        ),
        (
            "ports = '1-2'",
            "services.chat.ports: unknown key here; ports belongs at the top of the file, before the first [table]; "
            "did you mean port?",
        ),
        (
            "replicas = 2",
            "services.chat.replicas: replicas are not part of this version; write one service per replica",
        ),
        ("priority = 10", "services.chat.priority: priorities are not part of this version"),
        ("batch = 2.5", "services.chat.batch: expected a whole number above 0 (tokens), found 2.5; "),
        ("batch = [1]", "services.chat.batch: expected a whole number above 0 (tokens), found a list of 1; "),
        ("batch = []", "services.chat.batch: expected a whole number above 0 (tokens), found an empty list; "),
        ("batch = {}", "services.chat.batch: expected a whole number above 0 (tokens), found an empty table; "),
        ("batch = {a = 1}", "services.chat.batch: expected a whole number above 0 (tokens), found a table; "),
        (
            "batch = 2026-01-02",
            "services.chat.batch: expected a whole number above 0 (tokens), found the date or time 2026-01-02; ",
        ),
        (f"batch = '{'x' * 99}'", f'found "{"x" * 57}..."; '),
        (
            "restart = 'always'",
            'services.chat.restart: expected a table, found "always"; for example: restart = { policy',
        ),
        ("extra_args = '--x'", 'services.chat.extra_args: expected a list of words, found "--x"; '),
        (
            "command = []",
            "services.chat.command: expected a list of words: the program and its first arguments, found an empty list",
        ),
        (
            "restart.window = '0s'",
            'restart.window: expected a duration with a unit, such as "30s", "10m" or "1h30m", above 0, found "0s"',
        ),
    ],
)
def test_problems_in_plain_sentences(setting: str, text: str) -> None:
    problem = one(f"{CHAT}{setting}\n")
    assert text in str(problem)
    assert str(problem).startswith("box.toml:3: services.chat.")


@pytest.mark.parametrize(
    ("runtime", "word", "key"),
    [
        ("llama-server", '"-np"', "parallel"),
        ("ollama", "num_ctx", "context_length"),
        ("ollama", "numctx", "context_length"),
        ("ollama", "OLLAMA_NUM_PARALLEL", "parallel"),
        ("vllm", "max_model_len", "context_length"),
        ("vllm", "max-model-len", "context_length"),
    ],
)
def test_a_runtimes_own_name_is_answered_with_our_key(runtime: str, word: str, key: str) -> None:
    problem = one(f'[services.a]\nruntime = "{runtime}"\n{word} = 1\n')
    assert f"here it is {key}" in problem.wrong and problem.line == 3
    assert problem.example.startswith(f"{key} = ")


def test_words_of_another_runtime_are_only_answered_where_the_runtime_is_unknown() -> None:
    assert one(f"{CHAT}num_ctx = 1").wrong == "unknown key"
    assert "context_length" in one(f"[defaults]\nnum_ctx = 1\n{CHAT}").wrong
    assert "context_length" in one(f"[defaults.ollama]\nnum_ctx = 1\n{CHAT}").wrong


def test_a_setting_of_a_service_at_the_top_and_a_table_that_comes_later() -> None:
    assert "belongs in [services.NAME]" in one(f"parallel = 4\n{CHAT}").wrong
    assert "notifications are not part of this version" in one(f"[[notify]]\nx = 1\n{CHAT}").wrong
    assert "settings of a GPU (reserve) are not part" in one(f"[gpus.0]\nreserve = '1GiB'\n{CHAT}").wrong


def test_the_value_of_a_secret_is_never_shown() -> None:
    for setting in (
        'secret_env = "hf_geheim"',
        'secret_env.A = "hf_geheim"',
        'secret_env.A.env = "hf-geheim"',
        "secret_env.A.hf_geheim = 1",
        '[gateway.keys]\na = "geheim"',
        '[gateway]\nkeys = ["geheim"]',
        "[gateway.keys.a]\nfile = ['geheim']",
        "[gateway.keys.a]\nenv = 'sk-geheim'",
        "[gateway.keys.a]\nkey = 'geheim'",
    ):
        loaded = load(f"{CHAT}{setting}\n", "f", FOREIGN)
        assert loaded.problems
        shown = [problem.wrong + problem.allowed + problem.example for problem in loaded.problems]
        assert "geheim" not in "".join(shown)
