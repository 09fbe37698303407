"""Ollama's variables as it understood them: the line `server config` of a start, against what it was told. It says nothing
of a switch that it takes for true, or of a duration and a number that it replaces by its default."""

from __future__ import annotations

import re
from collections.abc import Mapping

_LINE = re.compile(r'msg="server config" env="map\[(.*?)\]"(?:\s|$)')
_NAME = re.compile(r"(?:^| )([A-Za-z_]+):")
_PASSED = ("CUDA_VISIBLE_DEVICES", "LLAMA_ARG_FIT", "LLAMA_ARG_FIT_TARGET")
_DURATIONS = ("OLLAMA_KEEP_ALIVE", "OLLAMA_LOAD_TIMEOUT")
_SWITCHES = tuple(
    f"OLLAMA_{name}"
    for name in [
        "DEBUG_LOG_REQUESTS",
        "FLASH_ATTENTION",
        "GO_TEMPLATE",
        "IGPU_ENABLE",
        "NOHISTORY",
        "NOPRUNE",
        "NO_CLOUD",
        "SCHED_SPREAD",
        "VULKAN",
    ]
)
_ADDED = ("OLLAMA_ORIGINS", "OLLAMA_REMOTES")
"""Lists to which it adds its own."""
_WORDS = {
    "1": "true",
    "t": "true",
    "on": "true",
    "yes": "true",
    "0": "false",
    "f": "false",
    "off": "false",
    "no": "false",
}
_LEVELS = {"0": "INFO", "false": "INFO", "1": "DEBUG", "true": "DEBUG", "2": "DEBUG-4"}
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")
FOREVER = 9e9


def misread(env: Mapping[str, str], log_text: str) -> list[str]:
    """Of the last start in the log; nothing where it does not stand there."""
    lines = _LINE.findall(log_text)
    if not lines:
        return []
    config = config_of(lines[-1])
    found = []
    for name, text in env.items():
        if not (name.startswith("OLLAMA_") or name in _PASSED) or name in _ADDED or text.startswith("secret:"):
            continue
        if name not in config:
            found.append(f"{name} is {text!r}, and this release of Ollama does not know it")
        elif _meant(name, text) != _meant(name, config[name]):
            found.append(f"{name} is {text!r}, and Ollama took it for {config[name]!r}")
    return found


def config_of(text: str) -> dict[str, str]:
    """The content of `map[…]`; a list has blanks in it."""
    marks = list(_NAME.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return {mark[1]: text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)}


def _meant(name: str, text: str) -> str:
    """One form of a value, whether it comes from an environment or from the log."""
    plain = text.strip().strip("\"'")
    if name == "OLLAMA_HOST":
        return plain.rpartition("://")[2]
    if name == "OLLAMA_DEBUG":
        return _LEVELS.get(plain.lower(), plain)
    if name in _DURATIONS:
        return _duration(plain, name == "OLLAMA_LOAD_TIMEOUT")
    return _WORDS.get(plain.lower(), plain.lower()) if name in _SWITCHES else plain


def _duration(text: str, endless_at_zero: bool) -> str:
    """In seconds; what is none stays as it is, and is then not what Ollama has."""
    sign, body = ("-", text[1:]) if text.startswith("-") else ("", text.removeprefix("+"))
    parts = _PART.findall(body)
    if body.isdigit():
        seconds = float(body)
    elif parts and "".join(number + unit for number, unit in parts) == body:
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    else:
        return text
    return "forever" if sign or seconds > FOREVER or (endless_at_zero and not seconds) else f"{seconds:g}s"
