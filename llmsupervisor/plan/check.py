"""Is this text a spec that could run somewhere? Decided by the text and the definitions alone, everything at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmsupervisor.base.errors import Problem
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.runtime.load import foreign
from llmsupervisor.runtime.render import problems
from llmsupervisor.spec.load import Loaded, load
from llmsupervisor.spec.model import Service, Spec


@dataclass(frozen=True, slots=True)
class Checked:
    """`spec` is None exactly where there are `problems`; its paths are still those of the file (`spec.resolve`)."""

    loaded: Loaded
    spec: Spec | None
    problems: tuple[Problem, ...]


def check(text: str, file: str, definitions: Mapping[str, Definition]) -> Checked:
    """Every problem, in the order of the file."""
    loaded = load(text, file, foreign(definitions))
    found = list(loaded.problems)
    told = {problem.key for problem in found}
    for name, service in {**loaded.partial, **loaded.faulty}.items():
        if definition := definitions.get(service.runtime):
            found += [
                _located(problem, name, loaded, file)
                for problem in problems(name, service, definition)
                if problem.key not in told and not _left_out(problem.key, name, service, loaded)
            ]
    found.sort(key=lambda problem: problem.line)
    return Checked(loaded, None if found else loaded.spec, tuple(found))


def _left_out(key: str, name: str, service: Service, loaded: Loaded) -> bool:
    """The file says it, wrongly: what is wrong is told already, and it is not missing."""
    setting = key.removeprefix(f"services.{name}.").partition(".")[0]
    return (name, setting) in loaded.origins and setting not in service.model_fields_set


def _located(problem: Problem, name: str, loaded: Loaded, file: str) -> Problem:
    """With the line of the longest part of its key that stands in the file: in `[defaults]`, or in the service."""
    parts = problem.key.removeprefix(f"services.{name}").strip(".").split(".")
    while parts:
        if place := loaded.origins.get((name, ".".join(parts))):
            return problem.at(file, place.line)
        parts.pop()
    return problem.at(file, loaded.locator.line(("services", name)))
