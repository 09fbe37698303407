"""How a problem is told, and names and fingerprints."""

from __future__ import annotations

import pytest

from llmsupervisor.base.errors import Exit, LlmsupervisorError, Owned, Problem, SpecError, Unreachable, UsageError
from llmsupervisor.base.ids import SERVICE_NAME, canonical, hash8, sha256

KEY = "services.chat.start"


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("", "is empty"), "is empty"),
        (Problem(KEY, "is wrong"), f"{KEY}: is wrong"),
        (Problem(KEY, "is wrong", file="box.toml"), f"box.toml: {KEY}: is wrong"),
        (Problem(KEY, "is wrong", line=3), f"{KEY}: is wrong"),
        (
            Problem(KEY, "is wrong", "this, that", "this", 'start = "this"').at("box.toml", 3),
            f'box.toml:3: {KEY}: is wrong; allowed: this, that; did you mean this? For example: start = "this"',
        ),
    ],
)
def test_a_problem_as_text(problem: Problem, text: str) -> None:
    assert str(problem) == text


def test_a_spec_error_carries_every_problem() -> None:
    problems = [Problem("a", "is wrong"), Problem("b", "is wrong")]
    error = SpecError(problems)
    assert (str(error), error.problems) == ("a: is wrong\nb: is wrong", problems)


def test_exit_codes_are_those_of_the_contract() -> None:
    assert [(e.code, int(e.code)) for e in (LlmsupervisorError, UsageError, SpecError, Unreachable, Owned)] == [
        (Exit.FAILURE, 1),
        (Exit.USAGE, 2),
        (Exit.SPEC_INVALID, 3),
        (Exit.UNREACHABLE, 5),
        (Exit.OWNED, 6),
    ]
    assert (Exit.OK, Exit.IMPOSSIBLE) == (0, 4)


def test_names_and_fingerprints() -> None:
    assert SERVICE_NAME.fullmatch("llama-3.1_8b") and not SERVICE_NAME.fullmatch("../x")
    assert canonical({"b": [1, None], "a": "é"}) == '{"a":"é","b":[1,null]}' == canonical({"a": "é", "b": [1, None]})
    assert sha256("é") == sha256("é".encode()) != sha256("e")
    assert hash8(b"x") == sha256("x")[:8] and len(hash8("x")) == 8
