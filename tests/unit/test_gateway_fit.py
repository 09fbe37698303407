"""What fits a context, and what an engine's tokenizer is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmsupervisor.gateway.call import Call, read
from llmsupervisor.gateway.fit import (
    TEMPLATE,
    certain,
    conversation,
    estimate,
    exact,
    fits,
    needs,
    read_answer,
    refusal,
    request,
    surely_cut,
)
from llmsupervisor.gateway.view import ROUTES, Count
from llmsupervisor.runtime.load import parse

Json = Any
ROOT = Path(__file__).parents[2]
DEFINITIONS = {name: parse((ROOT / "runtimes" / f"{name}.toml").read_text(), name) for name in ("llama-server", "vllm")}


def call(api: str, **keys: Json) -> Call:
    said = {"model": "chat", **keys}
    found = read(api, said, json.dumps(said).encode())
    assert isinstance(found, Call)
    return found


def count(runtime: str, api: str) -> Count:
    return Count(**DEFINITIONS[runtime].count[api].model_dump())


def chat(text: str, **keys: Json) -> Call:
    return call("chat.completions", messages=[{"role": "user", "content": text}], **keys)


def test_a_text_has_no_more_tokens_than_bytes_and_what_is_around_it() -> None:
    assert needs(call("completions", prompt="a" * 100)) == 116
    assert needs(chat("a" * 100)) == 100 + 16 + TEMPLATE
    assert needs(call("responses", input="a" * 100)) == 100 + TEMPLATE
    assert needs(call("completions", prompt=["a" * 100, "é" * 100])) == 216
    assert needs(chat("", tools=[{"type": "function"}])) == TEMPLATE + 16 + len('[{"type": "function"}]')


def test_token_ids_are_exact() -> None:
    ids = call("completions", prompt=[[1] * 100, [2] * 50])
    assert needs(ids) == exact(ids) == 100
    assert exact(call("completions", prompt=[1, "a"])) is None
    assert exact(chat("a")) is None


def test_more_than_text_is_never_certain() -> None:
    image = call("chat.completions", messages=[{"role": "user", "content": [{"type": "image_url"}]}])
    assert needs(image) is None and not certain(image, 10**9)
    assert estimate(image, unknown=2000) == 2000


@pytest.mark.parametrize("max_tokens, output", [(None, 1), (0, 1), (50, 50)])
def test_prompt_and_output_share_the_context(max_tokens: int | None, output: int) -> None:
    ids = call("completions", prompt=[1] * 100, max_tokens=max_tokens)
    assert certain(ids, 100 + output) and not certain(ids, 99 + output)
    assert fits(ids, 100, 100 + output) and not fits(ids, 101, 100 + output)


@pytest.mark.parametrize(("engine", "cut"), [(None, False), (1000, True), (2100, False), (9000, False)])
def test_what_was_surely_cut_though_nobody_counted_it(engine: int | None, cut: bool) -> None:
    assert surely_cut(chat("four" * 4000), engine) is cut


def test_of_what_is_no_text_nobody_knows() -> None:
    assert not surely_cut(call("chat.completions", messages=[{"content": [{"type": "image_url"}]}]), 1)


def test_an_embedding_fills_the_context() -> None:
    assert certain(call("embeddings", input=[1] * 100), 100)


def test_the_estimate_is_of_all_prompts() -> None:
    assert estimate(call("completions", prompt=["a" * 300, "b" * 300]), unknown=0) == 216
    assert estimate(call("completions", prompt=[[1] * 300, [1] * 300]), unknown=0) == 616


@pytest.mark.parametrize(
    "runtime, api, said, asked",
    [
        ("llama-server", "chat.completions", {"messages": [1], "top_k": 2}, {"messages": [1], "top_k": 2}),
        ("llama-server", "completions", {"prompt": "a"}, {"content": "a", "add_special": True}),
        ("llama-server", "completions", {"prompt": ["a", "bc"]}, {"content": "bc", "add_special": True}),
        ("llama-server", "completions", {"prompt": [1, "bc"]}, {"content": [1, "bc"], "add_special": True}),
        ("llama-server", "completions", {"prompt": ["ab", "é€"]}, {"content": "é€", "add_special": True}),
        ("llama-server", "completions", {}, {"add_special": True}),
        ("llama-server", "embeddings", {"input": "a"}, {"content": "a", "add_special": True}),
        ("vllm", "completions", {"prompt": "a", "model": "x"}, {"prompt": "a", "model": "x"}),
        ("vllm", "completions", {"prompt": ["a"], "model": "x"}, {"prompt": "a", "model": "x"}),
        ("vllm", "chat.completions", {"messages": [], "model": "x"}, {"messages": [], "model": "x"}),
    ],
)
def test_what_the_engine_is_asked(runtime: str, api: str, said: Json, asked: Json) -> None:
    how = count(runtime, api)
    assert json.loads(request(how, call(api, **said), said)) == asked


def test_every_count_belongs_to_a_route() -> None:
    for definition in DEFINITIONS.values():
        assert set(definition.count) <= set(ROUTES.values())


@pytest.mark.parametrize(
    "runtime, api, answer, tokens",
    [
        ("llama-server", "chat.completions", {"input_tokens": 31, "object": "response.input_tokens"}, 31),
        ("llama-server", "messages", {"input_tokens": 19}, 19),
        ("llama-server", "completions", {"tokens": [19556, 905]}, 2),
        ("llama-server", "completions", {"tokens": []}, 0),
        ("vllm", "completions", {"count": 9, "max_model_len": 1024, "tokens": [74, 71, 78], "token_strs": None}, 9),
        ("vllm", "messages", {"input_tokens": 19}, 19),
        ("vllm", "completions", {"error": {"message": "x", "code": 400}}, None),
        ("vllm", "completions", {"count": True}, None),
        ("vllm", "completions", {"count": -1}, None),
        ("vllm", "completions", [9], None),
    ],
)
def test_answers_that_were_seen(runtime: str, api: str, answer: Json, tokens: int | None) -> None:
    assert read_answer(count(runtime, api), answer) == tokens


def test_an_answer_inside_of_another_object() -> None:
    how = Count("/x", None, "usage.tokens")
    assert read_answer(how, {"usage": {"tokens": 3}}) == 3
    assert read_answer(how, {"usage": 3}) is None


def test_a_refusal_names_the_numbers() -> None:
    found = refusal(8000, 500, 8192, "chat")
    assert (found.status, found.code) == (400, "context_length_exceeded")
    assert found.message == (
        "This model's maximum context length is 8192 tokens. You requested 8500 (8000 in the prompt, 500 in max_tokens): "
        "shorten the prompt or lower max_tokens (chat)."
    )
    assert "8192" in refusal(8192, None, 8192, "chat").message
    assert "max_tokens" not in refusal(8192, None, 8192, "chat").message


def test_messages_are_asked_about_whole_and_what_is_none_is_left_out() -> None:
    messages = [{"role": "user", "content": "a"}]
    asked = chat("a")
    how = Count("/tokenize", {"messages": "messages"}, "tokens")
    assert json.loads(request(how, asked, {"model": "chat", "messages": messages})) == {"messages": messages}
    assert conversation({"messages": [7, *messages, None]})["messages"] == messages
