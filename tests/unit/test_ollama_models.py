"""The models of an Ollama: calls, answers and processes, by captures of the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmsupervisor.daemon.desired import Desired
from llmsupervisor.runtime import models
from llmsupervisor.runtime.engine import Call
from llmsupervisor.runtime.models import Offload, Progress, RunnerArgs, Shown, model_of, progress, runner_of, shown
from llmsupervisor.runtime.runnerlog import RunnerLog, Timing
from llmsupervisor.spec.model import OllamaModel, Service

FIXTURES = Path(__file__).parents[1] / "fixtures" / "ollama"
BLOB = "sha256-941f309b54caaad6747569ba43712bcde44a2be3bae16c3282ff499c37c54af5"


def text(name: str) -> str:
    return (FIXTURES / name).read_text()


def data(name: str) -> Any:
    return json.loads(text(name))


def model(task: str = "chat", **said: Any) -> models.Model:
    given = {"name": "smol", "context_length": 1024, **said}
    service = Service.model_validate({"runtime": "ollama", "task": task, "models": [given]})
    assert service.models
    return model_of(service.models[0], service)


# --- calls --------------------------------------------------------------------------------------------------------


def test_a_tag_of_ours_for_each_context() -> None:
    assert model().tag == "smol:latest-ctx1024"
    assert model(name="hf.co/x/y:q4").tag == "hf.co/x/y:q4-ctx1024"
    assert OllamaModel(name="m", context_length=1).pull is False


def test_it_is_made_of_the_users_model_or_of_a_file() -> None:
    made = models.create(model())
    assert made.path == "/api/create" and made.body == {
        "model": "smol:latest-ctx1024",
        "from": "smol:latest",
        "parameters": {"num_ctx": 1024},
        "stream": True,
    }
    body = models.create(model(file="/m/a b.gguf"), "abc").body
    assert body and body["files"] == {"a b.gguf": "sha256:abc"} and "from" not in body
    assert models.upload("abc", "/m/a.gguf") == Call("POST", "/api/blobs/sha256:abc", file="/m/a.gguf")


def test_what_is_asked_before_and_taken_away_after() -> None:
    assert models.show("smol:latest") == Call("POST", "/api/show", {"model": "smol:latest"})
    assert models.blob("abc") == Call("HEAD", "/api/blobs/sha256:abc")
    assert models.pull(model()) == Call("POST", "/api/pull", {"model": "smol:latest", "stream": True})
    assert models.delete("smol:latest-ctx1024") == Call("DELETE", "/api/delete", {"model": "smol:latest-ctx1024"})


def test_a_load_has_no_options_as_the_traffic_has_none() -> None:
    load, unload = models.load(model()), models.unload(model().tag, "chat")
    assert (load.path, load.body) == ("/api/generate", {"model": "smol:latest-ctx1024", "keep_alive": -1})
    assert unload.body == {"model": "smol:latest-ctx1024", "keep_alive": 0}
    assert models.load(model("embed")).path == models.unload(model().tag, "embed").path == "/api/embed"


# --- answers ------------------------------------------------------------------------------------------------------


def test_what_a_model_is() -> None:
    assert shown(data("show_num_ctx.json")) == Shown(BLOB, 1024)
    assert shown({"parameters": 'stop "<|im_end|>"'}) == shown(None) == Shown("", None)


def test_progress_of_a_create_and_a_pull() -> None:
    lines = [json.loads(line) for line in text("create_stream.ndjson").splitlines()]
    assert next(map(progress, lines)) == Progress("parsing GGUF")
    pulled = [progress(json.loads(line)) for line in text("pull_stream.ndjson").splitlines()]
    assert pulled[1] == Progress("pulling b2b2b2b2b2b2", 0, 4920738944)
    assert isinstance(pulled[2], Progress) and pulled[2].completed == 1241970
    (_, failed) = [progress(json.loads(line)) for line in text("pull_error.ndjson").splitlines()]
    assert failed == "pull model manifest: file does not exist"


@pytest.mark.parametrize(
    ("status", "why", "lasting"),
    [
        (400, "invalid model name", True),
        (404, "model 'x' not found", True),
        (500, "llama-server process has terminated: exit status 1", False),
        (503, "server busy, please try again.  maximum pending requests exceeded", False),
        (None, "connection refused", False),
        (499, "request canceled", False),
    ],
)
def test_what_would_fail_again(status: int | None, why: str, lasting: bool) -> None:
    assert models.lasting(status, why) is lasting


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("serve_load_fails_kv_unknown", 'error while handling argument "--cache-type-k": Unsupported cache type: q9_9'),
        ("serve_runner_killed_while_loading", ""),
        ("serve_llama_server_missing", None),
        ("serve_start_load_requests_unload", None),
    ],
)
def test_what_a_load_failed_of(log: str, said: str | None) -> None:
    """Ollama itself answers `exit status 1` to the first one, and nothing else."""
    assert models.load_error(text(f"{log}.stderr.log"), BLOB) == said
    assert models.load_error(text(f"{log}.stderr.log"), "sha256-another") is models.load_error("", "") is None


def test_a_load_that_failed_for_want_of_memory() -> None:
    failed = f'msg="Load failed" model=/m/blobs/{BLOB} error="llama-server process has terminated: exit status 1"\n'
    start = 'msg="starting llama-server" cmd="x"\n'
    log = f"{start}error: of an older one\n{failed}{start}a\nx: cudaMalloc failed: out of memory\nbye\n{failed}"
    assert models.load_error(log, BLOB) == "x: cudaMalloc failed: out of memory"
    assert models.load_error(f"{log}{start}bye\n{failed}", BLOB) == ""


# --- runners ------------------------------------------------------------------------------------------------------


def test_a_runner_by_its_command_line() -> None:
    argv = data("runner_process.json")["argv"]
    assert runner_of(argv) == RunnerArgs(BLOB, 46339, 4096, 1)
    four = [*argv[: argv.index("-c")], "-c", "8192", "-np", "4"]
    found = runner_of(four)
    assert found and (found.context_length, found.parallel) == (2048, 4)
    assert found.address == "http://127.0.0.1:46339"


@pytest.mark.parametrize(
    "argv", [[], ["ollama", "serve"], ["llama-server", "--port", "50000", "--verbose"], ["x", "--model"]]
)
def test_what_is_no_runner(argv: list[str]) -> None:
    assert runner_of(argv) is None


def test_layers_on_the_gpu() -> None:
    log = text("serve_stderr.log")
    port = int(log.partition("--port ")[2].split()[0])
    assert models.offload(log, port) == Offload(33, 33) and models.offload(log, port).missing() == ""
    partial = log.replace("offloaded 33/33", "offloaded 20/33")
    assert models.offload(partial, port).missing() == "asked 33/33 layers on the GPU, got 20"
    # another load after it is another model's
    later = partial + log.replace(f"--port {port} ", "--port 1 ")
    assert models.offload(later, port).some == 20 and models.offload(later, 1).some == 33
    assert models.offload(log, 4) == Offload(None, None)


def test_no_gpu_at_all() -> None:
    log = text("serve_stderr_cpu_fallback.log")
    assert models.offload(log, 4).missing() == "asked all layers on the GPU, got none: the engine found no GPU"


def test_bytes_of_a_loaded_model() -> None:
    assert models.in_memory(data("ps_partial_offload.json"), "qwen3:32b") == (25769803776, 18253611008)
    assert models.in_memory(data("ps_partial_offload.json"), "x") is models.in_memory(None, "x") is None


def test_an_ordinary_unload_is_told_at_level_error() -> None:
    lines = text("serve_lines_truncation_shift_progress.stderr.log").splitlines()
    ended = [line for line in lines if models.ended_by_engine(line)]
    assert len(ended) == 2 and all("level=ERROR" in line for line in ended)


# --- its log ------------------------------------------------------------------------------------------------------


def timings(name: str) -> list[Timing]:
    return RunnerLog().feed(text(name).splitlines())


def test_times_of_requests() -> None:
    found = timings("serve_start_load_requests_unload.stderr.log")
    cold, warm = (each for each in found if each.prompt_tokens == 379)
    assert (cold.cached_tokens, warm.cached_tokens) == (1, 371)
    assert cold.prefill_ms and warm.prefill_ms and cold.prefill_ms > 10 * warm.prefill_ms
    last = found[-1]
    assert last == Timing(13, 3, 33.55, 1301.64, 150, truncated=False)


def test_what_was_cut_is_seen() -> None:
    found = timings("serve_lines_truncation_shift_progress.stderr.log")
    assert [t.prompt_tokens for t in found if t.truncated] == [3, 2050, 2050, 2050, 1026, 12]
    assert not any(t.truncated for t in found if t.prompt_tokens in (10, 8))


def test_the_format_of_older_releases() -> None:
    lines = ["slot   operator(): id  0 | task 388 | new prompt, n_ctx_slot = 4096, n_keep = 4, task.n_tokens = 30"]
    lines += [line for line in text("serve_stderr_old_timing_format.log").splitlines() if "launch" not in line]
    lines += ["slot      release: id  0 | task 388 | stop processing: n_tokens = 219, truncated = 0"]
    assert RunnerLog().feed(lines) == [Timing(30, 3, 789.03, 16112.50, 192)]


def test_what_two_runners_say_at_once_is_left_out() -> None:
    log = RunnerLog()
    new = "slot   operator(): id  0 | task 0 | new prompt, n_ctx_slot = 256, n_keep = 4, task.n_tokens = 10"
    end = "slot      release: id  0 | task 0 | stop processing: n_tokens = 10, truncated = 0"
    assert log.feed([new, new, end, end]) == []
    assert log.feed([new, end]) == [Timing(10)]


def slot(task: int, says: str) -> str:
    return f"slot   operator(): id  0 | task {task} | {says}"


def test_what_belongs_to_no_request_is_left_out() -> None:
    """The daemon came while they ran."""
    new, end = (
        "new prompt, n_ctx_slot = 256, n_keep = 4, task.n_tokens = 10",
        "stop processing: n_tokens = 10, truncated = 0",
    )
    log = RunnerLog()
    strangers = [
        slot(7, "slot context shift, n_keep = 4, n_left = 251, n_discard = 125"),
        slot(7, "prompt eval time =      33.55 ms /    10 tokens"),
        slot(7, "cached n_tokens = 3"),
        slot(7, end).replace("operator()", "release"),
    ]
    assert log.feed(strangers) == []
    assert log.feed([slot(7, new), slot(7, end).replace("operator()", "release")]) == [Timing(10)]


def test_requests_that_never_end_are_forgotten() -> None:
    new, end = (
        "new prompt, n_ctx_slot = 256, n_keep = 4, task.n_tokens = {}",
        "stop processing: n_tokens = 1, truncated = 0",
    )
    log = RunnerLog()
    assert log.feed(slot(task, new.format(task)) for task in range(1, 1026)) == []
    ends = [slot(task, end).replace("operator()", "release") for task in (1, 2, 1025)]
    assert log.feed(ends) == [Timing(2), Timing(1025)]


def test_files_that_models_were_made_from() -> None:
    known = Desired()
    known.wish("a").made = {"x": {"file": "/m/x", "identity": "8:1", "sha256": "aa"}}
    known.wish("b").made = {"y": {"file": "/m/y", "identity": "8:2", "sha256": ""}}
    assert known.made_from() == {"8:1": "aa"}, "of y no digest is known"
