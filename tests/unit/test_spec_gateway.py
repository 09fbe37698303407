"""`[gateway]`: the address, who may ask, and what would let strangers in."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from llmsupervisor.base.errors import Problem
from llmsupervisor.spec.gateway import is_loopback
from llmsupervisor.spec.load import load
from llmsupervisor.spec.resolve import resolve

CHAT = '[services.chat]\nruntime = "llama-server"\naliases = ["llama"]\nnames."chat-precise" = {}\n'
OLLAMA = '[services.o]\nruntime = "ollama"\nmodels = [{ name = "qwen:7b", context_length = 8 }]\n'
KEY = "[gateway.keys.alice]\nenv = 'ALICE'\n"


def problems(text: str) -> tuple[Problem, ...]:
    return load(text, "f").problems


def one(text: str) -> Problem:
    (found,) = problems(text)
    return found


@pytest.mark.parametrize("listen", ["127.0.0.1:8088", "127.1.2.3:1", "localhost:65535", "LocalHost:1", "[::1]:8088"])
def test_loopback_needs_no_key(listen: str) -> None:
    assert problems(f"gateway.listen = '{listen}'\n{CHAT}") == ()
    assert is_loopback(listen)


@pytest.mark.parametrize(
    "listen",
    (
        *("8088", ":8088", "localhost", "::1:8088", "localhost:0", "localhost:65536", "localhost:x", "[::1]", "a b:1"),
        *("1127.0.0.1:80", "127.0.0:80", "[127.0.0.1]:80", "[::g]:80", "unix:/run/x.sock", "/run/x", "http://a:80"),
    ),
)
def test_what_is_no_address(listen: str) -> None:
    found = one(f"gateway.listen = '{listen}'\n{CHAT}")
    assert (found.line, found.key) == (1, "gateway.listen")
    assert found.wrong == f'expected an address HOST:PORT ([HOST]:PORT for IPv6), found "{listen}"'


def test_every_address_is_written_otherwise() -> None:
    assert "0.0.0.0 for every IPv4 address" in str(one(f"gateway.listen = '*:8088'\n{CHAT}"))


@pytest.mark.parametrize("listen", ["0.0.0.0:8088", "[::]:8088", "box.example:8088", "192.168.1.2:80"])
def test_others_need_keys(listen: str) -> None:
    found = one(f"gateway.listen = '{listen}'\n{CHAT}")
    assert "is not a loopback address, and without keys everybody" in found.wrong and not is_loopback(listen)
    assert "allow_unauthenticated = true" in found.allowed and found.example.startswith("keys = { alice = ")
    assert problems(f"[gateway]\nlisten = '{listen}'\n{KEY}{CHAT}") == ()
    assert problems(f"[gateway]\nlisten = '{listen}'\nallow_unauthenticated = true\n{CHAT}") == ()


@pytest.mark.parametrize(
    ("settings", "line", "text"),
    [
        (f"allow_unauthenticated = true\n{KEY}", 2, "gateway.allow_unauthenticated: keys and allow_unauthenticated"),
        ("keys.'a b'.env = 'A'", 2, 'gateway.keys."a b": "a b" cannot be the name of a key; allowed: 1 to 63 of'),
        ("keys.a = {}", 2, "gateway.keys.a: neither file nor env is given; allowed: exactly one of the two"),
        ("keys.a = {file='a', env='A'}", 2, "gateway.keys.a: both file and env are given"),
        ("keys.a.env = 'sk-1'", 2, "gateway.keys.a.env: the name of an environment variable is expected here"),
        (
            "[gateway.keys.a]\nenv = 'A'\nmodels = [\n'chat',\n'lama']",
            6,
            'gateway.keys.a.models[1]: no service answers to "lama"; '
            'allowed: "chat", "llama", "chat-precise", "o", "qwen:7b"; did you mean "llama"?',
        ),
        ("keys.a = {env='A', models = ['o', 'o']}", 2, 'gateway.keys.a.models[1]: "o" stands here twice'),
        ("keys.a = {env='A', models = []}", 2, "gateway.keys.a.models: expected a list of names, at least one"),
        ("keys.a = {env='A', share = 0}", 2, "gateway.keys.a.share: expected a number above 0, 1000 at most"),
        ("keys.a = {env='A', share = nan}", 2, "gateway.keys.a.share: expected a number above 0"),
        ("keys.a = {env='A', share = true}", 2, "gateway.keys.a.share: expected a number above 0"),
        ("keys.a = {env='A', model = 'o'}", 2, "gateway.keys.a.model: unknown key"),
        ("hosts = ['https://x']", 2, 'gateway.hosts[0]: expected a host name without scheme and port, found "https:'),
        ("hosts = ['x', 'y:80']", 2, "gateway.hosts[1]: expected a host name"),
        ("origins = ['chat.example.org']", 2, "gateway.origins[0]: expected an origin SCHEME://HOST[:PORT]"),
        ("origins = ['https://x/']", 2, "gateway.origins[0]: expected an origin"),
        ("origins = ['https://*.x']", 2, "gateway.origins[0]: expected an origin"),
        ("origins = ['*']", 2, "gateway.origins[0]: without keys any web page that somebody here opens"),
        ("trusted_proxies = ['x']", 2, 'gateway.trusted_proxies[0]: expected an address or a network, found "x"'),
        (
            "trusted_proxies = ['10.0.0.1/8']",
            2,
            'gateway.trusted_proxies[0]: "10.0.0.1/8" is an address inside a network; allowed: the network, or the '
            'address alone; did you mean "10.0.0.0/8"?',
        ),
        ("scrape = 'keys'", 2, 'gateway.scrape: scrape = "keys" and there are no keys'),
        ("scrape = 'everybody'", 2, "gateway.scrape: expected one of the allowed words"),
        ("queue_deadline = 60", 2, "gateway.queue_deadline: expected a duration with a unit"),
        ("queue_size = 0", 2, "gateway.queue_size: expected a whole number above 0"),
        ("max_body = '0MiB'", 2, "gateway.max_body: expected a size with a unit"),
        ("history_age = 90", 2, "gateway.history_age: expected a duration with a unit"),
        ("queue_dedline = '1m'", 2, "gateway.queue_dedline: unknown key; did you mean queue_deadline?"),
    ],
)
def test_what_is_wrong(settings: str, line: int, text: str) -> None:
    found = one(f"[gateway]\n{settings}\n{CHAT}{OLLAMA}")
    assert found.line == line and text in str(found), found


def test_what_is_right() -> None:
    text = """\
[gateway]
listen = "0.0.0.0:8088"
hosts = ["llm.example.org", "10.0.0.1", "box_1"]
origins = ["https://chat.example.org", "http://localhost:3000", "vscode-webview://abc", "*"]
trusted_proxies = ["127.0.0.1", "10.0.0.0/8", "::1", "fd00::/8"]
scrape = "keys"
queue_deadline = "0s"
queue_size = 1
max_body = "1GiB"
prefix_hashes = false
history_age = "forever"
history_size = "5GiB"
[gateway.keys."bob@example.org"]
file = "keys/bob"
models = ["chat", "llama", "chat-precise", "o", "qwen:7b"]
share = 2
"""
    spec = load(f"{text}{CHAT}{OLLAMA}", "f").spec
    assert spec is not None and spec.gateway is not None
    assert spec.gateway.history_age is None and spec.gateway.keys["bob@example.org"].share == 2.0


def test_a_file_of_a_key_lies_beside_the_spec() -> None:
    text = "[gateway.keys]\na.file = 'keys/a'\nb.file = '~/b'\nc.file = '$CREDENTIALS_DIRECTORY/c'\nd.env = 'D'\n"
    spec = load(text + CHAT, "f").spec
    assert spec is not None
    gateway = resolve(spec, PurePosixPath("/etc/box"), PurePosixPath("/home/x")).gateway
    assert gateway is not None
    files = {name: key.file for name, key in gateway.keys.items()}
    assert files == {"a": "/etc/box/keys/a", "b": "/home/x/b", "c": "/etc/box/$CREDENTIALS_DIRECTORY/c", "d": None}
