"""What an engine says of itself, read from captured answers and logs of real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmsupervisor.runtime.adapter import Adapter, adapter_for
from llmsupervisor.runtime.command import Arg, Given, Origin
from llmsupervisor.runtime.engine import Call, Figures, compare
from llmsupervisor.runtime.exposition import parse as exposition
from llmsupervisor.runtime.exposition import values
from llmsupervisor.runtime.generic import probe
from llmsupervisor.runtime.help import flag_of, unknown_flags, unknown_values
from llmsupervisor.runtime.help import parse as parse_help
from llmsupervisor.runtime.load import parse
from llmsupervisor.spec.model import Service

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
DEFINITIONS = {d.name: d for d in (parse(p.read_text(), p.name) for p in sorted((ROOT / "runtimes").glob("*.toml")))}
UNKNOWN_LOAD = {"kv_cache_type": None, "flash_attention": None, "gpu_layers": None}


def adapter(runtime: str) -> Adapter:
    return adapter_for(DEFINITIONS[runtime])


def text(runtime: str, name: str) -> str:
    return (FIXTURES / runtime / name).read_text()


def data(runtime: str, name: str) -> Any:
    return json.loads(text(runtime, name))


# --- llama-server: as asked ----------------------------------------------------------------------------------------


def test_llama_server_tells_what_it_got() -> None:
    payloads = {"/props": data("llama-server", "props.json"), "/slots": data("llama-server", "slots_busy.json")}
    got = adapter("llama-server").got(payloads, text("llama-server", "log_start_one_request_lv4.txt"))
    assert got == {
        "context_length": 1024,
        "parallel": 2,
        "kv_cache_type": "q8_0",
        "flash_attention": True,
        "gpu_layers": 0,
    }
    without = adapter("llama-server").got({"/props": payloads["/props"]}, "")
    assert (without["context_length"], without["parallel"]) == (1024, 2)


@pytest.mark.parametrize("payload", [None, "Loading model", [], {}, {"error": {"code": 503}}])
def test_what_is_not_said_is_unknown(payload: Any) -> None:
    got = adapter("llama-server").got({"/props": payload, "/slots": payload}, "")
    assert got == {"context_length": None, "parallel": None} | UNKNOWN_LOAD
    assert adapter("vllm").got({"/v1/models": payload}, "") == dict.fromkeys(
        ("context_length", "parallel", "kv_cache_type", "prefix_caching", "kv_tokens", "attention_backend")
    )
    assert set(adapter("ollama").got({"/api/ps": payload}, "").values()) == {None}
    assert adapter("command").got({}, "") == {}


@pytest.mark.parametrize(
    ("log", "found"),
    [
        ("kv_0.log", {"kv_cache_type": "f16", "flash_attention": None}),
        ("kv_6.log", {"kv_cache_type": "q8_0/q4_0", "flash_attention": True}),
        ("kv_12.log", {"kv_cache_type": "q8_0/f16", "flash_attention": False}),
    ],
)
def test_the_log_of_a_load(log: str, found: dict[str, Any]) -> None:
    got = adapter("llama-server").got({}, text("llama-server", log))
    assert {key: got[key] for key in found} == found


def test_what_a_draft_model_got_is_not_the_engines() -> None:
    log = """
0.00.214.583 I llama_context: flash_attn            = enabled
0.00.234.225 I llama_kv_cache: size =   23.91 MiB (  1024 cells,  30 layers,  2/2 seqs), K (q8_0):   11.95 MiB, V (q8_0):   11.95 MiB
0.00.443.807 I common_speculative_init_result: loading draft model '/models/draft.gguf'
0.00.618.868 I llama_context: flash_attn            = disabled
0.00.640.494 I llama_kv_cache: size =   45.00 MiB (  1024 cells,  30 layers,  2/2 seqs), K (f16):   22.50 MiB, V (f16):   22.50 MiB
"""
    got = adapter("llama-server").got({}, log)
    assert (got["kv_cache_type"], got["flash_attention"]) == ("q8_0", True)


@pytest.mark.parametrize(
    ("log", "layers"),
    [
        ("load_tensors: offloaded 33/33 layers to GPU", "all"),
        ("load_tensors: offloaded 33/33 layers to GPU\nload_tensors: offloaded 20/33 layers to GPU", 20),
        ("warning: no usable GPU found, --gpu-layers option will be ignored", 0),
        ("ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected", 0),
        ("load_tensors:   CPU_Mapped model buffer size =    92.10 MiB", 0),
        ("load_tensors:   CPU_Mapped model buffer size = 9 MiB\nload_tensors:   CUDA0 model buffer size = 9 MiB", None),
        ("nothing", None),
    ],
)
def test_layers_on_the_gpu(log: str, layers: Any) -> None:
    assert adapter("llama-server").got({}, log)["gpu_layers"] == layers


@pytest.mark.parametrize(
    ("line", "flash"),
    [
        ("llama_context: Flash Attention not supported, set to disabled", False),
        ("llama_init_from_model: enabling flash_attn since it is required for quantized V cache", True),
    ],
)
def test_flash_attention_that_auto_decided(line: str, flash: bool) -> None:
    log = f"llama_context: flash_attn            = auto\n{line}"
    assert adapter("llama-server").got({}, log)["flash_attention"] is flash


def test_compare() -> None:
    asked = {"context_length": 2048, "kv_cache_type": "q8_0", "gpu_layers": "all", "parallel": 2}
    assert compare(asked, dict(asked)) == []
    assert compare(asked, {"kv_cache_type": "f16", "parallel": None, "gpu_layers": 0}) == [
        "kv_cache_type",
        "gpu_layers",
    ]
    assert adapter("llama-server").compare({"gpu_layers": 20}, {"gpu_layers": "all"}) == []
    assert compare({"gpu_layers": 0}, {"gpu_layers": "all"}) == ["gpu_layers"]
    assert compare({"kv_tokens": 100}, {"kv_tokens": 120}) == []
    assert compare({"kv_tokens": 100}, {"kv_tokens": 80}) == ["kv_tokens"]
    assert compare({"kv_tokens": 100}, {}) == []
    contexts = {"context_length": {"a:latest": 1, "b:latest": 2}}
    assert compare(contexts, {"context_length": {"a:latest": 1}}) == []
    assert compare(contexts, {"context_length": {"b:latest": 3}}) == ["context_length"]


# --- identity ------------------------------------------------------------------------------------------------------


def test_whose_answers_these_are() -> None:
    llama = adapter("llama-server")
    props = data("llama-server", "props.json")
    service = Service(runtime="llama-server", model="/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert llama.identity({"/props": props}, "chat", service) == ""
    assert "not /other" in llama.identity({"/props": props}, "chat", Service(runtime="x", model="/other"))
    assert "router" in llama.identity({"/props": {"role": "router", "model_path": "none"}}, "chat", service)
    assert llama.identity({}, "chat", service) == ""
    vllm = adapter("vllm")
    models = {"/v1/models": {"object": "list", "data": [{"id": "tiny", "max_model_len": 1024}]}}
    assert vllm.identity(models, "tiny", service) == ""
    assert "serves tiny, not chat" in vllm.identity(models, "chat", service)
    assert vllm.identity({}, "chat", service) == adapter("command").identity({}, "x", service) == ""


# --- Ollama ----------------------------------------------------------------------------------------------------------


def test_ollama_tells_what_it_got() -> None:
    log = text("ollama", "serve_debug_parallel4_kv_q8_0.stderr.log")
    assert adapter("ollama").got({"/api/ps": data("ollama", "ps_loaded_cpu.json")}, log) == {
        "context_length": {"smol:latest": 4096},
        "parallel": 4,
        "kv_cache_type": "q8_0",
        "flash_attention": True,
        "gpu_layers": 0,
    }


def test_ollama_before_a_load_and_with_a_model_that_takes_one_request() -> None:
    log = text("ollama", "serve_debug_parallel4_kv_q8_0.stderr.log")
    start = "\n".join(line for line in log.splitlines() if "server config" in line)
    assert adapter("ollama").got({}, start)["parallel"] == 4
    assert adapter("ollama").got({}, start)["kv_cache_type"] == "q8_0"
    forced = start + '\nlevel=INFO msg="starting llama-server" cmd="llama-server -c 4096 -np 1 --flash-attn on"'
    assert adapter("ollama").got({}, forced)["parallel"] == 1
    assert adapter("ollama").got({}, text("ollama", "serve_stderr_cpu_fallback.log"))["gpu_layers"] == 0
    assert adapter("ollama").got({}, text("ollama", "serve_stderr.log"))["gpu_layers"] == "all"


# --- figures -------------------------------------------------------------------------------------------------------


def test_figures_of_a_busy_llama_server() -> None:
    llama = adapter("llama-server")
    metrics, slots = text("llama-server", "metrics_busy.txt"), data("llama-server", "slots_busy.json")
    found = llama.figures(metrics, slots)
    busy = [row for row in slots if row["is_processing"]]
    assert (found.requests_running, found.requests_waiting) == (2, 3)
    assert found.kv_tokens_used == sum(row["n_prompt_tokens"] for row in busy)
    assert found.kv_cache_usage == found.kv_tokens_used / 2048
    assert (found.prompt_tokens_total, found.completion_tokens_total) == (1605, 1255)
    moved = json.loads(json.dumps(slots))
    moved[0]["next_token"][0]["n_decoded"] += 1
    assert llama.figures(metrics, slots).progress == found.progress != llama.figures(metrics, moved).progress
    hash(found.progress)


def test_what_stays_in_an_idle_slot_is_cache() -> None:
    found = adapter("llama-server").figures(None, data("llama-server", "slots_idle_after.json"))
    assert (found.kv_tokens_used, found.kv_tokens_cached, found.kv_cache_usage) == (0, 806, 0.0)
    assert found.requests_running == 0 and found.requests_waiting is None


def test_slots_of_other_releases() -> None:
    row = {
        "id": 0,
        "n_ctx": 1000,
        "is_processing": True,
        "n_prompt_tokens_processed": 300,
        "next_token": {"n_decoded": 50},
    }
    assert adapter("llama-server").figures(None, [row, "?"]).kv_tokens_used == 350
    bare = {"id": 0, "n_ctx": 1000, "is_processing": True, "next_token": []}
    assert adapter("llama-server").figures(None, [bare]).kv_tokens_used == 0


@pytest.mark.parametrize("slots", [None, {"error": {"code": 501}}, [], [{"id": 0}]])
def test_without_slots_the_metrics_remain(slots: Any) -> None:
    found = adapter("llama-server").figures(text("llama-server", "metrics_idle.txt"), slots)
    assert found.requests_running == 0 and found.kv_cache_usage is None and found.progress is not None


@pytest.mark.parametrize("runtime", ["command", "ollama", "vllm", "llama-server"])
def test_no_figures_are_unknown_figures(runtime: str) -> None:
    assert adapter(runtime).figures(None) == Figures()


def test_calls_are_described() -> None:
    assert adapter("llama-server").calls_figures() == (Call("GET", "/metrics"), Call("GET", "/slots"))
    assert adapter("llama-server").calls_got() == (Call("GET", "/props"), Call("GET", "/slots"))
    assert adapter("vllm").calls_got() == (Call("GET", "/v1/models"), Call("GET", "/metrics"))
    assert adapter("ollama").calls_got() == (Call("GET", "/api/ps"),)
    assert adapter("command").calls_got() == adapter("ollama").calls_figures() == ()


def test_probes_name_the_target() -> None:
    call = probe(DEFINITIONS["vllm"], "chat", "tiny")
    assert call is not None and call.path == "/v1/chat/completions" and call.body is not None
    assert call.body["model"] == "tiny" and call.body["max_tokens"] == 1 and call.body["temperature"] == 0
    assert call.body["messages"] == [{"role": "user", "content": "Hi"}]
    embed = probe(DEFINITIONS["ollama"], "embed", "smol")
    assert embed is not None and embed.body == {"model": "smol", "input": "Hi"}
    assert probe(DEFINITIONS["command"], "chat", "x") is None


@pytest.mark.parametrize(
    ("runtime", "keys", "names"),
    [
        ("llama-server", {"model": "/m/a.gguf", "aliases": ("a",)}, ("chat",)),
        ("vllm", {"model": "/m/a", "aliases": ("a",)}, ("chat",)),
        (
            "ollama",
            {"models": [{"name": "b:1", "context_length": 1}, {"name": "c", "context_length": 1}]},
            ("b:1-ctx1", "c:latest-ctx1"),
        ),
        ("ollama", {}, ("chat",)),
        ("command", {"model": "/m/a"}, ("/m/a",)),
        ("command", {}, ("chat",)),
    ],
)
def test_the_names_that_an_engine_knows(runtime: str, keys: dict[str, Any], names: tuple[str, ...]) -> None:
    assert adapter(runtime).names("chat", Service.model_validate({"runtime": runtime, **keys})) == names


def test_what_is_asked_of_a_service_that_says_little() -> None:
    given = Given("x", "h", 1, "/x", gpus=(("GPU-1", 0),))
    service = Service(runtime="llama-server")
    assert adapter("llama-server").asked(service, given) == {"flash_attention": True, "gpu_layers": "all"}
    assert not [
        a for a in adapter("llama-server").derive(service, given) if getattr(a, "setting", "") == "context_length"
    ]
    plain = DEFINITIONS["llama-server"].model_copy(update={"settings": {}})
    assert [getattr(a, "setting", "") for a in adapter_for(plain).derive(service, given)] == ["", "threads"]
    bare = DEFINITIONS["vllm"].model_copy(update={"settings": {}})
    flags = [a.words[0] for a in adapter_for(bare).derive(service, given) if isinstance(a, Arg)]
    assert flags[0] == "--served-model-name" and "--max-num-batched-tokens" not in flags
    assert adapter("ollama").derive(Service(runtime="ollama"), given) == ()
    untold = DEFINITIONS["ollama"].model_copy(update={"settings": {}})
    assert adapter_for(untold).asked(Service(runtime="ollama"), given) == {"context_length": {}, "gpu_layers": "all"}


# --- Prometheus text -----------------------------------------------------------------------------------------------


def test_exposition() -> None:
    found = exposition(
        '# HELP a b\na 1\nb{x="1",y="q\\"\\n\\\\\\t"} 2.5e3 1700000000\nb{x="2"} NaN\nbad line here\nc{} oops\n\n'
    )
    assert values(found, "a") == [1.0] and values(found, ("none", "b")) == [2500.0]
    assert found["b"][0].labels == {"x": "1", "y": 'q"\n\\\\t'}
    assert values(found, "none") == values(found, ()) == [] and set(found) == {"a", "b"}


# --- help ------------------------------------------------------------------------------------------------------------

ARGPARSE = """usage: vllm serve [model_tag] [options]

options:
  -h, --help            show this help message and exit
  --kv-cache-dtype {auto,bfloat16,fp8}
                        Data type for kv cache storage.
  --tensor-parallel-size TENSOR_PARALLEL_SIZE, -tp TENSOR_PARALLEL_SIZE
                        Number of GPUs.
  --enable-prefix-caching, --no-enable-prefix-caching
                        Whether.
  --served-model-name SERVED_MODEL_NAME [SERVED_MODEL_NAME ...]
                        Names; see --other-flag.
"""


def test_help_of_llama_server() -> None:
    flags, allowed = parse_help(text("llama-server", "help.txt"))
    assert len(flags) == 405
    assert {"-c", "--ctx-size", "-no-kvu", "--no-kv-unified", "--no-slots", "--webui"} <= flags
    assert not {"--draft-max", "--draft", "--no-mmap", "--spec-ngram-size-n"} & flags
    assert allowed["--cache-type-v"] == allowed["-ctk"] >= {"f16", "q8_0", "iq4_nl"}
    assert allowed["-fa"] == {"on", "off", "auto"}
    assert allowed["--split-mode"] == {"none", "layer", "row", "tensor"}
    assert not {"--tensor-split", "--tools", "--ctx-size", "--device"} & set(allowed)


def test_help_of_argparse() -> None:
    flags, allowed = parse_help(ARGPARSE)
    assert flags == {
        *("-h", "--help", "--kv-cache-dtype", "--tensor-parallel-size", "-tp"),
        *("--enable-prefix-caching", "--no-enable-prefix-caching", "--served-model-name"),
    }
    assert allowed == {"--kv-cache-dtype": {"auto", "bfloat16", "fp8"}}
    assert parse_help("") == (frozenset(), {})
    assert parse_help("-a, -1   numbers are no flags") == ({"-a"}, {})


def test_unknown_flags_and_values() -> None:
    flags, allowed = parse_help(ARGPARSE)
    args = [Arg(words, Origin("spec")) for words in (("serve",), ("--kv-cache-dtype", "q9"), ("--nope", "1"), ("-1",))]
    assert [arg.words for arg in unknown_flags(args, flags)] == [("--nope", "1")]
    assert [(arg.words[1], len(values)) for arg, values in unknown_values(args, allowed)] == [("q9", 3)]


@pytest.mark.parametrize(
    ("word", "flag"),
    [("--ctx_size=5", "--ctx-size"), ("-ngl", "-ngl"), ("-1", None), ("word", None), ("--", None), ("-tp=2", "-tp")],
)
def test_flag_of(word: str, flag: str | None) -> None:
    assert flag_of(word) == flag


def test_what_is_no_number_is_not_said() -> None:
    assert values(exposition("a NaN\na 2\nb +Inf\nb -Inf\n"), "a") == [2.0]
    assert values(exposition("b +Inf\nb -Inf\n"), "b") == []
