"""TOML text becomes a spec, or every problem with file and line."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsupervisor.base.errors import Problem
from llmsupervisor.spec.load import LIMIT, Loaded, Place, load
from llmsupervisor.spec.model import Service, port_range
from llmsupervisor.spec.resolve import resolve

FOREIGN: dict[str, dict[str, str]] = {
    "llama-server": {},
    "ollama": {"num_ctx": "context_length"},
    "vllm": {},
    "command": {},
}
CHAT = '[services.chat]\nruntime = "llama-server"\n'


def told(text: str) -> list[str]:
    loaded = load(text, "box.toml", FOREIGN)
    assert loaded.spec is None
    return [str(problem) for problem in loaded.problems]


def one(text: str) -> Problem:
    loaded = load(text, "box.toml", FOREIGN)
    assert len(loaded.problems) == 1, told(text)
    return loaded.problems[0]


def good(text: str) -> Loaded:
    loaded = load(text, "box.toml", FOREIGN)
    assert not loaded.problems, told(text)
    return loaded


def test_a_spec_as_in_the_architecture_page() -> None:
    loaded = good(
        """
[gateway]
listen = "127.0.0.1:8088"
[defaults]
drain_timeout = "10s"
[defaults.ollama]
parallel = 4
[services.chat]
runtime = "llama-server"
model = "chat.gguf"
gpus = [0, "GPU-1"]
keep_alive = "10m"
restart = { policy = "never" }
[services.ollama]
runtime = "ollama"
gpus = "auto"
models = [{ name = "llama3.1:8b", context_length = 16384, keep_alive = "forever", preload = true }]
[logs]
size = "1GiB"
"""
    )
    assert loaded.spec is not None
    chat, ollama = loaded.spec.services["chat"], loaded.spec.services["ollama"]
    assert (chat.drain_timeout, chat.keep_alive, chat.gpus, chat.parallel) == (10.0, 600.0, (0, "GPU-1"), None)
    assert (ollama.drain_timeout, ollama.parallel, ollama.gpus) == (10.0, 4, "auto")
    assert ollama.models is not None and ollama.models[0].keep_alive is None
    assert loaded.spec.logs.size == 1024**3
    assert loaded.partial == loaded.spec.services
    assert len(loaded.sha256) == 64


DEFAULTS = """\
[defaults]
parallel = 2
drain_timeout = "1s"
restart = { burst = 3, window = "1m" }
env = { A = "defaults", B = "defaults" }
[defaults.ollama]
parallel = 4
[defaults.ollama.restart]
burst = 4
[defaults.ollama.env]
B = "ollama"
[services.a]
runtime = "ollama"
env.C = "own"
[services.b]
runtime = "ollama"
parallel = 8
restart.burst = 9
"""


def test_defaults_are_merged_and_each_setting_keeps_its_place() -> None:
    loaded = good(DEFAULTS)
    assert loaded.spec is not None
    a, b = loaded.spec.services["a"], loaded.spec.services["b"]
    assert (a.parallel, a.restart.burst, a.restart.window, a.drain_timeout) == (4, 4, 60.0, 1.0)
    assert a.env == {"A": "defaults", "B": "ollama", "C": "own"}
    assert (b.parallel, b.restart.burst, b.restart.window) == (8, 9, 60.0)
    assert loaded.origins["a", "runtime"] == Place("spec", "box.toml", 13)
    assert loaded.origins["a", "parallel"] == Place("defaults", "box.toml", 7)
    assert loaded.origins["a", "restart.burst"] == Place("defaults", "box.toml", 9)
    assert loaded.origins["a", "restart.window"] == Place("defaults", "box.toml", 4)
    assert loaded.origins["a", "env.B"] == Place("defaults", "box.toml", 11)
    assert loaded.origins["b", "parallel"] == Place("spec", "box.toml", 17)
    assert str(loaded.origins["b", "restart.burst"]) == "box.toml:18"
    assert ("a", "model") not in loaded.origins


def test_a_list_or_a_value_of_defaults_is_replaced_whole() -> None:
    loaded = good(f'[defaults]\naliases = ["x"]\n{CHAT}aliases = ["y", "z"]\n')
    assert loaded.spec is not None and loaded.spec.services["chat"].aliases == ("y", "z")
    problem = one(f"[defaults]\nenv = {{ A = '1' }}\n{CHAT}env = 'A=1'\n")
    assert (problem.key, problem.line) == ("services.chat.env", 5)
    loaded = load(f"[defaults]\nenv = {{ A = '1' }}\n{CHAT}env = 'A=1'\n", "f")
    assert ("chat", "env.A") not in loaded.origins


def test_the_runtime_may_come_from_defaults() -> None:
    loaded = good('[defaults]\nruntime = "vllm"\n[defaults.vllm]\nparallel = 3\n[services.a]\n')
    assert loaded.spec is not None and loaded.spec.services["a"].parallel == 3


@pytest.mark.parametrize("text", ["", "\n", "# nothing yet\n", "\n# a\n\n"])
def test_an_empty_spec_never_means_stop_everything(text: str) -> None:
    problem = one(text)
    assert problem.key == "services" and "nothing is changed" in problem.wrong


@pytest.mark.parametrize("text", ["[gateway]\n", "[services]\n"])
def test_a_spec_without_services_is_refused(text: str) -> None:
    assert "names no service" in one(text).wrong


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a = \n", 1, "Invalid value (column 5)"),
        ('x = 1\n[services.chat\n"', 2, "column 15"),
        ('x = """', 1, "end of the text"),
        ("\ufeffx = 1", 1, "byte order mark"),
        ("x = " + "[" * 3000, 0, "nested too deeply"),
        ("x = " + "9" * 5000, 0, "not valid TOML: Exceeds the limit"),
        ("#" * (LIMIT + 1), 0, "longer than 1048576 bytes"),
        ("#" + "é" * (LIMIT // 2), 0, "longer than 1048576 bytes"),
        ("a = 1\na = 2\n", 2, "Cannot overwrite a value"),
    ],
)
def test_text_that_is_no_toml(text: str, line: int, words: str) -> None:
    problem = one(text)
    assert problem.line == line and words in problem.wrong
    assert str(problem).startswith(f"box.toml:{line}: " if line else "box.toml: ")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            '[services.chat]\n\n[services."b c"]\n[services."b c"]\n',
            'box.toml:4: services."b c": stands twice, first on line 3',
        ),
        (
            "# \u2028\n[services.'a\"b']\n[services.'a\"b']\n",
            'box.toml:3: services."a\\"b": stands twice, first on line 2',
        ),
        ("[[x]]\n[x.y]\n[x.y]\n", "box.toml:3: x.y: stands twice"),
    ],
)
def test_a_table_that_stands_twice(text: str, told: str) -> None:
    assert str(one(text)) == f"{told}; allowed: each name once"


@pytest.mark.parametrize("number", ["9223372036854775808", "-9223372036854775809", "0x" + "f" * 5000])
def test_numbers_of_more_than_64_bits(number: str) -> None:
    problem = one(f"{CHAT}gpus = [\n0,\n{number}]\n")
    assert (problem.key, problem.line) == ("services.chat.gpus[1]", 5)
    assert "too large for TOML" in problem.wrong and len(str(problem)) < 200


def test_every_problem_at_once_sorted_by_line() -> None:
    text = """\
surplus = 1
ports = "high"
[gateway]
listen = "here"
[services.chat]
runtime = "llama-server"
parallel = 0
port = 8081
gpus = [0, 0]
[services.other]
runtime = "vlm"
port = 8081
[services."Bad Name"]
runtime = "ollama"
[services.number]
[services]
text = "x"
"""
    assert [(p.line, p.key) for p in load(text, "f", FOREIGN).problems] == [
        (1, "surplus"),
        (2, "ports"),
        (4, "gateway.listen"),
        (7, "services.chat.parallel"),
        (9, "services.chat.gpus[1]"),
        (11, "services.other.runtime"),
        (12, "services.other.port"),
        (13, 'services."Bad Name"'),
        (15, "services.number.runtime"),
        (17, "services.text"),
    ]


def test_services_that_are_right_are_kept_apart() -> None:
    text = f"{CHAT}[services.bad]\nruntime = 'vllm'\nparallel = 'x'\n[services.worse]\nruntime = 'vllm'\nport = 8081\ngpus = [1, 1]\n"
    loaded = load(text, "f", FOREIGN)
    assert loaded.spec is None and list(loaded.partial) == ["chat"]
    assert loaded.partial["chat"] == Service(runtime="llama-server")
    assert loaded.faulty == {
        "bad": Service(runtime="vllm"),
        "worse": Service(runtime="vllm", port=8081, gpus=(1, 1)),
    }, "what is wrong by its type is left out"
    assert list(load(f"x = 1\n{CHAT}", "f").partial) == ["chat"]


def test_a_problem_of_defaults_is_told_once_and_blames_the_services_that_take_it() -> None:
    text = f"[defaults]\nparallel = 'x'\n{CHAT}[services.b]\nruntime = 'vllm'\n[services.c]\nruntime = 'vllm'\nparallel = 1\n"
    assert [(p.line, p.key) for p in load(text, "f", FOREIGN).problems] == [(2, "defaults.parallel")]
    assert list(load(text, "f", FOREIGN).partial) == ["c"]


def test_defaults_are_checked_where_nobody_takes_them() -> None:
    assert one(f"[defaults.vllm]\nparallel = 'x'\n{CHAT}").key == "defaults.vllm.parallel"
    problem = one(f"[defaults.vlm]\nparallel = 1\n{CHAT}")
    assert (problem.key, problem.nearest) == ("defaults.vlm", "vllm")
    assert one(f"[defaults.restrat]\nburst = 1\n{CHAT}".replace("burst = 1\n", "")).nearest == "restart"
    assert one(f"defaults = 1\n{CHAT}").key == "defaults"


def test_runtimes_are_checked_where_they_are_known() -> None:
    problem = one('[services.a]\nruntime = "llama-serve"\n')
    assert (problem.key, problem.nearest, problem.line) == ("services.a.runtime", "llama-server", 2)
    assert load('[services.a]\nruntime = "mine"\n[defaults.mine]\nparallel = 1\n', "f").spec is not None


@pytest.mark.parametrize(("value", "found"), [("1", "1"), ('"x"', '"x"'), ("[]", "an empty list")])
def test_services_must_be_tables(value: str, found: str) -> None:
    assert one(f"services = {value}").wrong == f"expected a table, found {found}"
    assert one(f"[services]\nchat = {value}").wrong == f"expected a table, found {found}"


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*Service.model_fields, "x", "num_ctx"]),
        st.sampled_from(
            [
                "1",
                "-1",
                "true",
                '"x"',
                '""',
                "[]",
                "[1]",
                '["a", 1]',
                "{}",
                "{ a = 1 }",
                "{ a = {} }",
                "[{}]",
                "inf",
                "07:32:00",
                '"\\u0000"',
            ]
        ),
    ),
    st.sampled_from(["services.a", "defaults", "defaults.ollama", "gateway", "gpus.0", "services.a.restart"]),
)
def test_every_problem_has_a_key_a_line_and_a_sentence(table: dict[str, str], where: str) -> None:
    head = "" if where == "services.a" else CHAT
    lines = [f"{key} = {value}" for key, value in table.items()]
    text = "\n".join([head, f"[{where}]", *lines])
    loaded = load(text, "f", FOREIGN)
    assert (loaded.spec is None) == bool(loaded.problems)
    for problem in loaded.problems:
        assert problem.key and problem.wrong and 0 < problem.line <= text.count("\n") + 1


def test_a_dumped_service_is_read_back() -> None:
    text = 'keep_alive = "7ms"\ngpu_memory = "1.5GiB"\ncache_ram = "0B"\nstart_timeout = "1h30m"\nlora = ["a"]\ngpus = [0, "GPU-1"]\n'
    loaded = good(f"{CHAT}{text}[services.o]\nruntime = 'ollama'\nmodels = [{{ name = 'm', context_length = 1 }}]\n")
    assert loaded.spec is not None
    for service in loaded.spec.services.values():
        assert Service.model_validate(service.model_dump(mode="json")) == service


PATHS = """\
[services.a]
runtime = "llama-server"
model = "models/sub/m.gguf"
mmproj = "~/p.gguf"
draft = "/abs/d.gguf"
lora = ["l.gguf", "../a=b"]
chat_template = "t.jinja"
venv = "venv"
cwd = "."
secret_env = { A = { file = "keys/a" }, B = { env = "NAME" } }
[services.hub]
runtime = "vllm"
model = "Qwen/Qwen2.5-0.5B"
[services.folder]
runtime = "vllm"
model = "./Qwen/Qwen2.5-0.5B"
[services.bare]
runtime = "command"
command = ["server", "./arg"]
chat_template = "chatml"
[services.own]
runtime = "command"
command = ["bin/server", "./arg"]
"""


def test_relative_paths_start_at_the_folder_of_the_spec() -> None:
    loaded = good(PATHS)
    assert loaded.spec is not None
    services = resolve(loaded.spec, PurePosixPath("/etc/box"), PurePosixPath("/home/me")).services
    a = services["a"]
    assert (a.model, a.mmproj, a.draft) == ("/etc/box/models/sub/m.gguf", "/home/me/p.gguf", "/abs/d.gguf")
    assert a.lora == ("/etc/box/l.gguf", "/etc/box/../a=b")
    assert (a.chat_template, a.venv, a.cwd) == ("/etc/box/t.jinja", "/etc/box/venv", "/etc/box")
    assert a.secret_env["A"].file == "/etc/box/keys/a" and a.secret_env["B"].env == "NAME"
    assert services["hub"].model == "Qwen/Qwen2.5-0.5B"
    assert services["folder"].model == "/etc/box/Qwen/Qwen2.5-0.5B"
    assert (services["bare"].command, services["bare"].chat_template) == (("server", "./arg"), "chatml")
    assert services["own"].command == ("/etc/box/bin/server", "./arg")
    assert loaded.spec.services["a"].model == "models/sub/m.gguf"


@pytest.mark.parametrize("text", ["1", "1-", "-1", "0-1", "2-1", "1-65536", "a-b", "1-2-3", "1 - 2", "²-³", ""])
def test_ranges_of_ports(text: str) -> None:
    with pytest.raises(ValueError, match="is not a range of ports"):
        port_range(text)
    assert port_range("18400-18401") == range(18400, 18402)
