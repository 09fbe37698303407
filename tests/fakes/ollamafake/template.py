"""As much of Go's templates as chat models use: fields, `range .Messages`, `if`, and the blanks that `-` eats."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

CHATML = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
CHATML_STOP = ("<|im_start|>", "<|im_end|>")
_RANGE = re.compile(r"\{\{ range \.Messages \}\}(.*?)\{\{ end \}\}", re.DOTALL)
_IF = re.compile(r"\{\{ if \.(\w+) \}\}((?:(?!\{\{ (?:if|end)).)*?)\{\{ end \}\}", re.DOTALL)


def render(template: str, messages: list[dict[str, Any]]) -> str:
    text = re.sub(r"\s*\{\{-", "{{", re.sub(r"-\}\}\s*", "}}", template))
    text = re.sub(r"\{\{\s*(.*?)\s*\}\}", r"{{ \1 }}", text)
    if _RANGE.search(text):
        return _RANGE.sub(lambda found: "".join(_turn(found[1], message) for message in messages), text)
    last = {m["role"]: str(m.get("content", "")) for m in messages}
    return _fields(text, {"System": last.get("system", ""), "Prompt": last.get("user", ""), "Response": ""})


def _turn(body: str, message: Mapping[str, Any]) -> str:
    return _fields(body, {"Role": str(message["role"]), "Content": str(message.get("content", ""))})


def _fields(text: str, values: Mapping[str, str]) -> str:
    while (shorter := _IF.sub(lambda found: found[2] if values.get(found[1]) else "", text)) != text:
        text = shorter
    return re.sub(r"\{\{ \.(\w+) \}\}", lambda found: values.get(found[1], ""), text)
