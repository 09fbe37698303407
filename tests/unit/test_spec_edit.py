"""Edits keep comments and layout; of two writers the second is told."""

from __future__ import annotations

import tomllib

import pytest

from llmsupervisor.base.ids import sha256
from llmsupervisor.spec.edit import Conflict, edited, remove, set_value
from llmsupervisor.spec.load import load

TEXT = """\
# my box
[services.chat]           # the chat
runtime  = 'llama-server'
parallel = 4              # four at once
restart = { policy = "always", burst = 5 }  # why

[services.ollama]
runtime = "ollama"
models = [
  { name = "a", context_length = 1 },  # first
  { name = "b", context_length = 2 },
]
"""


@pytest.mark.parametrize(
    ("path", "value", "old", "new"),
    [
        (("services", "chat", "parallel"), 8, "parallel = 4  ", "parallel = 8  "),
        (("services", "chat", "restart", "burst"), 9, "burst = 5", "burst = 9"),
        (("services", "chat", "runtime"), "vllm", "'llama-server'", '"vllm"'),
        (("services", "ollama", "models", 1, "context_length"), 3, "context_length = 2", "context_length = 3"),
    ],
)
def test_only_the_value_changes(path: tuple[str | int, ...], value: object, old: str, new: str) -> None:
    assert TEXT.count(old) == 1
    assert set_value(TEXT, path, value) == TEXT.replace(old, new)


def test_a_new_key_and_new_tables() -> None:
    text = set_value(TEXT, ("services", "chat", "gpus"), [0])
    text = set_value(text, ("services", "new", "runtime"), "ollama")
    text = set_value(text, ("defaults", "ollama", "restart", "burst"), 2)
    document = tomllib.loads(text)
    assert document["services"]["chat"]["gpus"] == [0]
    assert document["services"]["new"] == {"runtime": "ollama"}
    assert document["defaults"] == {"ollama": {"restart": {"burst": 2}}}
    assert set(TEXT.splitlines()) <= set(text.splitlines())
    assert load(text, "f").spec is not None


def test_an_element_of_a_list() -> None:
    text = set_value(TEXT, ("services", "ollama", "models", 0), {"name": "c", "context_length": 9})
    assert tomllib.loads(text)["services"]["ollama"]["models"][0] == {"name": "c", "context_length": 9}


def test_removed() -> None:
    assert remove(TEXT, ("services", "chat", "parallel")) == TEXT.replace(
        "parallel = 4              # four at once\n", ""
    )
    document = tomllib.loads(remove(TEXT, ("services", "ollama", "models", 0)))
    assert document["services"]["ollama"]["models"] == [{"name": "b", "context_length": 2}]
    assert list(tomllib.loads(remove(TEXT, ("services", "chat")))["services"]) == ["ollama"]


@pytest.mark.parametrize(
    "path",
    [
        ("services", "none"),
        ("services", "none", "parallel"),
        ("services", "ollama", "models", 2),
        ("services", "ollama", "models", "name"),
        ("services", "chat", "runtime", 0),
    ],
)
def test_what_is_not_there_cannot_be_removed(path: tuple[str | int, ...]) -> None:
    with pytest.raises(KeyError):
        remove(TEXT, path)


@pytest.mark.parametrize(
    "path",
    [
        ("services", "ollama", "models", 2),
        ("services", "chat", "runtime", "x"),
        ("services", "chat", "runtime", "x", "y"),
    ],
)
def test_nothing_can_be_set_inside_a_value(path: tuple[str | int, ...]) -> None:
    with pytest.raises(KeyError):
        set_value(TEXT, path, 1)


def test_set_and_removed_again_is_the_same_text() -> None:
    for path in (
        ("services", "chat", "batch"),
        ("services", "chat", "restart", "window"),
        ("services", "ollama", "batch"),
    ):
        assert remove(set_value(TEXT, path, 1), path) == TEXT


def test_C20_the_second_of_two_writers_is_told() -> None:
    mine = set_value(TEXT, ("services", "chat", "parallel"), 8)
    theirs = set_value(TEXT, ("services", "chat", "parallel"), 2)
    assert edited(TEXT, sha256(TEXT), mine) == mine
    conflict = edited(theirs, sha256(TEXT), mine)
    assert conflict == Conflict(sha256(TEXT), sha256(theirs))
    assert sha256(theirs)[:8] in str(conflict) and "nothing was written" in str(conflict)
