"""The official `openai` and `anthropic` clients against a real daemon, gateway and llama-server."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from gateway.box import Box
from support import engines, process
from support.daemon import Daemon
from support.http import get_json
from support.spec import served
from support.wait import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

KEYS = {"alice": "alice-0123456789abcdef", "bob": "bob-0123456789abcdefgh"}
TEMPLATE = Path(__file__).parents[1] / "fixtures" / "gateway" / "tools.jinja"
HI: Any = [{"role": "user", "content": "Say hi in one word."}]
FIXED: Any = {"temperature": 0, "seed": 1}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION: Any = {"name": "get_weather", "description": "The weather of a city.", "parameters": SCHEMA}


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    """Two services, chat and embed, for all tests of this file; alice may use both, bob the second."""
    command, model = engines.llama_server(), engines.smollm2()
    daemon = Daemon(Path(tempfile.mkdtemp(prefix="ls-")), process.free_ports(10))
    box = Box(daemon)
    keys: dict[str, Any] = {}
    for name, secret in KEYS.items():
        (daemon.folder / name).write_text(secret)
        (daemon.folder / name).chmod(0o600)
        keys[name] = {"file": str(daemon.folder / name)}
    keys["bob"]["models"] = ["embed"]
    chat = served(command, model, context_length=2048, aliases=["smollm2"], chat_template=str(TEMPLATE))
    pooled = ["--pooling", "mean"]
    embed = served(command, model, task="embed", context_length=512, parallel=1, extra_args=pooled)
    box.write({"chat": chat, "embed": embed}, gateway={"keys": keys})
    daemon.up()
    for name in ("chat", "embed"):
        settled = daemon.wait_service(name, lambda s: s["state"] in ("READY", "FAILED"), 240)
        assert settled["state"] == "READY", settled["reason"]
    box.ready()
    yield box
    left = daemon.close()
    shutil.rmtree(daemon.folder, ignore_errors=True)
    assert not left, left


@pytest.fixture
def client(box: Box) -> Iterator[openai.OpenAI]:
    with openai_client(box) as client:
        yield client


@pytest.fixture
def claude(box: Box) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=box.url, api_key=KEYS["alice"], max_retries=0, timeout=180) as client:
        yield client


def openai_client(box: Box, secret: str = KEYS["alice"], retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{box.url}/v1", api_key=secret, max_retries=retries, timeout=180)


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.mark.parametrize("model", ["chat", "smollm2"])
def test_chat(client: openai.OpenAI, model: str) -> None:
    """Streamed or not, under each name: the same text, and the name that was asked."""
    whole = client.chat.completions.create(model=model, messages=HI, max_tokens=8, **FIXED)
    assert whole.choices[0].message.content and whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage and whole.usage.completion_tokens > 0 and whole.usage.prompt_tokens > 0
    assert whole.model == model
    stream = client.chat.completions.create(model=model, messages=HI, max_tokens=8, stream=True, **FIXED)
    chunks = list(stream)
    assert text_of(chunks) == whole.choices[0].message.content
    assert {chunk.model for chunk in chunks} == {model} and not any(chunk.usage for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    told: Any = {"include_usage": True}
    asked = client.chat.completions.create(
        model=model, messages=HI, max_tokens=8, stream=True, stream_options=told, **FIXED
    )
    assert (last := list(asked)[-1]).usage and last.usage.completion_tokens == whole.usage.completion_tokens


def test_chat_options(client: openai.OpenAI) -> None:
    """n, logprobs and a schema."""
    several = client.chat.completions.create(
        model="chat", messages=HI, max_tokens=4, n=2, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.choices[0].logprobs and several.choices[0].logprobs.content
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    formed = client.chat.completions.create(model="chat", messages=HI, max_tokens=40, response_format=form, **FIXED)
    assert isinstance(json.loads(formed.choices[0].message.content or "")["city"], str)


def calls(city: str) -> list[Any]:
    """A small model calls a tool where it has seen it done."""
    call = {
        "id": city,
        "type": "function",
        "function": {"name": "get_weather", "arguments": json.dumps({"city": city})},
    }
    return [
        {"role": "user", "content": f"weather in {city}?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]


def test_tools(client: openai.OpenAI) -> None:
    messages: Any = [*calls("Oslo"), *calls("Bern"), {"role": "user", "content": "weather in Rome?"}]
    asked: Any = {"messages": messages, "tools": [{"type": "function", "function": FUNCTION}], "max_tokens": 48}
    whole = client.chat.completions.create(model="chat", **asked, **FIXED)
    assert whole.choices[0].message.tool_calls
    call: Any = whole.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather" and json.loads(call.function.arguments) == {"city": "Rome"}
    with client.chat.completions.stream(model="smollm2", **asked, **FIXED) as stream:
        final = stream.get_final_completion()
    streamed = final.choices[0].message.tool_calls
    assert streamed and streamed[0].function.arguments == call.function.arguments and final.model == "smollm2"


def test_completions(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="chat", prompt="The capital of France is", max_tokens=6, **FIXED)
    assert whole.choices[0].text and whole.usage
    stream = client.completions.create(
        model="smollm2", prompt="The capital of France is", max_tokens=6, stream=True, **FIXED
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert {chunk.model for chunk in chunks} == {"smollm2"}


def test_embeddings(box: Box, client: openai.OpenAI) -> None:
    """A service with a task of its own; a key that may use nothing else."""
    both = client.embeddings.create(model="embed", input=["one", "two"])
    assert [each.index for each in both.data] == [0, 1] and {len(each.embedding) for each in both.data} == {576}
    with openai_client(box, KEYS["bob"]) as bob:
        again = bob.embeddings.create(model="embed", input="one", encoding_format="float")
        assert again.data[0].embedding == pytest.approx(both.data[0].embedding, abs=1e-2)
        assert [model.id for model in bob.models.list()] == ["embed"]


def test_responses(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="smollm2", input="Say hi.", max_output_tokens=8, temperature=0)
    assert whole.output_text and whole.model == "smollm2" and whole.usage and whole.usage.output_tokens > 0
    events: list[Any] = list(
        client.responses.create(model="smollm2", input="Say hi.", max_output_tokens=8, temperature=0, stream=True)
    )
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete")
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text


def test_messages(claude: anthropic.Anthropic) -> None:
    asked: Any = {"messages": HI, "max_tokens": 8, "system": "Be short.", "extra_body": {"temperature": 0}}
    whole = claude.messages.create(model="smollm2", **asked)
    assert whole.content[0].type == "text" and whole.content[0].text and whole.model == "smollm2"
    assert whole.usage.output_tokens > 0 and whole.stop_reason in ("end_turn", "max_tokens")
    with claude.messages.stream(model="smollm2", **asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text and final.model == "smollm2"
    tool: Any = {"name": "get_weather", "description": "The weather of a city.", "input_schema": SCHEMA}
    tooled = claude.messages.create(model="chat", messages=HI, max_tokens=8, tools=[tool])
    assert tooled.stop_reason in ("end_turn", "max_tokens", "tool_use")


def test_models(client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert list(models) == ["chat", "smollm2", "embed"]
    assert all(model.object == "model" and model.created > 0 and model.owned_by for model in models.values())
    more = models["chat"].model_extra or {}
    assert more["state"] == "open" and more["context_length"] == 2048


def test_error_classes(box: Box, client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    with pytest.raises(openai.NotFoundError, match=r"smollm2.*embed") as unknown:
        client.chat.completions.create(model="gpt-4", messages=HI)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(anthropic.NotFoundError, match=r"smollm2.*embed"):
        claude.messages.create(model="claude", messages=HI, max_tokens=4)
    with openai_client(box, "wrong-0123456789abcdef") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    with anthropic.Anthropic(base_url=box.url, api_key="wrong", max_retries=0) as unknown_key:
        refused = pytest.raises(anthropic.AuthenticationError, match="key")
        with refused:
            unknown_key.messages.create(model="chat", messages=HI, max_tokens=4)
    with openai_client(box, KEYS["bob"]) as bob, pytest.raises(openai.PermissionDeniedError, match="embed"):
        bob.chat.completions.create(model="chat", messages=HI)
    long: Any = [{"role": "user", "content": "word " * 3000}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="2048") as too_long:
            client.chat.completions.create(model="chat", messages=long, stream=stream, max_tokens=10)
        assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(anthropic.BadRequestError, match="2048"):
        claude.messages.create(model="smollm2", messages=long, max_tokens=10)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="chat", messages="x")  # type: ignore[arg-type]
    with pytest.raises(openai.APIStatusError, match="embeddings") as unspoken:
        client.embeddings.create(model="chat", input="one")
    assert unspoken.value.status_code == 501


def test_a_stopped_service_and_its_return(box: Box, client: openai.OpenAI) -> None:
    """503 with Retry-After; the client's own retries find it when it is back."""
    box.daemon.cli("stop", "embed")
    try:
        with pytest.raises(openai.InternalServerError, match="stopped") as stopped:
            client.embeddings.create(model="embed", input="one")
        assert stopped.value.status_code == 503 and int(stopped.value.response.headers["Retry-After"]) >= 1
        start = threading.Timer(0.5, lambda: box.daemon.cli("start", "embed", timeout=120))
        start.start()
        with openai_client(box, retries=5) as patient:
            assert patient.embeddings.create(model="embed", input="one").data
        start.join()
    finally:
        box.daemon.cli("start", "embed", timeout=120)
    box.daemon.wait_state("embed", "READY", 240)


def test_a_client_that_stops_listening(box: Box, client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    def gone() -> int:
        return [record["finish_reason"] for record in box.records()].count("client_gone")

    before = gone()
    story: Any = [{"role": "user", "content": "Tell me a long story."}]
    with client.chat.completions.create(
        model="chat", messages=story, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    ) as stream:
        for _, _ in zip(range(3), stream, strict=False):
            pass
    with claude.messages.stream(
        model="chat", messages=story, max_tokens=1500, extra_body={"ignore_eos": True}
    ) as spoken:
        next(iter(spoken.text_stream))
    slots = f"{box.daemon.service('chat')['endpoint']}/slots"
    wait_until(lambda: not any(s["is_processing"] for s in get_json(slots, box.daemon.key("chat"))), 20, "idle slots")
    wait_until(lambda: not box.leases(), 20, "leases zero")
    wait_until(lambda: gone() == before + 2, 10, "two records of clients that have gone")
