"""Each rule of the linter: a plan in which it fires, one in which it does not, and its change when that is mechanical."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
from support.boxes import service
from support.findings import BOX, GIB, found, llama, ollama, other, vllm

from llmsupervisor.plan.facts import Binary, Facts, File
from llmsupervisor.plan.lint import RULES, Finding, fixed
from llmsupervisor.plan.rules import model
from llmsupervisor.plan.rules.flags import GONE
from llmsupervisor.plan.rules_doc import CLOSED, ELSEWHERE, OPEN


class Case(NamedTuple):
    fires: list[str]
    silent: list[str]
    box: Facts = BOX


LARGE = replace(BOX, files={**BOX.files, "/m/a.gguf": File("file", 80 * GIB), "/m/b.gguf": File("file", 40 * GIB)})
"""Models that are read for minutes."""
GATEWAY = '[gateway]\nlisten = "127.0.0.1:1"\n'
TWINS = [{"name": "a", "context_length": 4096}, {"name": "a-long", "context_length": 16384}]
"""Two names of the same weights."""
FILES = [{"name": n, "file": f"/m/{n}.gguf", "context_length": c} for n, c in (("x", 4096), ("y", 8192))]
CASES: dict[str, Case] = {
    "C03": Case([llama(context_length=1000)], [llama(context_length=1024)]),
    "C08": Case(
        [llama(kv_cache_type=kind) for kind in ("q4_1", "q5_0", "q5_1", "iq4_nl")],
        [llama(kv_cache_type="q5_0", gpus=[]), llama(kv_cache_type="q4_0")],
    ),
    "C10": Case([ollama(kv_cache_type="q5_0"), ollama(kv_cache_type="bf16")], [ollama(), ollama(kv_cache_type="q4_0")]),
    "C12": Case(
        [
            llama(kv_cache_type="q4_0", context_length=32768),
            ollama(
                kv_cache_type="q4_0", models=[{"name": n, "context_length": c} for n, c in (("a", 65536), ("b", 1))]
            ),
        ],
        [llama(kv_cache_type="q4_0", context_length=32512), llama(context_length=32768)],
    ),
    "C13": Case(
        [
            llama(kv_cache_type="f16"),
            llama(kv_cache_type="f32", gpus=[]),
            llama(kv_cache_type="bf16", flash_attention=False),
            ollama(kv_cache_type="f16"),
            vllm(kv_cache_type="auto"),
            vllm(kv_cache_type="bfloat16", gpus=[4]),
        ],
        [
            llama(),
            llama(kv_cache_type="f16", task="embed"),
            llama(kv_cache_type="q4_1"),
            vllm(),
            vllm(kv_cache_type="auto", gpus=[3]),
            vllm(kv_cache_type="auto", gpus=[]),
        ],
    ),
    "C15": Case(
        [vllm(gpus=[3]), vllm(gpus=[0, 3], kv_cache_type="fp8_e4m3"), vllm(kv_cache_type="nvfp4", gpus=[5])],
        [vllm(), vllm(gpus=[4]), vllm(gpus=[3], kv_cache_type="auto"), vllm(gpus=[3], kv_cache_type="fp8_e5m2")],
    ),
    "C20": Case(
        [
            vllm("a", gpu_memory="12GiB") + vllm("b", gpu_memory="12GiB"),
            vllm("a", gpu_memory="12GiB") + llama("b", gpu_memory="11.9GiB"),
            vllm("a", gpu_memory="1GiB") + vllm("b", gpu_memory="23.9GiB"),
            vllm(gpu_memory="25GiB"),
        ],
        [
            vllm("a", gpu_memory="12GiB") + vllm("b", gpu_memory="11GiB"),
            vllm("a", gpu_memory="20GiB") + vllm("b", gpus=[1]),
            vllm("a", gpu_memory="20GiB") + llama("b", start="demand", gpu_memory="20GiB"),
            vllm("a", gpu_memory="20GiB") + llama("b"),
            vllm(gpu_memory="25GiB", gpus=[4]),
            vllm(kv_tokens=9000, gpu_memory=None),
        ],
    ),
    "C21": Case([vllm(gpu_memory="23.5GiB")], [vllm(gpu_memory="22GiB"), vllm(gpu_memory="23GiB", gpus=[4])]),
    "C23": Case([vllm(kv_tokens=2000)], [vllm(kv_tokens=2048), vllm()]),
    "C24": Case(
        [vllm(kv_tokens=2048, parallel=5)],
        [vllm(kv_tokens=2048, parallel=4), vllm(parallel=9), vllm(kv_tokens=9, parallel=9)],
    ),
    "C25": Case([vllm(batch=256)], [vllm(batch=512), vllm(), vllm(batch=256, task="embed")]),
    "C26": Case(
        [vllm(batch=16384)],
        [vllm(batch=8192), vllm(batch=16384, gpus=[5]), vllm(batch=16384, gpus=[4]), vllm(batch=16384, task="embed")],
    ),
    "C28": Case(
        [llama(prefix_caching=False), vllm(prefix_caching=False)],
        [llama(prefix_caching=True), llama(prefix_caching=False, task="embed")],
    ),
    "C29": Case(
        [vllm(extra_args=["--enforce_eager", "--seed", "1"])],
        [vllm(extra_args=["--seed", "1"]), vllm(extra_args=["--enforce-eager"], gpus=[])],
    ),
    "C30": Case(
        [llama(draft="/m/d.gguf", parallel=9), vllm(parallel=9, extra_args=["--speculative-config={}"])],
        [llama(draft="/m/d.gguf", parallel=8), llama(parallel=9)],
    ),
    "C32": Case([llama(gpu_layers=20), llama(gpu_layers=0)], [llama(gpu_layers="all"), llama(gpu_layers=999), llama()]),
    "C35": Case(
        [llama(ubatch=4096, batch=4096), llama(ubatch=1024, batch=512)],
        [llama(ubatch=2048), llama(ubatch=4096, task="embed", context_length=4096)],
    ),
    "C36": Case(
        [llama(ubatch=256, context_length=8192)],
        [
            llama(ubatch=512, context_length=8192),
            llama(ubatch=256),
            llama(ubatch=256, context_length=8192, gpus=[]),
            llama(ubatch=256, context_length=8192, task="embed"),
        ],
    ),
    "C39": Case(
        [llama(extra_args=["-ctxcp", "0"]), llama(extra_args=["--seed", "1", "--ctx_checkpoints=0"])],
        [llama(), llama(extra_args=["--ctx-checkpoints", "8"]), llama(extra_args=["-ctxcp", "0"], task="embed")],
    ),
    "C42": Case([llama()], [llama(model="/m/b.gguf"), llama(model="/m/c.gguf"), vllm()], LARGE),
    "C51": Case(
        [llama("a") + llama("b") + vllm("c", gpu_memory="4GiB")],
        [
            llama("a") + llama("b"),
            llama("a") + llama("b") + llama("c", gpus=[1]),
            "".join(llama(n, gpus=[]) for n in "abc"),
        ],
    ),
    "C57": Case(
        [
            GATEWAY + llama(start="demand"),
            GATEWAY + llama(keep_alive="1h", start_timeout="9m"),
            GATEWAY + vllm(start="demand"),
            GATEWAY + 'queue_deadline = "100s"\n' + vllm(keep_alive="1h"),
        ],
        [
            GATEWAY + llama(),
            llama(start="demand"),
            GATEWAY + 'queue_deadline = "10m"\n' + llama(start="demand") + vllm(start="demand"),
            GATEWAY + llama(start="demand", model="/m/c.gguf"),
        ],
        LARGE,
    ),
    "C100": Case(
        [
            llama(extra_args=words)
            for words in (["--tools", "all"], ["-ag"], ["--media-path", "/srv"], ["--rpc", "a:1"])
        ],
        [llama(), llama(extra_args=["--no-agent"])],
    ),
    "C109": Case(
        [llama(split="row"), llama(split="row", gpus=[0, 1])],
        [llama(split="layer"), llama(split="tensor", gpus=[0, 1]), llama(gpus=[])],
        replace(BOX, binaries={"llama-server": Binary("/usr/bin/llama-server", "1:1", "0.6.0")}),
    ),
    "C101": Case(
        [llama(extra_args=["--no-cont-batching"]), llama(extra_args=["-nocb", "--seed", "1"])],
        [llama(), llama(extra_args=["-nocb"], parallel=1)],
    ),
    "C102": Case(
        [llama(start_timeout="2m"), vllm(start_timeout="1m"), llama(model="/m/b.gguf", start_timeout="1m")],
        [llama(), llama(start_timeout="3m"), vllm(), llama(model="/m/c.gguf", start_timeout="1s")],
        LARGE,
    ),
    "C37": Case([llama(extra_args=["--swa-full"])], [llama()]),
    "C41": Case(
        [
            llama(cache_ram="17GiB"),
            ollama(cache_ram="9GiB", models=[{"name": n, "context_length": 1} for n in "ab"]),
            llama("a", cache_ram="10GiB") + vllm("b", cache_ram="10GiB") + other(),
        ],
        [llama(cache_ram="15GiB"), llama(), other()],
    ),
    "C43": Case([ollama(env={"OLLAMA_KEEP_ALIVE": "5m"})], [ollama(), ollama(env={"OLLAMA_KEEP_ALIVE": "-1"})]),
    "C44": Case(
        [
            llama(keep_alive="0s"),
            ollama(models=[{"name": "a", "context_length": 1, "keep_alive": "0s"}]),
        ],
        [llama(keep_alive="10m"), llama(), ollama()],
    ),
    "C48": Case([ollama(env={"OLLAMA_MAX_QUEUE": "0"})], [ollama(), ollama(env={"OLLAMA_MAX_QUEUE": "8"})]),
    "C54": Case(
        [
            service(runtime="command", model=None, context_length=None, command=["/bin/x", "--host", "0.0.0.0"]),
            service(runtime="command", model=None, context_length=None, command=["/bin/x", "--host=[::]:{port}"]),
            llama(env={"OTHER_ADDRESS": "http://0.0.0.0:9"}),
            vllm(extra_args=["--metrics-address", "::"]),
        ],
        [other(), llama(env={"NO_PROXY": "localhost,0.0.0.0"}), llama(env={"A": "10.0.0.0:1"})],
    ),
    "C86": Case(
        [
            llama(task="embed", context_length=4096, ubatch=512),
            llama(task="rerank", context_length=4096, batch=512, ubatch=512),
        ],
        [llama(task="embed", context_length=4096), llama(context_length=4096)],
    ),
    "C87": Case(
        [vllm(task="embed", batch=1024)], [vllm(task="embed"), vllm(task="embed", batch=2048), vllm(batch=1024)]
    ),
    "C88": Case(
        [llama(threads=8, cpus="0-3"), ollama(threads=3, cpus="1,2")],
        [llama(threads=4, cpus="0-3"), llama(threads=8), llama(cpus="0-3")],
    ),
    "C89": Case([llama(probe={"enabled": False})], [llama(), llama(probe={"timeout": "9s"}), other()]),
    "C90": Case(
        [vllm(start_timeout="20m"), vllm(start_timeout="11m", env={"VLLM_ENGINE_READY_TIMEOUT_S": "60"})],
        [
            vllm(),
            vllm(start_timeout="10m"),
            vllm(start_timeout="20m", env={"VLLM_ENGINE_READY_TIMEOUT_S": "1200"}),
            vllm(start_timeout="20m", env={"VLLM_ENGINE_READY_TIMEOUT_S": "long"}),
        ],
    ),
    "C91": Case(
        [llama(extra_args=[old]) for old in GONE["llama_server"]]
        + [vllm(extra_args=[old]) for old in GONE["vllm"]]
        + [vllm(extra_args=["--num-scheduler-steps", "8", "--seed", "1"])],
        [llama(extra_args=["--load-mode", "mmap"]), vllm(extra_args=["--enable-log-requests"])],
    ),
    "C92": Case([vllm(extra_args=["--trust-remote-code"])], [vllm()]),
    "C93": Case(
        [ollama(env={"OLLAMA_VULKAN": "off"}), ollama(env={"OLLAMA_LOAD_TIMEOUT": "long"})],
        [ollama(env={"OLLAMA_VULKAN": "false", "OLLAMA_LOAD_TIMEOUT": "1m30s", "A": "off"})],
    ),
    "C94": Case(
        [ollama("a", env={"OLLAMA_NOPRUNE": "false"}) + ollama("b", gpus=[1])],
        [
            ollama(env={"OLLAMA_NOPRUNE": "false"}),
            ollama("a") + ollama("b", gpus=[1]),
            ollama("a", env={"OLLAMA_NOPRUNE": "0"}) + ollama("b", gpus=[1], env={"OLLAMA_MODELS": "/srv"}),
        ],
    ),
    "C95": Case(
        [ollama() + llama(), ollama() + other(gpus=["GPU-aaaa"])],
        [ollama(), ollama() + llama(gpus=[1]), ollama(gpus=[]) + llama(gpus=[])],
    ),
    "C97": Case([llama(drain_timeout="0s")], [llama(), other(drain_timeout="0s")]),
    "C108": Case([ollama(client_options="passed")], [ollama(), ollama(client_options="pinned")]),
    "C107": Case(
        [
            ollama(models=TWINS),
            ollama(models=[*TWINS, FILES[0]]),
            ollama(models=[TWINS[0], {"name": "z", "file": "/m/z.gguf", "context_length": 512}]),
        ],
        [
            ollama(models=TWINS[:1]),
            ollama(models=[{**each, "context_length": 4096} for each in TWINS]),
            ollama(models=FILES),
            ollama("a", models=TWINS[:1]) + ollama("b", models=TWINS[1:], gpus=[1]),
        ],
        replace(
            BOX,
            files={**BOX.files, **{f"/m/{n}.gguf": File("file", 1, f"8:{n}:1:1") for n in "xyz"}},
            blobs={("", "a:latest"): "sha256-aa", ("", "a-long:latest"): "sha256-aa"},
            digests={"8:z:1:1": "aa", "8:x:1:1": "bb"},
        ),
    ),
    "C96": Case(
        [ollama(env={"OLLAMA_DEBUG_LOG_REQUESTS": "1"})], [ollama(), ollama(env={"OLLAMA_DEBUG_LOG_REQUESTS": "0"})]
    ),
}
FIRING = [(rule, text) for rule, case in CASES.items() for text in case.fires]
SILENT = [(rule, text) for rule, case in CASES.items() for text in case.silent]


def told(rule: str, text: str) -> list[Finding]:
    return [f for f in found(text, CASES[rule].box) if f.rule == rule]


def test_every_rule_has_its_cases() -> None:
    assert set(CASES) == {rule.id for rule in RULES if not rule.observed and rule not in model.RULES}
    assert len({rule.id for rule in RULES}) == len(RULES) == len({rule.name for rule in RULES})
    assert not set(CASES) & set(CLOSED)


def test_what_is_known_to_go_wrong_is_a_rule_or_says_why_not() -> None:
    known = {f"C{n:02}" for n in range(1, 61)} | {f"R{n}" for n in range(61, 86)}
    written = {rule.id for rule in RULES}
    told = [written, set(CLOSED), set(ELSEWHERE), set(OPEN)]
    assert known <= set().union(*told) and sum(map(len, told)) == len(set().union(*told))


@pytest.mark.parametrize(("rule", "text"), FIRING)
def test_it_fires(rule: str, text: str) -> None:
    finding = told(rule, text)[0]
    assert finding.says and finding.change and finding.source and finding.evidence and finding.effect
    assert finding.line and text.splitlines()[finding.line - 1].startswith(
        (finding.key, f"[services.{finding.service}]")
    )
    assert not finding.ignored


@pytest.mark.parametrize(("rule", "text"), SILENT)
def test_it_is_silent(rule: str, text: str) -> None:
    assert not told(rule, text)


@pytest.mark.parametrize(("rule", "text"), FIRING)
def test_its_mechanical_change_silences_it_and_keeps_comments(rule: str, text: str) -> None:
    commented = text.replace("]\n", "]   # this one\n", 1).replace("parallel", "# said with care\nparallel", 1)
    before = told(rule, commented)
    changed = fixed(commented, before[0])
    if not before[0].fix:
        assert changed is None
        return
    assert changed is not None and changed != commented
    assert "# this one" in changed and changed.count("# said with care") == commented.count("# said with care")
    assert len(told(rule, changed)) == len(before) - 1


# --- sentences ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (llama(kv_cache_type="f16"), "4 requests of 2048 tokens is left at f16; q8_0 takes 47 % less"),
        (llama(kv_cache_type="f32", parallel=1), "1 request of 2048 tokens is left at f32; q8_0 takes 73 % less"),
        (vllm(kv_cache_type="auto"), "the type of the model (auto); fp8 takes 50 % less"),
        (vllm(gpus=[3]), "needs compute capability 8.9, and GPU 3 (RTX 3090) has 8.6"),
        (vllm("a", gpu_memory="12GiB") + vllm("b", gpu_memory="12GiB"), "a 12.0 GiB + b 12.0 GiB = 24.0 GiB"),
        (vllm(gpu_memory="23.5GiB"), "98 % of GPU 0"),
        (vllm(batch=256), "a prompt of 2048 tokens takes 8 steps"),
        (vllm(batch=16384), "activations take 1.7 GiB"),
        (llama(ubatch=4096, batch=4096), "8 times that of 512"),
        (llama(ubatch=1024, batch=512), "no more than 512 tokens"),
        (llama(context_length=1000), "padded to 1024: 4 × 24 tokens"),
        (llama(cache_ram="17GiB"), "17.0 GiB (chat 17.0 GiB) are 27 % of this box's 64.0 GiB"),
        (vllm(start_timeout="20m"), "start_timeout = 20m00s, and vLLM itself gives up after 600 s"),
    ],
)
def test_the_numbers_of_the_spec_are_in_the_sentence(text: str, words: str) -> None:
    assert any(words in f.says for f in found(text)), [f.says for f in found(text)]


@pytest.mark.parametrize(
    ("text", "change"),
    [
        (
            vllm("a", gpu_memory="1GiB") + vllm("b", gpu_memory="23.9GiB"),
            "another GPU: the other services leave nothing",
        ),
        (vllm("a", gpu_memory="12GiB") + vllm("b", gpu_memory="12GiB"), 'gpu_memory = "11.2GiB" at most'),
        (llama(kv_cache_type="f16", flash_attention=False), 'kv_cache_type = "q8_0" and flash_attention = true'),
        (llama("a", cache_ram="10GiB") + vllm("b", cache_ram="10GiB"), 'cache_ram = "6144MiB"'),
        (vllm(kv_tokens=2000), "kv_tokens = 8192 (4 full requests)"),
        (ollama(env={"OLLAMA_VULKAN": "off"}), 'OLLAMA_VULKAN = "false"'),
        (ollama(env={"OLLAMA_VULKAN": "on"}), 'OLLAMA_VULKAN = "true"'),
        (llama(extra_args=["--mmap"]), '"--load-mode", "mmap"'),
    ],
)
def test_the_change_is_concrete(text: str, change: str) -> None:
    assert any(change in f.change for f in found(text)), [f.change for f in found(text)]
