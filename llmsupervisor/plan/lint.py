"""The linter: every rule on every service of a finished plan. It refuses nothing; it says what will hurt, and what to write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

from llmsupervisor.base.ids import Json
from llmsupervisor.plan.facts import Facts
from llmsupervisor.plan.launch import Plan, ServicePlan
from llmsupervisor.plan.observed import Seen
from llmsupervisor.plan.rules import (
    flags,
    kv,
    llama,
    memory,
    model,
    observed,
    observed_engine,
    ollama,
    serving,
    starting,
    vllm,
)
from llmsupervisor.plan.rules.rule import Box, Edit, Hit, Rule, Severity
from llmsupervisor.plan.turns import Turn, turns
from llmsupervisor.spec import edit
from llmsupervisor.spec.ignores import Ignore, ignores
from llmsupervisor.spec.load import Loaded
from llmsupervisor.spec.locate import Path

_ORDER: tuple[Severity, ...] = ("error", "warning", "info")
RULES: tuple[Rule, ...] = tuple(
    sorted(
        (
            *kv.RULES,
            *model.RULES,
            *memory.RULES,
            *serving.RULES,
            *flags.RULES,
            *starting.RULES,
            *llama.RULES,
            *vllm.RULES,
            *ollama.RULES,
            *observed.RULES,
            *observed_engine.RULES,
        ),
        key=lambda rule: _ORDER.index(rule.severity),
    )
)
"""In the order of harm."""
IGNORE = "ignore"
"""`rule` of a finding about an ignore comment."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`ignored` is the written reason why it is to be kept: such a finding is counted, and not told."""

    id: str
    """`RULE:SERVICE`; with a number where a rule finds more than one thing there: `C91:chat:2`."""
    rule: str
    name: str
    severity: Severity
    service: str
    key: str
    """The setting to turn."""
    says: str
    change: str
    effect: str
    evidence: Mapping[str, Json]
    source: str
    requests: int | None = None
    """Recorded requests that it rests on; None: the plan alone."""
    changes: tuple[Turn, ...] = ()
    """The change key by key; empty where it needs more than keys of this service."""
    fixable: bool = False
    """`check --fix` makes the change by itself: it needs no judgement."""
    file: str = ""
    line: int = 0
    """Of the setting, else of its service; 0: unknown."""
    ignored: str = ""
    fix: tuple[Edit, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else ""
        of = f"services.{self.service}.{self.key}" if self.service else self.key
        return f"{place}{self.severity} {self.rule} {of}: {self.says}"

    def to_json(self) -> dict[str, Json]:
        told: dict[str, Json] = asdict(self)
        del told["fix"]
        return told | {"evidence": dict(self.evidence), "ignored": self.ignored or None}


def lint(
    plan: Plan,
    facts: Facts | None = None,
    loaded: Loaded | None = None,
    seen: Mapping[str, tuple[Seen, ...]] | None = None,
) -> list[Finding]:
    """Errors first, then as the services stand. `facts` are those that the plan was made with; what they do not know no
    rule guesses. `loaded` gives lines and ignore comments, `seen` what observed rules look at. Of a finding that is `ignored` nobody need hear."""
    box = Box(plan, facts or Facts(), seen or {}, loaded.spec.gateway if loaded and loaded.spec else None)
    comments = list(ignores(loaded.locator)) if loaded else []
    file = next((place.file for place in loaded.origins.values()), "") if loaded else ""
    found = list(_comments(comments, file))
    obeyed = [comment for comment in comments if not comment.wrong(_IDS)]
    for service in plan.services.values():
        for rule in RULES:
            if not rule.runtimes or service.definition.adapter in rule.runtimes:
                for hit in rule.look(service, box):
                    found.append(_located(_finding(rule, hit, service), service, obeyed, loaded, file))
    return sorted(_numbered(found), key=lambda finding: _ORDER.index(finding.severity))


_IDS = frozenset(rule.id for rule in RULES)


def _numbered(found: Iterable[Finding]) -> Iterator[Finding]:
    seen: Counter[str] = Counter()
    for finding in found:
        seen[finding.id] += 1
        count = seen[finding.id]
        yield finding if count == 1 else replace(finding, id=f"{finding.id}:{count}")


def _comments(comments: list[Ignore], file: str) -> Iterator[Finding]:
    for comment in comments:
        if wrong := comment.wrong(_IDS):
            service = comment.service or ""
            yield Finding(
                f"{IGNORE}:{service}",
                IGNORE,
                "comment",
                "warning",
                service,
                IGNORE,
                f"{wrong}, and is not obeyed",
                "# llmsupervisor: ignore C13 and the reason",
                "the finding that it is about is not told any more",
                {"rules": list(comment.rules)},
                "docs/rules.md",
                file=file,
                line=comment.line,
            )


def _finding(rule: Rule, hit: Hit, service: ServicePlan) -> Finding:
    return Finding(
        f"{rule.id}:{service.name}",
        rule.id,
        rule.name,
        rule.severity,
        service.name,
        hit.key,
        hit.says,
        hit.change,
        hit.effect or rule.effect,
        hit.evidence,
        rule.source,
        hit.requests,
        turns(service, hit.fix),
        bool(hit.fix) and not hit.judgement,
        fix=hit.fix,
    )


def _located(
    finding: Finding, service: ServicePlan, comments: list[Ignore], loaded: Loaded | None, file: str
) -> Finding:
    if loaded is None:
        return finding
    place = loaded.origins.get((service.name, finding.key))
    reasons = [c.reason for c in comments if c.covers(finding.rule, service.name, service.service.runtime)]
    return replace(
        finding,
        file=place.file if place else file,
        line=place.line if place else loaded.locator.line(("services", service.name)),
        ignored=reasons[0] if reasons else "",
    )


def fixed(text: str, *found: Finding) -> str | None:
    """The text with the changes of these findings, comments kept. None: one of them has no edits, or what is to go stands in
    `[defaults]`."""
    edits: dict[Path, Edit] = {}
    for finding in found:
        if not finding.fix:
            return None
        edits |= {("services", finding.service, *edit.path): edit for edit in finding.fix}
    try:
        for path in sorted(edits, key=lambda path: _last(path, edits[path])):
            value = edits[path].value
            if isinstance(path[-1], int):
                edit.remove(text, path)  # KeyError where the list stands elsewhere
            text = edit.remove(text, path) if value is None else edit.set_value(text, path, value)
    except KeyError:
        return None
    return text


def _last(path: Path, change: Edit) -> tuple[bool, int]:
    """Elements leave their list last and from its end on: none is moved before its turn."""
    leaves = change.value is None and isinstance(path[-1], int)
    return leaves, -int(path[-1]) if leaves else 0
