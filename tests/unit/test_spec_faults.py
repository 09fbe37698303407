"""Faults of the spec file, as far as the text decides them: nothing is half applied."""

from __future__ import annotations

import pytest

from llmsupervisor.spec.load import load

GOOD = """\
[services.chat]
runtime = "llama-server"
model = "chat.gguf"
context_length = 2048
port = 8081
[services.embed]
runtime = "llama-server"
model = "embed.gguf"
port = 8082
"""


def test_C2_a_truncated_file_is_refused() -> None:
    assert load(GOOD, "f").spec is not None
    for text in ("", " \n", "# all commented out\n", "\n".join(f"# {line}" for line in GOOD.splitlines())):
        loaded = load(text, "f")
        assert loaded.spec is None and not loaded.partial
        assert "the spec names no service; nothing is changed" in loaded.problems[0].wrong


@pytest.mark.parametrize("at", range(0, len(GOOD), 7))
def test_C2_cut_anywhere_it_is_refused_or_names_only_whole_services(at: int) -> None:
    """A cut between two lines cannot be told from a short spec: the rule of a settled file guards that."""
    loaded = load(GOOD[:at], "f")
    assert (loaded.spec is None) == bool(loaded.problems)
    assert loaded.spec is None or loaded.spec.services


@pytest.mark.parametrize(
    ("old", "new", "line", "column"),
    [
        ("2048", "", 4, 18),
        ('"chat.gguf"', '"chat.gguf', 3, 19),
        ("[services.embed]", "[services.embed", 6, 16),
        ("[services.embed]", "<<<<<<< HEAD", 6, 1),
    ],
)
def test_C4_invalid_toml_is_told_with_line_and_column(old: str, new: str, line: int, column: int) -> None:
    loaded = load(GOOD.replace(old, new), "box.toml")
    assert loaded.spec is None
    (problem,) = loaded.problems
    assert str(problem).startswith(f"box.toml:{line}: not valid TOML: ")
    assert f"(column {column})" in problem.wrong


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("context_length", "numctx", "context_length"),
        ("context_length", "context_lenght", "did you mean context_length?"),
        ("2048", '"2048"', 'expected a whole number above 0 (tokens per request, prompt + output), found "2048"'),
        ("2048", "2048.0", "found 2048.0"),
        ("2048", "true", "found true"),
        ("2048", "0", "found 0"),
        ("[services.embed]", "[servces.embed]", "did you mean services?"),
    ],
)
def test_C5_unknown_keys_and_wrong_types_are_refused_with_a_suggestion(old: str, new: str, said: str) -> None:
    loaded = load(GOOD.replace(old, new), "f", {"llama-server": {"num_ctx": "context_length"}})
    assert loaded.spec is None
    (problem,) = loaded.problems
    assert said in str(problem) and problem.line in (4, 6)


def test_C6_two_services_on_one_port_are_refused_whole() -> None:
    loaded = load(GOOD.replace("8082", "8081"), "f")
    assert loaded.spec is None
    assert [str(p) for p in loaded.problems] == [
        "f:9: services.embed.port: port 8081 is also that of services.chat; allowed: each port once; leave port out"
    ]


def test_C6_one_name_for_two_services_is_refused_whole() -> None:
    loaded = load(GOOD.replace("services.embed", "services.chat"), "f")
    assert loaded.spec is None and not loaded.partial
    assert [str(p) for p in loaded.problems] == [
        "f:6: services.chat: stands twice, first on line 1; allowed: each name once"
    ]
