"""Keys are found on the line where they stand."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsupervisor.spec.locate import locate

EVERYTHING = '''\
# comment with [brackets] and = signs
title = "x # no comment" # comment
"quoted key" = 1
'literal.key' = 2
a.b . "c.d" = 3
text = """
[not.a.table]
k = 1 \\""" ""
"""""
raw = \'\'\'
'' [neither] '\'\'\'\'
list = [ # comment ]
  1, "]", [2,
  3],
  { x = "}", y.z = [ 4 ] },
]
when = 1979-05-27 07:32:00

  [services . "my chat"] # comment
  model = 'C:\\'
  restart = { policy = "always", burst = 5 }
[services]
other = {}
[[gpu]]
n = 1
[[gpu.part]]
m = 1
[[gpu.part]]
m = 2
[gpu.part.deep]
d = 1
[[gpu]]
n = 2'''
LINES = {
    ("title",): 2,
    ("quoted key",): 3,
    ("literal.key",): 4,
    ("a",): 5,
    ("a", "b"): 5,
    ("a", "b", "c.d"): 5,
    ("text",): 6,
    ("raw",): 10,
    ("list",): 12,
    ("list", 0): 13,
    ("list", 1): 13,
    ("list", 2): 13,
    ("list", 2, 0): 13,
    ("list", 2, 1): 14,
    ("list", 3): 15,
    ("list", 3, "x"): 15,
    ("list", 3, "y"): 15,
    ("list", 3, "y", "z"): 15,
    ("list", 3, "y", "z", 0): 15,
    ("when",): 17,
    ("services", "my chat"): 19,
    ("services", "my chat", "model"): 20,
    ("services", "my chat", "restart"): 21,
    ("services", "my chat", "restart", "policy"): 21,
    ("services", "my chat", "restart", "burst"): 21,
    ("services",): 22,
    ("services", "other"): 23,
    ("gpu",): 24,
    ("gpu", 0): 24,
    ("gpu", 0, "n"): 25,
    ("gpu", 0, "part"): 26,
    ("gpu", 0, "part", 0): 26,
    ("gpu", 0, "part", 0, "m"): 27,
    ("gpu", 0, "part", 1): 28,
    ("gpu", 0, "part", 1, "m"): 29,
    ("gpu", 0, "part", 1, "deep"): 30,
    ("gpu", 0, "part", 1, "deep", "d"): 31,
    ("gpu", 1): 32,
    ("gpu", 1, "n"): 33,
}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_form_of_toml(newline: str) -> None:
    text = EVERYTHING.replace("\n", newline)
    tomllib.loads(text)
    assert locate(text).lines == LINES


def test_the_nearest_ancestor_stands_for_a_missing_key() -> None:
    locator = locate("\n[services.chat]\nmodel = 'm'\n")
    assert locator.line(("services", "chat", "parallel")) == 2
    assert locator.line(("services", "chat", "restart", "burst")) == 2
    assert locator.line(("gateway", "listen")) == 0
    assert locator.line(()) == 0


@pytest.mark.parametrize(
    "rest", ["b = [1, }", "b = [ , ]", 'b = "x', 'b = """x', "b", '"b', "[", "[[b", "b = {", "b = ", "= 1", "]"]
)
def test_keys_before_a_fault_are_found(rest: str) -> None:
    with pytest.raises(tomllib.TOMLDecodeError):
        tomllib.loads(f"a = 1\n{rest}")
    assert locate(f"a = 1\n{rest}").line(("a",)) == 1


def test_too_deep_for_us_is_no_error() -> None:
    assert locate("a = 1\nb = " + "[" * 5000).line(("a",)) == 1


def paths(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [path] * bool(path) + [p for key, v in inner for p in paths(v, (*path, key))]


NAMES = st.text("abcé._- \"'#=[]{}\n\\", max_size=4)
BARE = st.text("abz-_09", min_size=1, max_size=3)
GAP = st.sampled_from(["", " ", "\t "])
BREAK = st.sampled_from(["", "\n", " # ]}\"'''\n", "\n\n"])


def basic(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


SCALARS = st.one_of(
    st.sampled_from(["1", "-0.5e3", "true", "1979-05-27T07:32:00Z", "1979-05-27 07:32:00", "inf", "0xff", "''", '""']),
    NAMES.map(basic),
    st.sampled_from(['"""a\n["b"]\n\\"" """', "'''\n# = '\n'''", '""""x"""""', '"""\\\n  x"""', "'\\'", "'''a'''''"]),
)


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[tuple[str | int, ...], int]]:
    """TOML text and, for each path, the line on which we wrote it."""
    out: list[str] = []
    lines: dict[tuple[str | int, ...], int] = {}

    def emit(text: str) -> None:
        out.append(text)

    def here() -> int:
        return "".join(out).count("\n") + 1

    def key(taken: set[str]) -> str:
        name = draw(st.one_of(BARE, NAMES).filter(lambda n: n not in taken))
        taken.add(name)
        emit(draw(GAP))
        bare = name and all(c in "abz-_09" for c in name)
        emit(name if bare and draw(st.booleans()) else basic(name))
        emit(draw(GAP))
        return name

    def value(path: tuple[str | int, ...], depth: int) -> None:
        kind = draw(st.sampled_from(["scalar", "list", "table"])) if depth else "scalar"
        if kind == "scalar":
            emit(draw(SCALARS))
        elif kind == "list":
            emit("[")
            for index in range(draw(st.integers(0, 3))):
                emit(draw(BREAK))
                lines[(*path, index)] = here()
                value((*path, index), depth - 1)
                emit(draw(BREAK) + ",")
            emit(draw(BREAK) + "]")
        else:
            emit("{")
            taken: set[str] = set()
            for index in range(draw(st.integers(0, 2))):
                emit(", " if index else "")
                pair(path, taken, depth - 1)
            emit("}")

    def pair(table: tuple[str | int, ...], taken: set[str], depth: int) -> None:
        line = here()
        name = key(taken)
        path = (*table, name)
        lines[path] = line
        if draw(st.booleans()):
            emit(".")
            path = (*path, key(set()))
            lines[path] = line
        emit("=" + draw(GAP))
        value(path, depth)

    def body(table: tuple[str | int, ...], taken: set[str]) -> None:
        for _ in range(draw(st.integers(0, 3))):
            emit(draw(BREAK))
            pair(table, taken, 2)
            emit(draw(st.sampled_from(["\n", " # [x]\n"])))

    heads: set[str] = set()
    body((), heads)
    for _ in range(draw(st.integers(0, 3))):
        many = draw(st.booleans())
        first = ""
        for index in range(draw(st.integers(1, 2)) if many else 1):
            line = here()
            emit("[[" if many else "[")
            if index:
                emit(basic(first))
            else:
                first = key(heads)
            emit("]]\n" if many else "]\n")
            lines.setdefault((first,), line)
            path: tuple[str | int, ...] = (first, index) if many else (first,)
            lines[path] = line
            body(path, set())
    return "".join(out), lines


@settings(max_examples=150, deadline=None)
@given(documents())
def test_against_tomllib(document: tuple[str, dict[tuple[str | int, ...], int]]) -> None:
    text, lines = document
    found = locate(text).lines
    assert set(paths(tomllib.loads(text))) == set(found)
    assert found == lines


@settings(max_examples=150, deadline=None)
@given(st.text("ab=.[]{}\"'#,\n \\1", max_size=40))
def test_never_raises_and_never_hangs(text: str) -> None:
    found = locate(text).lines
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert set(paths(document)) == set(found)
