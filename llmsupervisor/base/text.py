"""Foreign text (engine logs, file content, names) made safe and measured for a terminal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from itertools import accumulate

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL, C1: cursor, colour, title, clipboard
    "\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # invisible, or turns the line around
    "\ud800-\udfff\U000e0000-\U000e007f]"  # lone surrogates (unprintable), tag characters (invisible)
)
_WIDE = {"W", "F"}


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if match[0] == "\t":
        return "    "
    if match[0] == "\n":
        return "\\n"
    if match[0] == "\r":
        return "\\r"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable(text: str) -> str:
    """One line without anything that a terminal obeys: such characters become visible escapes, a tab four spaces.

    Applied twice it changes nothing more. Text of several lines is split first.
    """
    return _UNSAFE.sub(_escape, text)


def width(text: str) -> int:
    """Terminal cells of printable text."""
    if text.isascii():
        return len(text)
    return sum(_cells(character) for character in text)


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in _WIDE else 1


def cut(text: str, cells: int) -> str:
    """At most `cells` wide; what was cut off shows as `…`."""
    if width(text) <= cells:
        return text
    if cells < 1:
        return ""
    kept = sum(used < cells for used in accumulate(map(_cells, text)))
    return text[:kept] + "…"


def pad(text: str, cells: int, right: bool = False) -> str:
    """Exactly `cells` wide."""
    text = cut(text, cells)
    space = " " * (cells - width(text))
    return space + text if right else text + space


_PLAIN = str.maketrans("–—…→·×≈│─□○◌◐●◑▽▼✕↻✖█░", "--~>-x~|-_o?>*!vVx~X#-")


def ascii_only(text: str) -> str:
    """For a terminal that is not UTF-8: same width for our own signs, escapes for everything else."""
    return text if text.isascii() else text.translate(_PLAIN).encode("ascii", "backslashreplace").decode()


_COERCED = {"C.UTF-8", "C.utf8", "UTF-8"}


def utf8(environ: Mapping[str, str]) -> bool:
    """Whether the terminal's locale is UTF-8. In the C locale Python sets LC_CTYPE to a UTF-8 one for itself
    (PEP 538): that says nothing of a person's terminal.
    """
    language, kind = environ.get("LANG") or "C", environ.get("LC_CTYPE") or ""
    coerced = kind in _COERCED and language in {"C", "POSIX"}
    locale = environ.get("LC_ALL") or ("" if coerced else kind) or language
    return locale.lower().replace("-", "").partition("@")[0].endswith("utf8")
