"""`# llmsupervisor: ignore C13 reason`: findings that somebody has looked at and wants to keep, with the reason beside them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from llmsupervisor.spec.locate import Comment, Locator, Path
from llmsupervisor.spec.model import Service

_MARK = re.compile(r"llmsupervisor:\s*ignore\b\s*(.*)")
_RULES = re.compile(r"[A-Z]\d+(?:\s*,\s*[A-Z]\d+)*")


@dataclass(frozen=True, slots=True)
class Ignore:
    """`service` and `runtime` None: of every service, of every runtime."""

    rules: tuple[str, ...]
    reason: str
    line: int
    service: str | None = None
    runtime: str | None = None

    def covers(self, rule: str, service: str, runtime: str) -> bool:
        return rule in self.rules and self.service in (None, service) and self.runtime in (None, runtime)

    def wrong(self, known: Collection[str]) -> str:
        """Why it is not obeyed; empty where it is."""
        if not self.rules:
            return "the comment names no rule"
        if unknown := [rule for rule in self.rules if rule not in known]:
            return f"there is no rule {', '.join(unknown)}"
        return "" if self.reason else f"the comment gives no reason to ignore {', '.join(self.rules)}"


def ignores(locator: Locator) -> Iterator[Ignore]:
    """A comment counts for the service in whose table it stands, one in `[defaults]` or above every table for all, one in
    `[defaults.RUNTIME]` for those of this runtime. On lines of its own it belongs to what follows without a blank line.
    """
    for line, comment in sorted(locator.comments.items()):
        if (mark := _MARK.search(comment.text)) is None:
            continue
        rules = _RULES.match(mark[1])
        names = tuple(part.strip() for part in rules[0].split(",")) if rules else ()
        reason = mark[1][rules.end() :].strip(" :-–") if rules else ""
        yield Ignore(names, reason, line, *_scope(_path(line, comment, locator)))


def _path(line: int, comment: Comment, locator: Locator) -> Path:
    """The key that a comment is about."""
    below = line
    while comment.alone and below in locator.comments and locator.comments[below].alone:
        below += 1
    at = [path for path, place in locator.lines.items() if place == below]
    if not at:
        above = max((place for place in locator.lines.values() if place <= line), default=0)
        at = [path for path, place in locator.lines.items() if place == above]
    return max(at, key=len, default=())


def _scope(path: Path) -> tuple[str | None, str | None]:
    """(service, runtime)."""
    top, name = [*map(str, path), "", ""][:2]
    if top == "services" and name:
        return name, None
    return None, name if top == "defaults" and name and name not in Service.model_fields else None
