"""From the text of a spec to a `Spec`, or to everything that is wrong with it, each with file and line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from llmsupervisor.base.errors import Problem
from llmsupervisor.base.ids import sha256
from llmsupervisor.spec import check
from llmsupervisor.spec.guide import example
from llmsupervisor.spec.locate import Locator, Path, locate
from llmsupervisor.spec.model import Service, Spec, Table
from llmsupervisor.spec.near import near
from llmsupervisor.spec.translate import Finding, dotted, findings, toml

LIMIT = 1024**2
"""Bytes; a longer text is no spec."""
TABLE_KEYS = frozenset({"restart", "probe", "slo", "leak", "env", "secret_env", "names"})
"""Settings of a service that are tables; every other table in `[defaults]` is named after a runtime."""
ANY_RUNTIME = "*"
NO_SERVICES = "the spec names no service; nothing is changed (to stop everything: llmsupervisor down)"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a setting of a service was said."""

    kind: Literal["spec", "defaults"]
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """`spec` is None exactly where there are `problems`; `partial` then holds the services that are right, `faulty` the
    others without their wrong settings."""

    spec: Spec | None
    problems: tuple[Problem, ...]
    partial: Mapping[str, Service]
    faulty: Mapping[str, Service]
    origins: Mapping[tuple[str, str], Place]
    """(service, key) → place; inside a table also (service, "restart.burst")."""
    locator: Locator
    sha256: str


def load(text: str, file: str, foreign: Mapping[str, Mapping[str, str]] | None = None) -> Loaded:
    """`foreign`: per known runtime its own words → our key or a sentence; `*`: words of every runtime. It has an entry
    for each runtime that there is; where it has none at all, names of runtimes are not checked."""
    digest = sha256(text.encode(errors="surrogatepass"))
    document, problem = _parse(text)
    if problem is not None:
        return Loaded(None, (replace(problem, file=file),), {}, {}, {}, Locator({}), digest)
    reader = _Reader(document, file, locate(text), foreign or {})
    spec = reader.spec()
    problems = tuple(sorted(reader.problems.values(), key=lambda p: p.line))
    partial = {name: service for name, service in reader.services.items() if name not in reader.blamed}
    faulty = {name: service for name, service in reader.services.items() if name in reader.blamed}
    return Loaded(None if problems else spec, problems, partial, faulty, reader.origins, reader.locator, digest)


_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def _parse(text: str) -> tuple[dict[str, Any], Problem | None]:
    if len(text.encode(errors="surrogatepass")) > LIMIT:
        return {}, Problem("", f"the spec is longer than {LIMIT} bytes")
    if text.startswith("\ufeff"):
        return {}, Problem("", "the text starts with a byte order mark: save it as UTF-8 without one", line=1)
    try:
        document = tomllib.loads(text)
    except RecursionError:
        return {}, Problem("", "lists or tables are nested too deeply")
    except ValueError as error:  # also a number of more digits than Python reads
        return {}, _syntax(text, str(error))
    if path := next(_oversized((), document), None):
        allowed = "-9223372036854775808 to 9223372036854775807"
        return {}, Problem(dotted(path), "the number is too large for TOML", allowed, line=locate(text).line(path))
    return document, None


def _oversized(path: Path, value: object) -> Iterator[Path]:
    """TOML's whole numbers have 64 bits; tomllib reads longer ones."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from _oversized((*path, key), part)


def _syntax(text: str, message: str) -> Problem:
    """tomllib's message ends with its place."""
    place = _AT.search(message)
    if place is None:
        return Problem("", f"not valid TOML: {message}")
    what = message[: place.start()]
    last = text.count("\n") + (not text.endswith("\n"))
    line, column = (int(place[1]), int(place[2])) if place[1] else (last, 0)
    if what.startswith("Cannot declare "):
        rows = text.split("\n")
        path = tuple(part for part in max(locate(rows[line - 1]).lines, key=len) if isinstance(part, str))
        first = locate("\n".join(rows[: line - 1])).lines.get(path)
        again = f"stands twice, first on line {first}" if first else "stands twice"
        return Problem(dotted(path), again, "each name once", line=line)
    where = f"column {column}" if column else "end of the text"
    return Problem("", f"not valid TOML: {what} ({where})", line=line)


@dataclass(slots=True)
class _Reader:
    document: dict[str, Any]
    file: str
    locator: Locator
    foreign: Mapping[str, Mapping[str, str]]
    problems: dict[tuple[Path, str], Problem] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    """Those with wrong settings are here without these settings, so that the rest of them is checked too."""
    origins: dict[tuple[str, str], Place] = field(default_factory=dict)
    blamed: set[str] = field(default_factory=set)
    """Services with a problem."""

    def spec(self) -> Spec:
        top, found = _validated(Spec, {**self.document, "services": {}}, self.words(None))
        self.add(found)
        raw = self.document.get("services", {})
        if not isinstance(raw, dict):
            self.add(
                [Finding(("services",), Problem("", f"expected a table, found {toml(raw)}", example="[services.chat]"))]
            )
        elif not raw:
            self.add([Finding(("services",), Problem("", NO_SERVICES, example="[services.chat]"))])
        else:
            self.read_services(raw)
        self.add(check.across(self.services))
        spec = top.model_copy(update={"services": self.services})
        self.add(check.whole(spec))
        return spec

    def read_services(self, raw: dict[str, Any]) -> None:
        general, special = self.defaults()
        used = {runtime for own in raw.values() if (runtime := _runtime(own, general)) is not None}
        self.check_defaults(general, special, used)
        for name, own in raw.items():
            self.add(check.service_name(name), name)
            if not isinstance(own, dict):
                wrong = f"expected a table, found {toml(own)}"
                self.add([Finding(("services", name), Problem("", wrong, example="[services.chat]"))], name)
                continue
            runtime = _runtime(own, general)
            layers: list[tuple[Path, Mapping[str, Any]]] = [(("defaults",), general)]
            if runtime in special:
                layers.append((("defaults", runtime), special[runtime]))
            self.read_service(name, runtime, _merged([*layers, (("services", name), own)]))

    def defaults(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        raw = self.document.get("defaults", {})
        general: dict[str, Any] = {}
        special: dict[str, dict[str, Any]] = {}
        for key, value in (raw if isinstance(raw, dict) else {}).items():
            if isinstance(value, dict) and key not in TABLE_KEYS:
                special[key] = value
            else:
                general[key] = value
        return general, special

    def check_defaults(self, general: dict[str, Any], special: dict[str, dict[str, Any]], used: set[str]) -> None:
        """Also where no service takes them."""
        known = used | self.foreign.keys() - {ANY_RUNTIME}
        self.check_layer(("defaults",), general, None)
        for runtime, table in special.items():
            self.check_layer(("defaults", runtime), table, runtime)
            if runtime not in known:
                meant = near(runtime, known | TABLE_KEYS)
                wrong = "is neither a setting nor a runtime"
                self.add([Finding(("defaults", runtime), Problem("", wrong, ", ".join(sorted(known)), meant))])

    def check_layer(self, base: Path, table: dict[str, Any], runtime: str | None) -> None:
        _, found = _validated(Service, {"runtime": "any", **table}, self.words(runtime))
        self.add(Finding(base + path, problem) for path, problem in found)

    def read_service(self, name: str, runtime: str | None, merged: _Merged) -> None:
        words = self.words(runtime)

        def add(found: Iterable[Finding]) -> None:
            self.add((Finding(merged.source(path), problem) for path, problem in found), name)

        service, found = _validated(Service, merged.values, words)
        self.services[name] = service
        add(found)
        add(check.service(service, words))
        known = self.foreign.keys() - {ANY_RUNTIME}
        if runtime is not None and known and runtime not in known:
            problem = Problem(
                "",
                f"there is no runtime {toml(runtime)}",
                ", ".join(sorted(known)),
                near(runtime, known),
                example(Service, "runtime"),
            )
            add([Finding(("runtime",), problem)])
        for path, source in merged.sources.items():
            kind: Literal["spec", "defaults"] = "defaults" if source[0] == "defaults" else "spec"
            self.origins[name, ".".join(map(str, path))] = Place(kind, self.file, self.locator.line(source))

    def words(self, runtime: str | None) -> dict[str, str]:
        """Of one runtime; where it is not known, of all."""
        tables = [self.foreign[runtime]] if runtime and runtime in self.foreign else list(self.foreign.values())
        return {
            word: answer for table in [self.foreign.get(ANY_RUNTIME, {}), *tables] for word, answer in table.items()
        }

    def add(self, found: Iterable[Finding], service: str | None = None) -> None:
        """A problem of `[defaults]` is told once, however many services have it."""
        for path, problem in found:
            names = (service,) if service else path[1:2] if path[0] == "services" else ()
            self.blamed.update(map(str, names))
            told = replace(problem, key=dotted(path), file=self.file, line=self.locator.line(path))
            self.problems.setdefault((path, "" if path[0] == "defaults" else problem.wrong), told)


_Table = TypeVar("_Table", bound=Table)


def _validated(
    table: type[_Table], values: Mapping[str, Any], foreign: Mapping[str, str]
) -> tuple[_Table, list[Finding]]:
    """With what is wrong left out, so that the rest can be checked further."""
    try:
        return table.model_validate(values), []
    except ValidationError as error:
        found = list(findings(error, values, table, foreign))
    wrong = {finding.path[0] for finding in found}
    right = {key: value for key, value in values.items() if key not in wrong}
    return table.model_validate({"runtime": "unknown", **right} if "runtime" in table.model_fields else right), found


def _runtime(own: object, general: Mapping[str, Any]) -> str | None:
    runtime = (own if isinstance(own, dict) else {}).get("runtime", general.get("runtime"))
    return runtime if isinstance(runtime, str) and runtime else None


@dataclass(frozen=True, slots=True)
class _Merged:
    """The settings of one service, and for each where in the file it was said."""

    values: dict[str, Any]
    sources: dict[Path, Path]
    own: Path

    def source(self, path: Path) -> Path:
        for length in range(len(path), 0, -1):
            if path[:length] in self.sources:
                return self.sources[path[:length]] + path[length:]
        return self.own + path


def _merged(layers: Sequence[tuple[Path, Mapping[str, Any]]]) -> _Merged:
    """The later layer wins; tables are merged key by key."""
    values: dict[str, Any] = {}
    sources: dict[Path, Path] = {}
    for base, table in layers:
        for key, value in table.items():
            if isinstance(value, dict) and isinstance(values.get(key), dict):
                values[key] = {**values[key], **value}
            else:
                values[key] = value
                sources = {path: source for path, source in sources.items() if path[0] != key}
            sources[(key,)] = (*base, key)
            for inner in value if isinstance(value, dict) else ():
                sources[(key, inner)] = (*base, key, inner)
    return _Merged(values, sources, layers[-1][0])
