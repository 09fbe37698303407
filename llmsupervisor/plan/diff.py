"""What a new plan changes in what runs, and how what runs differs from what would be started now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from llmsupervisor.base.ids import Json, canonical
from llmsupervisor.plan.facts import Facts, model_files
from llmsupervisor.plan.launch import Plan, ServicePlan
from llmsupervisor.plan.plan import replan
from llmsupervisor.runtime.definition import Definition
from llmsupervisor.runtime.values import default_of, said
from llmsupervisor.spec.model import Service

Action = Literal["start", "stop", "restart", "live", "none"]


@dataclass(frozen=True, slots=True)
class Change:
    """`why` names the keys that differ: `context_length 2048 → 4096`."""

    service: str
    action: Action
    why: str = ""


def changes(
    old: Mapping[str, Mapping[str, Json]], new: Plan, definitions: Mapping[str, Definition], facts: Facts
) -> tuple[Change, ...]:
    """`old`: the `wanted` of every service that runs or would run. Stops first, then the order of the new plan.

    A restart is due only where both, rendered by the running code with the same facts, differ. Whether it can be
    made now is another question: see the new plan's refusals.
    """
    gone = [Change(name, "stop", "not in the spec any more, or disabled") for name in old if name not in new.services]
    return (*gone, *(_change(name, old.get(name), plan, definitions, facts) for name, plan in new.services.items()))


def _change(
    name: str,
    old: Mapping[str, Json] | None,
    plan: ServicePlan,
    definitions: Mapping[str, Definition],
    facts: Facts,
) -> Change:
    if old is None:
        return Change(name, "start", "new in the spec")
    if canonical(old) == canonical(plan.wanted):
        return Change(name, "none")
    if plan.service.port is None:  # a port that only the daemon chose moves at the next restart
        facts = replace(facts, kept_ports={**facts.kept_ports, name: plan.port})
    before = replan(old, name, definitions, facts)
    if before is None:
        return Change(name, "restart", "the spec that runs cannot be read by this version")
    keys = dict(_differing(before.service, plan.service))
    changed = [key for key in keys if _effective(key, before) != _effective(key, plan)]
    why = [keys[key] for key in changed]
    if before.inputs != plan.inputs:
        why.append("content of chat_template")
    if before.definition.name == plan.definition.name and before.wanted["definition"] != plan.wanted["definition"]:
        why.append(f"definition of runtime {plan.definition.name}")
    if before.fingerprint != plan.fingerprint or any(_at_start(key, plan.definition) for key in changed):
        return Change(name, "restart", ", ".join(why or _rendered(before.rendered, plan.rendered)))
    return Change(name, "live", ", ".join(why)) if why else Change(name, "none")


def _effective(key: str, plan: ServicePlan) -> Any:
    """What a key is worth: a production default that is spelled out is no change."""
    wish = said(key, plan.service)
    return default_of(key, plan.definition) if wish is None else wish


def _at_start(key: str, definition: Definition) -> bool:
    """Told to the engine by a request once it is up (Ollama's models): not seen in its command line."""
    setting = definition.settings.get(key)
    return setting is not None and setting.request is not None and setting.change == "restart"


def _differing(before: Service, after: Service) -> Iterator[tuple[str, str]]:
    """(key, `key old → new`). A spelled-out default of ours is no difference."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    for key in new:
        if old[key] == new[key]:
            continue
        if isinstance(old[key], dict):
            inner = sorted(k for k in old[key].keys() | new[key].keys() if old[key].get(k) != new[key].get(k))
            if key in ("env", "secret_env", "names"):
                yield key, ", ".join(f"{key}.{k}" for k in inner)
            else:
                yield key, ", ".join(f"{key}.{k} {_short(old[key].get(k))} → {_short(new[key].get(k))}" for k in inner)
        else:
            yield key, f"{key} {_short(old[key])} → {_short(new[key])}"


def _short(value: Any) -> str:
    if value is None:
        return "(not said)"
    text = value if isinstance(value, str) else canonical(value)
    return text if len(text) <= 60 else text[:59] + "…"


# --- drift --------------------------------------------------------------------------------------------------------


def drift(plan: ServicePlan, launch: Mapping[str, Any]) -> tuple[str, ...]:
    """`launch`: the `launch.json` of the run. One sentence for each way in which it is not what would be started now;
    of what cannot be started now (no GPU to be read, no binary) only the files are told.
    """
    rendered = () if plan.refusals else _rendered(launch.get("rendered") or {}, plan.rendered)
    return (*rendered, *_artefacts(plan, launch.get("artefacts") or []))


def _rendered(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    yield from _argv(old.get("argv") or [], new["argv"])
    if old.get("cpus") != new["cpus"]:
        yield f"cpus: {old.get('cpus') or 'all'} → {new['cpus'] or 'all'}"
    before, after = old.get("env") or {}, new["env"]
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            yield f"environment: {name} removed"
        elif name not in before:
            yield f"environment: {name} added"
        elif before[name] != after[name]:
            yield f"environment: {name} changed"
    if (old.get("cwd") or "") != new["cwd"]:
        yield f"cwd: {old.get('cwd') or '(its run folder)'} → {new['cwd'] or '(its run folder)'}"
    contents = {str(path): digest for path, digest in old.get("inputs") or []}
    for path, digest in new["inputs"]:
        if contents.get(path) != digest:
            yield f"content of {path} changed"


def _argv(old: list[str], new: list[str]) -> Iterator[str]:
    if old[:1] != new[:1]:
        yield f"argv: {_short(old[0] if old else None)} → {_short(new[0] if new else None)}"
    before, after = _grouped(old[1:]), _grouped(new[1:])
    for flag in {**before, **after}:
        if flag not in before:
            yield f"argv: {' '.join([flag, *after[flag]]).strip()} added"
        elif flag not in after:
            yield f"argv: {' '.join([flag, *before[flag]]).strip()} removed"
        elif before[flag] != after[flag]:
            yield f"argv: {flag} {_short(' '.join(before[flag]))} → {_short(' '.join(after[flag]))}".replace("  ", " ")


def _grouped(words: Iterable[str]) -> dict[str, list[str]]:
    """Flag → its values; a negative number is a value. Words before the first flag stand under an empty one."""
    groups: dict[str, list[str]] = {}
    flag = ""
    for word in words:
        if word.startswith("-") and not word[1:2].isdigit():
            flag = word
            groups.setdefault(flag, [])
        else:
            groups.setdefault(flag, []).append(word)
    return groups


def _artefacts(plan: ServicePlan, old: Iterable[Iterable[str]]) -> Iterator[str]:
    now = dict(plan.artefacts)
    model = str(plan.service.model).rstrip("/")
    models = {f"{model}/config.json", *(path for setting, path in model_files(plan.service) if setting == "model")}
    for path, identity in old:
        if path in now and now[path] != identity:
            what = "binary" if path == plan.words[0] else "model file" if path in models else "file"
            yield f"{what} replaced: {path}"
