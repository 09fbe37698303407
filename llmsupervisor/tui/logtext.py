"""Lines of a log with a place in them, a search and a filter. Pure, but for the limit of a search."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from llmsupervisor.base.text import cut, printable, width
from llmsupervisor.cli.views import Line, Span
from llmsupervisor.tui.patience import TooLong, at_most

KEPT = 5000
CELLS = 4096
"""Of a line; what is longer is cut."""
SEARCH, DRAW = 1.0, 0.2
"""Seconds that an expression may take over all new lines, and over those that are drawn: some take for ever."""
WRAPPED = 40
"""Rows that one line is broken into, at most."""
BAD = re.compile(
    r"\b(?:WARN(?:ING)?|ERR(?:OR)?|FATAL|CRITICAL|PANIC|Traceback|failed|error|exception|abort(?:ed)?|out of memory)\b|^[EWF] |Xid",
    re.IGNORECASE,
)


class Entry(NamedTuple):
    text: str
    kind: str = ""
    """`earlier`: of a start before the present one; `mark`: set by the user."""


class LogText:
    def __init__(self) -> None:
        self._lines: deque[Entry] = deque()
        self._gone = 0
        """Lines that were dropped at the begin: line numbers go on."""
        self.top: int | None = None
        """Number of the first visible line; None: the end is followed."""
        self.unseen = 0
        """Lines that came since the end was left."""
        self.wrap = self.only_bad = False
        self.left = 0
        self.pattern: re.Pattern[str] | None = None
        self.too_long = False
        """The expression was given up: nothing is a hit."""
        self.hit: int | None = None
        """Number of the line that the search stands on."""
        self._hits: list[int] = []
        self._hits_of: object = None
        self._looked = 0
        """Number of the first line that was not searched yet."""
        self._shown: list[int] = []
        """Numbers of the lines that the filter lets through."""

    # --- what comes ---------------------------------------------------------------------------------------------

    def clear(self) -> None:
        self._gone += len(self._lines)
        self._lines.clear()
        self._shown.clear()
        self.top, self.hit, self.unseen = None, None, 0

    def add(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            text = cut(printable(entry.text.rstrip("\r\n")), CELLS)
            number = self._gone + len(self._lines)
            self._lines.append(Entry(text, entry.kind))
            if self._passes(self._lines[-1]):
                self._shown.append(number)
                self.unseen += self.top is not None
        over = len(self._lines) - KEPT
        for _ in range(max(over, 0)):
            self._lines.popleft()
        if over > 0:
            self._gone += over
            self._shown = [n for n in self._shown if n >= self._gone]
            self.top = None if self.top is None else max(self.top, self._gone)
            self.hit = None if self.hit is None or self.hit < self._gone else self.hit

    def _passes(self, entry: Entry) -> bool:
        return not self.only_bad or entry.kind == "mark" or BAD.search(entry.text) is not None

    @property
    def end(self) -> int:
        """Number of the next line that comes."""
        return self._gone + len(self._lines)

    def entry(self, number: int) -> Entry:
        return self._lines[number - self._gone]

    # --- where one is -------------------------------------------------------------------------------------------

    def follow(self) -> None:
        self.top, self.unseen = None, 0

    def filter_bad(self, on: bool) -> None:
        self.only_bad = on
        self._shown = [n for n, entry in enumerate(self._lines, self._gone) if self._passes(entry)]

    def _rows(self, number: int, room: int) -> int:
        if not self.wrap:
            return 1
        return min(max(-(-width(self.entry(number).text) // max(room, 1)), 1), WRAPPED)

    def _last_top(self, height: int, room: int) -> int:
        """Place in `_shown` of the first line of the last window."""
        rows, at = 0, len(self._shown)
        while at > 0 and rows + self._rows(self._shown[at - 1], room) <= height:
            at -= 1
            rows += self._rows(self._shown[at], room)
        return min(at, max(len(self._shown) - 1, 0))

    def _place(self, height: int, room: int) -> int:
        last = self._last_top(height, room)
        if self.top is None:
            return last
        found = next((i for i, n in enumerate(self._shown) if n >= self.top), last)
        return min(found, last)

    def move(self, by: int, height: int, room: int) -> None:
        """Reaching the end follows it again."""
        last = self._last_top(height, room)
        place = max(self._place(height, room) + by, 0)
        if place >= last:
            self.follow()
        else:
            self.top = self._shown[place]

    # --- search -------------------------------------------------------------------------------------------------

    def search(self, words: str) -> None:
        """As a regular expression, or as it stands where it is none; without regard to case."""
        self.too_long = False
        if not words:
            self.pattern = self.hit = None
            return
        try:
            self.pattern = re.compile(words, re.IGNORECASE)
        except re.error:
            self.pattern = re.compile(re.escape(words), re.IGNORECASE)

    def hits(self) -> list[int]:
        """Each line is looked at once."""
        pattern = None if self.too_long else self.pattern
        if self._hits_of != (pattern, self.only_bad):
            self._hits_of, self._hits, self._looked = (pattern, self.only_bad), [], 0
        new = self._shown[bisect_left(self._shown, self._looked) :] if pattern else []
        self._hits = self._hits[bisect_left(self._hits, self._gone) :]
        self._looked = self.end
        try:
            if new:
                with at_most(SEARCH):
                    self._hits += [n for n in new if pattern and pattern.search(self.entry(n).text)]
        except TooLong:
            self.too_long, self.hit = True, None
            return []
        return self._hits

    def step(self, by: int, height: int, room: int) -> None:
        """To the next hit, or the one before; from the last it goes on at the first. A search begins at its last hit."""
        hits = self.hits()
        if not hits:
            self.hit = None
            return
        if self.hit is None:
            self.hit = hits[-1]
        elif by > 0:
            self.hit = next((n for n in hits if n > (self.hit or 0)), hits[0])
        else:
            self.hit = next((n for n in reversed(hits) if n < (self.hit or 0)), hits[-1])
        self.stand_on(self.hit, height, room)

    def stand_on(self, number: int, height: int, room: int) -> None:
        self.hit = number
        place = self._shown.index(number)
        self.top = self._shown[max(place - height // 2, 0)]
        if self._shown.index(self.top) >= self._last_top(height, room):
            self.top = self._shown[self._last_top(height, room)]

    # --- what is seen -------------------------------------------------------------------------------------------

    def window(self, height: int, room: int) -> list[Line]:
        if self.pattern is None or self.too_long:
            return self._window(height, room)
        try:
            with at_most(DRAW):
                return self._window(height, room)
        except TooLong:
            self.too_long, self.hit = True, None
            return self._window(height, room)

    def _window(self, height: int, room: int) -> list[Line]:
        lines: list[Line] = []
        for number in self._shown[self._place(height, room) :]:
            if len(lines) >= height:
                break
            lines += self._drawn(number, room)
        return lines[:height]

    def _drawn(self, number: int, room: int) -> list[Line]:
        entry = self.entry(number)
        if entry.kind == "mark":
            text = f"── {entry.text} "
            return [[Span(cut(text + "─" * max(room - width(text), 0), room), "bold")]]
        pieces = _pieces(entry.text, room)[:WRAPPED] if self.wrap else [cut(entry.text[self.left :], room)]
        role = "dim" if entry.kind == "earlier" else ""
        return [self._highlighted(piece, role, number == self.hit) for piece in pieces]

    def _highlighted(self, text: str, role: str, here: bool) -> Line:
        if self.pattern is None or self.too_long:
            return [Span(text, role)]
        line: Line = []
        at = 0
        for match in self.pattern.finditer(text):
            if match.end() > match.start():
                line += [Span(text[at : match.start()], role), Span(match[0], "alarm" if here else "cursor")]
                at = match.end()
        return [*line, Span(text[at:], role)]

    def text(self) -> str:
        """What the filter lets through, for a pager or a file."""
        return "\n".join(self.entry(number).text for number in self._shown)

    def seen(self, height: int, room: int) -> Sequence[str]:
        first = self._place(height, room)
        return [self.entry(number).text for number in self._shown[first : first + height]]

    @property
    def length(self) -> int:
        return len(self._shown)


def _pieces(text: str, room: int) -> list[str]:
    """Broken after so many cells, not at blanks: a log is not prose."""
    if not text or room < 1:
        return [text]
    if text.isascii():
        return [text[at : at + room] for at in range(0, len(text), room)]
    pieces, piece, used = [], "", 0
    for character in text:
        cells = width(character)
        if used + cells > room:
            pieces.append(piece)
            piece, used = "", 0
        piece += character
        used += cells
    return [*pieces, piece]
