"""`llmsupervisor-llama-server`: llama.cpp's server inside this process, out of the wheel `xllamacpp`.

Another executable for the llama-server definition: it takes the flags that our plan renders, prints the engine's own
log, and refuses the rest as llama-server does (`error: invalid argument: X`, exit 1).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
"""What llama-server allows; the library's enumeration knows more."""
FLASH = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}
SPLITS = ("none", "layer", "row", "tensor")
POOLINGS = ("none", "mean", "cls", "last", "rank")
LAYERS = {"auto": -1, "all": -2}


class BadValue(ValueError):
    pass


Setter = Callable[[Any, Any, str], None]
"""(xllamacpp, CommonParams, value)"""


def _attribute(name: str, convert: Callable[[str], Any] = str) -> Setter:
    return lambda _, params, value: setattr(params, name, convert(value))


def _switch(name: str, state: bool = True) -> Setter:
    return lambda _, params, value: setattr(params, name, state)


def _ignore(_: Any, params: Any, value: str) -> None:
    pass


def _one_of(allowed: Sequence[str]) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in allowed:
            raise BadValue(f"invalid value: {value} (allowed values: {', '.join(allowed)})")
        return value

    return check


def _integer(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise BadValue("stoi") from None


def _kv(*path: str) -> Setter:
    def put(x: Any, params: Any, value: str) -> None:
        if value not in KV_TYPES:
            raise BadValue(f"Unsupported cache type: {value}")
        *owners, name = path
        for owner in owners:
            params = getattr(params, owner)
        setattr(params, name, getattr(x.ggml_type, f"GGML_TYPE_{value.upper()}"))

    return put


def _model(_: Any, params: Any, value: str) -> None:
    params.model.path = value


def _threads(_: Any, params: Any, value: str) -> None:
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _integer(value)


def _flash(x: Any, params: Any, value: str) -> None:
    word = FLASH.get(value)
    if word is None:
        raise BadValue(f"error: unknown value for --flash-attn: '{value}'")
    params.flash_attn_type = getattr(x.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{word}")


def _layers(name: str) -> Callable[[str], int]:
    return lambda value: LAYERS[value] if value in LAYERS else _integer(value)


def _split(x: Any, params: Any, value: str) -> None:
    word = _one_of(SPLITS)(value).upper()
    params.split_mode = getattr(x.llama_split_mode, f"LLAMA_SPLIT_MODE_{word}")


def _pooling(x: Any, params: Any, value: str) -> None:
    word = _one_of(POOLINGS)(value).upper()
    params.pooling_type = getattr(x.llama_pooling_type, f"LLAMA_POOLING_TYPE_{word}")


def _rerank(x: Any, params: Any, value: str) -> None:
    params.embedding = True
    _pooling(x, params, "rank")


def _fit(_: Any, params: Any, value: str) -> None:
    params.fit_params = _one_of(("on", "off"))(value) == "on"


def _timeout(_: Any, params: Any, value: str) -> None:
    params.timeout_read = params.timeout_write = _integer(value)


def _device(_: Any, params: Any, value: str) -> None:
    if value != "none":
        raise BadValue(f"invalid device: {value}")
    params.n_gpu_layers = 0


def _template_file(_: Any, params: Any, value: str) -> None:
    try:
        params.chat_template = Path(value).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise BadValue(f"error: failed to open file '{value}'") from None


def _mmproj(_: Any, params: Any, value: str) -> None:
    params.mmproj.path = value


def _lora(x: Any, params: Any, value: str) -> None:
    params.lora_adapters = [x.CommonAdapterLoraInfo(path) for path in value.split(",")]


def _draft(_: Any, params: Any, value: str) -> None:
    params.speculative.draft.mparams.path = value


def _draft_type(x: Any, params: Any, value: str) -> None:
    word = _one_of(("none", "draft-simple"))(value).upper().replace("-", "_")
    params.speculative.types = [getattr(x.common_speculative_type, f"COMMON_SPECULATIVE_TYPE_{word}")]


def _draft_number(name: str, convert: Callable[[str], int]) -> Setter:
    return lambda _, params, value: setattr(params.speculative.draft, name, convert(value))


VALUES: dict[str, Setter] = {
    "-m, --model": _model,
    "-a, --alias": _attribute("model_alias", lambda value: set(value.split(","))),
    "--host": _attribute("hostnames", lambda value: value.split(",")),
    "--port": _attribute("port", _integer),
    "-c, --ctx-size": _attribute("n_ctx", _integer),
    "-np, --parallel": _attribute("n_parallel", _integer),
    "-ctk, --cache-type-k": _kv("cache_type_k"),
    "-ctv, --cache-type-v": _kv("cache_type_v"),
    "-fa, --flash-attn": _flash,
    "-ngl, --gpu-layers, --n-gpu-layers": _attribute("n_gpu_layers", _layers("n_gpu_layers")),
    "-dev, --device": _device,
    "-sm, --split-mode": _split,
    "-b, --batch-size": _attribute("n_batch", _integer),
    "-ub, --ubatch-size": _attribute("n_ubatch", _integer),
    "-t, --threads": _threads,
    "-cram, --cache-ram": _attribute("cache_ram_mib", _integer),
    "-md, --model-draft, --spec-draft-model": _draft,
    "--spec-type": _draft_type,
    "-ngld, --spec-draft-ngl": _draft_number("n_gpu_layers", _layers("n_gpu_layers")),
    "-ctkd, --spec-draft-type-k": _kv("speculative", "draft", "cache_type_k"),
    "-ctvd, --spec-draft-type-v": _kv("speculative", "draft", "cache_type_v"),
    "--spec-draft-n-max": _draft_number("n_max", _integer),
    "-mm, --mmproj": _mmproj,
    "--lora": _lora,
    "--chat-template": _attribute("chat_template"),
    "--chat-template-file": _template_file,
    "--pooling": _pooling,
    "-fit, --fit": _fit,
    "-to, --timeout": _timeout,
    "--sleep-idle-seconds": _attribute("sleep_idle_seconds", _integer),
    "--log-colors": lambda _, params, value: setattr(
        params, "use_color", _one_of(("on", "off", "auto"))(value) == "on"
    ),
    "-lv, --verbosity, --log-verbosity": _attribute("verbosity", _integer),
}
SWITCHES: dict[str, Setter] = {
    "-kvu, --kv-unified": _switch("kv_unified"),
    "-no-kvu, --no-kv-unified": _switch("kv_unified", False),
    "--cache-prompt": _switch("cache_prompt"),
    "--no-cache-prompt": _switch("cache_prompt", False),
    "--no-context-shift": _switch("ctx_shift", False),
    "--embedding, --embeddings": _switch("embedding"),
    "--rerank, --reranking": _rerank,
    "--metrics": _switch("endpoint_metrics"),
    "--slots": _switch("endpoint_slots"),
    "--no-slots": _switch("endpoint_slots", False),
    "--no-ui, --no-webui": _switch("ui", False),
    "--jinja": _switch("use_jinja"),
    "--no-jinja": _switch("use_jinja", False),
    "--offline": _switch("offline"),
}


def _spelled(table: dict[str, Setter]) -> dict[str, Setter]:
    return {flag: put for names, put in table.items() for flag in names.split(", ")}


def help_text() -> str:
    lines = ["----- flags that this launcher maps -----", "", "-h,    --help", "--version"]
    return "\n".join([*lines, *(f"{names} VALUE" for names in VALUES), *SWITCHES, ""])


def version_text(x: Any) -> str:
    build = x.BUILD_INFO
    return (
        f"version: {x.__version__} (build {build['build_number']}, commit {build['commit']})\n"
        f"built with {build['compiler']} for {build['build_target']}\n"
    )


def apply(x: Any, params: Any, argv: Sequence[str]) -> str:
    """Fills `params`; the error as llama-server words it, "" = none. An unknown flag stops it at once."""
    values, switches = _spelled(VALUES), _spelled(SWITCHES)
    seen: set[str] = set()
    words = iter(argv)
    for word in words:
        flag = word.replace("_", "-") if word.startswith("--") else word
        seen.add(flag)
        if put := switches.get(flag):
            put(x, params, "")
            continue
        put = values.get(flag)
        if put is None:
            return f"error: invalid argument: {word}"
        value = next(words, None)
        if value is None:
            return f'error while handling argument "{word}": expected value for argument'
        try:
            put(x, params, value)
        except BadValue as error:
            return f'error while handling argument "{word}": {error}'
    if not seen & {"-np", "--parallel"}:
        params.n_parallel, params.kv_unified = 4, True
    elif params.n_parallel < 1:
        return 'error while handling argument "--parallel": error: invalid value for n_parallel'
    return "" if params.model.path else "error: the model is missing: --model FNAME"


def main() -> NoReturn:
    argv = sys.argv[1:]
    if argv and argv[0] in ("-h", "--help"):
        sys.stdout.write(help_text())
        raise SystemExit(0)
    try:
        import xllamacpp
    except ImportError as error:
        sys.exit(f"error: xllamacpp is missing ({error}): install the extra `demo`")
    if argv and argv[0] == "--version":
        sys.stderr.write(version_text(xllamacpp))
        raise SystemExit(0)
    params = xllamacpp.CommonParams()
    params.port = 8080
    if wrong := apply(xllamacpp, params, argv):
        sys.exit(wrong)
    if keys := os.environ.get("LLAMA_API_KEY"):
        params.api_keys = keys.split(",")
    _serve(xllamacpp, params)


def _serve(x: Any, params: Any) -> NoReturn:
    """SIGTERM has its default action while the model loads: the library cannot be interrupted there."""
    try:
        _server = x.Server(params)  # serves in threads of its own for as long as it is referred to
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    received, written = os.pipe()
    os.set_blocking(written, False)
    signal.set_wakeup_fd(written)  # sigwait would race: the library's own threads do not block the signal
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    os.read(received, 1)
    sys.stderr.write("llmsupervisor-llama-server: asked to stop, open streams are cut\n")
    sys.stderr.flush()
    os._exit(0)  # the server's destructor holds the interpreter until the clients of open streams leave
