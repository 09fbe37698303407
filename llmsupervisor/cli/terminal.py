"""What the output may carry: colour, width, signs beyond ASCII."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TextIO

from llmsupervisor.base.text import ascii_only, utf8

if TYPE_CHECKING:
    from llmsupervisor.cli.views import Line

_SGR = {"good": "32", "busy": "36", "warn": "33", "bad": "1;31", "dim": "2", "bold": "1"}


class Output:
    """Lines with roles, written for this stream: colours at a terminal without NO_COLOR, signs by locale."""

    def __init__(self, stream: TextIO | None = None, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self.stream = sys.stdout if stream is None else stream
        self.tty = self.stream.isatty()
        self.colour = self.tty and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        self.ascii = not utf8(environ)

    @property
    def width(self) -> int:
        """Cells; a pipe has 1000: nothing is cut for a script's eyes."""
        if not self.tty:
            return 1000
        try:
            return os.get_terminal_size(self.stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    @property
    def height(self) -> int:
        try:
            return os.get_terminal_size(self.stream.fileno()).lines or 24
        except (OSError, ValueError):
            return 24

    def format(self, line: Line) -> str:
        parts = []
        for text, role in line:
            text = ascii_only(text) if self.ascii else text
            code = _SGR.get(role) if self.colour and text else None
            parts.append(f"\x1b[{code}m{text}\x1b[0m" if code else text)
        return "".join(parts)

    def write(self, lines: Iterable[Line]) -> None:
        self.stream.write("".join(f"{self.format(line)}\n" for line in lines))
        self.stream.flush()
