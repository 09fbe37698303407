"""On which line of a TOML text each key stands (ADR 0002)."""

from __future__ import annotations

import tomllib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

Path = tuple[str | int, ...]
"""Keys from the top of the file; whole numbers are places in a list, from 0."""


@dataclass(frozen=True, slots=True)
class Comment:
    text: str
    """From the # on."""
    alone: bool
    """Nothing but white space stands before it on its line."""


@dataclass(frozen=True, slots=True)
class Locator:
    lines: Mapping[Path, int]
    comments: Mapping[int, Comment] = field(default_factory=dict)
    """By line."""

    def line(self, path: Path) -> int:
        """1-based line of the key, else of its nearest ancestor that is in the text, else 0."""
        for length in range(len(path), 0, -1):
            if line := self.lines.get(path[:length]):
                return line
        return 0


def locate(text: str) -> Locator:
    """Of a text that is not valid TOML: the keys before the place where it stops to be."""
    scanner = _Scanner(text)
    try:
        scanner.document()
    except (ValueError, IndexError, RecursionError):
        pass
    return Locator(scanner.lines, scanner.comments)


_SPACE = " \t"
_BLANK = " \t\r\n"
_KEY_END = " \t.=]"
_VALUE_END = ",]}#\r\n"


class _Scanner:
    """Follows the keys and skips the values; the grammar of https://toml.io/en/v1.0.0, and line breaks in
    inline tables besides."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self.comments: dict[int, Comment] = {}
        self.tables: dict[Path, int] = {}
        """Arrays of tables: elements so far."""
        self._breaks = [offset for offset, char in enumerate(text) if char == "\n"]

    def document(self) -> None:
        table: Path = ()
        while self.blank():
            if self.text.startswith("[", self.at):
                table = self.header()
            else:
                self.pair(table)

    def header(self) -> Path:
        line, many = self.line(), self.text.startswith("[[", self.at)
        self.at += 2 if many else 1
        *parents, last = self.key()
        self.at += 2 if many else 1
        path: Path = ()
        for part in parents:
            path = self.latest((*path, part))
            self.lines.setdefault(path, line)
        path = (*path, last)
        if many:
            self.lines.setdefault(path, line)
            path = (*path, self.tables.setdefault(path, 0))
            self.tables[path[:-1]] += 1
        self.lines[path] = line
        return path

    def latest(self, path: Path) -> Path:
        return (*path, self.tables[path] - 1) if path in self.tables else path

    def pair(self, table: Path) -> None:
        line, path = self.line(), table
        for part in self.key():
            path = (*path, part)
            self.lines.setdefault(path, line)
        self.at += 1
        self.value(path)

    def key(self) -> list[str]:
        """Ends on the `=` or `]` after it."""
        parts = []
        while True:
            self.skip(_SPACE)
            start = self.at
            if self.text[start] in "\"'":
                self.string()
                parts.append(str(tomllib.loads(f"key = {self.text[start : self.at]}")["key"]))
            else:
                while self.text[self.at] not in _KEY_END:
                    self.at += 1
                parts.append(self.text[start : self.at])
            self.skip(_SPACE)
            if self.text[self.at] != ".":
                return parts
            self.at += 1

    def value(self, path: Path) -> None:
        self.skip(_SPACE)
        match self.text[self.at]:
            case '"' | "'":
                self.string()
            case "[":
                self.array(path)
            case "{":
                self.inline(path)
            case _:
                while self.at < len(self.text) and self.text[self.at] not in _VALUE_END:
                    self.at += 1

    def string(self) -> None:
        quote = self.text[self.at]
        end = quote * 3 if self.text.startswith(quote * 3, self.at) else quote
        self.at += len(end)
        while not self.text.startswith(end, self.at):
            self.at += 2 if quote == '"' and self.text[self.at] == "\\" else 1
            if self.at >= len(self.text):
                raise ValueError("the text ends inside a string")
        self.at += len(end)
        if len(end) == 3:  # up to two quotes may stand right before the closing three
            for _ in range(2):
                self.at += self.text.startswith(quote, self.at)

    def array(self, path: Path) -> None:
        self.at += 1
        index = 0
        while self.blank() and self.text[self.at] != "]":
            element = (*path, index)
            self.lines[element] = self.line()
            start = self.at
            self.value(element)
            self.comma()
            if self.at == start:
                raise ValueError("an element of a list is missing")
            index += 1
        self.at += 1

    def inline(self, path: Path) -> None:
        self.at += 1
        while self.blank() and self.text[self.at] != "}":
            self.pair(path)
            self.comma()
        self.at += 1

    def comma(self) -> None:
        if self.blank() and self.text[self.at] == ",":
            self.at += 1

    def blank(self) -> bool:
        """Past white space, line breaks and comments; False at the end of the text."""
        self.skip(_BLANK)
        while self.text.startswith("#", self.at):
            end = self.text.find("\n", self.at)
            end = len(self.text) if end < 0 else end
            before = self.text[self.text.rfind("\n", 0, self.at) + 1 : self.at]
            self.comments[self.line()] = Comment(self.text[self.at : end].rstrip(), not before.strip())
            self.at = end
            self.skip(_BLANK)
        return self.at < len(self.text)

    def skip(self, chars: str) -> None:
        while self.at < len(self.text) and self.text[self.at] in chars:
            self.at += 1

    def line(self) -> int:
        return bisect_right(self._breaks, self.at) + 1
