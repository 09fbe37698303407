"""What a gateway reads in an answer that passes, by captures of real engines."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsupervisor.gateway import timing
from llmsupervisor.gateway.timing import Reader
from llmsupervisor.runtime.load import parse

ROOT = Path(__file__).parents[2]
CAPTURES = ROOT / "tests" / "fixtures" / "gateway"
TIMING = {path.stem: parse(path.read_text(), path.name).timing for path in sorted((ROOT / "runtimes").glob("*.toml"))}
APIS = {"completions": "completions", "messages": "messages", "responses": "responses"}
STREAMS = sorted(path.name for path in CAPTURES.glob("*.sse"))


def api_of(name: str) -> str:
    return next((api for word, api in APIS.items() if word in name), "chat.completions")


def timing_of(name: str) -> dict[str, str]:
    return TIMING["llama-server" if name.startswith("llama") else name.split("_")[0]]


def body(name: str) -> bytes:
    return (CAPTURES / name).read_bytes()


def read(name: str, cuts: list[int] | None = None, data: bytes | None = None) -> Reader:
    """Each event at its own second, whole or cut; a piece comes with the second of its last event."""
    data = body(name) if data is None else data
    reader = Reader(api_of(name), True, timing_of(name))
    ends = [
        0,
        *(cuts if cuts is not None else [i + 2 for i in range(len(data)) if data[i : i + 2] == b"\n\n"]),
        len(data),
    ]
    for start, end in pairwise(ends):
        if end > start:
            reader.feed(data[start:end], float(data.count(b"\n\n", 0, end)))
    reader.end(1000.0)
    return reader


def whole(data: bytes, api: str = "chat.completions", runtime: str = "vllm", pieces: int = 4096) -> Reader:
    reader = Reader(api, False, TIMING[runtime])
    for at in range(0, len(data), pieces):
        reader.feed(data[at : at + pieces], 1.0)
    reader.end(2.0)
    return reader


def told(reader: Reader) -> dict[str, Any]:
    names = [name for name in Reader.__slots__ if not name.startswith("_")]
    return {name: getattr(reader, name) for name in names}


def tokens(reader: Reader) -> tuple[int | None, int | None, int | None]:
    return reader.prompt_tokens, reader.cached_tokens, reader.completion_tokens


@pytest.mark.parametrize(
    ("name", "first", "last", "chunks", "reason", "counted"),
    [
        ("llama_chat.sse", 2, 7, 6, "length", (34, 24, 6)),
        ("llama_chat_progress.sse", 4, 9, 6, "length", (34, 26, 6)),
        ("llama_completions.sse", 3, 10, 8, "length", (12, 0, 8)),
        ("llama_messages.sse", 3, 8, 6, "max_tokens", (36, 35, 6)),
        ("llama_responses.sse", 5, 10, 6, "stop", (33, 24, 6)),
        ("vllm_chat_include_usage.sse", 2, 7, 6, "length", (19, 0, 6)),
        ("vllm_chat_continuous_usage.sse", 2, 7, 6, "length", (19, 0, 6)),
        ("vllm_chat_no_usage.sse", 3, 7, 5, "length", (None, None, None)),
        ("ollama_messages.sse", 3, 5, 3, "end_turn", (12, None, 4)),
    ],
)
def test_a_stream(name: str, first: int, last: int, chunks: int, reason: str, counted: tuple[int | None, ...]) -> None:
    reader = read(name)
    assert (reader.first, reader.last, reader.chunks) == (first, last, chunks)
    assert list(reader.gaps) == [1.0] * (chunks - 1)
    assert (reader.finish_reason, reader.complete, reader.error) == (reason, True, None)
    assert tokens(reader) == counted


def test_the_engines_own_figures() -> None:
    llama = read("llama_chat.sse").figures
    assert (llama["prefill_ms"], llama["decode_ms"]) == (42.124, 49.42)
    vllm = read("vllm_chat_include_usage.sse").figures
    assert vllm["queue_ms"] == pytest.approx(0.016084, abs=1e-6)
    assert (round(vllm["prefill_ms"], 4), round(vllm["decode_ms"], 4)) == (2.7992, 7.2731)
    assert read("vllm_chat_no_usage.sse").figures == {}


def test_units_of_figures() -> None:
    reader = Reader(
        "generate", False, {"prefill_ns": "a", "decode_seconds": "b.c", "none": "b.d", "flag": "e", "huge": "f"}
    )
    reader.feed(b'{"a": 2500000, "b": {"c": 1.5, "d": null}, "e": true, "f": 1' + b"0" * 400 + b"}", 0.0)
    reader.end(0.0)
    assert reader.figures == {"prefill_ms": 2.5, "decode_ms": 1500.0, "huge": math.inf}


def test_progress_of_a_prompt_is_no_content() -> None:
    reader = Reader("chat.completions", True, TIMING["llama-server"])
    events = body("llama_chat_progress.sse").split(b"\n\n")
    reader.feed(events[0] + b"\n\n", 1.0)
    assert (reader.progress, reader.first) == ((26, 34), None)
    reader.feed(events[1] + b"\n\n" + events[2] + b"\n\n", 2.0)
    assert (reader.progress, reader.first) == ((34, 34), None)


def test_comments_do_not_count() -> None:
    data = b": keep-alive\n\n" + body("llama_chat.sse").replace(b"\n\n", b"\n\n: still here\n\n", 3)
    assert read("llama_chat.sse", data=data).chunks == 6


@pytest.mark.parametrize(
    "delta",
    [
        '{"reasoning_content": "hm"}',
        '{"reasoning": "hm", "content": null}',
        '{"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}',
        '{"role": "assistant", "content": "a"}',
    ],
)
def test_what_is_content(delta: str) -> None:
    assert _one(delta).first == 1.0


@pytest.mark.parametrize("delta", ['{"role": "assistant"}', '{"content": ""}', "{}", "null", '{"content": null}'])
def test_what_is_none(delta: str) -> None:
    assert _one(delta).first is None


def _one(delta: str) -> Reader:
    reader = Reader("chat.completions", True, {})
    reader.feed(f'data: {{"choices": [{{"delta": {delta}, "finish_reason": null}}]}}\n\n'.encode(), 1.0)
    return reader


def test_the_last_chunk_of_vllm_has_content_and_a_reason() -> None:
    reader = read("vllm_chat_include_usage.sse")
    assert (reader.last, reader.finish_reason) == (7.0, "length")


def test_an_engine_that_dies_and_says_done() -> None:
    reader = read("vllm_engine_killed.sse")
    assert reader.error is not None and reader.error.startswith("EngineCore encountered an issue")
    assert (reader.complete, reader.chunks) == (True, 2)


@pytest.mark.parametrize("name", ["ollama_chat_killed.sse", "ollama_messages_killed.sse"])
def test_an_engine_that_dies_and_says_nothing(name: str) -> None:
    reader = read(name)
    assert (reader.complete, reader.finish_reason) == (False, None)
    assert reader.chunks > 5


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (b'event: error\ndata: {"error": {"message": "gone", "type": "x"}}', "gone"),
        (b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error", "message": "full"}}', "full"),
        (b'data: {"type":"error","code":"x","message":"bad"}', "bad"),
        (b'data: {"type":"response.failed","response":{"status":"failed","error":{"message":"oom"}}}', "oom"),
        (b'data: {"error": "Unauthorized"}', "Unauthorized"),
    ],
)
def test_errors_in_a_stream(event: bytes, text: str) -> None:
    reader = read("llama_chat.sse", data=body("llama_chat.sse")[:600] + b"\n\n" + event + b"\n\n")
    assert reader.error == text


def test_a_stream_cut_off_has_what_its_chunks_said() -> None:
    data = body("vllm_chat_continuous_usage.sse")
    cut = read("vllm_chat_continuous_usage.sse", data=data[: data.index(b'"content":"__"')])
    assert (cut.complete, cut.chunks, tokens(cut)) == (False, 4, (19, None, 4))


def test_an_error_instead_of_a_stream() -> None:
    reader = read("llama_chat.sse", data=b'{"error": {"message": "request (1501 tokens) exceeds", "code": 400}}')
    assert reader.error == "request (1501 tokens) exceeds"
    assert (reader.first, reader.complete) == (None, True)


def test_thinking_and_then_speaking_in_responses() -> None:
    events = ["response.reasoning_text.delta"] * 3 + ["response.output_text.delta"] * 3 + ["response.output_text.done"]
    data = b"".join(f'event: {e}\ndata: {{"type":"{e}","delta":"x.delta"}}\n\n'.encode() for e in events)
    reader = read("llama_responses.sse", data=data)
    assert (reader.first, reader.last, reader.chunks) == (1.0, 6.0, 6)


def test_infill_ends_without_done() -> None:
    data = b'data: {"content":"a","stop":false}\n\n' * 2
    data += b'data: {"content":"","stop":true,"stop_type":"limit","truncated":true,"timings":{"prompt_n":3,"cache_n":4}}\n\n'
    reader = Reader("infill", True, TIMING["llama-server"])
    reader.feed(data, 1.0)
    reader.end(1.0)
    assert (reader.chunks, reader.finish_reason, reader.complete, reader.truncated) == (2, "length", True, True)
    assert reader.prompt_tokens == 7


# --- no stream -----------------------------------------------------------------------------------------------------


def test_whole_answers() -> None:
    said = json.loads(body("vllm_bodies.json"))
    chat = whole(json.dumps(said["chat_ok"]).encode())
    assert (tokens(chat), chat.finish_reason, chat.complete) == ((19, 0, 20), "length", True)
    assert round(chat.figures["prefill_ms"], 3) == 7.368
    cached = whole(json.dumps(said["completion_ok_again_cached2"]).encode(), "completions")
    assert tokens(cached) == (600, 512, 20)
    responses = whole(json.dumps(said["responses_ok"]).encode(), "responses")
    assert (tokens(responses), responses.finish_reason) == ((12, 0, 8), "max_output_tokens")
    assert round(responses.figures["prefill_ms"], 2) == 4.53
    messages = whole(json.dumps(said["messages_ok"]).encode(), "messages")
    assert (tokens(messages), messages.finish_reason) == ((19, 0, 8), "max_tokens")
    llama = whole(body("llama_messages.json"), "messages", "llama-server")
    assert tokens(llama) == (36, 35, 6)
    error = whole(json.dumps(said["err_unauthorized"]).encode())
    assert error.error == "Unauthorized"


def test_a_long_body_is_read_at_its_ends() -> None:
    vectors = b'{"object":"list","data":[' + b'{"embedding":[0.123456,0.5]},' * 40000 + b'{"embedding":[]}]'
    tail = whole(vectors + b',"usage":{"prompt_tokens":77,"total_tokens":77}}\n', "embeddings")
    head = whole(b'{"usage": {"prompt_tokens":78},' + vectors[1:] + b"}", "embeddings", pieces=100_000)
    assert len(vectors) > timing.WHOLE
    assert (tail.prompt_tokens, head.prompt_tokens) == (77, 78)
    assert (tail.complete, head.complete) == (True, True)
    assert whole(vectors, "embeddings").complete is False


def test_memory_is_bounded() -> None:
    reader = Reader("chat.completions", True, {})
    for _ in range(40):
        reader.feed(b"x" * 100_000, 1.0)
        assert len(reader._held) <= timing.EVENT + 100_001
    reader.feed(b"\n\n" + body("llama_chat.sse"), 2.0)
    reader.end(2.0)
    assert (reader.chunks, reader.complete) == (6, True)


def test_gaps_of_a_long_answer_are_a_sample() -> None:
    reader = Reader("chat.completions", True, {})
    event = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'
    now = 0.0
    for i in range(20_001):
        reader.feed(event, now)
        now += 0.001 if i % 2 else 0.003
    assert (reader.chunks, len(reader.gaps)) == (20_001, timing.GAPS)
    slow = sum(gap > 0.002 for gap in reader.gaps)
    assert 0.4 < slow / timing.GAPS < 0.6
    assert reader.itl(0.95) == pytest.approx(0.003, rel=1e-3)
    assert reader.itl(0.05) == pytest.approx(0.001, rel=1e-3)


# --- any split, any garbage ------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(STREAMS), crlf=st.booleans())
def test_any_split_tells_the_same(data: st.DataObject, name: str, crlf: bool) -> None:
    raw = body(name)
    expected = told(read(name))
    if crlf:
        raw = raw.replace(b"\n", b"\r\n")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=40)))
    reader = Reader(api_of(name), True, timing_of(name))
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        if end > start:
            reader.feed(raw[start:end], 1.0)
    reader.end(1.0)
    said = told(reader)
    assert len(said.pop("gaps")) == len(expected.pop("gaps"))
    times = [(mine.pop("first") is None, mine.pop("last") == 0.0) for mine in (said, expected)]
    assert times[0] == times[1]
    assert said == expected


def test_several_events_in_one_piece_count_each() -> None:
    event = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'
    reader = Reader("chat.completions", True, {})
    reader.feed(event, 1.0)
    reader.feed(event * 3, 2.0)
    reader.feed(event + b"data: [DONE]\n\n", 3.0)
    assert (reader.chunks, list(reader.gaps), reader.complete) == (5, [1.0, 0.0, 0.0, 1.0], True)


@pytest.mark.parametrize("name", STREAMS)
def test_byte_by_byte_an_event_comes_with_its_last_byte(name: str) -> None:
    assert told(read(name, list(range(len(body(name)))))) == told(read(name))


KEYS = [
    "choices",
    "delta",
    "usage",
    "timings",
    "response",
    "message",
    "type",
    "error",
    "prompt_progress",
    "total",
    "stop",
]
KEYS += ["processed", "incomplete_details", "object", "prompt_tokens", "prompt_tokens_details", "prompt_ms", "status"]
PIECE = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [b"data: ", b"\n\n", b"\r\n\r\n", b"{", b'"usage":{"prompt_tokens":-1e999}', b"[" * 5000, b"[DONE]"]
    ),
    st.sampled_from([b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n', b"data: [1]\n\n"]),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4),
        lambda each: (
            st.lists(each, max_size=3)
            | st.dictionaries(
                st.sampled_from(KEYS),
                each,
                max_size=4,
            )
        ),
        max_leaves=8,
    ).map(lambda said: b"data: " + json.dumps(said).encode() + b"\n\n"),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(PIECE, max_size=12),
    st.booleans(),
    st.sampled_from(["chat.completions", "messages", "responses", "infill"]),
)
def test_garbage_never_raises(pieces: list[bytes], stream: bool, api: str) -> None:
    reader = Reader(api, stream, TIMING["llama-server"])
    for piece in pieces:
        if piece:
            reader.feed(piece, 1.0)
    reader.end(2.0)
    assert reader.prompt_tokens is None or reader.prompt_tokens >= 0


def test_an_event_that_is_too_long_is_not_read_wherever_it_ends() -> None:
    """In one piece, or not before the answer breaks off."""
    long = b'data: {"choices":[{"delta":{"content":"' + b"a" * timing.EVENT + b'"}}]}'
    for end, counted in ((b"\n\n", 2), (b"", 1)):
        reader = Reader("chat.completions", True, {})
        reader.feed(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', 1.0)
        reader.feed(long[:-9], 2.0) if not end else None
        reader.feed((long if end else b"") + end, 2.0)
        if end:
            reader.feed(b'data: {"choices":[{"delta":{"content":"b"}}]}\n\n', 3.0)
        reader.end(4.0)
        assert reader.chunks == counted


def test_gaps_of_events_that_come_in_halves_are_sampled_too() -> None:
    reader, event = Reader("chat.completions", True, {}), b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    for number in range(timing.GAPS + 100):
        reader.feed(event[:9], float(number))
        reader.feed(event[9:], float(number))
    assert (reader.chunks, len(reader.gaps)) == (timing.GAPS + 100, timing.GAPS)


def test_choices_that_are_none_have_no_content() -> None:
    reader = Reader("chat.completions", True, {})
    reader.feed(b'data: {"choices":[null,7]}\n\n', 1.0)
    reader.end(2.0)
    assert reader.first is None and reader.chunks == 0


def test_the_end_of_a_long_answer_may_be_broken() -> None:
    reader = Reader("chat.completions", False, TIMING["vllm"])
    reader.feed(b'{"choices":[' + b" " * timing.WHOLE + b'],"usage":{"prompt_tokens":', 1.0)
    reader.end(2.0)
    assert reader.prompt_tokens is None and not reader.complete


def test_progress_without_figures_is_none() -> None:
    reader = Reader("chat.completions", True, {})
    reader.feed(b'data: {"prompt_progress":{"processed":"a"}}\n\n', 1.0)
    assert reader.progress is None
