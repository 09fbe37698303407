"""The control socket as `docs/contracts.md` §2 says it, spoken without any of our code."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Any


class Refused(AssertionError):
    """The daemon answered with an error."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} (code {code})")
        self.code, self.text = code, text


def call(path: Path, name: str, timeout: float = 60.0, **args: Any) -> Any:
    """The result of one call. OSError where nobody listens."""
    return list(_answers(path, name, args, timeout))[-1][1]


def items(path: Path, name: str, timeout: float = 60.0, **args: Any) -> Generator[Any, None, None]:
    """The items of a streaming call, as they come; the answer's result is left out."""
    answers = _answers(path, name, args, timeout)
    with contextlib.closing(answers):
        yield from (value for kind, value in answers if kind == "item")


def _answers(path: Path, name: str, args: dict[str, Any], timeout: float) -> Generator[tuple[str, Any], None, None]:
    """`("item", …)` each, then `("result", …)`."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout)
        sock.connect(str(path))
        sock.sendall(json.dumps({"v": 1, "id": 1, "call": name, "args": args}).encode() + b"\n")
        for line in sock.makefile("rb"):
            message = json.loads(line)
            assert message["id"] == 1
            if "item" in message:
                yield "item", message["item"]
            elif message["ok"]:
                yield "result", message["result"]
                return
            else:
                raise Refused(message["error"]["code"], message["error"]["text"])
    raise ConnectionError(f"{name}: the daemon closed the connection before the answer")
