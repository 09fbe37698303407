"""What the linter finds in the plan that is applied: conditions of services, and the answer to `advice`. It holds nothing up."""

from __future__ import annotations

import difflib
import sys
import traceback
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llmsupervisor.base.errors import LlmsupervisorError, UsageError
from llmsupervisor.daemon.observed import Look
from llmsupervisor.daemon.runner import Runner
from llmsupervisor.daemon.source import Applied, Planned
from llmsupervisor.plan import lint
from llmsupervisor.plan.diff import Change
from llmsupervisor.plan.lint import Finding
from llmsupervisor.spec.edit import Conflict

SHOWN = ("error", "warning")
"""What is a condition; the rest is only told by `advice` and `check`."""
OBSERVED = frozenset(rule.id for rule in lint.RULES if rule.observed)
IDS = (lint.IGNORE, *(rule.id for rule in lint.RULES))


def findings(planned: Planned, seen: Look) -> list[Finding]:
    """A rule that fails holds nothing up either: that is a finding of its own."""
    try:
        return lint.lint(planned.plan, planned.facts, planned.applied.loaded, seen)
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        says = f"the linter failed: {type(error).__name__}: {error}"
        change = "report it; nothing else depends on it"
        return [
            Finding(
                "internal:",
                "internal",
                "internal",
                "warning",
                "",
                "",
                says,
                change,
                "findings are told again",
                {},
                "our own bug",
            )
        ]


def show(runners: Mapping[str, Runner], found: Iterable[Finding]) -> None:
    """One condition for each rule that finds something in a service; gone when it is cured, or ignored with a reason. The figures
    of an observed one are those of its beginning: they move with every request, and `advice` tells those of now."""
    texts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for finding in found:
        if finding.severity in SHOWN and not finding.ignored:
            texts[finding.service, finding.rule].append(finding.says)
    for name, runner in runners.items():
        for id in IDS:
            if not (id in OBSERVED and (name, id) in texts and runner.conditions.has(id)):
                runner.conditions.set(id, "; ".join(texts[name, id]) if (name, id) in texts else "")


def fixed(applied: Applied, found: Sequence[Finding], ids: Sequence[str], base: str | None) -> str:
    """The applied text with the changes of these findings. `base`: the SHA-256 of the text that the asker looked at."""
    if base is not None and base != applied.sha256:
        raise LlmsupervisorError(str(Conflict(base, applied.sha256)))
    by_id = {finding.id: finding for finding in found}
    if missing := [id for id in ids if id not in by_id]:
        raise UsageError(f"no finding {', '.join(missing)}; there are: {', '.join(by_id) or 'none'}")
    for id in ids:
        if lint.fixed(applied.text, by_id[id]) is None:
            raise LlmsupervisorError(f"{id} has no change that can be staged: in the spec, by hand: {by_id[id].change}")
    return lint.fixed(applied.text, *(by_id[id] for id in ids)) or applied.text


def staged(
    path: str, applied: Applied, planned: Planned, seen: Look, found: Sequence[Finding], changes: Iterable[Change]
) -> dict[str, Any]:
    """What a changed text is, and what it would do."""
    before, after = (text.splitlines(keepends=True) for text in (applied.text, planned.applied.text))
    known = {(finding.rule, finding.service, finding.key) for finding in found}
    return {
        "path": path,
        "base": applied.sha256,
        "sha256": planned.applied.sha256,
        "diff": "".join(difflib.unified_diff(before, after, path, path)),
        "changes": [{"service": c.service, "action": c.action, "why": c.why} for c in changes],
        "refusals": [
            {"service": plan.name, "text": refusal.text}
            for plan in planned.plan.services.values()
            for refusal in plan.refusals
        ],
        "findings": [f.to_json() for f in findings(planned, seen) if (f.rule, f.service, f.key) not in known],
    }
