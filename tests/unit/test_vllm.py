"""What a vLLM says of itself, read from captured answers and logs of the real one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from llmsupervisor.runtime.adapter import adapter_for
from llmsupervisor.runtime.generic import step_of
from llmsupervisor.runtime.load import parse

ROOT = Path(__file__).parents[2]
DEFINITION = parse((ROOT / "runtimes" / "vllm.toml").read_text(), "vllm.toml")
VLLM = adapter_for(DEFINITION)


def text(name: str) -> str:
    return (ROOT / "tests" / "fixtures" / "vllm" / name).read_text()


def test_vllm_tells_what_it_got() -> None:
    payloads = {
        "/v1/models": {"object": "list", "data": [{"id": "tiny", "max_model_len": 1024}]},
        "/metrics": text("metrics_load.txt"),
    }
    got = VLLM.got(payloads, "")
    assert got == {
        "context_length": 1024,
        "parallel": None,
        "kv_cache_type": "auto",
        "prefix_caching": True,
        "kv_tokens": 5120,
        "attention_backend": None,
    }
    log = text("startup_log_default_cpu.txt")
    got = VLLM.got({}, log)
    assert (got["kv_tokens"], got["attention_backend"], got["parallel"]) == (2_097_152, "CPU_ATTN", None)


@pytest.mark.parametrize(
    ("log", "key", "found"),
    [
        ("Using AttentionBackendEnum.FLASHINFER backend.", "attention_backend", "FLASHINFER"),
        (
            "Using FLASH_ATTN attention backend out of potential backends: ['FLASH_ATTN', 'X'].",
            "attention_backend",
            "FLASH_ATTN",
        ),
        ("Using Flash Attention backend for ViT model.", "attention_backend", None),
        ("non-default args: {'model': 'm', 'max_num_seqs': 16, 'x': 1}", "parallel", 16),
    ],
)
def test_what_only_the_log_of_vllm_tells(log: str, key: str, found: Any) -> None:
    assert VLLM.got({}, log)[key] == found


def test_figures_of_a_busy_vllm() -> None:
    found = VLLM.figures(text("metrics_load.txt"))
    assert (found.requests_running, found.requests_waiting) == (4, 8)
    assert found.kv_cache_usage == pytest.approx(0.6154, abs=1e-4)
    assert found.completion_tokens_total == 1647 and found.progress is not None
    assert (found.kv_tokens_capacity, found.kv_tokens_used) == (5120, 3151) and found.preemptions_total == 0
    assert (found.prefix_queries_total, found.prefix_hits_total) == (3624, 512)


def test_figures_of_a_vllm_that_threw_requests_out() -> None:
    found = VLLM.figures(text("metrics_preempting.txt"))
    assert (found.preemptions_total, found.kv_tokens_capacity, found.kv_cache_usage) == (3, 1536, 0)
    assert (found.prefix_queries_total, found.prefix_hits_total) == (320, 0)


def test_the_pool_of_a_vllm_that_tells_blocks_only() -> None:
    of = 'vllm:cache_config_info{engine="%d",block_size="16",num_gpu_blocks="%s"} 1.0\n'
    assert VLLM.figures(of % (0, "100") + of % (1, "100")).kv_tokens_capacity == 3200
    assert VLLM.figures(of % (0, "None")).kv_tokens_capacity is None


# --- what a start is at ------------------------------------------------------------------------------------------------


def test_the_steps_of_a_start_in_order() -> None:
    lines, told = text("startup_log_default_cpu.txt").splitlines(), []
    for n in range(len(lines)):
        step = step_of(DEFINITION, "\n".join(lines[: n + 1]))
        if step and step not in told:
            told.append(step)
    assert told == [
        "reads the model's configuration",
        "starts its engine",
        "starts its workers",
        "loads weights",
        "loads weights, 0 %",
        "loads weights, 100 %",
        "weights loaded",
        "compiles",
        "KV cache of 2,097,152 tokens made",
        "engine started",
        "starts its HTTP server",
    ]
    assert step_of(DEFINITION, "nothing that it knows") is None


def test_the_last_step_of_the_log_counts_not_the_last_of_the_definition() -> None:
    again = "INFO KV cache size: 5,120 tokens\nINFO Starting to load model /m\n"
    assert step_of(DEFINITION, again) == "loads weights"


OLD = {
    "vllm:kv_cache_usage_perc": "vllm:gpu_cache_usage_perc",
    "vllm:prefix_cache_hits_total": "vllm:gpu_prefix_cache_hits_total",
    "vllm:prefix_cache_queries_total": "vllm:gpu_prefix_cache_queries_total",
    "vllm:inter_token_latency_seconds": "vllm:time_per_output_token_seconds",
}
"""Names of today → those before."""


@pytest.mark.parametrize("capture", ["metrics_load.txt", "metrics_after_load.txt", "metrics_preempting.txt"])
def test_renamed_metrics_are_found(capture: str) -> None:
    """Between two names lie releases that say one thing twice."""
    new = text(capture)
    old = new
    for name, before in OLD.items():
        old = re.sub(rf"\b{name}(?=[_{{ ])", before, old)
    assert VLLM.figures(old) == VLLM.figures(new) != VLLM.figures("") and not [name for name in OLD if name in old]
    both = "\n".join(dict.fromkeys([*old.splitlines(), *new.splitlines()]))
    assert VLLM.figures(both) == VLLM.figures(new)
