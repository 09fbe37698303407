"""The gateway's metrics: what is counted, what the text looks like to a parser, and what `docs/metrics.md` promises."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from support.wait import undisturbed

from llmsupervisor.base.exposition import Histogram, Scalar, parse, render
from llmsupervisor.gateway.metrics import RECENT, Metrics, Moment
from llmsupervisor.gateway.view import Table, table
from llmsupervisor.link.requests import RequestRecord

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
GEN_AI = {
    "service": "chat",
    "gen_ai_operation_name": "chat",
    "gen_ai_provider_name": "llama_cpp",
    "gen_ai_request_model": "chat",
}


def view(*services: str) -> Table:
    targets = [
        {
            "target": name,
            "service": name,
            "endpoint": f"{name}@1",
            "address": "http://127.0.0.1:1",
            "state": "open",
            "names": [name, f"{name}-alias"],
            "inject": {},
            "runtime": "llama-server" if name == "chat" else "vllm",
        }
        for name in services
    ]
    return table({"generation": 1, "targets": targets, "keys": [{"name": "alice", "sha256": "00"}]})


def record(**changes: Any) -> RequestRecord:
    made: dict[str, Any] = {
        "id": "01J0000000",
        "time": 1790000000.0,
        "service": "chat",
        "model": "chat",
        "client": "alice",
        "api": "chat.completions",
        "stream": True,
        "status": 200,
        "finish_reason": "stop",
        "prompt_tokens": 100,
        "cached_tokens": 40,
        "completion_tokens": 11,
        "queue_ms": 2000.0,
        "load_ms": 0.0,
        "engine_queue_ms": None,
        "prefill_ms": 500.0,
        "decode_ms": 250.0,
        "other_ms": 1.0,
        "ttft_ms": 2501.0,
        "itl_p50_ms": 25.0,
        "itl_p95_ms": 25.0,
        "decode_tokens_per_s": 40.0,
        "total_ms": 2751.0,
        "truncated": False,
        "max_tokens": 64,
        "session_id": None,
        "hash_ids": None,
        "sources": {"prefill_ms": "engine", "decode_ms": "both"},
    }
    return RequestRecord(**(made | changes))  # type: ignore[typeddict-item]


def metrics(*services: str, moment: Moment | None = None) -> Metrics:
    made = Metrics(lambda: moment or Moment())
    made.know(view(*(services or ("chat", "code"))))
    return made


def read(text: bytes) -> dict[str, Metric]:
    """As Prometheus does; a metric that comes twice is an error."""
    found: dict[str, Metric] = {}
    for family in text_string_to_metric_families(text.decode()):
        assert family.name not in found, family.name
        found[family.name] = family
    return found


def values(made: Metrics, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """Labels → value of all samples of this name."""
    families = read(made.text(None, None)).values()
    return {tuple(sorted(s.labels.items())): s.value for f in families for s in f.samples if s.name == name}


def one(made: Metrics, name: str) -> float:
    (value,) = values(made, name).values()
    return value


def test_one_request_in_every_figure() -> None:
    made = metrics("chat")
    made.observe(record())
    assert values(made, "gen_ai_server_time_to_first_token_seconds_sum") == {tuple(sorted(GEN_AI.items())): 2.501}
    assert one(made, "gen_ai_server_time_per_output_token_seconds_sum") == pytest.approx(0.025)
    assert values(made, "gen_ai_server_request_duration_seconds_sum") == {tuple(sorted(GEN_AI.items())): 2.751}
    by_type = {dict(k)["gen_ai_token_type"]: v for k, v in values(made, "gen_ai_client_token_usage_sum").items()}
    assert by_type == {"input": 100, "output": 11}
    assert values(made, "llmsupervisor_request_queue_seconds_sum") == {(("service", "chat"), ("where", "gateway")): 2.0}
    for name, seconds in (("prefill", 0.5), ("decode", 0.25)):
        source = (("service", "chat"), ("source", "engine"))
        assert values(made, f"llmsupervisor_request_{name}_seconds_sum") == {source: seconds}
        assert one(made, f"llmsupervisor_{name}_busy_seconds_total") == seconds
    assert one(made, "llmsupervisor_prefill_tokens_total") == 60
    assert one(made, "llmsupervisor_prefill_cached_tokens_total") == 40
    assert one(made, "llmsupervisor_decode_tokens_total") == 11
    assert one(made, "llmsupervisor_request_context_tokens_sum") == 111
    assert one(made, "llmsupervisor_client_requests_total") == 1
    assert {dict(k)["type"]: v for k, v in values(made, "llmsupervisor_client_tokens_total").items()} == {
        "input": 100,
        "output": 11,
    }


def test_what_is_unknown_has_no_series() -> None:
    made = metrics("chat")
    unknown = [
        name for name, value in record().items() if name.endswith(("_ms", "_tokens", "_per_s")) and value is not None
    ]
    made.observe(record(**(dict.fromkeys(unknown) | {"total_ms": 5.0, "client": None})))
    told = read(made.text(None, None))
    assert {name for name in told if "request" in name or "gen_ai" in name or "tokens" in name} == {
        "gen_ai_server_request_duration_seconds",
        "llmsupervisor_requests",
        "llmsupervisor_requests_running",
        "llmsupervisor_requests_queued",
        "llmsupervisor_request_records_dropped",
    }
    assert not any("lag" in name or "age" in name or "generation" in name for name in told)


def test_an_answer_at_once_has_no_time_to_a_first_token() -> None:
    made = metrics("chat")
    made.observe(record(stream=False))
    assert not values(made, "gen_ai_server_time_to_first_token_seconds_sum")


@pytest.mark.parametrize(
    ("said", "reason", "error"),
    [
        ({"finish_reason": "tool_calls"}, "stop", None),
        ({"finish_reason": None, "api": "embeddings"}, "stop", None),
        ({"finish_reason": "max_tokens"}, "length", None),
        ({"finish_reason": "length", "truncated": True}, "ctx", None),
        ({"finish_reason": "client_gone"}, "client_gone", "client_gone"),
        ({"finish_reason": "rejected", "status": 503}, "rejected", "rejected"),
        ({"finish_reason": "whatever an engine says"}, "stop", None),
    ],
)
def test_why_a_request_ended(said: dict[str, Any], reason: str, error: str | None) -> None:
    made = metrics("chat")
    made.observe(record(**said))
    ((labels, n),) = values(made, "llmsupervisor_requests_total").items()
    assert dict(labels) == {"service": "chat", "status": f"{said.get('status', 200) // 100}xx", "reason": reason}
    assert n == 1
    ((labels, _),) = values(made, "gen_ai_server_request_duration_seconds_count").items()
    assert dict(labels).get("error_type") == error


def test_labels_are_bounded_by_the_spec() -> None:
    made = metrics("chat")
    for n in range(50):
        made.observe(record(service=f"s{n}", model=f'x"\n{n}', client=f"c{n}"))
    names = {(k, v) for f in read(made.text(None, None)).values() for s in f.samples for k, v in s.labels.items()}
    assert {v for k, v in names if k in ("service", "gen_ai_request_model", "client")} == {"other", "chat"}
    assert {dict(k)["service"] for k in values(made, "llmsupervisor_requests_total")} == {"other"}


def test_series_of_what_left_the_spec_go() -> None:
    made = metrics("chat", "code")
    made.observe(record())
    made.observe(record(service="code", model="code-alias"))
    made.know(view("code"))
    labels = {(k, v) for f in read(made.text(None, None)).values() for s in f.samples for k, v in s.labels.items()}
    assert {v for k, v in labels if k == "service"} == {"code"}
    assert one(made, "llmsupervisor_decode_tokens_total") == 11


def test_the_95th_percentile_is_exact_and_of_the_last_requests() -> None:
    made = metrics("chat")
    made.observe(record(prompt_tokens=10**6, completion_tokens=None))
    for n in range(1, RECENT + 1):
        made.observe(record(prompt_tokens=n, completion_tokens=None))
    assert one(made, "llmsupervisor_request_context_tokens_p95") == RECENT * 0.95


def test_gauges_are_of_the_moment() -> None:
    moment = Moment(
        running={"chat": 3}, queued={"code": 2}, connections=7, loop_lag=0.002, records_dropped=1, generation=4,
        view_age=0.5,
    )  # fmt: skip
    made = metrics(moment=moment)

    def running() -> dict[str, float]:
        return {dict(k)["service"]: v for k, v in values(made, "llmsupervisor_requests_running").items()}

    assert running() == {"chat": 3, "code": 0}
    assert one(made, "llmsupervisor_gateway_connections") == 7
    assert one(made, "llmsupervisor_gateway_loop_lag_seconds") == 0.002
    assert one(made, "llmsupervisor_request_records_dropped_total") == 1
    assert one(made, "llmsupervisor_gateway_view_generation") == 4
    assert one(made, "llmsupervisor_gateway_view_age_seconds") == 0.5
    moment.running, moment.loop_lag = {}, None
    assert running() == {"chat": 0, "code": 0}
    assert not values(made, "llmsupervisor_gateway_loop_lag_seconds")


PUSHED = """# HELP llmsupervisor_up 1 while the daemon runs
# TYPE llmsupervisor_up gauge
llmsupervisor_up 1
# HELP llmsupervisor_requests_running another help
# TYPE llmsupervisor_requests_running gauge
llmsupervisor_requests_running{service="chat",where="engine"} 2
llmsupervisor_requests_running{service="chat",where="gateway"} 99
# TYPE llmsupervisor_decode_tokens_total gauge
llmsupervisor_decode_tokens_total 5
# HELP vllm:ttft seconds
# TYPE vllm:ttft histogram
vllm:ttft_bucket{service="a",le="+Inf"} 1
vllm:ttft_sum{service="a"} 0.5
vllm:ttft_count{service="a"} 1
# HELP llmsupervisor_up 1 while the daemon runs
# TYPE llmsupervisor_up gauge
llmsupervisor_up{service="x"} 1
vllm:ttft_bucket{service="b c",le="+Inf"} 1
vllm:ttft_count{service="b c"} 1 1790000000000
vllm:requests_sum 3
# a comment
no value
1bad 2

"""


def test_the_daemons_text_follows_and_nothing_comes_twice() -> None:
    made = metrics("chat")
    made.observe(record())
    text = made.text(PUSHED, 1.5)
    told = read(text)
    headers = [line for line in text.decode().splitlines() if line.startswith("#")]
    assert len(headers) == len(set(headers))
    running = {s.labels["where"]: s.value for s in told["llmsupervisor_requests_running"].samples}
    assert running == {"gateway": 0, "engine": 2}
    assert [s.value for s in told["llmsupervisor_decode_tokens"].samples] == [11], "of another type: ours stands"
    assert len(told["llmsupervisor_up"].samples) == 2
    assert {s.name for s in told["vllm:ttft"].samples} == {"vllm:ttft_bucket", "vllm:ttft_sum", "vllm:ttft_count"}
    assert len(told["vllm:ttft"].samples) == 5
    assert told["vllm:requests_sum"].samples[0].value == 3
    assert [s.value for s in told["llmsupervisor_daemon_exposition_age_seconds"].samples] == [1.5]
    assert "vllm" not in made.text(None, None).decode(), "what was told last is not kept beside nothing"


def test_text_of_labels_and_values() -> None:
    gauge = Scalar("gauge", "g", "back\\slash\nand line", ["a", "b"])
    gauge.set(0.1, 'say "hi"\\\n', "")
    gauge.add(1e-7, "", "")
    plain = Histogram("h", "of all", [], [1])
    plain.observe(1)
    plain.observe(3)
    labelled = Histogram("k", "of some", ["a"], [1])
    labelled.observe(0.5, "x")
    labelled.retain("b", set())
    text = render([gauge, plain, labelled, Scalar("counter", "nothing", "no series")], {})
    assert text.decode() == (
        "# HELP g back\\\\slash\\nand line\n# TYPE g gauge\n"
        'g{a="say \\"hi\\"\\\\\\n"} 0.1\ng 1e-07\n'
        '# HELP h of all\n# TYPE h histogram\nh_bucket{le="1.0"} 1\nh_bucket{le="+Inf"} 2\nh_sum 4.0\nh_count 2\n'
        '# HELP k of some\n# TYPE k histogram\nk_bucket{a="x",le="1.0"} 1\nk_bucket{a="x",le="+Inf"} 1\n'
        'k_sum{a="x"} 0.5\nk_count{a="x"} 1\n'
    )
    labelled.retain("a", {"y"})
    assert render([labelled], parse("")) == b""


def test_promtool_accepts_it() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    made = metrics(moment=Moment(loop_lag=0.1, generation=1, view_age=1.0))
    made.observe(record())
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=made.text(None, 1.0), capture_output=True, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()


def busy() -> Metrics:
    """16 services, each asked under both its names: some 4,000 lines."""
    names = [f"s{n}" for n in range(16)]
    made = metrics(*names)
    for name in names:
        made.observe(record(service=name, model=name))
        made.observe(record(service=name, model=f"{name}-alias", engine_queue_ms=1.0))
    return made


def test_the_streams_hardly_wait_for_it() -> None:
    """Processor time, the best of a few, beside that of something as simple: one record as JSON takes some 9 µs, a line
    of such a text 1. Far from that only where it has become another order."""
    made, kept = busy(), record(service="s1", model="s1")
    lines = made.text(None, None).count(b"\n")
    assert lines > 4000

    def best(work: Callable[[], object]) -> float:
        found = []
        for _ in range(5):
            begin = time.thread_time()
            work()
            found.append(time.thread_time() - begin)
        return min(found)

    def measure() -> None:
        assert best(lambda: [made.observe(kept) for _ in range(200)]) < 7 * best(
            lambda: [json.dumps(kept) for _ in range(200)]
        )
        assert best(lambda: made.text(None, None)) < 5 * best(lambda: [f'x{{a="{n}"}} {n / 7}' for n in range(lines)])

    undisturbed(measure)


def test_the_page_names_them_all() -> None:
    rows = [
        f"| `{family.name}` | {family.kind} | {', '.join(f'`{label}`' for label in family.labels) or '–'} | {family.help} |"
        for family in metrics().families
    ]
    before, _, after = PAGE.read_text().partition("| --- | --- | --- | --- |\n")
    if os.environ.get("LLMSUPERVISOR_WRITE_DOCS"):
        rest = after.partition("\n\n")[2] if after.startswith("|") else after.lstrip("\n")
        after = "\n".join(rows) + "\n\n" + rest
        PAGE.write_text(f"{before}| --- | --- | --- | --- |\n{after}")
    told = [line for line in after.partition("\n\n")[0].splitlines() if line.startswith("|")]
    assert told == rows, "write it anew: LLMSUPERVISOR_WRITE_DOCS=1 pytest tests/unit/test_gateway_metrics.py"


def test_tokens_of_nobody_are_no_clients() -> None:
    made = metrics()
    made.observe(record(client=None))
    said = made.text(None, None).decode()
    assert 'llmsupervisor_request_context_tokens_count{service="chat"} 1' in said and 'client="' not in said
