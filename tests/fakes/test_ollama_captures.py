"""Every captured exchange, asked of the stand-in (or of a real Ollama) and compared field by field.

Times, ids, generated text and what hangs on the bytes of the weights may differ in value, never in kind, place or
emptiness.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ollama, process
from support.engines import REPOSITORY
from support.ollama import Serve
from support.wait import wait_until

CAPTURES = REPOSITORY / "tests" / "fixtures" / "ollama"
CASES: list[dict[str, Any]] = json.loads((CAPTURES / "errors.json").read_text())
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")
TIMES = {"created_at", "modified_at", "expires_at"}
FREE = TIMES | {"id", "request_id", "created", "digest", "size", "response", "content", "text", "context"}
FREE |= {"total_duration", "load_duration", "prompt_eval_duration", "eval_duration"}
WEIGHTS = re.compile(r"sha256[:-]941f309b\w+")
"""Of the captured model: Ollama rewrites a GGUF as it imports it, and the bytes are other ones."""

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]


def differences(want: Any, got: Any, at: str = "") -> list[str]:
    name = at.rsplit(".", 1)[-1]
    if isinstance(want, dict) and isinstance(got, dict):
        if list(want) != list(got):
            return [f"{at}: fields {list(want)}, got {list(got)}"]
        return [line for key in want for line in differences(want[key], got[key], f"{at}.{key}")]
    if name == "context":
        return [] if got[:8] == want[:8] and all(isinstance(token, int) for token in got) else [f"{at}: {got}"]
    if isinstance(want, list) and isinstance(got, list) and name not in ("models", "data", "tensors"):
        if len(want) != len(got):
            return [f"{at}: {len(want)} items, got {len(got)}"]
        return [line for i, row in enumerate(want) for line in differences(row, got[i], f"{at}[{i}]")]
    if isinstance(want, list) and isinstance(got, list):
        key = "id" if name == "data" else "name"
        pairs = ({row[key]: row for row in rows} for rows in (want, got))
        wanted, found = ({k: rows[k] for k in sorted(rows)} for rows in pairs)
        return differences(wanted, found, f"{at}[]")
    if name in FREE and not (at.endswith("[].id") or "models" in at.split(".")[-1]):
        same = type(want) is type(got) and bool(want) == bool(got)
        return [] if same and (name not in TIMES or TIME.fullmatch(got)) else [f"{at}: {want!r}, got {got!r}"]
    return [] if want == got else [f"{at}: {want!r}, got {got!r}"]


def shape(value: Any) -> Any:
    """Fields and kinds, and whether a text is empty."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return (type(value).__name__, bool(value)) if isinstance(value, str) else type(value).__name__


def lines(text: str) -> list[Any]:
    """Of a stream: JSON lines, or events with their names."""
    found: list[Any] = []
    for block in text.split("\n\n") if text.startswith(("data:", "event:")) else text.splitlines():
        data = block.split("data: ", 1)[-1]
        name = block.split("\n")[0] if block.startswith("event:") else ""
        if block.strip():
            found.append([name, json.loads(data)] if data[0] == "{" else block)
    return found


def same_stream(want: str, got: str) -> None:
    wanted, found = lines(want), lines(got)
    shapes = [
        [s for i, s in enumerate(all_) if i == 0 or s != all_[i - 1]]
        for all_ in (list(map(shape, wanted)), list(map(shape, found)))
    ]
    assert shapes[0] == shapes[1]
    assert differences(wanted[0], found[0]) == [] and differences(wanted[-1], found[-1]) == []
    if len(wanted) > 2:
        assert differences(wanted[-2], found[-2]) == []


def ask(serve: Serve, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str | None, str]:
    connection = http.client.HTTPConnection("127.0.0.1", serve.port, timeout=300)
    data = body if isinstance(body, str) else None if body is None else json.dumps(body)
    with contextlib.closing(connection):
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        try:
            text = answer.read().decode()
        except http.client.IncompleteRead as cut:
            text = cut.partial.decode()
        return answer.status, answer.getheader("Content-Type"), text


def captured(name: str) -> str:
    return (CAPTURES / name).read_text()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Serve]:
    port = process.free_ports(1)[0]
    serve = Serve(tmp_path_factory.mktemp("ollama"), port)
    try:
        yield serve.start(OLLAMA_FAKE_VERSION="0.0.0", LLAMA_ARG_ENDPOINT_METRICS="1", OLLAMA_NOPRUNE="")
    finally:
        serve.stop()


@pytest.fixture(scope="module")
def serve(served: Serve, model: Path) -> Serve:
    """With the three models of the captures; what /api/create said is compared on the way."""
    assert ask(served, "GET", "/api/ps")[2] == captured("ps_empty.json")
    assert ask(served, "GET", "/api/tags")[2] == captured("tags_empty.json")
    digest = ollama.digest(model)
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=120)
    with model.open("rb") as file, contextlib.closing(connection):
        connection.request("POST", f"/api/blobs/{digest}", file, {"Content-Length": str(model.stat().st_size)})
        assert connection.getresponse().status == 201
    files = {"files": {"model.gguf": digest}}
    template = json.loads(captured("show.json"))["template"]
    made = [
        ("create_stream.ndjson", {"model": "smol"} | files),
        (
            "create_template_stream.ndjson",
            {"model": "smol-go", "template": template, "parameters": {"num_ctx": 2048}} | files,
        ),
        ("create_from_stream.ndjson", {"model": "smol-1k", "from": "smol", "parameters": {"num_ctx": 1024}}),
    ]
    for name, body in made:
        status, kind, text = ask(served, "POST", "/api/create", body)
        assert (status, kind) == (200, "application/x-ndjson")
        weights = r"sha256:\w+" if ollama.REAL else digest
        assert re.sub(weights, "sha256:X", text, count=1) == WEIGHTS.sub("sha256:X", captured(name)).strip() + "\n"
    return served


SAY = [{"role": "user", "content": "Say hello."}]
LONG = [{"role": "user", "content": " ".join(["The sky is blue and the grass is green."] * 37)}]


def predict(n: int, **more: Any) -> dict[str, Any]:
    return {"options": {"num_predict": n, "temperature": 0}, **more}


WHOLE: list[tuple[str, str, Any]] = [
    ("status.json", "/api/status", None),
    ("version.json", "/api/version", None),
    ("tags.json", "/api/tags", None),
    ("v1_models.json", "/v1/models", None),
    ("show.json", "/api/show", {"model": "smol"}),
    ("show_num_ctx.json", "/api/show", {"model": "smol-1k"}),
    ("preload_generate.json", "/api/generate", {"model": "smol"}),
    ("ps_loaded_cpu.json", "/api/ps", None),
    ("preload_chat.json", "/api/chat", {"model": "smol", "keep_alive": -1}),
    ("ps_forever_cpu.json", "/api/ps", None),
    ("generate_nonstream.json", "/api/generate", {"model": "smol", "prompt": "Why is the sky blue?", "stream": False} | predict(24)),
    ("v1_chat.json", "/v1/chat/completions", {"model": "smol", "messages": SAY, "max_tokens": 8, "temperature": 0}),
    ("v1_completion.json", "/v1/completions", {"model": "smol", "prompt": "Say hello", "max_tokens": 8, "temperature": 0}),
    ("v1_messages.json", "/v1/messages", {"model": "smol", "messages": SAY, "max_tokens": 8, "temperature": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path", "body"), WHOLE, ids=[row[0] for row in WHOLE])
def test_whole_answers(serve: Serve, name: str, path: str, body: Any) -> None:
    if name.startswith("ps_"):
        ask(serve, "POST", "/api/generate", {"model": "smol"} | ({"keep_alive": -1} if "forever" in name else {}))
    status, kind, text = ask(serve, "GET" if body is None else "POST", path, body)
    assert (status, kind) == (200, "application/json" if path.startswith("/v1/") else "application/json; charset=utf-8")
    want, got = json.loads(WEIGHTS.sub("W", captured(name))), json.loads(text)
    if name.startswith("show"):
        assert re.sub(r"\nFROM .*", "", want.pop("modelfile")) == re.sub(r"\nFROM .*", "", got.pop("modelfile"))
    assert differences(want, got) == []
    assert text.endswith("\n") == captured(name).endswith("\n")
    if "created" in want or name == "tags.json":
        assert len(text.splitlines()) == 1


def test_it_says_that_it_runs(serve: Serve) -> None:
    assert ask(serve, "GET", "/") == (200, "text/plain; charset=utf-8", captured("root.txt"))


def test_an_unload_that_waits_for_a_request(serve: Serve) -> None:
    """It is told at once, and until the request is over the model is listed with an end that is past."""
    story = {"model": "smol", "prompt": "Tell a very long story about a fox."} | predict(900)
    connection = http.client.HTTPConnection("127.0.0.1", serve.port, timeout=120)
    with contextlib.closing(connection):
        connection.request("POST", "/api/generate", json.dumps(story))
        stream = connection.getresponse()
        stream.readline()
        status, kind, text = ask(serve, "POST", "/api/generate", {"model": "smol", "keep_alive": 0})
        assert (status, kind) == (200, "application/json; charset=utf-8")
        assert differences(json.loads(captured("unload_generate.json")), json.loads(text)) == []
        status, kind, listed = ask(serve, "GET", "/api/ps")
        assert differences(json.loads(captured("ps_unload_pending.json")), json.loads(listed)) == []
        ends, said = json.loads(listed)["models"][0]["expires_at"], json.loads(text)["created_at"]
        assert ends[:19] <= said[:19], "its end is past"
    wait_until(lambda: not serve.ps() and not serve.runners(), 60, "the unload once its client has gone")


STREAMS: list[tuple[str, str, Any]] = [
    ("generate_stream.ndjson", "/api/generate", {"model": "smol", "prompt": "Why is the grass green?"} | predict(12)),
    ("chat_stream_first.ndjson", "/api/chat", {"model": "smol", "messages": LONG} | predict(12)),
    ("chat_stream_cached_prefix.ndjson", "/api/chat", {"model": "smol", "messages": LONG} | predict(12)),
    ("v1_chat_stream.sse", "/v1/chat/completions", {"model": "smol", "messages": SAY, "max_tokens": 8, "temperature": 0, "stream": True}),
    ("v1_chat_stream_usage.sse", "/v1/chat/completions",
     {"model": "smol", "messages": SAY, "max_tokens": 8, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}),
    ("v1_messages_stream.sse", "/v1/messages",
     {"model": "smol", "messages": SAY, "max_tokens": 8, "stream": True, "temperature": 0, "stop_sequences": [" glad"]}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path", "body"), STREAMS, ids=[row[0] for row in STREAMS])
def test_streams(serve: Serve, name: str, path: str, body: Any) -> None:
    status, kind, text = ask(serve, "POST", path, body)
    assert (status, kind) == (200, "text/event-stream" if name.endswith(".sse") else "application/x-ndjson")
    same_stream(captured(name), text)


ELSEWHERE = {
    "too_long_native_template": {"OLLAMA_GO_TEMPLATE": "0"},
    "too_long_native_template_v1": {"OLLAMA_GO_TEMPLATE": "0"},
    "load_fails_kv_without_fa": {"OLLAMA_KV_CACHE_TYPE": "q8_0", "OLLAMA_FLASH_ATTENTION": "0"},
    "load_fails_v1": {"OLLAMA_KV_CACHE_TYPE": "q8_0", "OLLAMA_FLASH_ATTENTION": "0"},
    "load_fails_kv_unknown": {"OLLAMA_KV_CACHE_TYPE": "q9_9"},
    "queue_full": {"OLLAMA_MAX_QUEUE": "1"},
    "queue_full_v1": {"OLLAMA_MAX_QUEUE": "1"},
}
"""Cases whose server was started with more."""
KILLED = ("runner_killed_in_prefill", "runner_killed_in_prefill_v1_stream")


def spelled(value: Any) -> Any:
    """A request whose long text the capture only describes."""
    if isinstance(value, dict):
        return {key: spelled(item) for key, item in value.items()}
    if isinstance(value, str) and (words := re.search(r"… \((\d+) words\)", value)):
        text = "word word word word " * ((int(words[1]) - 4 * (not value.startswith("word"))) // 4)
        return text if value.startswith("word") else [{"role": "user", "content": text}]
    return value


def same_answer(case: dict[str, Any], status: int, kind: str | None, text: str) -> None:
    assert (status, kind) == (case["status"], case["content_type"])
    if isinstance(case["body"], str):
        assert text == case["body"]
        return
    got = json.loads(text)
    if case["case"] == "create_blob_missing":
        got["error"] = re.sub(r"open .*/models/", "open /usr/share/ollama/.ollama/models/", got["error"])
    assert differences(case["body"], got) == []


def replay(serve: Serve, case: dict[str, Any]) -> tuple[int, str | None, str]:
    request = case["request"]
    body = request["body"] if "body" in request else spelled(request.get("json"))
    return ask(serve, request["method"], request["path"], body, **request.get("headers", {}))


HERE = [case for case in CASES if case["case"] not in ELSEWHERE and case["case"] not in KILLED]


@pytest.mark.parametrize("case", HERE, ids=[case["case"] for case in HERE])
def test_refusals_and_limits(serve: Serve, case: dict[str, Any]) -> None:
    same_answer(case, *replay(serve, case))


@pytest.mark.parametrize("case", [c for c in CASES if c["case"] in KILLED], ids=KILLED)
def test_a_runner_that_dies_before_the_first_byte(serve: Serve, case: dict[str, Any]) -> None:
    ask(serve, "POST", "/api/generate", {"model": "smol"})
    answers: list[tuple[int, str | None, str]] = []
    asking = threading.Thread(target=lambda: answers.append(replay(serve, case)))
    seen = len(serve.log())
    asking.start()
    wait_until(lambda: "new prompt, n_ctx_slot" in serve.log()[seen:], 60, "the prefill")
    for pid in serve.runners():
        os.kill(pid, signal.SIGKILL)
    asking.join(60)
    same_answer(case, *answers[0])


@pytest.mark.parametrize("names", [["load_fails_kv_without_fa", "load_fails_v1"], ["load_fails_kv_unknown"],
                                   ["too_long_native_template", "too_long_native_template_v1"]])  # fmt: skip
def test_refusals_of_other_settings(serve: Serve, tmp_path: Path, names: list[str]) -> None:
    other = Serve(tmp_path, process.free_ports(1)[0], models=serve.models)
    try:
        other.start(**ELSEWHERE[names[0]])
        for case in (c for c in CASES if c["case"] in names):
            same_answer(case, *replay(other, case))
    finally:
        other.stop()


def test_a_full_queue(serve: Serve, tmp_path: Path) -> None:
    other = Serve(tmp_path, process.free_ports(1)[0], models=serve.models)
    cases = [c for c in CASES if c["case"].startswith("queue_full")]
    try:
        other.start(OLLAMA_MAX_QUEUE="1")
        for case in cases:
            asking = [http.client.HTTPConnection("127.0.0.1", other.port, timeout=120) for _ in range(6)]
            for connection in asking:
                connection.request("POST", case["request"]["path"], json.dumps(case["request"]["json"]))
            answer = asking[-1].getresponse()
            same_answer(case, answer.status, answer.getheader("Content-Type"), answer.read().decode())
            for connection in asking:
                connection.close()
            ask(other, "POST", "/api/generate", {"model": "smol", "keep_alive": 0})
            wait_until(lambda: not other.ps(), 60, "the unload")
    finally:
        other.stop()


KILLED_STREAMS = [
    ("generate_stream_runner_killed.ndjson", "/api/generate"),
    ("v1_chat_stream_runner_killed.sse", "/v1/chat/completions"),
    ("v1_messages_stream_runner_killed.sse", "/v1/messages"),
]


@pytest.mark.parametrize(("name", "path"), KILLED_STREAMS, ids=[row[0] for row in KILLED_STREAMS])
def test_a_runner_that_dies_in_the_middle(serve: Serve, name: str, path: str) -> None:
    story = "Tell a very long story about a fox."
    body = {"model": "smol", "prompt": story} | predict(900)
    if path.startswith("/v1"):
        turns = [{"role": "user", "content": story}]
        body = {"model": "smol", "messages": turns, "max_tokens": 900, "stream": True, "temperature": 0}
    ask(serve, "POST", "/api/generate", {"model": "smol"})
    connection = http.client.HTTPConnection("127.0.0.1", serve.port, timeout=120)
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(body))
        answer = connection.getresponse()
        text = b"".join(answer.readline() for _ in range(20))
        for pid in serve.runners():
            os.kill(pid, signal.SIGKILL)
        text += answer.read()
    wanted, found = lines(captured(name)), lines(text.decode())
    assert shape(wanted[0]) == shape(found[0]) and shape(wanted[-1]) == shape(found[-1])
    assert differences(wanted[-1], found[-1]) == []
    assert any(shape(row) == shape(wanted[2]) for row in found)
    assert [row["name"] for row in serve.ps()] == ["smol:latest"], "a dead runner stays listed"


def test_the_runner_is_the_captured_process(serve: Serve) -> None:
    want = json.loads(captured("runner_process.json"))
    ask(serve, "POST", "/api/generate", {"model": "smol"})
    (pid,) = wait_until(serve.runners, 30, "a runner")
    words = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
    taken = {0, 2, 4}
    assert [w for i, w in enumerate(words) if i not in taken] == [
        w for i, w in enumerate(want["argv"]) if i not in taken
    ]
    pairs = dict(row.split("=", 1) for row in Path(f"/proc/{pid}/environ").read_text().rstrip("\0").split("\0"))
    assert set(want["environment_beyond_PATH"]) <= set(pairs)
    assert re.fullmatch(r"<__ollama_media_[0-9a-f]{32}__>", pairs["LLAMA_MEDIA_MARKER"])
    assert (
        serve.child and os.getpgid(pid) == os.getpgid(serve.child.pid) and os.getsid(pid) == os.getsid(serve.child.pid)
    )
