"""Exit codes of the command line and the one shape in which a problem is told to a person."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace


class Exit(enum.IntEnum):
    """Exit codes of every command (`docs/contracts.md`)."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    SPEC_INVALID = 3
    IMPOSSIBLE = 4
    UNREACHABLE = 5
    OWNED = 6


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a spec, a definition or a command: where, what, what is allowed, what to do.

    `key` is the dotted path in the file (`services.chat.kv_cache_type`), `line` is 1-based, 0 = unknown.
    `wrong` names what was found. Empty strings are left out of the text.
    """

    key: str
    wrong: str
    allowed: str = ""
    nearest: str = ""
    example: str = ""
    file: str = ""
    line: int = 0

    def at(self, file: str, line: int) -> Problem:
        return replace(self, file=file, line=line)

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        parts = [f"{place}{self.key}: {self.wrong}" if self.key else f"{place}{self.wrong}"]
        if self.allowed:
            parts.append(f"allowed: {self.allowed}")
        if self.nearest:
            example = f" For example: {self.example}" if self.example else ""
            parts.append(f"did you mean {self.nearest}?{example}")
        elif self.example:
            parts.append(f"for example: {self.example}")
        return "; ".join(parts)


class LlmsupervisorError(Exception):
    """Base of every error meant for a person; `code` is the exit code of the command that meets it."""

    code = Exit.FAILURE


class SpecError(LlmsupervisorError):
    """The spec text is wrong: nothing is changed. Carries every problem, not the first."""

    code = Exit.SPEC_INVALID

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = problems


class UsageError(LlmsupervisorError):
    code = Exit.USAGE


class Unreachable(LlmsupervisorError):
    """No daemon answers on the control socket."""

    code = Exit.UNREACHABLE


class Owned(LlmsupervisorError):
    """Another daemon owns this state."""

    code = Exit.OWNED
