"""What a build of an engine knows: its `--help`, read. Two layouts: llama.cpp's own, and Python's argparse."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from llmsupervisor.runtime.command import Arg

_FLAG = re.compile(r"-{1,2}[A-Za-z][\w.-]*")
_HEAD = re.compile(rf" {{0,2}}{_FLAG.pattern}")
_REMOVED = "the argument has been removed"
_NEXT = re.compile(r"(?: (?:\{[^}]*\}|\[[^\]]*\]|[A-Z][\w.-]*)(?: \[[^\]]*\])?)?,\s+(?=-)")
_INLINE = re.compile(r"[\[{]([a-z]\w*(?:[|,]\s*[a-z]\w*)+)[\]}]")
"""`[on|off|auto]`, `{none,layer}`; placeholders (`N0,N1`) and ranges (`<0|1>`) name no values."""
_ALLOWED = re.compile(r"allowed values:\s*(\w[\w.+-]*(?:,\s*\w[\w.+-]*)*)")


def parse(text: str) -> tuple[frozenset[str], dict[str, frozenset[str]]]:
    """(spellings of every flag, flag → allowed values where the text lists them). Removed flags are left out."""
    flags: set[str] = set()
    values: dict[str, frozenset[str]] = {}
    for block in _blocks(text):
        if _REMOVED in " ".join(block.split()):
            continue
        head = block.splitlines()[0]
        spellings, rest = _spellings(head)
        flags.update(spellings)
        if allowed := _values(rest, block):
            values.update(dict.fromkeys(spellings, allowed))
    return frozenset(flags), values


def _blocks(text: str) -> list[str]:
    """The description of one option each: a line that starts with a dash, and the indented lines after it."""
    blocks: list[str] = []
    inside = False
    for line in text.splitlines():
        if _HEAD.match(line) and not line.startswith("-----"):
            blocks.append(line)
            inside = True
        elif inside and line.startswith("   "):
            blocks[-1] += "\n" + line
        else:
            inside = False
    return blocks


def _spellings(head: str) -> tuple[list[str], str]:
    """(`-c` and `--ctx-size`, ` N   text`) of `-c,    --ctx-size N   text`; argparse repeats the placeholder."""
    found: list[str] = []
    rest = head.strip()
    while match := _FLAG.match(rest):
        found.append(match[0])
        rest = rest[match.end() :]
        comma = _NEXT.match(rest)
        if comma is None:
            break
        rest = rest[comma.end() :]
    return found, rest


def _values(rest: str, block: str) -> frozenset[str]:
    if match := _ALLOWED.search(" ".join(block.split())):
        return frozenset(re.split(r",\s*", match[1]))
    signature = re.split(r"\s{2,}", rest.lstrip())[0]
    if match := _INLINE.match(signature):
        return frozenset(re.split(r"[|,]\s*", match[1]))
    return frozenset()


def flag_of(word: str) -> str | None:
    """`--ctx-size` of `--ctx_size=8192`; None where the word is no flag (`-1` is a value)."""
    match = _FLAG.match(word)
    if match is None:
        return None
    flag = word.split("=", 1)[0]
    return flag.replace("_", "-") if flag.startswith("--") else flag


def unknown_flags(argv: Iterable[Arg], flags: frozenset[str]) -> list[Arg]:
    """Arguments whose flag this build does not list: it would refuse to start."""
    return [arg for arg in argv if (flag := flag_of(arg.words[0])) and flag not in flags]


def unknown_values(argv: Iterable[Arg], values: Mapping[str, frozenset[str]]) -> list[tuple[Arg, frozenset[str]]]:
    """(argument, allowed values) where this build lists values and ours is not among them."""
    return [
        (arg, allowed)
        for arg in argv
        if len(arg.words) == 2 and (allowed := values.get(arg.words[0])) and arg.words[1] not in allowed
    ]
