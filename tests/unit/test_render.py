"""From a service and its definition to argv and environment, each item with its origin."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llmsupervisor.runtime.command import EnvVar, Given, Origin, Rendered
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.runtime.load import parse
from llmsupervisor.runtime.render import command_words, problems, render
from llmsupervisor.spec.model import Service

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
DEFINITIONS = {d.name: d for d in (parse(p.read_text(), p.name) for p in sorted((ROOT / "runtimes").glob("*.toml")))}
GPU = "GPU-11111111-2222-3333-4444-555555555555"
MIG = "MIG-66666666-7777-8888-9999-000000000000"

LLAMA: dict[str, Any] = {
    "runtime": "llama-server",
    "model": "/models/m.gguf",
    "context_length": 2048,
    "parallel": 2,
    "kv_cache_type": "q8_0",
    "gpus": (0,),
}
VLLM: dict[str, Any] = {
    "runtime": "vllm",
    "model": "/models/qwen",
    "context_length": 16384,
    "parallel": 16,
    "kv_cache_type": "fp8",
    "gpu_memory": "18GiB",
    "gpus": (0, 1),
}
OLLAMA: dict[str, Any] = {
    "runtime": "ollama",
    "parallel": 4,
    "kv_cache_type": "q8_0",
    "gpus": (1,),
    "models": [{"name": "llama3.1:8b", "context_length": 16384}, {"name": "smol", "context_length": 4096}],
}
COMMAND: dict[str, Any] = {
    "runtime": "command",
    "model": "/models/m",
    "command": ("/opt/tgi/server", "--bind={host}:{port}", "--model", "{model}", '{"a": 1}'),
    "ready": "/ready",
    "gpus": (0,),
}


def rendered(keys: dict[str, Any], **given: Any) -> Rendered:
    service = Service.model_validate(keys)
    definition = DEFINITIONS[service.runtime]
    assert problems("chat", service, definition) == []
    uuids = (GPU, MIG)
    base: dict[str, Any] = {
        "name": "chat",
        "host": "127.0.0.1",
        "port": 18400,
        "executable": f"/usr/bin/{(command_words(service, definition)[0]).rsplit('/', 1)[-1]}",
        "gpus": tuple((uuids[i], n) for i, n in enumerate(service.gpus or ()) if isinstance(n, int)),
        "gpu_totals": (24 * 2**30, 24 * 2**30)[: len(service.gpus or ())],
        "origins": {key: Origin("spec", f"spec.toml:{line}") for line, key in enumerate(keys, 2)},
        "environ": {"PATH": "/usr/bin", "HOME": "/var/lib/llmsupervisor"},
        "secrets": {"HF_TOKEN": "0123abcd"},
        "cpus": 8,
    }
    return render(service, definition, Given(**base | given))


def words(keys: dict[str, Any], **given: Any) -> list[tuple[str, ...]]:
    return [arg.words for arg in rendered(keys, **given).argv]


def env(keys: dict[str, Any], **given: Any) -> dict[str, EnvVar]:
    return {item.name: item for item in rendered(keys, **given).env}


GOLDENS = {
    "llama-server": LLAMA
    | {"aliases": ("llama",), "context_length": 2000, "secret_env": {"HF_TOKEN": {"file": "/etc/token"}}}
    | {"env": {"GGML_NO_BACKTRACE": "0"}, "extra_args": ("--pooling", "mean", "--seed", "-1")},
    "llama-server-cpu": LLAMA | {"gpus": (), "port": 9000, "flash_attention": False, "kv_cache_type": "f16"},
    "vllm": VLLM | {"tool_parser": "hermes", "lora": ("/lora/sql",), "venv": "/opt/vllm"},
    "ollama": OLLAMA,
    "command": COMMAND,
}


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name: str) -> None:
    """UPDATE_GOLDEN=1 writes the files anew."""
    found = rendered(GOLDENS[name])
    items = [(" ".join(arg.words), str(arg.origin)) for arg in found.argv]
    env = [(f"{e.name}={e.value}" + f" [{e.secret}]" * bool(e.secret), str(e.origin)) for e in found.env]
    lines = [f"{text:<72} # {origin}" for text, origin in (*items, ("", ""), *env)]
    text = "\n".join([*lines, "", f"asked {json.dumps(found.asked)}", *found.warnings]).replace(" # \n", "\n") + "\n"
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


# --- llama-server -----------------------------------------------------------------------------------------------


def test_context_is_per_request_and_padded() -> None:
    args = {arg.words[0]: arg for arg in rendered(LLAMA | {"context_length": 2000, "parallel": 3}).argv}
    assert args["--ctx-size"].words[1] == str(2048 * 3)
    assert str(args["--ctx-size"].origin) == "derived 2048 × 3, 2000 padded to a multiple of 256"
    assert args["--parallel"].words[1] == "3" and str(args["--parallel"].origin) == "spec spec.toml:5"


def test_without_gpus_nothing_is_offloaded() -> None:
    found = rendered(LLAMA | {"gpus": ()})
    assert ("--n-gpu-layers", "0") in words(LLAMA | {"gpus": ()})
    assert ("--device", "none") in words(LLAMA | {"gpus": ()})
    assert not any(arg.words[0] == "--split-mode" for arg in found.argv)
    assert env(LLAMA | {"gpus": ()})["CUDA_VISIBLE_DEVICES"].value == ""
    assert found.asked["gpu_layers"] == 0


def test_gpu_layers_and_split_are_said() -> None:
    found = words(LLAMA | {"gpus": (0, 1), "gpu_layers": 20, "split": "row"})
    assert ("--n-gpu-layers", "20") in found and ("--split-mode", "row") in found
    assert ("--n-gpu-layers", "all") in words(LLAMA) and ("--split-mode", "layer") in words(LLAMA)


@pytest.mark.parametrize(
    ("keys", "batch"),
    [({}, "2048"), ({"batch": 1024}, "1024"), ({"ubatch": 4096}, "4096"), ({"batch": 8, "ubatch": 8}, "8")],
)
def test_an_embedding_input_is_one_batch(keys: dict[str, Any], batch: str) -> None:
    found = words(LLAMA | {"task": "embed"} | keys)
    assert ("--batch-size", batch) in found and ("--ubatch-size", batch) in found
    assert ("--embeddings",) in found and ("--reranking",) not in found


def test_rerank_draft_template_threads_lora() -> None:
    found = words(
        LLAMA
        | {"task": "rerank", "draft": "/models/d.gguf", "chat_template": "chatml", "threads": 3}
        | {"lora": ("/a", "/b"), "mmproj": "/models/p.gguf", "cache_ram": "3GiB", "prefix_caching": False}
    )
    assert ("--reranking",) in found and ("--spec-draft-model", "/models/d.gguf") in found
    assert ("--spec-draft-ngl", "all") in found and ("--threads", "3") in found
    assert ("--chat-template", "chatml") in found and ("--lora", "/a,/b") in found
    assert ("--mmproj", "/models/p.gguf") in found and ("--cache-ram", "3072") in found
    assert ("--no-cache-prompt",) in found and ("--cache-prompt",) not in found
    assert ("--chat-template-file", "/t.jinja") in words(LLAMA | {"chat_template": "/t.jinja"})


@pytest.mark.parametrize(("keys", "layers"), [({"gpus": ()}, "0"), ({"gpu_layers": 0}, "0"), ({}, "all")])
def test_a_draft_model_lies_where_the_model_lies(keys: dict[str, Any], layers: str) -> None:
    assert ("--spec-draft-ngl", layers) in words(LLAMA | {"draft": "/d.gguf"} | keys)


# --- vLLM -------------------------------------------------------------------------------------------------------


def test_vllm_serve_takes_the_model_as_a_word() -> None:
    assert words(VLLM)[:3] == [("/usr/bin/vllm",), ("serve",), ("/models/qwen",)]
    module = VLLM | {"command": ("python", "-m", "vllm.entrypoints.openai.api_server")}
    assert words(module)[:4] == [
        ("/usr/bin/python",),
        ("-m",),
        ("vllm.entrypoints.openai.api_server",),
        ("--model", "/models/qwen"),
    ]


def test_vllm_budget() -> None:
    assert ("--gpu-memory-utilization", "0.75") in words(VLLM)
    assert ("--gpu-memory-utilization", "1") in words(VLLM | {"gpu_memory": "80GiB"})
    tokens = {k: v for k, v in VLLM.items() if k != "gpu_memory"} | {"kv_tokens": 65536}
    assert ("--kv-cache-memory-bytes", "1000") in words(tokens, kv_cache_bytes=1000)
    unknown = rendered(tokens)
    assert "kv_tokens could not be turned into a budget" in unknown.warnings[0]
    assert "gpu_memory could not" in rendered(VLLM, gpu_totals=(None, None)).warnings[0]
    assert rendered(VLLM | {"gpus": (), "gpu_memory": None}).warnings == ()
    assert "share of this machine's memory" in rendered(tokens | {"gpus": ()}).warnings[0]


def test_vllm_split() -> None:
    assert ("--tensor-parallel-size", "2") in words(VLLM) and ("--pipeline-parallel-size", "1") in words(VLLM)
    pipeline = words(VLLM | {"split": "pipeline"})
    assert ("--tensor-parallel-size", "1") in pipeline and ("--pipeline-parallel-size", "2") in pipeline
    assert ("--tensor-parallel-size", "1") in words(VLLM | {"gpus": (), "gpu_memory": None})
    data = words(VLLM | {"split": "data"})
    assert ("--data-parallel-size", "2") in data and ("--tensor-parallel-size", "1") in data
    assert ("--api-server-count", "1") in data and ("--api-server-count", "1") not in words(VLLM)


def test_vllm_on_more_gpus_than_one_box_has() -> None:
    ray = {"nodes": 2, "distributed_executor": "ray"}
    found = words(VLLM | ray)
    assert ("--distributed-executor-backend", "ray") in found
    assert ("--tensor-parallel-size", "2") in found and ("--pipeline-parallel-size", "2") in found
    assert ("--pipeline-parallel-size", "4") in words(VLLM | ray | {"split": "pipeline"})
    origin = {arg.words[0]: str(arg.origin) for arg in rendered(VLLM | ray).argv}["--tensor-parallel-size"]
    assert origin == "derived 2 GPUs on each of 2 boxes"
    for keys, at in (({"nodes": 2}, "nodes"), (ray | {"split": "data"}, "split")):
        (problem,) = problems("chat", Service.model_validate(VLLM | keys), DEFINITIONS["vllm"])
        assert problem.key == f"services.chat.{at}", problem


def test_vllm_switches_and_tasks() -> None:
    assert ("--enable-prefix-caching",) in words(VLLM)
    assert ("--no-enable-prefix-caching",) in words(VLLM | {"prefix_caching": False})
    assert ("--runner", "generate") in words(VLLM) and ("--runner", "pooling") in words(VLLM | {"task": "embed"})
    assert ("--kv-offloading-size", "16") in words(VLLM | {"cache_ram": "16GiB"})


def test_vllm_pooling_models_take_an_input_in_one_step() -> None:
    embed = words(VLLM | {"task": "embed"})
    assert ("--max-num-batched-tokens", "16384") in embed and ("--enable-chunked-prefill",) not in embed
    assert ("--enable-prefix-caching",) not in embed
    assert "prefix_caching" not in rendered(VLLM | {"task": "embed"}).asked
    said = words(VLLM | {"task": "rerank", "batch": 512, "prefix_caching": False})
    assert ("--max-num-batched-tokens", "512") in said and ("--no-enable-prefix-caching",) in said
    assert ("--enable-chunked-prefill",) in words(VLLM)


# --- Ollama, command ---------------------------------------------------------------------------------------------


def test_ollama_is_told_by_environment_only() -> None:
    assert words(OLLAMA) == [("/usr/bin/ollama",), ("serve",)]
    found = {name: item.value for name, item in env(OLLAMA).items()}
    assert found["OLLAMA_HOST"] == "127.0.0.1:18400"
    assert (found["OLLAMA_NUM_PARALLEL"], found["OLLAMA_KV_CACHE_TYPE"]) == ("4", "q8_0")
    assert (found["OLLAMA_FLASH_ATTENTION"], found["OLLAMA_SCHED_SPREAD"]) == ("true", "false")
    assert (found["OLLAMA_CONTEXT_LENGTH"], found["OLLAMA_MAX_LOADED_MODELS"]) == ("4096", "2")
    assert found["LLAMA_ARG_CACHE_RAM"] == "1024" and found["OLLAMA_KEEP_ALIVE"] == "-1"
    assert found["CUDA_VISIBLE_DEVICES"] == GPU
    assert env(OLLAMA | {"gpus": (), "split": "layer"})["CUDA_VISIBLE_DEVICES"].value == "-1"
    assert env(OLLAMA | {"split": "layer"})["OLLAMA_SCHED_SPREAD"].value == "true"


def test_ollama_warns_without_home() -> None:
    assert "HOME is not set" in rendered(OLLAMA, environ={}).warnings[0]
    assert rendered(OLLAMA | {"env": {"HOME": "/h"}}, environ={}).warnings == ()


def test_a_command_is_filled_in() -> None:
    assert words(COMMAND) == [
        ("/usr/bin/server",),
        ("--bind=127.0.0.1:18400",),
        ("--model",),
        ("/models/m",),
        ('{"a": 1}',),
    ]


# --- environment -------------------------------------------------------------------------------------------------


def test_gpus_are_told_in_the_form_of_the_definition() -> None:
    two = env(LLAMA | {"gpus": (0, 1)})
    assert two["CUDA_VISIBLE_DEVICES"].value == f"{GPU},{MIG}"
    assert two["CUDA_DEVICE_ORDER"].value == "PCI_BUS_ID"
    assert two["CUDA_VISIBLE_DEVICES"].origin.kind == "spec"
    index = DEFINITIONS["llama-server"].model_copy(
        update={"gpu": DEFINITIONS["llama-server"].gpu.model_copy(update={"form": "index"})}  # type: ignore[union-attr]
    )
    given = Given("chat", "127.0.0.1", 1, "/x", gpus=((GPU, 3), (MIG, 5)))
    found = {e.name: e.value for e in render(Service.model_validate(LLAMA), index, given).env}
    assert found["CUDA_VISIBLE_DEVICES"] == "3,5"


def test_secrets_are_references() -> None:
    keys = LLAMA | {"secret_env": {"HF_TOKEN": {"file": "/etc/token"}, "OTHER": {"env": "MINE"}}}
    found = env(keys)
    assert (found["HF_TOKEN"].value, found["HF_TOKEN"].secret) == ("secret:HF_TOKEN@0123abcd", "file:/etc/token")
    assert (found["OTHER"].value, found["OTHER"].secret) == ("secret:OTHER@missing", "env:MINE")
    assert (found["LLAMA_API_KEY"].value, found["LLAMA_API_KEY"].secret) == (
        "secret:LLAMA_API_KEY@generated",
        "generated",
    )
    assert "LLAMA_API_KEY" not in env(OLLAMA)


def test_the_specs_environment_wins_over_the_definitions_and_ours() -> None:
    found = env(LLAMA | {"env": {"GGML_NO_BACKTRACE": "0", "PATH": "/opt/bin"}})
    assert (found["GGML_NO_BACKTRACE"].value, found["PATH"].value) == ("0", "/opt/bin")
    assert found["PATH"].origin.kind == "spec"


def test_every_item_has_an_origin() -> None:
    for keys in GOLDENS.values():
        found = rendered(keys)
        assert all(str(item.origin) for item in (*found.argv, *found.env))


# --- which executable --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({}, ("vllm", "serve")),
        ({"venv": "/opt/v/"}, ("/opt/v/bin/vllm", "serve")),
        ({"command": ("/opt/vllm",)}, ("/opt/vllm", "serve")),
        ({"command": ("uv", "run", "vllm", "serve")}, ("uv", "run", "vllm", "serve")),
    ],
)
def test_command_words(keys: dict[str, Any], found: tuple[str, ...]) -> None:
    assert command_words(Service(runtime="vllm", **keys), DEFINITIONS["vllm"]) == found


def test_a_plain_definition_needs_no_adapter() -> None:
    definition = Definition.model_validate(
        {
            "name": "mine",
            "doc": "a server",
            "command": ("mine",),
            "settings": {
                "model": {"flags": ("-m",), "choices": {"big": "large-v2"}},
                "lora": {"flags": ("--lora",), "style": "repeat"},
                "flash_attention": {"flags": ("--fa",), "style": "switch"},
                "cache_ram": {"flags": ("--ram",), "unit": "bytes"},
            },
        }
    )
    service = Service(runtime="mine", model="big", lora=("a", "b"), flash_attention=False, cache_ram="1KiB")  # type: ignore[arg-type]
    found = render(service, definition, Given("x", "h", 1, "/bin/mine"))
    assert found.words == ("/bin/mine", "-m", "large-v2", "--lora", "a", "--lora", "b", "--ram", "1024")
    assert found.env == () and found.asked == {}
