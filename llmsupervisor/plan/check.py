"""Is this text a spec that could run somewhere? Decided by the text and the definitions alone, everything at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llmsupervisor.base.errors import Problem
from llmsupervisor.runtime.adapter import adapter_for
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.runtime.load import foreign
from llmsupervisor.runtime.models import Model
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
    found += [_located(problem, name, loaded, file) for name, problem in _overwritten(loaded.partial, definitions)]
    found.sort(key=lambda problem: problem.line)
    return Checked(loaded, None if found else loaded.spec, tuple(found))


def _overwritten(
    services: Mapping[str, Service], definitions: Mapping[str, Definition]
) -> Iterator[tuple[str, Problem]]:
    """Two services with one folder of models make one tag of two files: each would take the other's model away."""
    first: dict[tuple[str, str], tuple[str, Model]] = {}
    for name, service in services.items():
        folder = service.env.get("OLLAMA_MODELS") or service.env.get("HOME") or ""
        definition = definitions.get(service.runtime)
        for model in adapter_for(definition).models(service) if definition else ():
            other, known = first.setdefault((folder, model.tag), (name, model))
            if other != name and known.file != model.file:
                wrong = (
                    f"{model.name!r} with context_length {model.context_length} is made from {_source(model)}, and in "
                )
                wrong += f"services.{other} from {_source(known)}: in one folder of models both are {model.tag}"
                allowed = 'the same file, another name, or a folder of its own: env = { OLLAMA_MODELS = "…" }'
                yield name, Problem(f"services.{name}.models", wrong, allowed)


def _source(model: Model) -> str:
    return model.file or f"Ollama's {model.base}"


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
