"""Takes out of an answer what it has only because we asked for it, and puts in the model's name that the client said.
Every other byte passes as it came. Pure.

A raw `"key"` can stand in JSON only as that string, never inside a longer one, whose quotes are escaped: an event without
any of the words looked for needs no parser.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

EVENT = 1024**2
"""Bytes of an event above which it passes as it is."""

_END = re.compile(rb"\n\r?\n|\r\r")
_LINE = re.compile(rb"\n")
_DATA = re.compile(rb"(?:(?<=\n)|(?<=\r)|\A)data: ?([^\r\n]*)")
_space = re.compile(r"[ \t\n\r]*").match
_decode = json.JSONDecoder(strict=False).raw_decode
_MODEL = b'"model"'
_PLAIN = re.compile(rb'[ \t\r\n]*\{(?:"[^"\\]*":(?:"[^"\\]*"|[-+.\w]+),)*')
"""The begin of an object, and members that are plain texts or numbers."""
_FRONT = re.compile(rb"(?:event: ?[^\r\n]*\r?\n)?data: ?")
_LAST = re.compile(rb'(?:,"[^"\\]*":(?:"[^"\\]*"|[-+.\w]+))*\}[ \t\r\n]*\Z')
"""What follows a member of an object that is in no other: plain members, and one end."""


class Filter:
    """Of one answer. `rename`: the engine's name of the model, and the client's. `remove`: keys at the top of an answer.
    `usage`: the usage of a stream was not asked for by the client; `progress`: nor was that of its prompt.
    `lines`: a stream of JSON lines, not of events. An answer that is no stream (`stream` False) comes out of `end` as a whole."""

    __slots__ = (
        "_after",
        "_before",
        "_ends",
        "_held",
        "_idle",
        "_lines",
        "_name",
        "_named_after",
        "_named_before",
        "_new",
        "_old",
        "_passing",
        "_progress",
        "_remove",
        "_separator",
        "_stream",
        "_usage",
        "_words",
    )

    def __init__(
        self, stream: bool, rename: tuple[str, str] | None, remove: tuple[str, ...], usage: bool, progress: bool,
        lines: bool = False,
    ) -> None:  # fmt: skip
        self._stream = stream
        self._lines = lines
        self._separator = b"\n" if lines else b"\n\n"
        self._ends = _LINE if lines else _END
        self._remove = frozenset(remove)
        self._usage = usage and stream
        self._progress = progress and stream
        self._name = None if rename is None else rename[0]
        self._old = b"" if rename is None else b'"model":' + json.dumps(rename[0], ensure_ascii=False).encode()
        self._new = b"" if rename is None else json.dumps(rename[1]).encode()
        words = [*remove, *(["usage"] if usage else []), *(["prompt_progress"] if progress else [])]
        self._words = tuple(
            b'"%s"' % word.encode() for word in [*words, *(["response"] if rename and not lines else [])]
        )
        """`response`: of an event that repeats what the user sent, where anything may be called `model`."""
        self._before = self._named_before = b""
        """How the last event began that had the name after plain members only; and as the client gets it …"""
        self._after = self._named_after = b""
        """… or how it ended, from the byte before the name on. Nearly all events of a stream have the one or the other."""
        self._idle = not words and rename is None
        self._held = bytearray()
        self._passing = False
        """The begun event is too long."""

    def feed(self, piece: bytes) -> bytes:
        """Of what came so far, complete events."""
        if self._idle:
            return piece
        if not self._held and self._stream and piece.endswith(self._separator):
            for word in self._words:
                if word in piece:
                    break
            else:
                said = piece.count(_MODEL) if self._old else 0
                if not said:
                    return piece
                if said == 1:
                    if self._after and piece.endswith(self._after):
                        return piece[: -len(self._after)] + self._named_after
                    if self._before and piece.startswith(self._before):
                        return self._named_before + piece[len(self._before) :]
        at = max(len(self._held) - 3, 0)
        self._held += piece
        return self._events(at) if self._stream else b""

    def end(self) -> bytes:
        rest = bytes(self._held)
        self._held.clear()
        if not self._stream:
            return self.whole(rest)
        return rest if self._passing else self._event(rest)

    def whole(self, body: bytes) -> bytes:
        """Of an answer that is no stream."""
        if not any(b'"%s"' % key.encode() in body for key in self._remove):
            if self._name is None:
                return body
            at = body.find(self._old)
            if at > 0 and body.count(_MODEL) == 1 and _PLAIN.fullmatch(body, 0, at):
                return body[:at] + b'"model":' + self._new + body[at + len(self._old) :]
        filtered = self._json(body)
        return body if filtered is None else filtered

    # --- events --------------------------------------------------------------------------------------------------

    def _events(self, at: int) -> bytes:
        held, out, start = self._held, [], 0
        while match := self._ends.search(held, at):
            at = match.end()
            event = bytes(held[start:at])
            out.append(event if self._passing else self._event(event))
            self._passing = False
            start = at
        del match
        del held[:start]
        if self._passing or len(held) > EVENT:
            self._passing = True
            out.append(bytes(held[:-3]))
            del held[:-3]
        return b"".join(out)

    def _event(self, event: bytes) -> bytes:
        if len(event) > EVENT:
            return event
        if not any(word in event for word in self._words):
            said = event.count(_MODEL) if self._old else 0
            if not said:
                return event
            if said == 1 and (named := self._named(event)) is not None:
                return named
        if self._lines:
            data = self._json(event)
            return b"" if data is None else data
        lines = list(_DATA.finditer(event))
        if len(lines) != 1:
            return event
        data = self._json(lines[0][1])
        return b"" if data is None else event[: lines[0].start(1)] + data + event[lines[0].end(1) :]

    def _named(self, event: bytes) -> bytes | None:
        """With the client's name where the engine's is seen at the top without a parser: the argument of a tool may have
        the same key and the same value."""
        at = event.find(self._old)
        end = at + len(self._old)
        if at < 0:
            return None
        new = b'"model":' + self._new
        front = _FRONT.match(event)
        begin = front.end() if front is not None else 0
        if _PLAIN.fullmatch(event, begin, at):
            self._before, self._named_before = event[:end], event[:at] + new
        elif event[at - 1 : at] == b"," and _LAST.match(event, end):
            self._after, self._named_after = event[at - 1 :], b"," + new + event[end:]
        else:
            return None
        return event[:at] + new + event[end:]

    def _json(self, data: bytes) -> bytes | None:
        """None: nothing of it is the client's. What is no JSON object stays."""
        text = data.decode("latin-1")
        try:
            at = _skip(text, 0)
            said = _decode(text, at)[0]
            if not isinstance(said, dict):
                return data
            if self._progress and "prompt_progress" in said:
                return None
            remove = self._remove
            if self._usage and "choices" in said:
                if "usage" in said and said["choices"] == []:
                    return None
                remove |= {"usage"}
            root = _members(text, at)
            edits = self._edits(root, remove)
            for member in root:
                if (
                    member.name in ("response", "message")
                    and isinstance(member.value, dict)
                    and member.name not in remove
                ):
                    edits += self._edits(_members(text, member.begin), self._remove)
        except (ValueError, IndexError, RecursionError):
            return data
        for start, end, new in sorted(edits, reverse=True):
            data = data[:start] + new + data[end:]
        return data

    def _edits(self, members: list[_Member], remove: frozenset[str]) -> list[tuple[int, int, bytes]]:
        edits: list[tuple[int, int, bytes]] = []
        kept: _Member | None = None
        for i, member in enumerate(members):
            if member.name in remove:
                # With the comma before it; where nothing before it stays, with the one after it.
                if kept is not None:
                    edits.append((members[i - 1].end, member.end, b""))
                else:
                    edits.append((member.start, members[i + 1].start if i + 1 < len(members) else member.end, b""))
                continue
            kept = member
            if member.name == "model" and self._name is not None and _same(member.value, self._name):
                edits.append((member.begin, member.end, self._new))
        return edits


@dataclass(slots=True)
class _Member:
    """Offsets: of its name, and of its value from `begin` to `end`."""

    name: str
    value: Any
    start: int
    begin: int
    end: int


def _members(text: str, at: int) -> list[_Member]:
    """Of the object at `at`; ValueError or IndexError where there is none. Bytes as Latin-1, so that offsets are theirs."""
    if text[at] != "{":
        raise ValueError("not an object")
    found: list[_Member] = []
    at = _skip(text, at + 1)
    while text[at] != "}":
        name, end = _decode(text, at)
        colon = _skip(text, end)
        begin = _skip(text, colon + 1)
        value, end = _decode(text, begin)
        after = _skip(text, end)
        if not isinstance(name, str) or text[colon] != ":" or text[after] not in ",}":
            raise ValueError("not an object")
        found.append(_Member(name, value, at, begin, end))
        at = after
        if text[after] == "," and text[at := _skip(text, after + 1)] == "}":
            raise ValueError("a comma too many")
    return found


def _skip(text: str, at: int) -> int:
    """Past white space; IndexError at the end."""
    if text[at] > " ":
        return at
    match = _space(text, at)
    return at if match is None else match.end()


def _same(value: object, name: str) -> bool:
    if not isinstance(value, str):
        return False
    return value == name or value == name.encode().decode("latin-1")
