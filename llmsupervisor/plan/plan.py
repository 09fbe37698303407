"""From a spec and the facts of this box to exactly what would be executed. One service's trouble never touches another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pydantic import ValidationError

from llmsupervisor.base.ids import Json
from llmsupervisor.plan import boxfacts, gate
from llmsupervisor.plan.answers import most
from llmsupervisor.plan.facts import Binary, Facts, executable_of, is_path, model_files, secret_ref
from llmsupervisor.plan.launch import Plan, Refusal, ServicePlan
from llmsupervisor.plan.measure import beside, capacity, need, sums
from llmsupervisor.plan.measure_vllm import pool_bytes
from llmsupervisor.plan.place import gpu_words, place
from llmsupervisor.plan.ports import assign
from llmsupervisor.plan.together import Crowded, crowded
from llmsupervisor.runtime.command import Given, Origin
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.runtime.render import problems, render
from llmsupervisor.runtime.values import default_of
from llmsupervisor.spec.load import Place
from llmsupervisor.spec.model import Service, Spec, cpu_list

HOST = "127.0.0.1"


def plan(
    spec: Spec, definitions: Mapping[str, Definition], facts: Facts, origins: Mapping[tuple[str, str], Place]
) -> Plan:
    """`spec` is checked (`check.py`) and resolved; `origins` are those of `Loaded`. Box facts become refusals."""
    ports = assign(spec, facts)
    services: dict[str, ServicePlan] = {}
    # whoever says where it lies comes first: "auto" goes where they leave room
    for name in sorted(ports, key=lambda name: gpu_words(spec.services[name]) == ["auto"]):
        service, port = spec.services[name], ports[name]
        refusals = tuple(boxfacts.port(name, service, port, spec.ports, facts))
        services[name] = _service(
            name,
            service,
            definitions[service.runtime],
            facts,
            port or 0,
            _origins(name, origins),
            _inputs(service, facts),
            refusals,
            _left(services, facts),
        )
    made = beside([services[name] for name in spec.services if name in services])
    waits = gate.crowded(made, facts)
    host = crowded(made, facts)
    return Plan({one.name: _beside_others(one, waits.get(one.name), host.get(one.name)) for one in made})


def _beside_others(plan: ServicePlan, waits: str | None, host: Crowded | None) -> ServicePlan:
    warnings = [text for text in (waits, host.warning if host else "") if text]
    refusals = [host.refusal] if host and host.refusal else []
    if not warnings and not refusals:
        return plan
    return replace(plan, warnings=(*plan.warnings, *warnings), refusals=(*plan.refusals, *refusals))


def _left(services: Mapping[str, ServicePlan], facts: Facts) -> dict[str, int]:
    """UUID → bytes that the services so far leave of it. A card that none of them is on has what is free now."""
    found: dict[str, int] = {}
    for card in facts.gpus or ():
        there = capacity(card)
        sizes = [need(plan, card.uuid) for plan in services.values() if card.uuid in plan.gpus]
        if there is not None:
            free = card.memory_free if not sizes and card.memory_free is not None else there
            # whoever says no size may take all of it
            found[card.uuid] = min(free, there) - sum(there if size is None else size for size in sizes)
    return found


def replan(
    wanted: Mapping[str, Json], name: str, definitions: Mapping[str, Definition], facts: Facts, port: int | None = None
) -> ServicePlan | None:
    """An earlier `wanted`, rendered by the running code with the facts of now: what a restart is decided on, and
    what going back to the last good generation starts. None: the running code cannot read or render it.

    Port: the one that the service named, else the kept one, else `port`.
    """
    try:
        service = Service.model_validate(wanted["service"])
        said = wanted["definition"]
        definition = Definition.model_validate(said) if isinstance(said, dict) else definitions[str(said)]
        inputs = tuple((str(path), str(digest)) for path, digest in wanted["inputs"])  # type: ignore[union-attr,misc,str-unpack]
    except (ValidationError, KeyError, TypeError, ValueError):
        return None
    if problems(name, service, definition):
        return None
    number = service.port or facts.kept_ports.get(name) or port or 0
    return _service(name, service, definition, facts, number, {}, inputs, ())


def is_users(definition: Definition) -> bool:
    """A user's own definition belongs to the spec: its content is part of `wanted`. A built-in one changes with us."""
    return is_path(definition.source)


def _service(
    name: str,
    service: Service,
    definition: Definition,
    facts: Facts,
    port: int,
    origins: Mapping[str, Origin],
    inputs: tuple[tuple[str, str], ...],
    refusals: tuple[Refusal, ...],
    left: Mapping[str, int] | None = None,
) -> ServicePlan:
    executable = executable_of(service, definition)
    binary = facts.binaries.get(executable, Binary(path=None))
    placed = place(name, service, definition, facts, left)
    batch = default_of("batch", definition)
    rendered = render(
        service,
        definition,
        Given(
            name=name,
            host=HOST,
            port=port,
            executable=binary.path or executable,
            gpus=tuple((gpu.uuid, gpu.index) for gpu in placed.gpus),
            gpu_totals=tuple(gpu.memory_total for gpu in placed.gpus),
            kv_cache_bytes=pool_bytes(service, facts, len(placed.gpus), batch)
            if definition.adapter == "vllm" and isinstance(batch, int)
            else None,
            origins=origins,
            environ=facts.environ,
            secrets={
                variable: digest
                for variable, secret in service.secret_env.items()
                if (digest := facts.secrets.get(secret_ref(secret.file, secret.env))) is not None
            },
            cpus=len(cpu_list(service.cpus)) or facts.cpus,
        ),
    )
    unknown, unchecked = boxfacts.flags(name, rendered.argv, binary, definition.name)
    threads = service.threads or 0
    made = ServicePlan(
        name=name,
        service=service,
        definition=definition,
        argv=rendered.argv,
        env=rendered.env,
        cwd=service.cwd or "",
        host=HOST,
        port=port,
        gpus=tuple(gpu.uuid for gpu in placed.gpus),
        inputs=inputs,
        watched=_watched(service, definition),
        artefacts=_artefacts(service, binary, facts),
        asked=rendered.asked,
        wanted=_wanted(service, definition, inputs),
        warnings=(
            *rendered.warnings,
            *unchecked,
            *(
                (f"services.{name}.threads: {threads} threads on {facts.cpus} CPUs: decoding gets slower, not faster",)
                if threads > facts.cpus
                else ()
            ),
        ),
        refusals=(
            *boxfacts.binary(name, binary),
            *boxfacts.files(name, service, definition, facts),
            *boxfacts.secrets(name, service, facts),
            *placed.refusals,
            *boxfacts.capability(name, service, definition, placed.gpus),
            *refusals,
            *unknown,
        ),
    )
    made = replace(made, memory=sums(made, facts))
    over = made.memory is not None and made.memory.over
    return replace(
        made,
        warnings=(*made.warnings, *gate.warnings(made)),
        refusals=(*made.refusals, *gate.refusals(made, most(made, facts) if over else None)),
    )


def _origins(name: str, origins: Mapping[tuple[str, str], Place]) -> dict[str, Origin]:
    return {key: Origin(place.kind, str(place)) for (service, key), place in origins.items() if service == name}


def _inputs(service: Service, facts: Facts) -> tuple[tuple[str, str], ...]:
    template = service.chat_template
    file = facts.files.get(template) if template and is_path(template) else None
    return ((template, file.sha256),) if template and file and file.sha256 else ()


def _wanted(service: Service, definition: Definition, inputs: tuple[tuple[str, str], ...]) -> dict[str, Json]:
    content = {**definition.model_dump(mode="json", exclude_unset=True), "source": definition.source}
    return {
        "service": service.model_dump(mode="json", exclude_unset=True),
        "definition": content if is_users(definition) else definition.name,
        "inputs": [list(item) for item in inputs],
    }


def _watched(service: Service, definition: Definition) -> tuple[str, ...]:
    paths = [service.chat_template] if service.chat_template and is_path(service.chat_template) else []
    paths += [secret.file for secret in service.secret_env.values() if secret.file]
    if is_users(definition):
        paths.append(definition.source)
    return tuple(sorted(set(paths)))


def _artefacts(service: Service, binary: Binary, facts: Facts) -> tuple[tuple[str, str], ...]:
    """The binary, then the files of the model; of a model directory its config.json."""
    found = [(binary.path, binary.identity)] if binary.path else []
    for _, path in model_files(service):
        file = facts.files.get(path)
        if file and file.kind == "dir":
            path = path.rstrip("/") + "/config.json"
            file = facts.files.get(path)
        if file and file.kind == "file":
            found.append((path, file.identity))
    return tuple(found)
