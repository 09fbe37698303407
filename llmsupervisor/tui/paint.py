"""Lines with roles as Textual shows them: the 16 colours of the user's terminal, never markup from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.text import Text

from llmsupervisor.base.text import ascii_only, utf8
from llmsupervisor.cli.views import Line, Span

_STYLES = {
    "good": "green",
    "busy": "cyan",
    "warn": "yellow",
    "bad": "bold red",
    "dim": "dim",
    "bold": "bold",
    "alarm": "bold reverse",
    "cursor": "reverse",
}


class Paint:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self.ascii = not utf8(environ) or environ.get("TERM") == "linux"

    def plain(self, text: str) -> str:
        return ascii_only(text) if self.ascii else text

    def span(self, span: Span, right: bool = False) -> Text:
        return Text(self.plain(span.text), _STYLES.get(span.role, ""), justify="right" if right else None)

    def lines(self, lines: Sequence[Line]) -> Text:
        text = Text()
        for number, line in enumerate(lines):
            if number:
                text.append("\n")
            for span in line:
                text.append_text(self.span(span))
        return text
