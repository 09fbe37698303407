"""What holds for a runtime that its definition describes completely. The other adapters build on it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmsupervisor.base.errors import Problem
from llmsupervisor.base.ids import Json
from llmsupervisor.runtime.command import Arg, EnvVar, Given
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.runtime.engine import Allocated, Call, Figures, Work, compare
from llmsupervisor.runtime.exposition import parse, values
from llmsupervisor.runtime.models import Model
from llmsupervisor.runtime.values import Value, value
from llmsupervisor.spec.model import Service


class Generic:
    def __init__(self, definition: Definition) -> None:
        self.definition = definition

    def value(self, key: str, service: Service, given: Given) -> Value | None:
        return value(key, service, self.definition, given)

    def problems(self, name: str, service: Service) -> list[Problem]:
        """Contradictions between keys; single keys are `render.problems`'."""
        return []

    def names(self, name: str, service: Service) -> tuple[str, ...]:
        """Under which the engine knows its models; a server that is told a path and no name takes the path for one."""
        return (service.model or name,)

    def models(self, service: Service) -> tuple[Model, ...]:
        """That it creates, loads and unloads by itself, each a target of its own."""
        return ()

    def derive(self, service: Service, given: Given) -> tuple[Arg | EnvVar, ...]:
        """What a table cannot say. An argument with a `setting` is placed where that setting stands."""
        return ()

    def warnings(self, service: Service, given: Given) -> tuple[str, ...]:
        return ()

    def asked(self, service: Service, given: Given) -> dict[str, Json]:
        return {}

    def calls_got(self) -> tuple[Call, ...]:
        """To be made once the engine is ready; `got` and `identity` read the answers by path."""
        return ()

    def got(self, payloads: Mapping[str, Any], log_text: str) -> dict[str, Json]:
        return {}

    def compare(self, asked: Mapping[str, Json], got: Mapping[str, Json]) -> list[str]:
        return compare(asked, got)

    def misread(self, env: Mapping[str, str], log_text: str) -> list[str]:
        """Of the environment that it was started with, what its log says it took for something else."""
        return []

    def identity(self, payloads: Mapping[str, Any], name: str, service: Service) -> str:
        """Why what answers is not our engine with our model; "" = nothing against it."""
        return ""

    def calls_figures(self) -> tuple[Call, ...]:
        return (Call("GET", self.definition.metrics.path),) if self.definition.metrics else ()

    def figures(self, metrics_text: str | None, slots: Any = None) -> Figures:
        names = self.definition.metrics.names if self.definition.metrics else {}
        samples = parse(metrics_text or "")

        def total(name: str) -> int | None:
            found = values(samples, names.get(name, ()))
            return round(sum(found)) if found else None

        def work(name: str) -> Work:
            """Its tokens are those of `NAME_tokens_total` where the seconds are not of another count."""
            tokens = values(samples, names.get(f"{name}_timed_tokens_total", names.get(f"{name}_tokens_total", ())))
            seconds = values(samples, names.get(f"{name}_seconds_total", ()))
            return Work(sum(tokens), sum(seconds)) if tokens and seconds else Work()

        usage = values(samples, names.get("kv_cache_usage", ()))
        prompt, completion = total("prompt_tokens_total"), total("completion_tokens_total")
        hits, queries = total("prefix_hits_total"), total("prefix_queries_total")
        if "prefix_queries_total" not in names and hits is not None and prompt is not None:
            queries = hits + prompt
        return Figures(
            requests_running=total("requests_running"),
            requests_waiting=total("requests_waiting"),
            kv_cache_usage=max(usage) if usage else None,
            prompt_tokens_total=prompt,
            completion_tokens_total=completion,
            preemptions_total=total("preemptions_total"),
            prefill=work("prompt"),
            decode=work("completion"),
            prefix_hits_total=hits,
            prefix_queries_total=queries,
            draft_tokens_total=total("draft_tokens_total"),
            draft_accepted_total=total("draft_accepted_total"),
            progress=None if prompt is None and completion is None else (prompt, completion, *usage),
        )

    def allocated(self, log_text: str) -> Allocated | None:
        """From the log of a load; None: it does not say."""
        return None


def step_of(definition: Definition, log: str) -> str | None:
    """What a start is at, by what its log says last; None: nothing that the definition knows."""
    found: tuple[int, str] | None = None
    for step in definition.ready.steps:
        for match in re.finditer(step.pattern, log):
            if found is None or match.start() >= found[0]:
                found = match.start(), step.says.format(**match.groupdict(""))
    return found[1] if found else None


def fill(body: Any, model: str) -> Any:
    """A probe's body with the target's name for `{model}`."""
    if isinstance(body, dict):
        return {key: fill(item, model) for key, item in body.items()}
    if isinstance(body, list):
        return [fill(item, model) for item in body]
    return model if body == "{model}" else body


def probe(definition: Definition, task: str, model: str) -> Call | None:
    """The tiny request of `task` to `model`; None where the definition has none."""
    for name, request in definition.probe.items():
        if name == task:
            return Call("POST", request.path, fill(request.body, model))
    return None
