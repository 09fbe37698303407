"""Figures of a real engine under real requests: in `status`, over time, in /metrics, and in a real Prometheus."""

from __future__ import annotations

import json
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import control, engines, process
from support.daemon import Daemon
from support.http import chat, request
from support.prometheus import Prometheus, panels, promtool, scraping
from support.spec import served
from support.wait import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

REQUESTS = 22
"""From 20 on a 95th percentile is said."""
PAGE = engines.REPOSITORY / "docs" / "metrics.md"


class Run:
    """A daemon, its gateway and one service, `chat`, that has answered `REQUESTS` streams."""

    def __init__(self, daemon: Daemon, listen: str) -> None:
        self.daemon, self.listen = daemon, listen

    def stream(self, number: int, tokens: int) -> None:
        text = f"Request {number}: tell a story. " + "Once upon a time there was a fox. " * 20
        body = {"model": "chat", "stream": True, "max_tokens": tokens, "messages": [{"role": "user", "content": text}]}
        status, answer = request(f"http://{self.listen}/v1/chat/completions", body | {"ignore_eos": True}, timeout=300)
        assert status == 200, answer

    def service(self) -> dict[str, Any]:
        return self.daemon.service("chat")

    def series(self, *names: str, **args: Any) -> dict[str, Any]:
        found: dict[str, Any] = control.call(self.daemon.socket, "series", names=list(names), **args)
        return found

    def text(self) -> str:
        return request(f"http://{self.listen}/metrics")[1].decode()


@pytest.fixture(scope="module")
def run(model: Path) -> Iterator[Run]:
    with tempfile.TemporaryDirectory(prefix="ls-") as folder:
        daemon = Daemon(Path(folder), process.free_ports(10))
        run = Run(daemon, f"127.0.0.1:{process.free_ports(1)[0]}")
        slo = {"ttft_p95": "1ms", "tpot_p95": "1h", "window": "1h"}
        service = served(engines.llama_server(), model, slo=slo)
        daemon.write({"chat": service}, gateway={"listen": run.listen})
        daemon.up()
        try:
            daemon.wait_state("chat", "READY", 240)
            wait_until(lambda: request(f"http://{run.listen}/readyz")[0] == 200, 30, "the gateway")
            for number in range(REQUESTS):
                run.stream(number % 3, 60 if number == 0 else 4)
            yield run
        finally:
            left = daemon.close()
            assert not left, left


def test_figures_of_a_real_engine(run: Run) -> None:
    chat = run.daemon.wait_service(
        "chat",
        lambda s: (
            s["slo"]
            and s["slo"][0]["requests"] >= REQUESTS
            and (s["rss_bytes"] or 0) > 30e6
            and s["targets"][0]["context"]["requests"] == REQUESTS
            and "slo" in [c["id"] for c in s["conditions"]]
        ),
        60,
        "all requests, what is said of them, and a look at the memory since they came",
    )
    target, memory = chat["targets"][0], chat["memory"]
    assert memory["gpu"] is None and memory["source"] == "log"
    assert 80e6 < memory["host"]["weights_bytes"] < 120e6 and memory["host"]["compute_bytes"] > 1e6
    assert target["kv_tokens_capacity"] == 2048
    assert target["kv_bytes_capacity"] == memory["host"]["kv_bytes"] == pytest.approx(2048 * 12240, rel=0.01)
    assert 0.5 < target["prefix_hit_ratio"] <= 1, "two of three prompts came again"
    assert target["decode_tokens_per_s"] > 0 and target["prefill_tokens_per_s"] > 0
    assert target["draft_acceptance"] is None and target["preemptions"] is None
    assert target["context"]["limit"] == 1024 and 150 < target["context"]["p95"] < 1024
    assert target["context"]["requests"] == REQUESTS and abs(time.time() - target["figures_time"]) < 60
    assert chat["swap_bytes"] is not None and chat["growth"] is None
    ttft, tpot = chat["slo"]
    assert ttft["breached"] and ttft["measured_s"] > 0.001 and ttft["window_s"] == 3600
    assert not tpot["breached"] and 0 < tpot["measured_s"] < 3600
    (condition,) = [c for c in chat["conditions"] if c["id"] == "slo"]
    assert condition["text"].startswith("ttft_p95 of") and "tpot" not in condition["text"]


def test_while_it_works(run: Run) -> None:
    """What all get together, and whose KV it is; no figure of speed once it rests."""
    body = {"model": "chat", "prompt": "One, two,", "max_tokens": 200, "ignore_eos": True, "stream": True}
    seen = threading.Event()

    def work() -> None:
        while not seen.is_set():
            request(f"http://{run.listen}/v1/completions", body, timeout=300)

    def works(service: dict[str, Any]) -> bool:
        target = service["targets"][0]
        return bool(target["tokens_per_s"] and target["requests_running"] and target["kv_tokens_used"])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        busy = run.daemon.wait_service("chat", works, 120, "tokens")["targets"][0]
    finally:
        seen.set()
        thread.join()
    assert busy["requests_running"] == 1 and 0 < busy["kv_cache_usage"] < 1
    assert 0 < busy["kv_bytes_used"] <= busy["kv_bytes_capacity"]

    def rests(service: dict[str, Any]) -> bool:
        target = service["targets"][0]
        return target["kv_tokens_used"] == 0 and target["kv_tokens_cached"] > 150 and target["tokens_per_s"] is None

    run.daemon.wait_service("chat", rests, 60, "rest: no speed, and what stays until somebody needs the room")


def test_a_draft_model_whose_guesses_are_taken(daemon: Daemon, model: Path) -> None:
    """The model guesses for itself."""
    daemon.write({"chat": served(engines.llama_server(), model, draft=str(model))})
    daemon.up()
    ready = daemon.wait_state("chat", "READY", 240)
    assert ready["targets"][0]["draft_acceptance"] is None
    first = daemon.wait_service("chat", lambda s: s["targets"][0]["figures_time"], 30, "figures before the request")
    assert first["conditions"] == [] and first["got"]["kv_cache_type"] == "q8_0", "what the draft got is not its own"
    assert chat(ready["endpoint"], daemon.key("chat"), tokens=48, text="Count from one to twenty in words.")
    wait_until(
        lambda: daemon.service("chat")["targets"][0]["draft_acceptance"], 30, lambda: f"{daemon.service('chat')}"
    )
    target = daemon.service("chat")["targets"][0]
    print(f"\nof the guessed tokens {target['draft_acceptance']:.2f} were taken")
    assert 0 < target["draft_acceptance"] <= 1


def test_figures_over_time(run: Run) -> None:

    def ran() -> bool:
        run.stream(0, 200)
        found = run.series("services.chat.requests_running", window_s=300)["series"]
        return 1 in found["services.chat.requests_running"]["mean"]

    wait_until(ran, 120, "a second in which it worked")
    found = run.series("services.chat.*", window_s=300)
    names = {name.rpartition(".")[2] for name in found["series"]}
    assert {
        "requests_running",
        "kv_cache_usage",
        "tokens_per_s",
        "decode_tokens_per_s",
        "rss_bytes",
        "ttft_p95_s",
    } <= names
    running = found["series"]["services.chat.requests_running"]["mean"]
    assert found["step_s"] == 1 and len(running) == found["count"] == 300 and 1 in running
    ready = [e for e in found["events"] if e["kind"] == "state" and e["to"] == "READY"]
    long = run.series("services.*.rss_bytes", window_s=86400, events=False)
    assert long["step_s"] % 60 == 0 and long["events"] == [] and long["reason"] is None
    points = long["series"]["services.chat.rss_bytes"]
    assert any(points["mean"]) and max(v for v in points["max"] if v) >= max(v for v in points["mean"] if v)
    assert run.series("services.chat.requests_running", window_s=900)["events"] and len(ready) <= 1
    with pytest.raises(control.Refused, match="window_s is 0"):
        run.series("*", window_s=0)
    with pytest.raises(control.Refused, match="names is 3"):
        control.call(run.daemon.socket, "series", names=3)


def test_the_text_is_well_formed_and_every_name_has_its_place_on_the_page(run: Run) -> None:
    text = run.text()
    done = promtool("check", "metrics", given=text.encode())
    assert done.returncode == 0, done.stdout + done.stderr
    told = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    page = set(re.findall(r"`(\w+)`", PAGE.read_text()))
    assert not (unknown := told - page), f"not in docs/metrics.md: {unknown}"
    assert {"llmsupervisor_slo_breached", "llmsupervisor_kv_tokens", "llmsupervisor_engine_memory_bytes"} <= told


def test_a_real_prometheus_over_a_real_run(run: Run) -> None:
    with scraping(run.listen, run.daemon.folder / "prometheus") as prometheus:
        wait_until(lambda: prometheus.value("llmsupervisor_slo_breached == 1"), 60, "the breach in Prometheus")
        run.stream(7, 30)
        run.stream(8, 30)
        alerts = 'ALERTS{alertname="LlmsupervisorSloBreached", service="chat", objective="ttft_p95"}'
        wait_until(lambda: prometheus.query(alerts), 60, "the alert")
        rate = "sum(rate(llmsupervisor_decode_tokens_total[5m]))"
        wait_until(lambda: (prometheus.value(rate) or 0) > 0, 60, "tokens in Prometheus")
        wait_until(lambda: not empty(prometheus), 60, lambda: f"figures in the panels {empty(prometheus)}")


IDLE_HERE = {"Speculative decoding", "Preemptions", "Restarts", "Tokens of clients"}
"""Panels of what this run has not: a draft model, keys."""
CARDS = {
    "GPU memory by owner",
    "Memory bandwidth",
    "Time a kernel was resident",
    "Power",
    "Temperature",
    "Clocks held down",
    "Errors",
}
"""Panels of GPUs, which not every box has."""


def empty(prometheus: Prometheus) -> list[str]:
    """Panels without a figure. Every expression of the dashboard is asked for."""
    found = []
    for panel in panels():
        texts = [t["expr"].replace("$__rate_interval", "5m").replace("$service", ".*") for t in panel["targets"]]
        if not any([bool(prometheus.query(text)) for text in texts]) and panel["title"] not in IDLE_HERE | CARDS:
            found.append(panel["title"])
    return found


def test_the_dashboard_names_only_what_there_is() -> None:
    """Every metric of a panel is on the page of metrics."""
    page = set(re.findall(r"`(\w+)`", PAGE.read_text()))
    text = json.dumps([panel["targets"] for panel in panels()])
    named = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"(?:llmsupervisor|gen_ai)_\w+", text)}
    assert len(named) > 25 and not (named - page), named - page
