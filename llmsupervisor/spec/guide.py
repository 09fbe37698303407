"""For every key of the spec: what belongs there, in words, and one correct example."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args, get_origin

from llmsupervisor.spec.locate import Path
from llmsupervisor.spec.model import (
    ClientKey,
    Gateway,
    Leak,
    Logs,
    Name,
    OllamaModel,
    Probe,
    Restart,
    Secret,
    Service,
    Slo,
    Spec,
    Table,
)


class Guide(NamedTuple):
    expected: str
    """Completes "expected …"."""
    example: str
    """A TOML value."""


_WHOLE = "a whole number above 0"
_BOOL = "true or false"
_FILE = "a path (relative ones start at the folder of the spec)"
_DURATION = 'a duration with a unit, such as "30s", "10m" or "1h30m"'
_SIZE = 'a size with a unit, such as "512MiB" or "22GiB"'

GUIDES: dict[type[Table], dict[str, Guide]] = {
    Spec: {
        "gateway": Guide("a table", '{ listen = "127.0.0.1:8088" }'),
        "ports": Guide("a range of ports, first and last", '"18400-18499"'),
        "defaults": Guide("a table of service settings", '{ drain_timeout = "30s" }'),
        "services": Guide("a table of services, one table each", "\n[services.chat]"),
        "logs": Guide("a table", '{ keep = 5, size = "20MiB" }'),
    },
    Gateway: {
        "listen": Guide("an address HOST:PORT", '"127.0.0.1:8088"'),
        "keys": Guide("a table for each client", '{ alice = { file = "/etc/llmsupervisor/keys/alice" } }'),
        "allow_unauthenticated": Guide(_BOOL + " (an address that others reach, without keys)", "true"),
        "hosts": Guide("a list of host names, as clients write them", '["llm.example.org"]'),
        "origins": Guide("a list of origins of web pages, SCHEME://HOST[:PORT]", '["https://chat.example.org"]'),
        "trusted_proxies": Guide(
            "a list of addresses and networks whose X-Forwarded-For is believed", '["127.0.0.1", "10.0.0.0/8"]'
        ),
        "scrape": Guide("who may read /metrics", '"loopback"'),
        "queue_deadline": Guide(
            _DURATION + " (the longest wait of a request; a vLLM takes 90 s and more to restart)", '"60s"'
        ),
        "queue_size": Guide(_WHOLE + " (requests that wait for one model)", "1000"),
        "max_body": Guide(_SIZE + ", above 0 (of one request)", '"32MiB"'),
        "prefix_hashes": Guide(_BOOL + " (salted hashes of prompt beginnings in the history)", "false"),
        "history_age": Guide(_DURATION + ', or "forever"', '"90d"'),
        "history_size": Guide(_SIZE + ", above 0", '"1GiB"'),
    },
    Logs: {"keep": Guide(_WHOLE + " (files)", "5"), "size": Guide(_SIZE + ", above 0", '"20MiB"')},
    Secret: {
        "file": Guide("the path of a file that holds the value", '"/etc/llmsupervisor/keys/hf"'),
        "env": Guide("the name of an environment variable of the daemon", '"HF_TOKEN"'),
    },
    ClientKey: {
        "file": Guide("the path of a file that holds the key", '"/etc/llmsupervisor/keys/alice"'),
        "env": Guide("the name of an environment variable of the daemon", '"ALICE_KEY"'),
        "models": Guide("a list of names, at least one", '["chat"]'),
        "share": Guide("a number above 0, 1000 at most (weight in the queue)", "2.0"),
    },
    Restart: {
        "policy": Guide("which ends are followed by a start", '"always"'),
        "max_delay": Guide(_DURATION, '"60s"'),
        "burst": Guide(_WHOLE + " (restarts)", "5"),
        "window": Guide(_DURATION + ", above 0", '"10m"'),
        "healthy_after": Guide(_DURATION + ", above 0", '"60s"'),
    },
    Probe: {
        "enabled": Guide(_BOOL, "true"),
        "timeout": Guide(_DURATION + ", above 0", '"60s"'),
        "stall_timeout": Guide(_DURATION + ", above 0", '"2m"'),
    },
    Slo: {
        "ttft_p95": Guide(_DURATION + ", above 0 (from the request to its first token, wait included)", '"2s"'),
        "tpot_p95": Guide(_DURATION + ", above 0 (for each token after the first)", '"50ms"'),
        "window": Guide(_DURATION + ", above 0", '"5m"'),
    },
    Leak: {
        "rise": Guide(_SIZE + ", above 0", '"1GiB"'),
        "recycle": Guide(_BOOL + " (restart it when nobody asks)", "true"),
        "idle": Guide(_DURATION + " without a request", '"60s"'),
    },
    Name: {
        "set": Guide("a table of keys of the request", "{ temperature = 0 }"),
        "strip": Guide("a list of keys of the request", '["seed"]'),
        "listed": Guide(_BOOL + " (in the list of models)", "false"),
    },
    OllamaModel: {
        "name": Guide("a model name of Ollama", '"llama3.1:8b"'),
        "context_length": Guide(_WHOLE + " (tokens per request, prompt + output)", "8192"),
        "keep_alive": Guide(_DURATION + ', or "forever"', '"10m"'),
        "preload": Guide(_BOOL, "true"),
        "file": Guide("a path to a GGUF file", '"/models/Llama-3.1-8B-Instruct-Q4_K_M.gguf"'),
        "pull": Guide(_BOOL + " (over the network, where it is missing)", "false"),
    },
    Service: {
        "runtime": Guide("the name of a runtime", '"llama-server"'),
        "enabled": Guide(_BOOL, "true"),
        "model": Guide(
            "a path, or ORG/NAME on the Hugging Face Hub (a folder of that form: ./ORG/NAME)",
            '"/models/Llama-3.1-8B-Instruct-Q4_K_M.gguf"',
        ),
        "models": Guide("a list of tables, one per model", '[{ name = "llama3.1:8b", context_length = 16384 }]'),
        "task": Guide("what the model is asked to do", '"chat"'),
        "aliases": Guide("a list of names", '["llama-3.1-8b"]'),
        "names": Guide("a table for each name", '{ "chat-precise" = { set = { temperature = 0 }, strip = ["seed"] } }'),
        "listed": Guide(_BOOL + " (in the list of models)", "false"),
        "overflow": Guide("the name of a service with a larger context_length", '"chat-long"'),
        "client_options": Guide("what becomes of num_ctx, keep_alive and the like in native requests", '"pinned"'),
        "context_length": Guide(_WHOLE + " (tokens per request, prompt + output)", "8192"),
        "parallel": Guide(_WHOLE + " (requests decoded at once)", "4"),
        "kv_cache_type": Guide("the type of the KV cache as text", '"q8_0"'),
        "kv_tokens": Guide(_WHOLE + " (tokens of KV cache)", "131072"),
        "gpu_memory": Guide(_SIZE + ", above 0, per GPU", '"22GiB"'),
        "gpus": Guide('a list of GPU indices or UUIDs, "auto", or [] for the CPU', "[0]"),
        "split": Guide("how the model is spread over its GPUs", '"tensor"'),
        "distributed_executor": Guide("what starts and joins the workers", '"ray"'),
        "nodes": Guide(_WHOLE + " (boxes with the same GPUs, this one included)", "2"),
        "flash_attention": Guide(_BOOL, "true"),
        "prefix_caching": Guide(_BOOL, "true"),
        "gpu_layers": Guide('a whole number from 0, or "all"', '"all"'),
        "batch": Guide(_WHOLE + " (tokens)", "2048"),
        "ubatch": Guide(_WHOLE + " (tokens)", "512"),
        "threads": Guide(_WHOLE, "8"),
        "cpus": Guide("a list of CPUs as text", '"0-7,16"'),
        "cache_ram": Guide(_SIZE, '"8GiB"'),
        "draft": Guide(_FILE, '"/models/draft.gguf"'),
        "mmproj": Guide(_FILE, '"/models/mmproj.gguf"'),
        "lora": Guide("a list of paths", '["/models/lora.gguf"]'),
        "chat_template": Guide(
            "the name of a built-in template, or a path with a / or .jinja in it", '"templates/chat.jinja"'
        ),
        "tool_parser": Guide("the name of a parser", '"hermes"'),
        "reasoning_parser": Guide("the name of a parser", '"deepseek_r1"'),
        "quantization": Guide("the name of a method", '"awq"'),
        "attention_backend": Guide("the name of a backend", '"FLASH_ATTN"'),
        "gate": Guide("what its memory is asked before a start", '"strict"'),
        "start": Guide("what starts it", '"boot"'),
        "keep_alive": Guide(_DURATION + ', or "forever"', '"10m"'),
        "restart": Guide("a table", '{ policy = "always", max_delay = "60s", burst = 5, window = "10m" }'),
        "probe": Guide("a table", '{ timeout = "60s", stall_timeout = "2m" }'),
        "slo": Guide("a table", '{ ttft_p95 = "2s", tpot_p95 = "50ms", window = "5m" }'),
        "leak": Guide("a table", '{ rise = "1GiB", recycle = true, idle = "60s" }'),
        "start_timeout": Guide(_DURATION + ", above 0", '"5m"'),
        "drain_timeout": Guide(_DURATION, '"30s"'),
        "command": Guide("a list of words: the program and its first arguments", '["/usr/bin/llama-server"]'),
        "venv": Guide("the folder of a Python environment", '"/opt/vllm-0.32"'),
        "cwd": Guide("a folder", '"/srv/chat"'),
        "ready": Guide('a path of the server that answers 200 when it is ready, such as "/health"', '"/health"'),
        "port": Guide("a port, 1 to 65535", "8081"),
        "env": Guide("text for each name", '{ OMP_NUM_THREADS = "8" }'),
        "secret_env": Guide("a table for each name", '{ HF_TOKEN = { file = "/etc/llmsupervisor/keys/hf" } }'),
        "extra_args": Guide("a list of words", '["--no-webui"]'),
    },
}


def example(table: type[Table], key: str) -> str:
    value = GUIDES[table][key].example
    return value.strip() if value.startswith("\n") else f"{key} = {value}"


def choices(table: type[Table], key: str) -> list[str]:
    """The words that a key can have; none where it takes more than words."""
    annotation = table.model_fields[key].annotation
    options = [o for o in get_args(annotation) or () if o is not type(None)]
    if get_origin(annotation) is Literal:
        return [str(word) for word in options]
    if len(options) == 1 and get_origin(options[0]) is Literal:
        return [str(word) for word in get_args(options[0])]
    return []


def owner(path: Path, table: type[Table] = Spec) -> tuple[type[Table], str]:
    """The innermost table on the way to `path`, and its key there: `("services", "chat", "restart", "burst")` is
    `Restart`, `burst`. The key may be unknown to the table."""
    key, rest = str(path[0]), path[1:]
    field = table.model_fields.get(key)
    inner, skipped = _table(field.annotation) if field else (None, 0)
    if inner is not None and len(rest) > skipped:
        return owner(rest[skipped:], inner)
    return table, key


def _table(annotation: Any) -> tuple[type[Table] | None, int]:
    """The table inside an annotation, and how many names or places lie between (1 for a list or a mapping)."""
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return annotation, 0
    container = get_origin(annotation) in (tuple, dict)
    for option in get_args(annotation):
        inner, skipped = _table(option)
        if inner is not None:
            return inner, skipped + container
    return None, 0
