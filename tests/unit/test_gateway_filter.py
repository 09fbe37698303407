"""What a gateway takes out of an answer, and that it leaves every other byte, by captures of real engines."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmsupervisor.gateway import filter as module
from llmsupervisor.gateway.filter import Filter

CAPTURES = Path(__file__).parents[1] / "fixtures" / "gateway"
STREAMS = sorted(path.name for path in CAPTURES.glob("*.sse"))
ENGINES = {"vllm": "tiny", "llama": "smol", "ollama": "smol"}


def body(name: str) -> bytes:
    return (CAPTURES / name).read_bytes()


def vllm(usage: bool = False, rename: tuple[str, str] | None = None) -> Filter:
    return Filter(True, rename, ("metrics",), usage, False)


def run(filter: Filter, data: bytes, cuts: list[int] | None = None) -> bytes:
    ends = [0, *sorted(cuts or []), len(data)]
    return b"".join(filter.feed(data[a:b]) for a, b in pairwise(ends)) + filter.end()


def events(data: bytes) -> list[bytes]:
    return data.split(b"\n\n")


# --- exactly what was asked for ----------------------------------------------------------------------------------


def test_a_usage_that_nobody_asked_for_is_one_event_less() -> None:
    raw = events(body("vllm_chat_include_usage.sse"))
    assert run(vllm(usage=True), body("vllm_chat_include_usage.sse")) == b"\n\n".join([*raw[:7], *raw[8:]])


def test_a_usage_that_was_asked_for_loses_only_what_is_ours() -> None:
    raw = body("vllm_chat_include_usage.sse")
    at = raw.index(b',"metrics":{')
    assert run(vllm(), raw) == raw[:at] + raw[raw.index(b"}", at) + 1 :]


def test_a_usage_in_every_chunk() -> None:
    out = run(vllm(usage=True), body("vllm_chat_continuous_usage.sse"))
    raw = events(body("vllm_chat_continuous_usage.sse"))
    assert b"usage" not in out
    first = raw[0]
    at = first.index(b',"usage":{')
    assert events(out)[0] == first[:at] + first[first.index(b"}", at) + 1 :]
    assert len(events(out)) == len(raw) - 1


def test_a_usage_of_another_api_stays() -> None:
    for name in ("llama_messages.sse", "llama_responses.sse"):
        assert run(vllm(usage=True), body(name)) == body(name)


def test_progress_of_a_prompt() -> None:
    raw = events(body("llama_chat_progress.sse"))
    assert run(Filter(True, None, (), False, True), body("llama_chat_progress.sse")) == b"\n\n".join(raw[2:])
    raw = events(body("llama_completions.sse"))
    assert run(Filter(True, None, (), False, True), body("llama_completions.sse")) == b"\n\n".join(raw[2:])


@pytest.mark.parametrize("name", STREAMS)
def test_a_name_comes_back_as_it_was_said(name: str) -> None:
    engine = ENGINES[name.split("_")[0]]
    raw = body(name)
    out = run(Filter(True, (engine, 'my "alias"'), (), False, False), raw)
    assert out == raw.replace(f'"model":"{engine}"'.encode(), b'"model":"my \\"alias\\""')
    assert (out != raw) == (b'"model":"' in raw and b"model" in raw)


RENAME = ("tiny", "mine")


@pytest.mark.parametrize(
    ("data", "out"),
    [
        ('{"model" : "tiny"}', '{"model" : "mine"}'),
        ('{ "model":\t"tiny", "a": 1}', '{ "model":\t"mine", "a": 1}'),
        ('{"model":"t\\u0069ny"}', '{"model":"mine"}'),
        ('{"model":"other"}', '{"model":"other"}'),
        (
            '{"choices":[{"delta":{"content":"model"}}],"model":"tiny"}',
            '{"choices":[{"delta":{"content":"model"}}],"model":"mine"}',
        ),
        ('{"a":"\\"model\\":\\"tiny\\"","model":"tiny"}', '{"a":"\\"model\\":\\"tiny\\"","model":"mine"}'),
        (
            '{"type":"response.created","response":{"model":"tiny","metadata":{"model":"tiny"}}}',
            '{"type":"response.created","response":{"model":"mine","metadata":{"model":"tiny"}}}',
        ),
        (
            '{"type":"message_start","message":{"model": "tiny","x":1}}',
            '{"type":"message_start","message":{"model": "mine","x":1}}',
        ),
        ('{"model":"tiny"', '{"model":"mine"'),
        ('{"model" :"tiny"', '{"model" :"tiny"'),
        (
            '{"type":"content_block_start","content_block":{"type":"tool_use","input":{"model":"tiny"}}}',
            '{"type":"content_block_start","content_block":{"type":"tool_use","input":{"model":"tiny"}}}',
        ),
        (
            '{"choices":[{"delta":{"tool_calls":[{"arguments":{"model":"tiny"}}]}}],"model":"tiny","x":1}',
            '{"choices":[{"delta":{"tool_calls":[{"arguments":{"model":"tiny"}}]}}],"model":"mine","x":1}',
        ),
        (
            '{"model":"tiny","choices":[{"delta":{"tool_calls":[{"arguments":{"model":"tiny"}}]}}]}',
            '{"model":"mine","choices":[{"delta":{"tool_calls":[{"arguments":{"model":"tiny"}}]}}]}',
        ),
        ('{"a":{"x":1,"model":"tiny"}}', '{"a":{"x":1,"model":"tiny"}}'),
        ('{"x,\\"model":"tiny","y":1}', '{"x,\\"model":"tiny","y":1}'),
    ],
)
def test_where_a_name_is_and_where_none_is(data: str, out: str) -> None:
    """Also after events that had it at the begin, or at the end."""
    event, named = f"data: {data}\n\n".encode(), f"data: {out}\n\n".encode()
    for before in (b"", b'data: {"id":1,"model":"tiny","a":[]}\n\n', b'data: {"a":[],"model":"tiny","x":1}\n\n'):
        filter = Filter(True, RENAME, (), False, False)
        assert filter.feed(before) == before.replace(b"tiny", b"mine")
        assert run(filter, event) == named
    assert run(Filter(True, RENAME, (), False, False), event + event) == named * 2


def test_json_lines_with_arguments_of_a_tool() -> None:
    """As of Ollama: they are objects, not text."""
    plain = b'{"model":"tiny","message":{"role":"assistant","content":"a"},"done":false}\n'
    call = b'"message":{"content":"","tool_calls":[{"function":{"name":"f","arguments":{"model":"tiny"}}}]},"done":false}\n'
    filter = Filter(True, RENAME, (), False, False, lines=True)
    assert filter.feed(plain) == plain.replace(b"tiny", b"mine")
    assert filter.feed(b'{"model":"tiny",' + call) == b'{"model":"mine",' + call
    assert filter.feed(plain) == plain.replace(b"tiny", b"mine")


def test_names_that_are_not_ascii() -> None:
    raw = 'data: {"model":"größe/7b"}\n\ndata: {"model":"gr\\u00f6\\u00dfe/7b"}\n\n'.encode()
    assert run(Filter(True, ("größe/7b", "klein"), (), False, False), raw) == b'data: {"model":"klein"}\n\n' * 2


@pytest.mark.parametrize(
    ("data", "out"),
    [
        ('{"metrics":{"a":"}"},"b":1}', '{"b":1}'),
        ('{ "metrics" : null }', "{  }"),
        ('{"b":1 , "metrics":[1,{"metrics":2}] ,"c":2}', '{"b":1 ,"c":2}'),
        ('{"b":{"metrics":1},"c":"\\"metrics\\":1"}', '{"b":{"metrics":1},"c":"\\"metrics\\":1"}'),
        ('{"metrics":1,"metrics":2}', "{}"),
        ('{"metrics":1,"é":2,"metrics":3}', '{"é":2}'),
        ('{"metrics":1,"metrics":2,"c":3}', '{"c":3}'),
        (
            '{"response":{"id":"x","metrics":{}},"type":"response.completed"}',
            '{"response":{"id":"x"},"type":"response.completed"}',
        ),
        ('{"metrics":1,}', '{"metrics":1,}'),
        ('["metrics"]', '["metrics"]'),
        ('{"metrics"}', '{"metrics"}'),
        ('{"metrics":', '{"metrics":'),
    ],
)
def test_a_key_is_cut_out_of_the_bytes(data: str, out: str) -> None:
    for end in ("\n\n", "\r\n\r\n", ""):
        raw = f": note\nevent: x\ndata: {data}{end}".replace("\n", "\r\n" if "\r" in end else "\n").replace(
            "\r\r", "\r"
        )
        assert run(vllm(), raw.encode()) == raw.replace(data, out).encode()
    assert Filter(False, None, ("metrics",), False, False).whole(data.encode()) == out.encode()


def test_data_of_several_lines_stays() -> None:
    raw = b'data: {"metrics":1,\ndata: "b":2}\n\n'
    assert run(vllm(), raw) == raw


def test_a_whole_answer() -> None:
    said = json.loads(body("vllm_bodies.json"))
    for key in ("chat_ok", "responses_ok", "messages_ok"):
        raw = json.dumps(said[key], separators=(",", ":")).encode()
        out = Filter(False, ("tiny", "chat"), ("metrics",), True, True).whole(raw)
        assert json.loads(out) == {**{k: v for k, v in said[key].items() if k != "metrics"}, "model": "chat"}
        held = Filter(False, ("tiny", "chat"), ("metrics",), True, True)
        assert run(held, raw, [5, 50]) == out
    tool = b'{"content":[{"type":"tool_use","input":{"model":"tiny"}}],"model":"tiny"}'
    assert Filter(False, RENAME, (), False, False).whole(tool) == tool[:-7] + b'"mine"}'


# --- as it comes ---------------------------------------------------------------------------------------------------


def test_a_whole_event_comes_at_once_and_half_a_one_waits() -> None:
    filter = vllm(usage=True, rename=RENAME)
    event = b'data: {"model":"tiny","choices":[{"delta":{"content":"a"}}]}\n\n'
    assert filter.feed(event) == event.replace(b"tiny", b"mine")
    assert filter.feed(event[:20]) == b""
    assert filter.feed(event[20:] + event[:30]) == event.replace(b"tiny", b"mine")
    assert filter.end() == event[:30].replace(b"tiny", b"mine")


def test_an_event_too_long_passes_as_it_is() -> None:
    giant = b'data: {"metrics":1,"text":"' + b"x" * (2 * module.EVENT) + b'"}\n\n'
    after = b'data: {"metrics":1}\n\n'
    for step in (10_000, 999_983, 10**9):
        filter, out, waiting = vllm(), b"", 0
        for at in range(0, len(giant + after), step):
            out += filter.feed((giant + after)[at : at + step])
            waiting = max(waiting, len(filter._held))
        assert out + filter.end() == giant + b"data: {}\n\n"
        assert waiting <= module.EVENT


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_byte_by_byte(end: bytes) -> None:
    raw = body("vllm_chat_include_usage.sse").replace(b"\n", end)
    assert run(vllm(True, RENAME), raw, list(range(len(raw)))) == run(vllm(True, RENAME), raw)
    whole = run(vllm(True, RENAME), body("vllm_chat_include_usage.sse"))
    assert run(vllm(True, RENAME), raw).replace(end, b"\n") == whole


@settings(max_examples=200, deadline=None)
@given(data=st.data(), name=st.sampled_from(STREAMS), crlf=st.booleans(), usage=st.booleans(), rename=st.booleans())
def test_any_split_gives_the_same_bytes(data: st.DataObject, name: str, crlf: bool, usage: bool, rename: bool) -> None:
    raw = body(name).replace(b"\n", b"\r\n") if crlf else body(name)
    engine = ENGINES[name.split("_")[0]]

    def filter() -> Filter:
        return Filter(True, (engine, "mine") if rename else None, ("metrics", "timings"), usage, True)

    out = run(filter(), raw, data.draw(st.lists(st.integers(0, len(raw)), max_size=40)))
    assert out == run(filter(), raw)
    separator = b"\r\n\r\n" if crlf else b"\n\n"
    assert (
        out
        == b"".join(run(filter(), each + separator) for each in raw.split(separator)[:-1]) + raw.split(separator)[-1]
    )
    assert b'"timings"' not in out and b'"metrics"' not in out and b'"prompt_progress"' not in out
    assert not usage or b'"choices":[]' not in out
    assert not rename or f'"model":"{engine}"'.encode() not in out


PIECE = st.binary(max_size=40) | st.sampled_from(
    [
        b"data: ",
        b"\n\n",
        b"\r",
        b"\n",
        b'{"model":"tiny"',
        b'"metrics":',
        b"{",
        b"}",
        b'"',
        b"[" * 3000,
        b"\\",
        b",",
        b'"model"',
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECE, max_size=30), st.booleans())
def test_garbage_never_raises_and_nothing_is_lost_in_it(pieces: list[bytes], stream: bool) -> None:
    raw = b"".join(pieces)
    same = Filter(stream, None, (), False, False)
    assert b"".join(map(same.feed, pieces)) + same.end() == raw
    one, other = (Filter(stream, RENAME, ("metrics",), True, True) for _ in range(2))
    assert b"".join(map(one.feed, pieces)) + one.end() == other.feed(raw) + other.end()


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECE, max_size=20))
def test_words_that_never_come_change_nothing(pieces: list[bytes]) -> None:
    filter = Filter(True, ("never-said", "x"), ("never",), False, False)
    assert b"".join(map(filter.feed, pieces)) + filter.end() == b"".join(pieces)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["model", "tiny", "metrics"]),
    lambda each: (
        st.lists(each, max_size=3) | st.dictionaries(st.sampled_from(["a", "model", "metrics", "é"]), each, max_size=4)
    ),
    max_leaves=10,
)
TOP = st.dictionaries(
    st.sampled_from(["a", "model", "metrics", "choices", "response", "message", '"q"']), JSON, max_size=7
)


@settings(max_examples=300, deadline=None)
@given(TOP, st.booleans(), st.sampled_from([(",", ":"), (", ", ": "), (" ,", " : ")]))
@example({"a": {"a": None, "model": "tiny"}}, False, (",", ":"))
@example({"a": 1, "é": "x", "model": "tiny", "choices": []}, False, (",", ":"))
def test_cutting_means_what_parsing_means(said: dict[str, object], ascii: bool, separators: tuple[str, str]) -> None:
    raw = json.dumps(said, ensure_ascii=ascii, separators=separators).encode("utf-8", "replace")

    def expected(part: object) -> object:
        if not isinstance(part, dict):
            return part
        kept = {key: value for key, value in part.items() if key != "metrics"}
        return {**kept, "model": "mine"} if kept.get("model") == "tiny" else kept

    top = expected(json.loads(raw))
    assert isinstance(top, dict)
    want = {key: expected(value) if key in ("response", "message") else value for key, value in top.items()}
    assert json.loads(Filter(False, RENAME, ("metrics",), False, False).whole(raw)) == want


@settings(max_examples=300, deadline=None)
@given(st.lists(TOP, max_size=5), st.sampled_from([(",", ":"), (", ", ": ")]), st.booleans())
@example([{"a": [], "model": "tiny"}, {"a": {"model": "tiny"}}], (",", ":"), False)
def test_a_stream_means_what_parsing_means(
    said: list[dict[str, object]], separators: tuple[str, str], at_once: bool
) -> None:
    """Only the name at the top, and that of a `response` or a `message` in it."""
    found = [b"data: %b\n\n" % json.dumps(each, separators=separators).encode("utf-8", "replace") for each in said]
    filter = Filter(True, RENAME, (), False, False)
    out = filter.feed(b"".join(found)) if at_once else b"".join(map(filter.feed, found))

    def renamed(part: dict[str, object]) -> dict[str, object]:
        return {**part, "model": "mine"} if part.get("model") == "tiny" else part

    def expected(top: dict[str, object]) -> dict[str, object]:
        inner = {k: renamed(v) for k in ("response", "message") if isinstance(v := top.get(k), dict)}
        return renamed({**top, **inner})

    got = [json.loads(each.removeprefix(b"data: ")) for each in events(out)[:-1]]
    assert got == [expected(json.loads(each.removeprefix(b"data: "))) for each in found]


def test_a_model_that_is_no_name_stays() -> None:
    raw = b'{"model":7,"message":{"model":"tiny"}}'
    assert Filter(False, RENAME, (), False, False).whole(raw) == b'{"model":7,"message":{"model":"mine"}}'
