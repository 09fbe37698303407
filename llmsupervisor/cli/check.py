"""`check`: every error of a spec at once, then what the linter finds in its plan. Starts nothing; `--fix` writes the spec."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import TYPE_CHECKING

from llmsupervisor.base.errors import Exit
from llmsupervisor.base.text import printable

if TYPE_CHECKING:
    from llmsupervisor.cli.specs import Read
    from llmsupervisor.plan.check import Checked
    from llmsupervisor.plan.facts import Facts
    from llmsupervisor.plan.lint import Finding
    from llmsupervisor.spec.model import Spec


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", nargs="?", help="the file (else -c and the usual places)")
    parser.add_argument("--json", action="store_true", help="problems and findings as JSON")
    parser.add_argument("--strict", action="store_true", help="warnings too end with exit code 3")
    parser.add_argument("--fix", action="store_true", help="make the changes that need no judgement; comments are kept")


def run(args: argparse.Namespace) -> int:
    from llmsupervisor.cli.specs import read

    found = read(args.spec or args.config)
    facts = _facts(found)
    fixes = _fix(found, facts) if args.fix else []
    if fixes:
        found = read(args.spec or args.config)
    findings = _findings(found, facts)
    (_print_json if args.json else _print)(found, fixes, findings)
    told = {finding.severity for finding in findings if not finding.ignored}
    wrong = found.checked.spec is None or "error" in told or (args.strict and "warning" in told)
    return Exit.SPEC_INVALID if wrong else Exit.OK


def _print_json(found: Read, fixes: list[Finding], findings: list[Finding]) -> None:
    import dataclasses
    import json

    told = {
        "v": 1,
        "path": str(found.path),
        "problems": [dataclasses.asdict(problem) for problem in found.checked.problems],
        "findings": [finding.to_json() for finding in findings],
        "fixed": [finding.to_json() for finding in fixes],
    }
    print(json.dumps(told, indent=1))


def _print(found: Read, fixes: list[Finding], findings: list[Finding]) -> None:
    for finding in fixes:
        print(f"fixed {finding.rule} of services.{finding.service}: {printable(finding.change)}", file=sys.stderr)
    for problem in found.checked.problems:
        print(problem, file=sys.stderr)
    told = [finding for finding in findings if not finding.ignored]
    for finding in told:
        for line in (str(finding), f"    do: {finding.change}", f"    source: {finding.source}"):
            print(printable(line), file=sys.stderr)
    spec = found.checked.spec
    if spec is not None:
        parts = [_count(len(spec.services), "service"), "no errors"]
        counts = Counter(finding.severity for finding in told)
        if counts["error"]:
            parts[1] = f"no errors in the text, {_count(counts['error'], 'error')} in the plan"
        parts += [_count(counts[s], s if s != "info" else "remark") for s in ("warning", "info") if counts[s]]
        if ignored := len(findings) - len(told):
            parts.append(f"{ignored} ignored with a reason")
        print(f"{found.path}: {', '.join(parts)}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")


def _facts(found: Read) -> Facts:
    """What rules look at of this box, without running any engine."""
    from dataclasses import replace

    from llmsupervisor.host.binaries import Cache
    from llmsupervisor.host.files import gather
    from llmsupervisor.host.gpu import once
    from llmsupervisor.host.gpufacts import gpu_facts
    from llmsupervisor.plan.facts import Facts, needs

    before = Facts()
    spec = _resolved(found)
    if any(service.gpus for service in spec.services.values()):
        sample = once(10.0)
        before = Facts(gpus=gpu_facts(sample), gpu_error=sample.error or "")
    wanted = replace(needs(spec, found.definitions), binaries=frozenset(), secrets=frozenset())
    return gather(wanted, Cache(), before)


def _findings(found: Read, facts: Facts) -> list[Finding]:
    """Also where other services of the file are wrong."""
    from llmsupervisor.plan.lint import lint
    from llmsupervisor.plan.plan import plan

    loaded = found.checked.loaded
    return lint(plan(_resolved(found), found.definitions, facts, loaded.origins), facts, loaded)


def _resolved(found: Read) -> Spec:
    from pathlib import Path, PurePosixPath

    from llmsupervisor.spec.resolve import resolve

    return resolve(_sound(found.checked), PurePosixPath(found.path.parent.absolute()), PurePosixPath(Path.home()))


def _sound(checked: Checked) -> Spec:
    """The spec, or what is right of it."""
    from llmsupervisor.spec.model import Spec

    if checked.spec is not None:
        return checked.spec
    wrong = [problem.key for problem in checked.problems]
    right = {
        name: service
        for name, service in checked.loaded.partial.items()
        if not any(key.startswith(f"services.{name}.") for key in wrong)
    }
    return Spec(services=right)


def _fix(found: Read, facts: Facts) -> list[Finding]:
    """What was changed in the file; a change after which the spec is no longer right is not made."""
    from dataclasses import replace

    from llmsupervisor.host.files import read_spec, rewrite
    from llmsupervisor.plan.check import check
    from llmsupervisor.plan.lint import fixed

    if found.checked.spec is None:
        return []
    base, (text, _) = found.checked.loaded.sha256, read_spec(found.path)
    done: list[Finding] = []
    tried: set[str] = set()
    while finding := next(
        (f for f in _findings(found, facts) if f.fixable and not f.ignored and str(f) not in tried), None
    ):
        tried.add(str(finding))
        if (changed := fixed(text, finding)) is None:
            continue
        checked = check(changed, str(found.path), found.definitions)
        if checked.spec is not None:
            text, found = changed, replace(found, checked=checked)
            done.append(finding)
    if done:
        rewrite(found.path, base, text)
    return done
