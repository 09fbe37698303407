"""The launcher of the in-process server, and the real one beside it, started with what our own plan renders."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import engines
from support.http import Stream, chat, get_json, request
from support.wait import wait_until

from llmsupervisor.host.embedded import KV_TYPES, help_text
from llmsupervisor.runtime.adapter import adapter_for
from llmsupervisor.runtime.command import Given
from llmsupervisor.runtime.help import flag_of
from llmsupervisor.runtime.help import parse as parse_help
from llmsupervisor.runtime.load import parse
from llmsupervisor.runtime.render import problems, render
from llmsupervisor.spec.model import Service

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]
DEFINITION = parse((engines.REPOSITORY / "runtimes" / "llama-server.toml").read_text(), "llama-server.toml")
KEY = "test-key"


class Embedded:
    def __init__(self, executable: Path, port: int, log: Path, **keys: Any) -> None:
        table = {"runtime": "llama-server", "context_length": 1024, "parallel": 2, "gpus": ()}
        self.service = Service.model_validate(table | {"kv_cache_type": "q8_0", "batch": 256} | keys)
        assert problems("chat", self.service, DEFINITION) == []
        gpus = tuple((f"GPU-{n}", n) for n in self.service.gpus or () if isinstance(n, int))
        self.given = Given("chat", "127.0.0.1", port, str(executable), gpus, cpus=2, environ={"PATH": "/usr/bin:/bin"})
        rendered = render(self.service, DEFINITION, self.given)
        env = {e.name: e.value for e in rendered.env} | {"LLAMA_API_KEY": KEY}
        self.log, self.endpoint = log, f"http://127.0.0.1:{port}"
        with log.open("wb") as out:
            self.process = subprocess.Popen(rendered.words, env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL)

    def ready(self) -> Embedded:
        wait_until(self._healthy, 150, self.log.read_text)
        return self

    def _healthy(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return request(f"{self.endpoint}/health", timeout=5)[0] == 200
        except OSError:
            return False


@pytest.fixture
def start(tmp_path: Path, model: Path, ports: range) -> Iterator[Callable[..., Embedded]]:
    started: list[Embedded] = []

    def go(executable: Path | None = None, **keys: Any) -> Embedded:
        started.append(
            Embedded(
                executable or engines.embedded(), ports[len(started)], tmp_path / "log", **{"model": str(model)} | keys
            )
        )
        return started[-1]

    yield go
    for server in started:
        server.process.kill()
        server.process.wait(60)


@pytest.mark.parametrize("executable", [engines.embedded, engines.llama_server])
def test_it_serves_what_was_asked(start: Callable[..., Embedded], executable: Callable[[], Path]) -> None:
    server = start(executable(), aliases=("smol",)).ready()
    adapter = adapter_for(DEFINITION)
    payloads = {call.path: get_json(server.endpoint + call.path, KEY) for call in adapter.calls_got()}
    asked, got = adapter.asked(server.service, server.given), adapter.got(payloads, server.log.read_text())
    assert asked == got
    assert adapter.identity(payloads, "chat", server.service) == ""
    assert {row["id"] for row in get_json(f"{server.endpoint}/v1/models", KEY)["data"]} == {"chat"}
    assert chat(server.endpoint, KEY)
    assert request(f"{server.endpoint}/props")[0] == 401
    figures = adapter.figures(
        request(f"{server.endpoint}/metrics", key=KEY)[1].decode(), get_json(f"{server.endpoint}/slots", KEY)
    )
    assert figures.requests_running == 0 and figures.completion_tokens_total and figures.kv_tokens_cached


@pytest.mark.parametrize("executable", [engines.embedded, engines.llama_server])
def test_a_build_without_gpus_is_seen_through(start: Callable[..., Embedded], executable: Callable[[], Path]) -> None:
    """Asked for every layer on a GPU it serves from the CPU, with a warning at most."""
    server = start(executable(), gpus=(0,)).ready()
    adapter = adapter_for(DEFINITION)
    asked, got = adapter.asked(server.service, server.given), adapter.got({}, server.log.read_text())
    assert (asked["gpu_layers"], got["gpu_layers"]) == ("all", 0)
    assert adapter.compare(asked, got) == ["gpu_layers"]


def test_it_stops_at_sigterm_also_with_an_open_stream(start: Callable[..., Embedded]) -> None:
    server = start().ready()
    with Stream(server.endpoint, KEY) as stream:
        stream.first()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    idle = start().ready()
    idle.process.send_signal(signal.SIGINT)
    assert idle.process.wait(60) == 0


def test_a_missing_model_ends_it_with_the_engines_own_words(start: Callable[..., Embedded]) -> None:
    server = start(model="/nonexistent/m.gguf")
    assert server.process.wait(90) == 1
    assert "failed to open GGUF file '/nonexistent/m.gguf'" in server.log.read_text()


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([engines.embedded(), *args], capture_output=True, text=True, timeout=150)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--log-jsonl",), "error: invalid argument: --log-jsonl"),
        (("--no_such", "1"), "error: invalid argument: --no_such"),
        (("-ctk", "q2_k"), 'error while handling argument "-ctk": Unsupported cache type: q2_k'),
        (("--flash-attn", "maybe"), 'error while handling argument "--flash-attn": error: unknown value'),
        (("-sm", "weird"), 'error while handling argument "-sm": invalid value'),
        (("-c", "abc"), 'error while handling argument "-c": stoi'),
        (("-c",), 'error while handling argument "-c": expected value for argument'),
        (("--device", "CUDA0"), 'error while handling argument "--device": invalid device: CUDA0'),
        (("-np", "0"), "invalid value for n_parallel"),
        (("--chat-template-file", "/nonexistent"), "failed to open file '/nonexistent'"),
        ((), "the model is missing"),
    ],
)
def test_it_refuses_as_llama_server_does(args: tuple[str, ...], told: str) -> None:
    ended = run(*args)
    assert ended.returncode == 1 and told in ended.stderr


def test_version_and_help() -> None:
    version = DEFINITION.version
    assert version is not None
    told = run(*version.command)
    assert told.returncode == 0 and told.stderr.startswith("version: ")
    shown = run("--help")
    assert shown.returncode == 0 and shown.stdout == help_text()


def test_it_takes_every_flag_that_the_definition_renders() -> None:
    flags, _ = parse_help(help_text())
    own = {flag for s in DEFINITION.settings.values() for flag in (*s.flags, *filter(None, (s.off,)))}
    own |= {word for fixed in DEFINITION.fixed for word in fixed.args if flag_of(word)}
    own |= {"--host", "--port", "--device", "--embeddings", "--reranking", "--spec-type", "--spec-draft-ngl"}
    assert own - flags == set()
    assert set(DEFINITION.settings["kv_cache_type"].values) == set(KV_TYPES)


def test_a_draft_model_and_a_template_file(start: Callable[..., Embedded], model: Path, tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}")
    server = start(draft=str(model), chat_template=str(template), flash_attention=False, kv_cache_type="f16").ready()
    assert "adding speculative implementation 'draft-simple'" in server.log.read_text()
    assert get_json(f"{server.endpoint}/props", KEY)["chat_template"] == template.read_text()
    assert chat(server.endpoint, KEY)


def test_embeddings(start: Callable[..., Embedded]) -> None:
    server = start(task="embed", extra_args=("--pooling", "mean")).ready()
    status, body = request(f"{server.endpoint}/v1/embeddings", {"model": "chat", "input": "Hi"}, KEY)
    assert status == 200 and b'"embedding"' in body
