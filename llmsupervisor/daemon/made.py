"""What the models of an Ollama were made from: kept, so that a file that is another one by now is noticed."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from llmsupervisor.host.binaries import identity
from llmsupervisor.runtime.adapter import adapter_for
from llmsupervisor.runtime.models import canonical

if TYPE_CHECKING:
    from llmsupervisor.daemon.runner import Runner
    from llmsupervisor.runtime.models import Model


def file_identity(path: str) -> str:
    """Empty: there is none."""
    try:
        return identity(os.stat(path)) if path else ""
    except OSError:
        return ""


def tags_of(runner: Runner) -> set[str]:
    """Of ours that it has, has not left yet, or needs at its next start: canonical."""
    plan, entries = runner.plan, runner.models.entries.values()
    needed = {model.tag for model in adapter_for(plan.definition).models(plan.service)}
    return set(map(canonical, needed | {tag for e in entries for tag in (e.model.tag, e.superseded) if tag}))


def folder_of(runner: Runner) -> str:
    """Where it keeps its models; empty: it keeps none."""
    return next((item.value for item in runner.plan.env if item.name == "OLLAMA_MODELS"), "")


def ours(made: Mapping[str, str]) -> bool:
    """We made it. One that was there before, and whose making nobody saw, may be the user's."""
    return bool(made["sha256"] or not made["file"])


class Made:
    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def of(self, tag: str) -> Mapping[str, str] | None:
        """None: not known."""
        return self._known.get(tag)

    def remember(self, model: Model, identity: str, digest: str) -> None:
        """`digest`: empty where nobody saw how it was made."""
        self._known[model.tag] = {"file": model.file, "identity": identity, "sha256": digest}
        self._runner.box.save()

    def forget(self, tag: str) -> None:
        if self._known.pop(tag, None) is not None:
            self._runner.box.save()

    def left(self, kept: Collection[str]) -> list[str]:
        """Tags that we made, and that are not `kept`, which are canonical."""
        return [tag for tag, made in self._known.items() if canonical(tag) not in kept and ours(made)]

    def bequeath(self, others: Iterable[Runner]) -> None:
        """The service goes from the spec: what it made is tidied by another one that has the same folder."""
        folder = folder_of(self._runner)
        heir = next((other for other in others if folder and folder_of(other) == folder), None)
        if heir is not None:
            known = heir.models.made._known
            for tag, made in self._known.items():
                if ours(made) and not (tag in known and ours(known[tag])):
                    known[tag] = made

    def replaced(self, model: Model) -> str:
        """In words; empty: it is not. A file that is gone changes nothing."""
        made, now = self.of(model.tag), file_identity(model.file)
        other = made is not None and now and made["identity"] != now
        return f"model file of {model.name} replaced: {model.file}" if other else ""

    @property
    def _known(self) -> dict[str, dict[str, str]]:
        return self._runner.box.desired.wish(self._runner.name).made
