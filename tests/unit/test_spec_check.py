"""Names, clashes and references, decided by the text alone."""

from __future__ import annotations

import pytest

from llmsupervisor.spec.load import load

CHAT = '[services.chat]\nruntime = "llama-server"\n'


def wrong(text: str) -> list[tuple[int, str]]:
    foreign = {"llama-server": {"LLAMA_ARG_N_PARALLEL": "parallel", "GGML_X": "leave it"}, "ollama": {}}
    return [(p.line, f"{p.key}: {p.wrong}") for p in load(text, "f", foreign).problems]


@pytest.mark.parametrize("name", ["chat", "a", "0", "llama-3.1_8b", "x" * 63])
def test_service_names(name: str) -> None:
    assert wrong(f'[services."{name}"]\nruntime = "ollama"') == []


@pytest.mark.parametrize("name", ["Chat", "-a", ".a", "a b", "a/b", "", "x" * 64, "é", "a\\n"])
def test_bad_service_names(name: str) -> None:
    found = wrong(f'\n[services."{name}"]\nruntime = "ollama"')
    assert len(found) == 1 and found[0][0] == 2 and "cannot be the name of a service" in found[0][1]


@pytest.mark.parametrize(
    ("settings", "line", "text"),
    [
        (
            "model = 'm.gguf'\nmodels = [{ name = 'm', context_length = 1 }]",
            4,
            "models: model and models exclude each other",
        ),
        ("command = ['x']\nvenv = 'v'", 4, "venv: command and venv exclude each other"),
        ("gpus = [\n0,\n1,\n0]", 6, "gpus[2]: 0 stands here twice"),
        ("gpus = ['GPU-1', 'GPU-1']", 3, 'gpus[1]: "GPU-1" stands here twice'),
        ("gpus = [0, 'MIG-5d1c']", 3, 'gpus[1]: "MIG-5d1c" is a MIG instance, and those are shown but not served'),
        ("aliases = ['a', 'a']", 3, 'aliases[1]: "a" stands here twice'),
        (
            "models = [\n{ name = 'm', context_length = 1 },\n{ name = 'm', context_length = 2 }]",
            5,
            'models[1]: "m" stands here twice',
        ),
        ("cpus = '7-0'", 3, 'cpus: expected a list of CPUs as text, found "7-0"'),
        ("cpus = '1,,2'", 3, 'cpus: expected a list of CPUs as text, found "1,,2"'),
        ("cpus = '0-999999999999'", 3, "cpus: expected a list of CPUs as text"),
        ("cpus = '0-'", 3, 'cpus: expected a list of CPUs as text, found "0-"'),
        ("ready = 'health'", 3, 'ready: expected a path that starts with /, found "health"'),
        (
            "env = { CUDA_VISIBLE_DEVICES = '0' }",
            3,
            "env.CUDA_VISIBLE_DEVICES: CUDA_VISIBLE_DEVICES cannot be set here; the setting gpus owns it: write gpus = [0]",
        ),
        ("env = { CUDA_DEVICE_ORDER = 'x' }", 3, "the setting gpus owns it"),
        ("env = { LISTEN_FDS = '1' }", 3, "write port = 8081"),
        ("secret_env = { NOTIFY_SOCKET = { env = 'A' } }", 3, "readiness is set by ready"),
        (
            "env = { LLAMA_ARG_N_PARALLEL = '1' }",
            3,
            "env.LLAMA_ARG_N_PARALLEL: the setting parallel owns LLAMA_ARG_N_PARALLEL",
        ),
        ("env = { '1A' = 'x' }", 3, 'env.1A: "1A" cannot be the name of an environment variable'),
        ("env = { 'A=B' = 'x' }", 3, 'env."A=B": "A=B" cannot be the name'),
        ("secret_env = { 'A B' = { env = 'A' } }", 3, '"A B" cannot be the name'),
        ("env = { A = '1' }\nsecret_env = { A = { env = 'A' } }", 4, "secret_env.A: A also stands in env"),
        ("secret_env = { A = {} }", 3, "secret_env.A: neither file nor env is given"),
        ("secret_env = { A = { file = 'f', env = 'E' } }", 3, "secret_env.A: both file and env are given"),
        (
            "secret_env = { A = { env = 'sk-1' } }",
            3,
            "secret_env.A.env: the name of an environment variable is expected here",
        ),
        ('env = { A = "a\\u0000b" }', 3, "env.A: a NUL character cannot be passed"),
        ('model = "a\\nb"', 3, "model: the text contains a line break or a NUL character"),
        ('extra_args = ["a",\n"b\\u0000"]', 4, "extra_args[1]: the text contains a line break"),
        ('models = [{ name = "a\\r", context_length = 1 }]', 3, "models[0].name: the text contains a line break"),
        ("port = 18400", 3, "port: port 18400 lies in ports (18400-18499)"),
    ],
)
def test_one_service(settings: str, line: int, text: str) -> None:
    found = wrong(f"{CHAT}{settings}\n")
    assert len(found) == 1 and found[0][0] == line and text in found[0][1], found


def test_what_is_allowed() -> None:
    text = """\
env = { A = "two\\nlines", GGML_X = "1" }
cpus = "0-7,16"
ready = "/"
secret_env = { B = { env = "B" }, C = { file = "c" } }
start = "boot"
keep_alive = "10m"
aliases = ["chat", "x"]
port = 18500
[services.two]
runtime = "ollama"
aliases = ["x"]
[services.off]
enabled = false
runtime = "ollama"
port = 18500
"""
    assert wrong(CHAT + text) == []


def test_ports_of_two_services() -> None:
    text = f"{CHAT}port = 8081\n[services.b]\nruntime = 'ollama'\nport = 8081\n"
    assert wrong(text) == [(6, "services.b.port: port 8081 is also that of services.chat")]


def test_too_few_ports() -> None:
    text = f"ports = '18400-18400'\n{CHAT}[services.b]\nruntime = 'ollama'\n"
    assert wrong(text) == [(1, 'ports: "18400-18400" holds 1 ports for 2 services')]
    assert wrong(text + "port = 8081\n") == []
    assert wrong(text + "enabled = false\n") == []


def test_gateway_port_clashes() -> None:
    assert wrong(f"gateway.listen = '127.0.0.1:8088'\n{CHAT}port = 8088") == [
        (4, "services.chat.port: port 8088 is that of gateway.listen")
    ]
    assert wrong(f"gateway.listen = '127.0.0.1:18450'\n{CHAT}") == [
        (1, "gateway.listen: port 18450 lies in ports (18400-18499)")
    ]
