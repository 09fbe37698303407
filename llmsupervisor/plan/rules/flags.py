"""Flags that were, and are no more."""

from __future__ import annotations

from collections.abc import Iterator

from llmsupervisor.plan.launch import ServicePlan
from llmsupervisor.plan.rules.rule import LLAMA, VLLM, Box, Hit, rule, said, without

GONE = {
    LLAMA: {
        "--mmap": '"--load-mode", "mmap"',
        "-dio": '"--load-mode", "dio"',
        "--direct-io": '"--load-mode", "dio"',
        "--draft": "the setting draft",
        "--draft-n": "the setting draft",
        "--draft-min": "the setting draft",
        "--draft-n-min": "the setting draft",
    },
    VLLM: {
        "--use-v2-block-manager": "",
        "--worker-use-ray": "",
        "--disable-async-output-proc": "",
        "--disable-frontend-multiprocessing": "",
        "--calculate-kv-scales": "",
        "--enable-reasoning": "the setting reasoning_parser alone",
        "--num-scheduler-steps": "",
        "--max-seq-len-to-capture": '"--max-cudagraph-capture-size"',
        "--cuda-graph-sizes": '"--cudagraph-capture-sizes"',
        "--guided-decoding-backend": '"--structured-outputs-config.backend"',
        "--rope-scaling": '"--hf-overrides"',
        "--preemption-mode": "",
        "--scheduler-delay-factor": "",
        "--max-num-partial-prefills": "",
    },
}
"""Flag that is gone → what took its place; empty: nothing needs to."""
ABSENT = {LLAMA: "build 11434", VLLM: "0.32"}


@rule(
    "C91",
    "flag-gone",
    "error",
    LLAMA,
    VLLM,
    when="`extra_args` has a flag that current releases no longer know",
    harm="the engine ends at once; vLLM takes 14 s to say so",
    effect="the engine starts again",
    source="runs of llama-server build 11434 (“error: invalid argument”) and of vLLM 0.32 (--help=all, exit 2)",
)
def flag_gone(plan: ServicePlan, box: Box) -> Iterator[Hit]:
    adapter = plan.definition.adapter
    for old, new in GONE[adapter].items():
        if said(plan, old):
            yield Hit(
                "extra_args",
                f"{plan.definition.name} {ABSENT[adapter]} no longer knows {old}: the start fails",
                f"write {new} instead" if new else f"leave {old} out: nothing took its place",
                {"extra_args": list(plan.service.extra_args)},
                () if new else without(plan, old),
            )


RULES = (flag_gone,)
