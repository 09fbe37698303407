"""Ollama's own api at the gateway: what is asked, what is changed in it, what answers say. By captures of the real one."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from llmsupervisor.daemon.enrich import BEHIND, KEPT, WAIT, EngineLog, Join
from llmsupervisor.gateway import fetch, fit
from llmsupervisor.gateway.bodies import Small
from llmsupervisor.gateway.call import Call, change, read
from llmsupervisor.gateway.counting import count
from llmsupervisor.gateway.fetch import Fetch, FetchError
from llmsupervisor.gateway.filter import Filter
from llmsupervisor.gateway.route import Refusal, event
from llmsupervisor.gateway.timing import Reader
from llmsupervisor.gateway.view import Count, Pin, Policy, Target, Traits
from llmsupervisor.link.gateway import Finished
from llmsupervisor.runtime.load import parse
from llmsupervisor.runtime.runnerlog import Timing

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "ollama"
OLLAMA = parse((ROOT / "runtimes" / "ollama.toml").read_text(), "ollama.toml")
assert OLLAMA.pin
PINNED = Pin(frozenset(OLLAMA.pin.apis), OLLAMA.pin.remove, OLLAMA.pin.set, force=True)
PASSED = Pin(frozenset(OLLAMA.pin.apis), (), OLLAMA.pin.set, force=False)
NDJSON = [
    "chat_stream_first.ndjson",
    "chat_stream_cached_prefix.ndjson",
    "generate_stream.ndjson",
    "generate_stream_runner_killed.ndjson",
]


def body(name: str) -> bytes:
    return (FIXTURES / name).read_bytes()


def asked(api: str, **said: Any) -> Call:
    said = {"model": "m", **said}
    found = read(api, said, json.dumps(said).encode())
    assert isinstance(found, Call)
    return found


def heard(name: str, api: str, step: int = 0, lines: bool = True) -> Reader:
    data = body(name)
    reader = Reader(api, True, OLLAMA.timing, lines)
    sep = b"\n" if lines else b"\n\n"
    ends = range(0, len(data), step) if step else [i + len(sep) for i in range(len(data)) if data.startswith(sep, i)]
    for start, end in pairwise([0, *ends, len(data)]):
        if end > start:
            reader.feed(data[start:end], float(end))
    reader.end(float(len(data)))
    return reader


# --- what is asked ------------------------------------------------------------------------------------------------


def test_it_streams_unless_it_is_told_not_to() -> None:
    assert asked("api.chat", messages=[]).stream and asked("api.generate", prompt="x").stream
    assert not asked("api.chat", messages=[], stream=False).stream
    assert not asked("api.embed", input="x").stream and not asked("chat.completions", messages=[]).stream


def test_lengths_are_options() -> None:
    call = asked("api.chat", messages=[{"role": "user", "content": "Hi"}], options={"num_predict": 7, "num_ctx": 4096})
    assert (call.max_tokens, call.own_context) == (7, 4096)
    assert asked("api.generate", prompt="x", options={"num_predict": -1}).max_tokens is None
    assert asked("api.generate", prompt="x", options=[], max_tokens=3).max_tokens is None
    assert asked("chat.completions", messages=[], options={"num_ctx": 1}).own_context is None


def test_what_is_more_than_text() -> None:
    image = [{"role": "user", "content": "Hi", "images": ["aGVsbG8=" * 1000]}]
    assert asked("api.chat", messages=image).prompt_bytes is None
    assert asked("api.generate", prompt="x", images=["a"]).prompt_bytes is None
    assert asked("api.generate", prompt="x", context=[1, 2]).prompt_bytes is None
    assert asked("api.generate", prompt="abc", system="de").prompt_bytes == 5
    assert asked("api.embed", input=["abc", "de"]).longest == 3


# --- what is changed ----------------------------------------------------------------------------------------------


def changed(pin: Pin, policy: Policy | None = None, **said: Any) -> dict[str, Any]:
    return change({"model": "m", **said}, "tag", pin.over(policy), {})


def test_nobody_loads_or_unloads_it_for_all() -> None:
    options = {"num_ctx": -5, "num_gpu": 0, "num_thread": 1, "temperature": 0}
    new = changed(PINNED, prompt="x", keep_alive=0, shift=False, truncate=True, options=options)
    assert new == {"model": "tag", "prompt": "x", "options": {"temperature": 0}, "truncate": False}
    assert options["num_ctx"] == -5, "what the client said stays what it was"


def test_passed_is_what_the_client_says() -> None:
    said = {"prompt": "x", "keep_alive": 0, "options": {"num_ctx": 9}}
    assert changed(PASSED, **said) == {"model": "tag", "truncate": False, **said}
    assert changed(PASSED, truncate=True)["truncate"] is True


def test_a_name_of_the_spec_may_say_more() -> None:
    policy = Policy({"options": {"temperature": 0}}, ("format", "options.seed"))
    new = changed(PINNED, policy, format="json", options={"seed": 1, "num_ctx": 3})
    assert new == {"model": "tag", "truncate": False, "options": {"temperature": 0}}
    new = changed(PINNED, Policy(strip=("options.seed",)), options={"seed": 1, "top_k": 2})
    assert new["options"] == {"top_k": 2}


# --- does it fit --------------------------------------------------------------------------------------------------


def target(pin: Pin | None) -> Target:
    return Target("m", "m", "m@1", "127.0.0.1", 1, "open", "", ("m",), context_length=2048, traits=Traits(pin=pin))


def test_which_context_counts() -> None:
    call = asked("api.chat", messages=[], options={"num_ctx": 8192}, truncate=True)
    assert fit.length(target(PINNED), call) == fit.length(target(None), call) == 2048
    assert (
        fit.length(target(PASSED), call) == 8192 and fit.length(target(PASSED), asked("api.chat", messages=[])) == 2048
    )
    assert fit.may_be_cut(target(PASSED), call)
    assert not fit.may_be_cut(target(PINNED), call) and not fit.may_be_cut(target(None), call)


@pytest.mark.parametrize(
    ("said", "messages"),
    [
        ({"messages": [{"role": "user", "content": "Hi"}]}, [("user", "Hi")]),
        ({"system": "S", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, [("system", "S"), ("user", "a")]),
        ({"instructions": "I", "input": "x"}, [("system", "I"), ("user", "x")]),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "y"}]}]}, [("user", "y")]),
        ({"messages": [{"role": "tool", "content": [{"type": "tool_result", "content": "r"}]}]}, [("tool", "r")]),
        ({}, []),
    ],
)  # fmt: skip
def test_a_conversation_for_the_template(said: dict[str, Any], messages: list[tuple[str, str]]) -> None:
    assert [(m["role"], m["content"]) for m in fit.conversation(said)["messages"]] == messages


def test_the_two_questions() -> None:
    how = Count("/tokenize", None, "tokens", {"add_special": True}, runner=True, template="/apply-template")
    call = asked("chat.completions", messages=[{"role": "user", "content": "Hi"}], tools=[{"type": "function"}])
    first = json.loads(fit.request(how, call, {"messages": [{"role": "user", "content": "Hi"}], "tools": [{"a": 1}]}))
    assert first == {"messages": [{"role": "user", "content": "Hi"}], "tools": [{"a": 1}]}
    assert json.loads(fit.tokens_of(how, {"prompt": "<x>"}) or b"") == {"content": "<x>", "add_special": True}
    assert fit.tokens_of(how, {"error": "x"}) is fit.tokens_of(how, None) is None


class Runner:
    """In the place of the process that has the model: its template answers with an error. `one`: not for one message."""

    def __init__(self, status: int | None, one: bool = False) -> None:
        self.status, self.one = status, one
        self.texts: list[str] = []

    async def post(self, target: Target, path: str, body: bytes) -> Any:
        if path == "/apply-template":
            messages = json.loads(body)["messages"]
            if self.one and [message["role"] for message in messages] == ["user"]:
                return {"prompt": f"<user>{messages[0]['content']}</user>"}
            raise FetchError("no", self.status)
        self.texts.append(json.loads(body)["content"])
        return {"tokens": [0] * 100}


@pytest.mark.parametrize(
    ("api", "status", "most"),
    [
        ("chat.completions", 400, 100 + fit.TEMPLATE + 2 * fit.MESSAGE),
        ("messages", 500, 100 + fit.TEMPLATE + 2 * fit.MESSAGE),
        ("chat.completions", 200, 100 + fit.TEMPLATE + 2 * fit.MESSAGE),
        ("chat.completions", None, None),
        ("api.chat", 400, None),
    ],
    ids=["refused", "failed", "too long", "not reached", "cannot be cut"],
)
def test_what_no_template_takes_is_counted_all_the_same(api: str, status: int | None, most: int | None) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    body = Small(json.dumps({"model": "m", "messages": messages, "tools": [{"t": 1}]}).encode())
    call = body.parse(api, None)
    assert isinstance(call, Call)
    how = Count(**OLLAMA.count[api].model_dump())
    there = replace(target(PINNED), traits=Traits(pin=PINNED, count={api: how}), runner=("127.0.0.1", 2))
    runner = Runner(status)
    assert asyncio.run(count(cast(Fetch, runner), body, there, call)) == (None, most)
    assert runner.texts == ([] if most is None else ['a\nb\n[{"t": 1}]'])
    if most is not None:
        runner = Runner(status, one=True)
        assert asyncio.run(count(cast(Fetch, runner), body, there, call)) == (None, 100 + fit.MESSAGE + fit.TEMPLATE)
        assert runner.texts == ['<user>a\nb\n[{"t": 1}]</user>']


def test_what_just_fits_is_not_refused_for_its_roles() -> None:
    """Around one message stands what the template says itself; nothing is guessed but the marks between the others."""
    said = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}
    question, more = fit.in_one(json.dumps(said).encode())
    assert json.loads(question) == {"messages": [{"role": "user", "content": "s\nu"}]} and more == fit.MESSAGE
    assert fit.in_one(json.dumps({"messages": said["messages"][:1]}).encode())[1] == 0


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"HTTP/1.1 500 x\r\ncontent-length: 0\r\n\r\n", 500),
        (b"HTTP/1.1 200 x\r\ncontent-length: 9999999\r\n\r\n" + b" " * (fetch.LARGEST + 1), 200),
        (b"", None),
        (None, None),
    ],
    ids=["failed", "too long", "hung up", "too late"],
)
def test_an_answer_that_is_an_error_has_a_status(
    line: bytes | None, status: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if line is None:
        monkeypatch.setattr(fetch, "TIMEOUT", 0.2)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        if line is not None:
            writer.write(line)
        else:
            await reader.read()
        writer.close()

    async def ask() -> FetchError:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(FetchError) as error:
                await Fetch().post(replace(target(None), port=port), "/x", b"{}")
            return error.value

    assert asyncio.run(ask()).status == status


@pytest.mark.parametrize(
    ("counted", "engine", "cut"),
    [(6010, 2050, True), (9500, 4034, True), (379, 379, False), (400, 385, False), (None, 3, False), (9, None, False)],
)
def test_what_was_cut_all_the_same(counted: int | None, engine: int | None, cut: bool) -> None:
    assert fit.was_cut(counted, engine) is cut


# --- what answers say ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 1, 7, 100_000])
def test_a_chat(step: int) -> None:
    reader = heard("chat_stream_first.ndjson", "api.chat", step)
    last = json.loads(body("chat_stream_first.ndjson").splitlines()[-1])
    assert (reader.prompt_tokens, reader.completion_tokens) == (379, last["eval_count"])
    assert reader.complete and reader.error is None and reader.finish_reason == last["done_reason"]
    assert reader.figures["prefill_ms"] == last["prompt_eval_duration"] / 1e6
    assert reader.chunks == body("chat_stream_first.ndjson").count(b'"done":false') and reader.first is not None


def test_the_queue_is_what_its_times_leave_over() -> None:
    for row in json.loads(body("queue_residual.json"))["rows"]:
        said = {"model": "m", "response": "", "done": True, "total_duration": row["total"] * 10**6}
        said |= {"load_duration": row["load"] * 10**6, "eval_duration": row["eval"] * 10**6}
        said |= {"prompt_eval_duration": row["prompt_eval"] * 10**6, "done_reason": "stop"}
        reader = Reader("api.generate", False, OLLAMA.timing)
        reader.feed(json.dumps(said).encode(), 1.0)
        reader.end(2.0)
        assert reader.figures["queue_ms"] == pytest.approx(row["residual"], abs=1.5)


def test_how_it_broke_off() -> None:
    killed = heard("generate_stream_runner_killed.ndjson", "api.generate")
    assert not killed.complete and killed.error == "an error was encountered while running the model: unexpected EOF"
    silent = heard("generate_stream_no_final.ndjson", "api.generate")
    assert not silent.complete and silent.error is None and silent.chunks > 0
    for name, api in (
        ("v1_chat_stream_runner_killed.sse", "chat.completions"),
        ("v1_messages_stream_runner_killed.sse", "messages"),
    ):
        reader = heard(name, api, lines=False)
        assert not reader.complete and reader.error is None, f"{name} ends as if nothing were"


def test_an_answer_at_once() -> None:
    reader = Reader("api.generate", False, OLLAMA.timing)
    reader.feed(body("generate_nonstream.json"), 1.0)
    reader.end(2.0)
    assert reader.complete and reader.prompt_tokens == json.loads(body("generate_nonstream.json"))["prompt_eval_count"]
    reader = Reader("api.generate", False, OLLAMA.timing)
    reader.feed(b'{"model":"m","response":"","done":false}', 1.0)
    reader.end(2.0)
    assert not reader.complete


@pytest.mark.parametrize("name", NDJSON)
@pytest.mark.parametrize("step", [1, 13, 1000, 10**6])
def test_the_clients_name_and_no_other_byte(name: str, step: int) -> None:
    data = body(name)
    engine = json.loads(data.splitlines()[0])["model"]
    filter = Filter(True, (engine, "mine"), (), False, False, lines=True)
    out = b"".join(filter.feed(data[at : at + step]) for at in range(0, len(data), step)) + filter.end()
    assert out == data.replace(b'"model":"%s"' % engine.encode(), b'"model":"mine"')
    assert b'"mine"' in out


def test_a_word_that_is_the_key_is_not_the_key() -> None:
    line = b'{"model":"m","response":"model","done":false}\n'
    filter = Filter(True, ("m", "x"), (), False, False, lines=True)
    assert filter.feed(line) + filter.end() == b'{"model":"x","response":"model","done":false}\n'


def test_errors_in_its_words() -> None:
    refusal = Refusal(404, "no model", "model_not_found")
    assert refusal.body(native=True) == {"error": "no model"}
    assert event(refusal, lines=True) == b'{"error": "no model"}\n' and event(refusal).startswith(b"event: error\n")


# --- what its log says --------------------------------------------------------------------------------------------


def ended(id: str, prompt: int | None, completion: int | None) -> Finished:
    return {
        "type": "finished",
        "id": id,
        "endpoint": "m@1",
        "end": 0.0,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
    }


def test_a_line_finds_its_request_whichever_comes_first() -> None:
    join = Join()
    join.seen([Timing(10, 3, 5.0, 6.0, 7), Timing(10, 0, 8.0, 9.0, 8)], 0.0)
    join.ended(ended("b", 10, 8), 0.1)
    assert join.pairs(0.1) == [("b", {"prefill_ms": 8.0, "decode_ms": 9.0, "cached_tokens": 0})]
    join.ended(ended("c", 20, 1), 0.2)
    assert join.pairs(0.2) == [] and join.waits
    join.seen([Timing(20, None, 1.0, None, 1, truncated=True)], 0.3)
    assert join.pairs(0.3) == [("c", {"prefill_ms": 1.0, "truncated": True})] and not join.waits


def test_equal_ones_in_the_order_of_their_ends() -> None:
    join = Join()
    for id in "ab":
        join.ended(ended(id, 10, 5), 0.0)
    join.seen([Timing(10, prefill_ms=1.0, completion_tokens=5), Timing(10, prefill_ms=2.0, completion_tokens=5)], 0.1)
    assert [(id, found["prefill_ms"]) for id, found in join.pairs(0.1)] == [("a", 1.0), ("b", 2.0)]


def test_a_flood_is_passed_over_and_what_comes_after_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    log = EngineLog(path, lambda: 7.0, lambda message: None)
    lines = body("serve_lines_truncation_shift_progress.stderr.log")
    with path.open("ab") as file:
        file.write(b"x" * 100 + b"\n" + lines * (2 * BEHIND // len(lines)))
    assert log.read() == float("-inf"), "an end that nobody can place in time"
    with path.open("ab") as file:
        file.write(lines)
    assert log.read() == 7.0
    log.close()


def test_nobody_waits_for_ever_and_nothing_old_is_taken() -> None:
    join = Join()
    join.ended(ended("a", 10, 5), 0.0)
    join.ended(ended("nothing to tell by", None, None), 0.0)
    assert join.pairs(WAIT + 0.1) == [] and not join.waits
    join.seen([Timing(10, completion_tokens=5)], 1.0)
    join.ended(ended("b", 10, 5), 1.0 + KEPT + 0.1)
    assert join.pairs(1.0 + KEPT + 0.1) == []
