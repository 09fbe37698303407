"""What is read from a request's body, what is written in its place, and the hashes of its prompt."""

from __future__ import annotations

import json
import timeit
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsupervisor.gateway.call import BLOCK, DEPTH, Call, blocks, change, read, rewrite
from llmsupervisor.gateway.route import Refusal
from llmsupervisor.gateway.view import ROUTES, Policy

Json = Any
TOOL = {"type": "function", "function": {"name": "f", "description": "é", "parameters": {"type": "object"}}}
TOOLS = len(json.dumps([TOOL], ensure_ascii=False).encode())
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def call(api: str = "chat.completions", **keys: Json) -> Call:
    said = {"model": "chat", **keys}
    found = read(api, said, json.dumps(said).encode())
    assert isinstance(found, Call)
    return found


def user(content: Json) -> dict[str, Json]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    "api, keys, prompt_bytes, longest, prompts",
    [
        ("chat.completions", {"messages": [user("Hi"), {"role": "assistant", "content": "é€"}]}, 7, 7, 1),
        ("chat.completions", {"messages": [user([{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}])]}, 3, 3, 1),
        ("chat.completions", {"messages": [user("Hi")], "tools": [TOOL]}, 2 + TOOLS, 2 + TOOLS, 1),
        ("chat.completions", {"messages": [user("Hi")], "response_format": {"type": "x"}}, 15, 15, 1),
        ("chat.completions", {"messages": [user("\ud83d")]}, 3, 3, 1),
        ("chat.completions", {"messages": [user(None), user("Hi")]}, 2, 2, 1),
        ("completions", {"prompt": "Hello"}, 5, 5, 1),
        ("completions", {"prompt": ["Hello", "you"]}, 8, 5, 2),
        ("completions", {"prompt": [1, 2, 3]}, 0, 3, 1),
        ("completions", {"prompt": [[1, 2, 3], [4]]}, 0, 3, 2),
        ("completions", {"prompt": [1, "Hello", 2]}, 5, 7, 1),
        ("completions", {"prompt": ["ab", [4, 5, 6]]}, 2, 3, 2),
        ("embeddings", {"input": ["a", "bcd"]}, 4, 3, 2),
        ("embeddings", {"input": "abc"}, 3, 3, 1),
        ("responses", {"input": "Hi", "instructions": "Be."}, 5, 5, 1),
        ("responses", {"input": [user([{"type": "input_text", "text": "Hi"}])]}, 2, 2, 1),
        ("responses", {"input": [{"type": "function_call_output", "call_id": "1", "output": "abc"}]}, 3, 3, 1),
        ("messages", {"system": "Be.", "messages": [user("Hi")]}, 5, 5, 1),
        ("messages", {"system": [{"type": "text", "text": "Be."}], "messages": [user("Hi")]}, 5, 5, 1),
        ("messages", {"messages": [user([{"type": "tool_result", "tool_use_id": "1", "content": "abc"}])]}, 3, 3, 1),
        ("rerank", {"query": "q", "documents": ["a", "bcd", {"text": "ef"}]}, 7, 4, 3),
        ("infill", {"input_prefix": "ab", "input_suffix": "c", "prompt": "de"}, 5, 5, 1),
    ],
)  # fmt: skip
def test_bytes_of_the_prompt(api: str, keys: dict[str, Json], prompt_bytes: int, longest: int, prompts: int) -> None:
    found = call(api, **keys)
    assert (found.prompt_bytes, found.longest, found.prompts) == (prompt_bytes, longest, prompts)


def test_token_ids_are_counted_as_such() -> None:
    assert call("completions", prompt=[[1, 2, 3], [4]]).token_ids == 4
    assert call("completions", prompt=[1, "Hello", 2]).token_ids == 2


@pytest.mark.parametrize(
    "keys",
    [
        {"messages": [user([{"type": "text", "text": "What is it?"}, IMAGE])]},
        {"messages": [user([{"type": "input_audio", "input_audio": {}}])]},
        {"messages": [user([{"type": "something_new"}])]},
        {"messages": [user([{"type": "tool_result", "content": [{"type": "image", "source": {}}]}])]},
        {"messages": [{"role": "assistant", "audio": {"id": "a"}}]},
        {"input": [{"type": "item_reference", "id": "1"}]},
        {"input": "Hi", "previous_response_id": "1"},
        {"prompt": {"prompt_string": "Hi", "multimodal_data": ["AAAA"]}},
        {"messages": [user("Hi")], "chat_template": "{{ messages }}"},
    ],
)
def test_bytes_are_unknown_where_there_is_more_than_text(keys: dict[str, Json]) -> None:
    found = call(**keys)
    assert found.prompt_bytes is None and found.longest is None


def test_words_under_other_keys_count() -> None:
    asks = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"arguments": "x" * 100}}]}
    assert (call(messages=[asks]).prompt_bytes or 0) > 100
    thinks = {"role": "assistant", "content": [{"type": "thinking", "thinking": "x" * 100}]}
    assert (call("messages", messages=[thinks]).prompt_bytes or 0) > 100


@pytest.mark.parametrize(
    "keys", [{"messages": "Hi"}, {"messages": ["Hi"]}, {"prompt": 3.5}, {"prompt": []}, {"input": [True]}]
)
def test_what_has_no_known_form_is_as_long_as_the_body(keys: dict[str, Json]) -> None:
    assert call(**keys).longest == len(json.dumps({"model": "chat", **keys}))


@pytest.mark.parametrize(
    "keys, limit",
    [
        ({}, None),
        ({"max_tokens": 8}, 8),
        ({"max_tokens": 8.0}, 8),
        ({"max_tokens": None}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": "8"}, None),
        ({"max_tokens": -1}, None),
        ({"max_output_tokens": 8}, 8),
        ({"max_tokens": 1, "max_completion_tokens": 8}, 8),
        ({"max_tokens": 8, "max_completion_tokens": 1}, 1),
        ({"max_tokens": 8, "n_predict": -1}, None),
        ({"max_tokens": 8, "n_predict": 0}, 0),
    ],
)
def test_max_tokens_are_those_that_the_engine_takes(keys: dict[str, Json], limit: int | None) -> None:
    assert call(**keys).max_tokens == limit


def test_the_rest_of_a_call() -> None:
    found = call(
        messages=[user("a"), user("b")], stream=True, stream_options={"include_usage": True}, n=3, tools=[TOOL]
    )
    assert (found.api, found.model, found.messages) == ("chat.completions", "chat", 2)
    assert (found.stream, found.usage_asked, found.n, found.tools) == (True, True, 3, True)
    found = call(messages=[user("a")], stream_options=[], n=0)
    assert (found.stream, found.usage_asked, found.n, found.tools) == (False, False, 1, False)


@pytest.mark.parametrize(
    "keys, session",
    [
        ({}, None),
        ({"user": ""}, None),
        ({"user": 3, "metadata": {"user_id": "u"}}, "u"),
        ({"user": "u", "metadata": {"user_id": "m"}, "prompt_cache_key": "c"}, "c"),
        ({"user": "u", "session_id": "s"}, "s"),
        ({"user": "u" * 1000}, "u" * 128),
    ],
)
def test_the_session_is_the_narrowest_that_is_said(keys: dict[str, Json], session: str | None) -> None:
    assert call(**keys).session_id == session


@pytest.mark.parametrize("said", [[], None, {}, {"model": None}, {"model": ""}, {"model": 3}])
def test_a_model_must_be_said(said: Json) -> None:
    found = read("completions", said, json.dumps(said).encode())
    assert isinstance(found, Refusal) and (found.status, found.code) == (400, "model_required")


def nested(depth: int) -> bytes:
    return b'{"model":"chat","x":' + b"[" * depth + b"]" * depth + b"}"


def test_depth_has_a_limit_up_to_which_all_of_it_works() -> None:
    body = nested(DEPTH - 1)
    said = json.loads(body)
    assert isinstance(read("completions", said, body), Call)
    assert json.loads(rewrite(said, body, "other", None, {})) == said | {"model": "other"}
    body = nested(DEPTH)
    found = read("completions", json.loads(body), body)
    assert isinstance(found, Refusal) and (found.status, found.code) == (400, "bad_request")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "output"]) | st.text(max_size=3), inner)
    ),
    max_leaves=15,
)
KEYS = ["messages", "prompt", "input", "query", "documents", "system", "tools", "max_tokens", "n", "stream"]
KEYS += ["stream_options", "metadata", "user", "text", "input_extra", "input_prefix", "instructions", "texts"]
BODY = st.dictionaries(st.sampled_from(KEYS), JSON).map(lambda said: {"model": "chat", **said})
PART = st.builds(lambda text: {"type": "text", "text": text}, st.text())
MESSAGES = st.lists(st.builds(user, st.text() | st.lists(PART | st.text())), min_size=1)


@given(st.sampled_from(sorted(ROUTES.values())), BODY)
def test_no_json_breaks_it(api: str, said: dict[str, Json]) -> None:
    body = json.dumps(said).encode()
    found = read(api, said, body)
    assert isinstance(found, Call)
    assert (found.prompt_bytes is None) == (found.longest is None)
    blocks(said, b"salt")
    assert json.loads(rewrite(said, body, "other", None, {})) == said | {"model": "other"}


@given(MESSAGES)
def test_all_text_of_a_chat_counts_once(messages: list[dict[str, Json]]) -> None:
    texts = []
    for message in messages:
        content = message["content"]
        for part in [content] if isinstance(content, str) else content:
            texts.append(part if isinstance(part, str) else part["text"])
    assert call(messages=messages).prompt_bytes == len("".join(texts).encode())


# --- the body as the engine gets it ---------------------------------------------------------------------------------

ODDLY = b'{ "model" : "chat", "temperature":0.50,\n"messages": [{"role":"user","content":"\\u00e9"}] }'


@pytest.mark.parametrize(
    "policy, more",
    [
        (None, {}),
        (Policy(), {}),
        (Policy(set={"temperature": 0.5}, strip=("seed",)), {}),
        (Policy(set={"messages": [user("é")]}), {"temperature": 0.5}),
    ],
)
def test_where_nothing_changes_the_body_is_the_same(policy: Policy | None, more: dict[str, Json]) -> None:
    assert rewrite(json.loads(ODDLY), ODDLY, "chat", policy, more) is ODDLY


def test_a_change_touches_nothing_else() -> None:
    assert rewrite(json.loads(ODDLY), ODDLY, "other", None, {}).decode() == (
        '{"model":"other","temperature":0.5,"messages":[{"role":"user","content":"é"}]}'
    )


def test_policies_and_additions() -> None:
    said = {"model": "precise", "seed": 1, "stream": True, "stream_options": {"x": 1}, "top_k": 5, "temperature": 1}
    policy = Policy(set={"temperature": 0, "top_p": 1}, strip=("seed", "top_k", "model"))
    new = change(said, "chat", policy, {"stream_options": {"include_usage": True}})
    assert new == {
        "model": "chat",
        "stream": True,
        "stream_options": {"x": 1, "include_usage": True},
        "temperature": 0,
        "top_p": 1,
    }
    assert said["seed"] == 1 and said["stream_options"] == {"x": 1}


def test_true_is_not_one() -> None:
    said = {"model": "chat", "logprobs": 1, "options": {"x": 1}}
    assert change(said, "chat", Policy(set={"logprobs": True}), {})["logprobs"] is True
    assert change(said, "chat", Policy(set={"options": {"x": True}}), {})["options"]["x"] is True


def test_half_a_surrogate_pair_stays_json() -> None:
    said = json.loads(b'{"model":"a","prompt":"\\ud83d \\u00e9"}')
    assert json.loads(rewrite(said, b"", "b", None, {}).decode()) == said | {"model": "b"}


# --- hashes of the prompt -------------------------------------------------------------------------------------------

WORDS = "".join(f"word{n} " for n in range(2000))


@given(MESSAGES, st.integers(0, 9000), st.text(), st.text(min_size=1))
def test_a_longer_conversation_begins_with_the_same_hashes(
    messages: list[dict[str, Json]], length: int, more: str, other: str
) -> None:
    messages = [user(WORDS[:length]), *messages]
    short = blocks({"messages": messages}, b"salt")
    long = blocks({"messages": [*messages, {"role": "assistant", "content": more}, user("go on")]}, b"salt")
    assert long[: len(short) - 1] == short[:-1]
    assert short == blocks({"messages": messages, "temperature": 0, "model": "x"}, b"salt")
    assert not set(short) & set(blocks({"messages": messages}, b"pepper"))
    assert not set(short) & set(blocks({"messages": [user(f"\0{other}"), *messages]}, b"salt"))
    assert len(short) == len(set(short))
    assert all(len(each) == 16 and int(each, 16) >= 0 for each in short + long)


def test_a_change_far_back_leaves_the_hashes_before_it() -> None:
    text = "x" * (10 * BLOCK)
    one = blocks({"prompt": text}, b"salt")
    other = blocks({"prompt": text[: 5 * BLOCK] + "y" + text[5 * BLOCK + 1 :]}, b"salt")
    assert len(one) == 11 and one[:5] == other[:5] and not set(one[5:]) & set(other[5:])


def test_text_hashes_alike_in_any_form() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert blocks({"messages": [user("ab")]}, b"s") == blocks({"messages": [user(parts)]}, b"s")
    assert blocks({"messages": [user("ab")]}, b"s") == blocks({"input": [user(parts)]}, b"s")


@pytest.mark.parametrize(
    "key", ["system", "instructions", "tools", "messages", "prompt", "input", "query", "input_prefix"]
)
def test_all_of_the_prompt_is_hashed(key: str) -> None:
    one, other = ([user("a")], [user("b")]) if key == "messages" else ("a", "b")
    assert blocks({key: one}, b"s") != blocks({key: other}, b"s")


def test_token_ids_and_images_are_hashed() -> None:
    assert blocks({"prompt": [1, 2]}, b"s") != blocks({"prompt": [1, 3]}, b"s")
    assert len(blocks({"prompt": list(range(1024))}, b"s")) == 3
    image = {"type": "image_url", "image_url": {"url": "B" * 100_000}}
    found = [blocks({"messages": [user([part])]}, b"s") for part in (IMAGE, image)]
    assert found[0] != found[1] and len(found[1]) == 1


def test_a_usual_body_is_read_in_a_few_times_what_its_json_takes() -> None:
    """The best of many: the machine may be busy."""
    said = {"model": "chat", "messages": [user("x" * 160) for _ in range(8)], "tools": [TOOL] * 4, "stream": True}
    body = json.dumps(said).encode()
    assert 1900 < len(body) < 2300
    best = min(timeit.repeat(lambda: read("chat.completions", said, body), number=20, repeat=50))
    assert best < 10 * min(timeit.repeat(lambda: json.loads(body), number=20, repeat=50))


def test_many_objects_beside_one_another_are_not_deep() -> None:
    said = {"model": "chat", "messages": [{"role": "user", "content": "a"}] * (DEPTH + 1)}
    found = read("chat.completions", said, json.dumps(said).encode())
    assert isinstance(found, Call) and found.messages == DEPTH + 1
