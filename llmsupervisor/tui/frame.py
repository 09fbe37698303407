"""What the terminal shows, cell by cell. Textual sends every line that it drew again, an order of magnitude more than
what changed; here an update becomes the cells that differ from those on the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from rich.cells import get_character_cell_size
from rich.color import ColorSystem
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.strip import Strip

Update = LayoutUpdate | ChopsUpdate
"""What a screen has drawn anew: all of it, or spans of lines."""
BRIDGE = 3
"""Cells that did not change and are sent all the same, because jumping over them costs more bytes."""
ERASE = 5
"""Blanks at the end of a line from which on the line is cleared instead."""


class Cell(NamedTuple):
    text: str
    """A character with what combines with it; empty: the right half of a wide one."""
    look: str
    """Codes of an SGR sequence; empty: plain."""


BLANK = Cell(" ", "")


class Frame:
    """`draw` takes what is to be seen, `changes` says how the terminal comes to show it."""

    def __init__(self) -> None:
        self._wanted: list[list[Cell]] = []
        self._shown: list[list[Cell]] = []
        self._touched: set[int] = set()
        self._known = False

    def forget(self) -> None:
        """Nothing is known of the terminal any more: it is cleared and drawn anew."""
        self._known = False

    def resize(self, width: int, height: int) -> None:
        if (len(self._wanted), len(self._wanted[0]) if self._wanted else 0) != (height, width):
            self._wanted = [[BLANK] * width for _ in range(height)]
            self.forget()

    def draw(self, update: Update, colors: ColorSystem) -> None:
        for y, x, strip, start, end in _pieces(update):
            if not 0 <= y < len(self._wanted):
                continue
            row = self._wanted[y]
            cells = list(_cells(strip, colors))
            first, last = max(x, start), min(x + len(cells), end, len(row))
            row[first:last] = cells[first - x : last - x]
            self._touched.add(y)

    def changes(self) -> str:
        """Empty where the terminal shows it all already; else it counts as sent."""
        pen = _Pen()
        if not self._known:
            pen.out.append("\x1b[m\x1b[2J")
            self._shown = [[BLANK] * len(row) for row in self._wanted]
            self._touched = set(range(len(self._wanted)))
            self._known = True
        for y in sorted(self._touched):
            wanted, shown = self._wanted[y], self._shown[y]
            if wanted != shown:
                blanks = _blanks(wanted)
                for start, end in _runs(wanted, shown):
                    if end > blanks and len(wanted) - blanks >= ERASE:
                        pen.write(y, start, wanted, max(start, blanks))
                        pen.erase(y, max(start, blanks))
                        break
                    pen.write(y, start, wanted, end)
                shown[:] = wanted
        self._touched.clear()
        return pen.done()


def _blanks(row: list[Cell]) -> int:
    """The column from which on the line is blank."""
    end = len(row)
    while end and row[end - 1] == BLANK:
        end -= 1
    return end


def _runs(wanted: list[Cell], shown: list[Cell]) -> Iterator[tuple[int, int]]:
    """Spans of columns to be written. The right half of a wide character changes with its left one."""
    start = end = -1
    for x, (new, old) in enumerate(zip(wanted, shown, strict=True)):
        if new == old:
            continue
        if end >= 0 and x - end > BRIDGE:
            yield start, end
            start = x
        elif end < 0:
            start = x
        end = x + 1
    if end >= 0:
        yield start, end


class _Pen:
    """Writes cells at places, with as few bytes for moves and colours as it can."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self._look = ""
        self._at: tuple[int, int] | None = None
        """Line and column; None after a character at the margin, or one that terminals disagree on."""

    def write(self, y: int, start: int, row: list[Cell], end: int) -> None:
        x = start
        while x < end:
            text, look = row[x]
            self._go(y, x)
            self._dress(look)
            self.out.append(text)
            cells = 2 if x + 1 < len(row) and not row[x + 1].text else 1
            x += cells
            certain = cells == 1 and len(text) == 1 and x < len(row)
            self._at = (y, x) if certain else None

    def erase(self, y: int, x: int) -> None:
        """From here to the end of the line."""
        self._go(y, x)
        self._dress("")
        self.out.append("\x1b[K")

    def done(self) -> str:
        self._dress("")
        return "".join(self.out)

    def _go(self, y: int, x: int) -> None:
        if self._at == (y, x):
            return
        if self._at is not None and self._at[0] == y and x > self._at[1]:
            step = x - self._at[1]
            self.out.append(f"\x1b[{step}C" if step > 1 else "\x1b[C")
        else:
            self.out.append(f"\x1b[{y + 1};{x + 1}H" if x else f"\x1b[{y + 1}H")
        self._at = (y, x)

    def _dress(self, look: str) -> None:
        if look == self._look:
            return
        plain = not self._look
        self._look = look
        self.out.append("\x1b[m" if not look else f"\x1b[{look}m" if plain else f"\x1b[0;{look}m")


@lru_cache(maxsize=1024)
def _look(codes: str) -> str:
    """Without the terminal's own colours, which are what it has after a reset: a blank is one blank, however made."""
    kept: list[str] = []
    found = iter(codes.split(";"))
    for code in found:
        if code in ("38", "48"):
            space = next(found)
            kept += [code, space, *islice(found, 1 if space == "5" else 3)]
        elif code not in ("39", "49"):
            kept.append(code)
    return ";".join(kept)


def _cells(strip: Strip, colors: ColorSystem) -> Iterator[Cell]:
    last: Cell | None = None
    for text, style, control in strip:
        if control:
            continue
        look = "" if style is None else _look(Strip.render_ansi(style, colors))
        if text.isascii():
            if last is not None:
                yield last
                last = None
            yield from (Cell(character, look) for character in text)
            continue
        for character in text:
            size = get_character_cell_size(character)
            if size == 0:
                last = None if last is None else Cell(last.text + character, last.look)
                continue
            if last is not None:
                yield last
            last = Cell(character, look)
            if size == 2:
                yield last
                last = None
                yield Cell("", look)
    if last is not None:
        yield last


def _pieces(update: Update) -> Iterable[tuple[int, int, Strip, int, int]]:
    """Line, column, what is there, and between which columns it is valid."""
    if isinstance(update, LayoutUpdate):
        for y, line in enumerate(update.strips, update.region.y):
            x = update.region.x
            for strip in line:
                yield y, x, strip, x, x + strip.cell_length
                x += strip.cell_length
        return
    for y, start, end in update.spans:
        for x, chop in update.chops[y].items():
            if chop is not None and x < end and x + chop.cell_length > start:
                yield y, x, chop, start, end
