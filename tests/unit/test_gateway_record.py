"""Where the time of a request went, by its stamps and by what its engine said."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsupervisor.gateway.record import Marks, build, new_id
from llmsupervisor.gateway.timing import Reader
from llmsupervisor.link.requests import RequestRecord

CAPTURES = Path(__file__).parents[1] / "fixtures" / "gateway"
LLAMA = {
    "prefill_ms": "timings.prompt_ms",
    "prefill_tokens": "timings.prompt_n",
    "cached_tokens": "timings.cache_n",
    "decode_ms": "timings.predicted_ms",
    "completion_tokens": "timings.predicted_n",
}
VLLM = {
    "queue_ms": "metrics.queue_time_ms",
    "prefill_ms": "metrics.time_to_first_token_ms",
    "decode_ms": "metrics.generation_time_ms",
}
CONTENT = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'
FINISH = b'data: {"choices":[{"delta":{},"finish_reason":"length"}]%b}\n\ndata: [DONE]\n\n'


def stream(times: list[float], end: bytes = b"", timing: dict[str, str] | None = None) -> Reader:
    """Content at `times`, and an end at the last of them."""
    reader = Reader("chat.completions", True, timing or {})
    for time in times:
        reader.feed(CONTENT, time)
    if end:
        reader.feed(end, times[-1] if times else 0.0)
    reader.end(times[-1] if times else 0.0)
    return reader


def llama(prompt_ms: float, predicted_ms: float, n: int = 11) -> bytes:
    timings = f'{{"cache_n":5,"prompt_n":20,"prompt_ms":{prompt_ms},"predicted_n":{n},"predicted_ms":{predicted_ms}}}'
    return FINISH % (',"timings":' + timings).encode()


def vllm(queue_ms: float, prefill_ms: float, decode_ms: float) -> bytes:
    said = f',"metrics":{{"queue_time_ms":{queue_ms},"time_to_first_token_ms":{prefill_ms},"generation_time_ms":{decode_ms}}}'
    return FINISH % said.encode()


def marks(**more: Any) -> Marks:
    """Came at 100 s, sent at 103 s after 1 s of queue and 2 s of load; done at 105.01 s."""
    said = {
        "complete": 100.0,
        "queued": 100.0,
        "admitted": 103.0,
        "loading_s": 2.0,
        "sent": 103.0,
        "head": 103.5,
        "done": 105.01,
    }
    return Marks(100.0, 1790000000.0, **{**said, **more})


def record(reader: Reader | None, at: Marks | None = None, **more: Any) -> RequestRecord:
    said: dict[str, Any] = {
        "service": "chat",
        "model": "chat",
        "api": "chat.completions",
        "stream": True,
        "status": 200,
    }
    return build("01J", at or marks(), **{**said, **more}, reader=reader)


TIMES = [104.0 + i * 0.1 for i in range(11)]
"""First content a second after it was sent, last one a second later."""


def spans(got: RequestRecord) -> tuple[float | None, ...]:
    return got["queue_ms"], got["load_ms"], got["engine_queue_ms"], got["prefill_ms"], got["decode_ms"], got["other_ms"]


def test_llama_server_whose_clock_starts_after_its_queue() -> None:
    got = record(stream(TIMES, llama(300.0, 998.0), LLAMA))
    assert spans(got) == pytest.approx((1000.0, 2000.0, 700.0, 300.0, 998.0, 12.0))
    assert (got["ttft_ms"], got["total_ms"]) == pytest.approx((4000.0, 5010.0))
    assert (got["itl_p50_ms"], got["itl_p95_ms"]) == pytest.approx((100.0, 100.0), rel=1e-3)
    assert got["decode_tokens_per_s"] == pytest.approx(10.02, abs=0.01)
    assert (got["prompt_tokens"], got["cached_tokens"], got["completion_tokens"]) == (25, 5, 11)
    assert got["sources"] == {
        "engine_queue_ms": "gateway",
        "prefill_ms": "engine",
        "decode_ms": "engine",
        "ttft_ms": "gateway",
        "completion_tokens": "engine",
    }


def test_vllm_which_says_its_queue() -> None:
    got = record(stream(TIMES, vllm(600.0, 395.0, 999.0), VLLM))
    assert spans(got) == pytest.approx((1000.0, 2000.0, 600.0, 395.0, 999.0, 16.0))
    assert got["sources"]["engine_queue_ms"] == "engine"
    assert got["sources"]["prefill_ms"] == "engine"


def test_an_engine_that_says_nothing() -> None:
    got = record(stream(TIMES, FINISH % b""))
    assert spans(got) == pytest.approx((1000.0, 2000.0, None, 1000.0, 1000.0, 10.0))
    assert got["sources"]["prefill_ms"] == got["sources"]["decode_ms"] == "gateway"


def test_both_are_told_where_they_are_apart() -> None:
    got = record(stream(TIMES, vllm(0.0, 400.0, 700.0), VLLM))
    assert (got["prefill_ms"], got["decode_ms"]) == (400.0, 700.0)
    assert got["sources"]["prefill_ms"] == got["sources"]["decode_ms"] == "both"
    assert got["sources"]["prefill_ms_gateway"] == "1000.000"
    assert got["sources"]["decode_ms_gateway"] == "1000.000"
    near = record(stream([103.012, 103.016], vllm(0.0, 8.0, 3.9), VLLM), marks(done=103.02))
    assert (near["sources"]["prefill_ms"], near["sources"]["decode_ms"]) == ("engine", "engine")


@pytest.mark.parametrize("absurd", ["-3", "NaN", "1e999", "2100"])
def test_absurd_figures_are_dropped_for_ours(absurd: str) -> None:
    got = record(stream(TIMES, llama(float(absurd), 998.0).replace(b"inf", b"1e999").replace(b"nan", b"NaN"), LLAMA))
    assert got["prefill_ms"] == pytest.approx(1000.0)
    assert got["sources"]["prefill_ms"] == "gateway"
    assert float(got["sources"]["prefill_ms_engine"]) != 1000.0
    assert got["decode_ms"] == 998.0


def test_tokens_that_are_no_content_yet_are_no_queue() -> None:
    got = record(stream([105.0], llama(300.0, 1690.0), LLAMA))
    assert got["engine_queue_ms"] == pytest.approx(20.0)
    assert (got["decode_ms"], got["sources"]["decode_ms"]) == (1690.0, "both")


def test_no_stream() -> None:
    reader = Reader("chat.completions", False, LLAMA)
    reader.feed((CAPTURES / "llama_chat.json").read_bytes(), 104.0)
    reader.end(104.0)
    got = record(reader, marks(head=103.25, done=103.26), stream=False)
    assert spans(got) == pytest.approx((1000.0, 2000.0, 13.022, 136.744, 100.234, 10.0))
    assert (got["ttft_ms"], got["itl_p50_ms"]) == (None, None)
    silent = Reader("chat.completions", False, {})
    silent.feed(b'{"choices":[{"finish_reason":"stop"}]}', 104.0)
    silent.end(104.0)
    assert spans(record(silent, stream=False))[2:] == (None, None, None, None)


def test_embeddings_have_no_decode() -> None:
    reader = Reader("embeddings", False, {})
    reader.feed(b'{"data":[],"usage":{"prompt_tokens":8}}', 104.0)
    reader.end(104.0)
    got = record(reader, marks(head=105.0, done=105.01), api="embeddings", stream=False)
    assert spans(got) == pytest.approx((1000.0, 2000.0, None, 2000.0, None, 10.0))
    assert (got["finish_reason"], got["decode_tokens_per_s"]) == (None, None)


def test_a_refusal_of_an_engine_is_no_prefill() -> None:
    """Of embeddings all that it takes is: but there are none."""
    reader = Reader("embeddings", False, {})
    reader.feed(b'{"error":{"code":501,"message":"This server does not support embeddings"}}', 104.0)
    reader.end(104.0)
    got = record(reader, api="embeddings", stream=False, status=501)
    assert spans(got)[2:] == (None, None, None, None) and got["sources"] == {}


def test_an_empty_answer_of_a_stream() -> None:
    got = record(stream([], llama(1990.0, 0.001, 1), LLAMA), marks(head=103.001, done=105.0))
    assert got["engine_queue_ms"] == pytest.approx(10.0, abs=0.01)
    assert (got["prefill_ms"], got["ttft_ms"]) == (1990.0, None)
    assert got["sources"]["prefill_ms"] == "engine"


# --- irregular ends --------------------------------------------------------------------------------------------------


def test_gone_while_it_waited() -> None:
    got = record(
        None, Marks(100.0, 1.0, complete=100.1, queued=100.1, loading_s=2.0, done=103.1), gone="client_gone", status=499
    )
    assert spans(got) == pytest.approx((1000.0, 2000.0, None, None, None, 100.0))
    assert (got["finish_reason"], got["completion_tokens"], got["sources"]) == ("client_gone", None, {})


def test_refused_at_once() -> None:
    got = record(None, Marks(100.0, 1.0, done=100.002), gone="rejected", status=404)
    assert spans(got) == pytest.approx((0.0, 0.0, None, None, None, 2.0))


def test_aborted_in_the_middle() -> None:
    got = record(stream(TIMES[:5], timing=LLAMA), marks(done=104.5), gone="client_gone")
    assert got["finish_reason"] == "client_gone"
    assert spans(got)[2:] == pytest.approx((None, 1000.0, 400.0, 100.0))
    assert (got["completion_tokens"], got["sources"]["completion_tokens"]) == (5, "gateway")


def test_aborted_before_the_first_content_may_have_been_work() -> None:
    got = record(stream([]), marks(head=None), gone="client_gone")
    assert spans(got)[2:] == (None, None, None, None)


@pytest.mark.parametrize(
    ("end", "status", "reason"),
    [
        (FINISH % b"", 200, "length"),
        (b"", 200, "incomplete"),
        (b'data: {"error":{"message":"x"}}\n\ndata: [DONE]\n\n', 200, "error"),
        (b'{"error":"x"}', 400, "rejected"),
        (b'{"error":"x"}', 500, "error"),
        (b'{"error":"x"}', 503, "rejected"),
    ],
)
def test_finish_reasons(end: bytes, status: int, reason: str) -> None:
    reader = Reader("chat.completions", True, {})
    reader.feed((b"" if status > 200 else CONTENT) + (end or CONTENT), 104.0)
    reader.end(104.0)
    assert record(reader, status=status)["finish_reason"] == reason


@pytest.mark.parametrize(
    ("max_tokens", "context", "cut"),
    [(504, 512, False), (20000, 512, True), (None, 512, True), (None, 4096, False), (None, None, True)],
)
def test_truncated_is_a_full_context(max_tokens: int | None, context: int | None, cut: bool) -> None:
    reader = Reader("completions", False, LLAMA)
    reader.feed((CAPTURES / "llama_context_full.json").read_bytes(), 104.0)
    reader.end(104.0)
    got = record(reader, stream=False, max_tokens=max_tokens, context_length=context)
    assert (got["finish_reason"], got["truncated"]) == ("length", cut)


def test_a_regular_end_is_not_truncated() -> None:
    reader = stream(TIMES, FINISH.replace(b"length", b"stop") % b"")
    assert record(reader, max_tokens=5000, context_length=10)["truncated"] is False


# --- always ----------------------------------------------------------------------------------------------------------

MOMENT = st.none() | st.floats(0.0, 10.0)


@given(
    st.lists(MOMENT, min_size=6, max_size=6),
    st.floats(0.0, 20.0),
    st.lists(st.floats(0.0, 10.0), max_size=5).map(sorted),
    st.tuples(*[st.floats(-1e4, 1e4) | st.just(0.0)] * 3),
    st.booleans(),
    st.sampled_from(["chat.completions", "embeddings"]),
)
def test_parts_are_never_negative_nor_more_than_unknown(
    moments: list[float | None], loading: float, times: list[float], figures: tuple[float, ...], stream_: bool, api: str
) -> None:
    complete, queued, admitted, sent, head, done = moments
    at = Marks(0.0, 1.0, complete, queued, admitted, loading, sent, head, done)
    got = record(stream(times, vllm(*figures), VLLM) if times else None, at, stream=stream_, api=api)
    assert set(got) == set(get_type_hints(RequestRecord))
    assert all(
        value is None or value >= 0 for key, value in got.items() if key.endswith("_ms") and isinstance(value, float)
    )
    assert (got["decode_ms"] is not None) == ("decode_ms" in got["sources"])


def test_ids_sort_by_time_and_differ() -> None:
    ids = [new_id(1790000000.0 + i / 1000, bytes([9 - i]) * 10) for i in range(9)]
    assert ids == sorted(ids) and len(set(ids)) == 9
    assert {len(each) for each in ids} == {26}
    assert new_id(0.0, b"\xff" * 10) == "0" * 10 + "Z" * 16


def test_what_was_cut_is_told_whatever_the_engine_calls_its_end() -> None:
    reader = stream([103.5, 105.0])
    reader.truncated = True
    assert record(reader)["truncated"] is True
