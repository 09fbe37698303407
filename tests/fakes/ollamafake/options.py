"""Options of a request over those of its model, and which of them make a runner load again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ollamafake.env import FOREVER, BadDuration, Config, duration
from ollamafake.http1 import ApiError
from ollamafake.log import slog
from ollamafake.store import Model

DEFAULTS: dict[str, Any] = {
    "num_keep": 4, "seed": -1, "num_predict": -1, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "typical_p": 1.0,
    "repeat_last_n": 64, "temperature": 0.8, "repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "stop": [], "num_ctx": 0, "num_batch": 0, "num_gpu": -1, "main_gpu": None, "use_mmap": None, "num_thread": 0,
    "draft_num_predict": 0,
}  # fmt: skip
_KINDS = {int: "of type integer", float: "of type float32", bool: "of type boolean", list: "of type array"}


def checked(options: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    found = dict(base)
    for name, value in options.items():
        if name not in DEFAULTS:
            slog("WARN", "types.go:1007", "invalid option provided", option=name)
        elif value is not None:
            kind = {"main_gpu": int, "use_mmap": bool}.get(name, type(DEFAULTS[name]))
            numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (numeric if kind in (int, float) else isinstance(value, kind)):
                raise ApiError(500, f'option "{name}" must be {_KINDS[kind]}')
            found[name] = kind(value)
    return found


@dataclass
class Want:
    """What a request asks of the scheduler."""

    model: Model
    options: dict[str, Any]
    keep: int | None
    shift: bool
    auto_ctx: bool
    auto_batch: bool

    def reloads(self, old: Want) -> bool:
        names = ["num_gpu", "main_gpu", "num_thread", "draft_num_predict"]
        names += [] if self.auto_ctx and old.auto_ctx else ["num_ctx"]
        names += [] if self.auto_batch and old.auto_batch else ["num_batch"]
        names += [] if self.options["use_mmap"] is None else ["use_mmap"]
        same = {**old.options, "num_gpu": -1} if self.options["num_gpu"] < 0 else old.options
        return self.shift != old.shift or any(self.options[n] != same[n] for n in names)


def want(model: Model, request: dict[str, Any], config: Config) -> Want:
    options = checked(request.get("options") or {}, DEFAULTS | model.parameters)
    auto_ctx = not options["num_ctx"] and not config.context_length
    num_ctx = max(options["num_ctx"] or config.context_length or 4096, 4)
    trained = model.gguf.of("context_length")
    if trained and num_ctx > trained:
        said = {"num_ctx": num_ctx, "n_ctx_train": trained}
        slog("WARN", "server.go:114", "requested context size too large for model", **said)
        num_ctx = trained
    auto_batch = not options["num_batch"]
    total = num_ctx * config.num_parallel
    batch = options["num_batch"] or (
        2048 if model.gguf.embeds else 2048 if total > 32768 else 1024 if total > 4096 else 512
    )
    if model.gguf.embeds:
        batch = min(batch, total)
    options |= {"num_ctx": num_ctx, "num_batch": batch}
    shift = request.get("shift") is not False
    return Want(model, options, keep_alive(request.get("keep_alive")), shift, auto_ctx, auto_batch)


def keep_alive(value: Any) -> int | None:
    """Nanoseconds; None where the request does not say."""
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return FOREVER if value < 0 else int(value * 1e9)
    try:
        found = duration(str(value))
    except BadDuration as error:
        raise ApiError(400, str(error)) from None
    return FOREVER if found < 0 else found
